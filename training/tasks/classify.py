"""The classification task: what it learns from, its loss, its logits files.

A task is what train.py asks for everything that is not the same for all
tasks. Constructing it checks everything and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jax_models
from configs import loading
from core.errors import UserError
from input_pipeline.transforms import mixing
from input_pipeline.transforms.views import EvalTransform
from metrics import classification
from run_folder import layout
from run_folder import predictions as logits_lib
from training import config as config_lib
from training import runtime
from training.checkpointing import init_from
from training.feed import Feed
from training.loop import grad_accumulation, param_groups
from training.loop.predict import Prediction, make_predict_step, predict
from training.loop.stages import Stage
from training.loop.state import (
    AbstractModel,
    Loss,
    abstract_weights,
    make_abstract_model,
)
from training.multihost import comm
from training.tasks import losses

# What stacking asks for at least (MIN_ROWS in stacking/pipeline.py).
FEWEST_ROWS_TO_STACK = 10

METRICS = ("val_loss", "val_macro_f1", "val_accuracy")


class Classification:
    """Images to classes, validated on one fold.

    Args:
      config: of the run.
      workdir: the run folder.
      mesh: devices to lay batches out on.
      workers: loader processes; 0 loads in this process.

    Attributes:
      data: the source with its folds.
      abstract_model: the model without its numbers.

    Raises:
      UserError: the data, or a field that names a model, a view, a metric or
        a module is wrong.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, mesh: Mesh, workers: int
    ):
        self._config, self._mesh = config, mesh
        EvalTransform(config.eval.tta, config.image_size)  # Checks the views.
        _check_metric(config.checkpoint.metric)
        self._feed = Feed(config, workdir, mesh, workers)
        self.data = self._feed.data
        self.identity = self._feed.identity()
        self.abstract_model = make_abstract_model(self.build)
        shapes = nnx.to_pure_dict(self.abstract_model.params)
        self._teachers: dict[str, tuple[init_from.Run, AbstractModel]] = {}
        grad_accumulation.check(config, self.abstract_model.batch_stats)
        for stage in config.stages:
            param_groups.check(shapes, stage.frozen)

    @property
    def num_train(self) -> int:
        """Images in one epoch."""
        return len(self.data.train_rows)

    def build(self) -> nnx.Module:
        """Returns the freshly initialised model."""
        return build_classifier(self._config, self.data.num_classes)

    def describe(self) -> dict[str, str]:
        """Returns what the plan says of the data, as {heading: text}."""
        lines = self._feed.describe()
        if len(self.data.val_rows) < FEWEST_ROWS_TO_STACK:
            lines["note"] = (
                "too few validation images to stack this run later; lower "
                "data.folds"
            )
        return lines

    def describe_stage(self, stage: Stage) -> str:
        """Returns what the plan says of mixing and loss."""
        c = stage.config
        share = {**self._config.mixing, **c.mixing}["prob"]
        words = [
            f"{share:.0%} of the batches mixed: MixUp {c.mixup_prob:.0%}",
            f"CutMix {1 - c.mixup_prob:.0%}",
        ]
        if c.mixup_alpha == c.cutmix_alpha:
            words.append(f"alpha {c.mixup_alpha:g}")
        else:
            words.append(f"alpha {c.mixup_alpha:g} and {c.cutmix_alpha:g}")
        if c.loss != "cross_entropy":
            words.append(f"{c.loss} loss")
        if c.class_weight:
            words.append(f"class weights to the power {c.class_weight:g}")
        if c.logit_adjustment:
            words.append(f"logits adjusted by {c.logit_adjustment:g}")
        if c.distill_from:
            words.append(f"distilled from {c.distill_from}")
        return ", ".join(words)

    def open_teachers(self, workdir: Path) -> None:
        """Opens the runs that stages learn from; they become part of identity.

        Args:
          workdir: this run's folder, which knows them if it has begun.

        Raises:
          UserError: one cannot teach this run.
        """
        # A teacher may have trained on since this run began.
        pins = comm.run_on_primary(
            lambda: layout.read_data(workdir).get("teachers", {})
        )
        fold = self._config.data.fold
        for stage in self._config.stages:
            if name := stage.distill_from:
                run = init_from.open_run(
                    name, workdir, fold, "distill_from", pins.get(name)
                )
                init_from.check_teacher(run, self.identity, fold)
                self._teachers[name] = run, self._abstract_model_of(run)
        if self._teachers:
            self.identity["teachers"] = {
                name: run.pin for name, (run, _) in self._teachers.items()
            }

    def prepare(self, cache: Path) -> None:
        """Does what must be done once the run folder is ours.

        Args:
          cache: folder that keeps channel means over runs.
        """
        self._feed.prepare(cache)
        self._predict_step = make_predict_step(
            self.abstract_model, self._feed.mean, self._feed.std
        )

    def batches(self, stage: Stage, step: int) -> Iterator[dict]:
        """Returns the training batches of `stage`; see `Feed.train`."""
        return self._feed.train(stage, step)

    def loss(self, stage: Stage, *, shapes_only: bool = False) -> Loss:
        """Returns the loss of `stage`: see `make_loss`.

        Args:
          stage: of this run.
          shapes_only: whether to leave a teacher's weights on disk.
        """
        c = stage.config
        constants = loss_constants(
            c, self._feed.mean, self._feed.std, self.data.class_prior
        )
        teacher = None
        if c.distill_from:
            run, teacher = self._teachers[c.distill_from]
            weights = abstract_weights if shapes_only else run.weights
            constants["teacher"] = weights(teacher, self._mesh)
        mix = mixing.Mixing(
            mixup_prob=c.mixup_prob,
            mixup_alpha=c.mixup_alpha,
            cutmix_alpha=c.cutmix_alpha,
            **{**self._config.mixing, **c.mixing},
        )
        return Loss(make_loss(c, teacher), constants, make_prepare(mix))

    def evaluate(self, params: dict, batch_stats: dict) -> dict[str, float]:
        """Returns validation loss, macro-F1 and accuracy, on centre crops."""
        labelled, rows = self.data.source.labelled, self.data.val_rows
        prediction = predict(
            self._predict_step,
            params,
            batch_stats,
            self._feed.validation(),
            rows,
            self._mesh,
        )
        # Once, so that all processes go by the very same scores.
        return comm.run_on_primary(
            lambda: classification_metrics(
                labelled.labels[rows], prediction.mean(self.data.class_prior)
            )
        )

    def export(self, workdir: Path, params: dict, batch_stats: dict) -> str:
        """Writes `logits/val.npz` and, if there are test rows, `test.npz`.

        Returns:
          A sentence on the validation score, without and with TTA.
        """
        source, views = self.data.source, tuple(self._config.eval.tta)
        prior = self.data.class_prior
        splits = [("val", source.labelled, self.data.val_rows)]
        if source.test is not None:
            splits.append(("test", source.test, np.arange(len(source.test))))
        for split, images, rows in splits:
            prediction = self._predict(images, rows, views, params, batch_stats)
            logits = prediction.mean(prior)
            fold = np.full(len(rows), -1, np.int32)
            if split == "val":
                fold = self.data.folds[rows]
            self._write_logits(
                workdir / "logits" / f"{split}.npz", images, rows, logits, fold
            )
            if split == "val":
                labels = images.labels[rows]
                one = classification_metrics(labels, prediction.first(prior))
                all_views = classification_metrics(labels, logits)
        return (
            f"validation macro-F1 {one['val_macro_f1']:.4f} with one view, "
            f"{all_views['val_macro_f1']:.4f} with TTA ({', '.join(views)})"
        )

    def is_exported(self, workdir: Path) -> bool:
        """Whether `export` and the report have written all their files."""
        names = ["logits/val.npz", "report.html"]
        if self.data.source.test is not None:
            names.append("logits/test.npz")
        return all((workdir / name).exists() for name in names)

    def _predict(
        self, images, rows, views, params: dict, batch_stats: dict
    ) -> Prediction:
        batches = self._feed.rows(images, rows, views)
        return predict(
            self._predict_step, params, batch_stats, batches, rows, self._mesh
        )

    def _abstract_model_of(self, run: init_from.Run) -> AbstractModel:
        classes = self.data.num_classes
        return make_abstract_model(
            lambda: build_classifier(run.config, classes)
        )

    def _write_logits(self, path, images, rows, logits, fold) -> None:
        config, source = self._config, self.data.source
        found = logits_lib.Logits(
            ids=images.ids[rows],
            logits=logits.astype(np.float32),
            labels=images.labels[rows],
            classes=np.array(source.classes),
            fold=fold,
            metadata={
                "model": config.model,
                "seed": config.seed,
                "config_hash": config_lib.config_hash(config),
                "folds_hash": self.data.folds_hash,
                "val_fold": config.data.fold,
                "tta_views": list(config.eval.tta),
                "source": source.name,
                "sample_submission": source.sample_submission,
                "id_column": source.id_column,
                "target_column": source.target_column,
                "data": loading.plain(config.data),
            },
        )
        comm.run_on_primary(lambda: logits_lib.write_logits(path, found))


def build_classifier(config: ConfigDict, num_classes: int) -> nnx.Module:
    """Returns the freshly initialised model that `config` asks for."""
    options = {"remat": config.remat}
    if config.drop_path_rate is not None:
        options["drop_path_rate"] = config.drop_path_rate
    return jax_models.create_model(
        config.model,
        num_classes=num_classes,
        rngs=nnx.Rngs(config.seed),
        dtype=runtime.compute_dtype(config.dtype),
        **options,
    )


def loss_constants(
    stage: ConfigDict, mean: np.ndarray, std: np.ndarray, prior: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns what `make_loss` reads besides the batch.

    Args:
      stage: a `configs.common.stage`.
      mean: float [3], channel means over 0..1 values.
      std: float [3], channel standard deviations.
      prior: float [C], class frequencies among the training rows.
    """
    return {
        "mean": mean,
        "std": std,
        "log_prior": np.log(np.maximum(prior, 1e-6)).astype(np.float32),
        "class_weights": losses.class_weights(prior, stage.class_weight),
    }


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


def make_loss(stage: ConfigDict, teacher: AbstractModel | None = None):
    """Returns the function of a `Loss`: a stage's loss on mixed images.

    Label smoothing (Szegedy et al. 2016) is applied here and nowhere else.
    Rows with weight 0 count for nothing; the mean is over the others.

    Args:
      stage: a `configs.common.stage`.
      teacher: of the distillation, its weights in `constants["teacher"]`.
    """

    def loss(model, batch, constants) -> jax.Array:
        weights = constants["class_weights"]
        images, counts = batch["image"], batch["weight"]
        targets = optax.smooth_labels(batch["target"], stage.label_smoothing)
        logits = answers = model(images)
        if stage.logit_adjustment:
            logits = losses.adjust(
                logits, constants["log_prior"], stage.logit_adjustment
            )
        if stage.loss == "focal":
            rows = losses.focal(logits, targets, weights, stage.focal_gamma)
        else:
            rows = losses.cross_entropy(logits, targets, weights)
        if teacher is not None:
            master = teacher.merge(*constants["teacher"])
            master.eval()
            rows = (1 - stage.distill_alpha) * rows
            rows += stage.distill_alpha * losses.distillation(
                answers,
                jax.lax.stop_gradient(master(images)),
                stage.distill_temperature,
            )
        return (rows * counts).sum() / jnp.maximum(counts.sum(), 1.0)

    return loss


def classification_metrics(
    labels: np.ndarray, logits: np.ndarray
) -> dict[str, float]:
    """Returns `val_loss`, `val_macro_f1` and `val_accuracy`.

    Args:
      labels: int [N].
      logits: float [N, C].
    """
    predictions = logits.argmax(axis=1)
    log_p = classification.log_softmax(logits)
    losses = -np.take_along_axis(log_p, labels[:, None], axis=1)
    return {
        "val_loss": float(losses.mean()),
        "val_macro_f1": float(
            classification.macro_f1(labels, predictions, logits.shape[1])
        ),
        "val_accuracy": float(classification.accuracy(labels, predictions)),
    }


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise UserError(
            f"checkpoint.metric is {metric!r}; a classifier's evaluation "
            f"gives {', '.join(METRICS)}"
        )
