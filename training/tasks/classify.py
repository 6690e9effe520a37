"""The classification task: one class per image."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import common, loading
from core.errors import UserError
from input_pipeline.sources.base import Examples, Kind
from input_pipeline.sources.pictures import read_pictures
from input_pipeline.transforms import mixing
from metrics import classification
from run_folder import identity as identity_lib
from run_folder import layout
from run_folder.predictions import Logits, join_folds
from training.checkpointing import init_from
from training.loop.predict import Prediction, make_predict_step, predict
from training.loop.stages import Stage
from training.loop.state import (
    AbstractModel,
    abstract_weights,
    make_abstract_model,
)
from training.loop.step import Loss
from training.multihost import comm
from training.tasks import grad_cam, test_time_views
from training.tasks.base import Direction, Task
from training.tasks.classification_evaluator import ClassificationEvaluator
from training.tasks.losses import describe_loss, loss_constants, make_loss
from training.tasks.networks import build_encoder
from training.tasks.unread_fields import LOSS_FIELDS

if TYPE_CHECKING:
    from reports.page import Section
    from run_folder.artifacts import ArtifactWriter
    from training.data import Data
    from training.photos import Photos

# What stacking asks for at least (MIN_ROWS in stacking/pipeline.py).
FEWEST_ROWS_TO_STACK = 10

LOSSES = ("cross_entropy", "focal")


class Classification(Task):
    """Images to classes, validated on one fold; see `Task`."""

    name: ClassVar[str] = "classify"
    features: ClassVar[Mapping[str, Kind]] = {
        "image": Kind.IMAGE,
        "label": Kind.LABEL,
    }
    metrics: ClassVar[Mapping[str, Direction]] = {
        "val_macro_f1": "max",
        "val_accuracy": "max",
        "val_loss": "min",
    }
    loss_fields: ClassVar[frozenset[str]] = frozenset(LOSS_FIELDS)
    chooses_views: ClassVar[bool] = True
    explains: ClassVar[bool] = True
    learns_labels: ClassVar[bool] = True
    takes_generated: ClassVar[bool] = True

    def __init__(self, config: ConfigDict, classes: Sequence[str] = ()):
        super().__init__(config, classes)
        self._teachers: dict[str, tuple[init_from.Run, AbstractModel]] = {}
        self._teacher_channels: dict[str, dict[str, list[float]]] = {}
        self._predict_step = self._heat_step = None

    @classmethod
    def problems(cls, config: ConfigDict) -> Iterator[str]:
        """See `Task.problems`."""
        yield from super().problems(config)
        for index, stage in enumerate(config.stages):
            if stage.loss and stage.loss not in LOSSES:
                yield (
                    f"stages[{index}].loss is {stage.loss!r}: choose one of "
                    f"{', '.join(LOSSES)}"
                )
            if stage.class_weight and stage.effective_number:
                yield (
                    f"stages[{index}] has class_weight and effective_number: "
                    "choose one of them"
                )

    def build(self) -> nnx.Module:
        """Returns the freshly initialised model."""
        return build_encoder(self.config, len(self.classes))

    def describe_data(self, data: Data) -> dict[str, str]:
        """Returns what the plan says of the rows, as {heading: text}."""
        if len(data.val_rows) >= FEWEST_ROWS_TO_STACK:
            return {}
        return {
            "note": "too few validation images to stack this run later; lower "
            "data.folds"
        }

    def describe_stage(self, stage: Stage) -> str:
        """Returns what the plan says of mixing and loss."""
        c = stage.config
        mix = mixing.Mixing(**common.merged(self.config, c, "mixing"))
        words = [
            f"{mix.prob:.0%} of the batches mixed: MixUp {mix.mixup_prob:.0%}",
            f"CutMix {1 - mix.mixup_prob:.0%}",
        ]
        alphas = dict.fromkeys((mix.mixup_alpha, mix.cutmix_alpha))
        words.append("alpha " + " and ".join(f"{a:g}" for a in alphas))
        return ", ".join((*words, *describe_loss(c)))

    def open_teachers(
        self, workdir: Path, identity: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Opens the runs that stages are distilled from; see `Task`."""
        # A teacher may have trained on since this run began.
        pins = comm.run_on_primary(
            lambda: layout.read_data(workdir).get("teachers") or {}
        )
        fold = self.config.data.fold
        found = {}
        for index, stage in enumerate(self.config.stages):
            name, place = stage.distill_from, f"stages.{index}"
            if not name:
                continue
            run = init_from.open_run(
                name, workdir, fold, "distill_from", pins.get(place)
            )
            _check_teacher(run, identity, fold, self.config.image_size)
            self._teachers[name] = run, self._abstract_model_of(run)
            self._teacher_channels[name] = run.channels
            found[place] = run.pin
        return {"teachers": found} if found else {}

    def loss(
        self, stage: Stage, mesh: Mesh, *, shapes_only: bool = False
    ) -> Loss:
        """Returns the loss of `stage`: see `make_loss`."""
        c = stage.config
        known = self.statistics
        constants = loss_constants(
            c, known.mean, known.std, known.class_prior, known.rows
        )
        teacher = None
        if c.distill_from:
            run, teacher = self._teachers[c.distill_from]
            weights = abstract_weights if shapes_only else run.weights
            constants["teacher"] = weights(teacher, mesh)
            seen = known.with_channels(self._teacher_channels[c.distill_from])
            constants["teacher_channels"] = seen.channels
        mix = mixing.Mixing(**common.merged(self.config, c, "mixing"))
        return Loss(make_loss(c, teacher), constants, make_prepare(mix))

    def evaluator(self) -> ClassificationEvaluator:
        """Returns what counts the confusion matrix."""
        return ClassificationEvaluator(len(self.classes))

    def export(
        self,
        data: Data,
        writer: ArtifactWriter,
        params: dict,
        batch_stats: dict,
    ) -> str:
        """Writes `logits/val.npz` and, if there are test rows, `test.npz`.

        Returns:
          A sentence on the validation score, without and with TTA.
        """
        source, tta = data.source, self.config.eval.tta
        prior = self.statistics.class_prior

        def predicted(examples, rows, views) -> Prediction:
            batches = data.rows(examples, rows, views)
            return self._predict(batches, rows, params, batch_stats, data.mesh)

        rows, known = data.val_rows, source.labelled
        labels, halves = known.labels[rows], data.halves(rows)
        found = predicted(known, rows, common.view_sets(tta)[-1])
        averaged = test_time_views.average(found, prior, labels, halves, tta)
        self.views = averaged.views
        splits = [("val", known, rows, averaged.logits, data.folds[rows])]
        if (test := source.test) is not None:
            rows = np.arange(len(test))
            logits = predicted(test, rows, self.views).mean(prior)
            nowhere = np.full(len(rows), -1, np.int32)
            splits.append(("test", test, rows, logits, nowhere))

        def write() -> None:
            learned_from = layout.read_data(writer.workdir)
            for split, *found in splits:
                writer.logits(split, self._logits(data, learned_from, *found))

        comm.run_on_primary(write)
        return averaged.told

    def predict(
        self, photos: Photos, params: dict, batch_stats: dict, files=None
    ) -> list[dict[str, Any]]:
        """Returns class and probabilities of each photo; see `Task`."""
        transform = self.eval_transform(self.config, None, self.views)
        batches = photos.batches(photos.examples, photos.rows, transform)
        found = self._predict(
            batches, photos.rows, params, batch_stats, photos.mesh
        )
        logits = found.mean(self.statistics.class_prior)
        probabilities = np.exp(classification.log_softmax(logits))
        pictures: list[dict[str, str]] = [{}] * len(logits)
        if files is not None:
            if self._heat_step is None:
                self._heat_step = grad_cam.make_heat_step(
                    self.abstract_model, self.statistics, photos.mesh
                )
            drawn = grad_cam.explain(
                functools.partial(self._heat_step, params, batch_stats),
                photos,
                self.eval_transform(self.config, None, self.views[:1]),
                probabilities.argmax(axis=1),
                files,
            )
            pictures = [{"explanation": path} for path in drawn]
        return [
            {
                "class": self.classes[row.argmax()],
                "probability": float(row.max()),
                "probabilities": dict(
                    zip(self.classes, row.tolist(), strict=True)
                ),
                **picture,
                "bad": bool(bad),
            }
            for row, bad, picture in zip(
                probabilities, found.bad, pictures, strict=True
            )
        ]

    def answer(self, model: nnx.Module, images: jax.Array) -> jax.Array:
        """Returns logits, float32 [B, C]."""
        return model(images).astype(jnp.float32)

    @classmethod
    def report_sections(cls, workdir: Path) -> Sequence[Section]:
        """Returns scores, confusion matrix and the worst mistakes."""
        from reports.classification import classification_sections

        data = (layout.read_config(workdir) or {}).get("data", {})
        pictures = functools.partial(read_pictures, data)
        return classification_sections(workdir, pictures)

    @classmethod
    def join_folds(
        cls, workdir: Path, runs: Sequence[Path], writer: ArtifactWriter
    ) -> str:
        """Joins the logits of all folds.

        `logits/val.npz` gets every labelled row once, predicted by the model
        that did not see it; `test.npz` the mean over the models.

        Returns:
          A sentence on the out-of-fold score.

        Raises:
          UserError: the folds' files do not belong together; which.
          RuntimeError: a row came twice; a bug, never a higher score.
        """
        whole, test = join_folds(runs)
        writer.logits("val", whole)
        if test is not None:
            writer.logits("test", test)
        score = classification.macro_f1(
            whole.labels, whole.logits.argmax(1), len(whole.classes)
        )
        return (
            f"out-of-fold macro-F1 {score:.4f} over {len(whole):,} rows; "
            f"logits in {workdir / 'logits'}"
        )

    def _predict(
        self, batches, rows, params: dict, batch_stats: dict, mesh: Mesh
    ) -> Prediction:
        if self._predict_step is None:
            channels = self.statistics.mean, self.statistics.std
            self._predict_step = make_predict_step(
                self.abstract_model, *channels, mesh
            )
        return predict(
            self._predict_step, params, batch_stats, batches, rows, mesh
        )

    def _abstract_model_of(self, run: init_from.Run) -> AbstractModel:
        count = len(self.classes)
        return make_abstract_model(lambda: build_encoder(run.config, count))

    def _logits(
        self, data: Data, learned_from, examples: Examples, rows, logits, fold
    ) -> Logits:
        config, source = self.config, data.source
        plain = loading.plain(config)
        return Logits(
            ids=examples.ids[rows],
            logits=logits.astype(np.float32),
            labels=examples.labels[rows],
            classes=np.array(source.classes),
            fold=fold,
            metadata={
                "model": config.model,
                "seed": config.seed,
                "config_hash": identity_lib.config_hash(plain, learned_from),
                "family_hash": identity_lib.family_hash(plain, learned_from),
                "folds_hash": data.folds_hash,
                "val_fold": config.data.fold,
                "tta_views": list(config.eval.tta),
                "views": list(self.views),
                "source": source.name,
                "sample_submission": source.sample_submission,
                "id_column": source.id_column,
                "target_column": source.target_column,
                "data": plain["data"],
            },
        )


def make_prepare(mix: mixing.Mixing):
    """Returns the `prepare` of a `Loss`: erased and mixed images.

    Args:
      mix: RandomErasing, MixUp and CutMix of the stage.
    """

    def prepare(batch, constants, key: jax.Array) -> dict[str, jax.Array]:
        classes = len(constants["class_weights"])
        images, targets, counts = mixing.prepare_train(
            batch, mix, constants["mean"], constants["std"], classes, key
        )
        images = jax.lax.optimization_barrier(images)
        return {"image": images, "target": targets, "weight": counts}

    return prepare


def _check_teacher(
    teacher: init_from.Run, identity: Mapping[str, Any], fold: int, size: int
) -> None:
    """Refuses a teacher of other classes, or that saw validation rows.

    Says so where it learned from images of another size.

    Raises:
      UserError: what differs.
    """
    if teacher.config.task != Classification.name:
        raise UserError(
            f"distill_from names {teacher.folder}, a run without a "
            "classifier; name one that classifies"
        )
    if teacher.identity["classes"] != identity["classes"]:
        raise UserError(
            f"the teacher in {teacher.folder} knows other classes; distill "
            "from a run over the same data"
        )
    init_from.refuse_leak(teacher, identity, fold, "distill_from")
    if teacher.config.image_size != size:
        print(
            f"note: the teacher in {teacher.folder} learned from images of "
            f"{teacher.config.image_size} px and sees those of {size} here, as "
            "its student does"
        )
