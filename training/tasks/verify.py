"""The verification task: do two pictures show one identity, and both real?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from core.errors import UserError
from input_pipeline.loader import Transform
from input_pipeline.pk_sampler import PKSampler
from input_pipeline.sources.base import Kind, Source
from input_pipeline.sources.pictures import read_pictures
from input_pipeline.transforms.views import WHOLE_VIEWS, AlignedTransform
from input_pipeline.validation_pairs import validation_pairs
from jax_models.embedding import EmbeddingModel
from run_folder import layout
from training.loop.stages import Stage
from training.loop.step import Loss
from training.multihost import comm
from training.tasks import (
    metric_objective,
    similarity,
    verification_export,
    verification_loss,
    verification_prediction,
)
from training.tasks.base import Direction, Task
from training.tasks.networks import create_network
from training.tasks.verification_evaluator import (
    ValidationPairs,
    VerificationEvaluator,
)

if TYPE_CHECKING:
    from reports.page import Section
    from run_folder.artifacts import ArtifactWriter
    from run_folder.inference import InferenceSpec
    from training.data import Data
    from training.photos import Photos

# Mean distance of two identities' unit vectors below which all are one point.
COLLAPSED = 0.05


class Verification(Task):
    """Pictures to unit vectors, validated on pairs of one fold; see `Task`."""

    name: ClassVar[str] = "verify"
    features: ClassVar[Mapping[str, Kind]] = {
        "image": Kind.IMAGE,
        "label": Kind.LABEL,
        "forged": Kind.ID,
    }
    metrics: ClassVar[Mapping[str, Direction]] = {
        "val_eer": "min",
        "val_auc": "max",
        "val_fnmr_at_fmr_10": "min",
        "val_tar_at_far_1": "max",
        "val_eer_other": "min",
        "val_eer_one_forged": "min",
        "val_eer_both_forged": "min",
    }
    loss_fields: ClassVar[frozenset[str]] = frozenset({"loss", "mixing"})
    answers: ClassVar[Mapping[str, str]] = {
        "embedding": "of unit length; the dot product of two is their cosine",
        "real_logit": "log-odds of a picture that is not forged; 0 if the "
        "model does not look for forgeries",
    }
    # Classes and a memory of training pictures: of no use to others, and the
    # pictures of people may not be theirs.
    not_exported: ClassVar[Sequence[str]] = ("head",)
    learns_labels: ClassVar[bool] = True
    known_views: ClassVar[Sequence[str]] = tuple(WHOLE_VIEWS)

    def __init__(self, config: ConfigDict, classes: Sequence[str] = ()):
        super().__init__(config, classes)
        self.resize = "whole"
        # Fitted by the export.
        self.similarity: similarity.Similarity | None = None
        self._step = None
        # Embedding and log-odds that predict compares with, over all calls.
        self._first: tuple[np.ndarray, np.ndarray] | None = None

    # ---- Config --------------------------------------------------------------

    @classmethod
    def problems(cls, config: ConfigDict) -> Iterator[str]:
        """See `Task.problems`."""
        yield from super().problems(config)
        yield from dict.fromkeys(verification_loss.problems(config))

    @property
    def _has_head(self) -> bool:
        """Whether a second head looks for forgeries."""
        return self.config.verify.forgeries in ("head", "class+head")

    # ---- Model and data ------------------------------------------------------

    def build(self) -> nnx.Module:
        """Returns the freshly initialised model.

        Raises:
          UserError: `config.model` is no embedding.
        """
        config = self.config.copy_and_resolve_references()
        if config.model != "embedding":
            raise UserError(
                f"model is {config.model}, which compares no pictures; set "
                "--config.model=embedding and "
                f"--config.model_options.encoder={config.model}"
            )
        config.model_options.forgery_head = self._has_head
        config.model_options.memory = config.verify.memory
        classes = 0
        if verification_loss.needs_classes(config):
            classes = max(len(self.classes), 1)
            # Those of forgeries come behind those of real pictures.
            classes *= 1 + (config.verify.forgeries in ("class", "class+head"))
        return create_network(config, classes)

    @functools.cached_property
    def _width(self) -> int:
        model = nnx.merge(*self.abstract_model[:4])
        assert isinstance(model, EmbeddingModel)
        return model.width

    @classmethod
    def eval_transform(
        cls, config: ConfigDict, source: Source | None, views: Sequence[str]
    ) -> Transform:
        """Returns what makes an example of evaluation; see `Task`."""
        return AlignedTransform(config.image_size)

    def attach(self, data: Data) -> dict[str, Any]:
        """Draws the pairs to validate on; see `Task.attach`.

        Raises:
          UserError: there are none, or too few identities for a batch.
        """
        known, own = data.source.labelled, self.config.verify
        pairs = validation_pairs(
            known.ids,
            known.labels,
            known.columns["forged"],
            data.val_rows,
            self.config.data.folds_seed,
            pairs_per_identity=own.pairs_per_identity,
            negative_shares=tuple(own.negative_shares),
        )
        self._pairs = ValidationPairs(
            data.val_rows,
            pairs,
            known.labels[data.val_rows],
            self._has_head,
        )
        self.sampler(data, 0)  # Refuses what it cannot do.
        self._class_of, self._used = verification_loss.classes_of(
            known.labels[data.train_rows],
            known.columns["forged"][data.train_rows],
            len(self.classes),
            self.config.verify.forgeries,
        )
        return {"pairs_hash": pairs.hash(known.ids)}

    def sampler(self, data: Data, seed: int) -> PKSampler:
        """Returns batches of P identities with K pictures; see `Task`."""
        known, own = data.source.labelled, self.config.verify
        rows = data.train_rows
        if own.forgeries == "none":
            rows = rows[known.columns["forged"][rows] == 0]
        return PKSampler(
            rows, known.labels[rows], seed, own.identities, own.pictures
        )

    @property
    def similarity_weights(self) -> tuple[float, ...]:
        """See `Task.similarity_weights`."""
        return dataclasses.astuple(self.similarity) if self.similarity else ()

    def restore(self, spec: InferenceSpec) -> None:
        """See `Task.restore`."""
        super().restore(spec)
        if spec.similarity:
            self.similarity = similarity.Similarity(*spec.similarity)

    # ---- What the plan says --------------------------------------------------

    def describe_data(self, data: Data) -> dict[str, str]:
        """Returns what the plan says of the pairs, as {heading: text}."""
        kinds = np.bincount(self._pairs.pairs.kind, minlength=4)
        return {
            "pairs": f"{kinds[0]:,} of one identity to validate on, against "
            f"{kinds[1]:,} of two, {kinds[2]:,} with one forged picture, "
            f"{kinds[3]:,} with two",
            "batches": f"{self.config.verify.identities} identities x "
            f"{self.config.verify.pictures} pictures",
        }

    def describe_stage(self, stage: Stage) -> str:
        """Returns what the plan says of the loss."""
        text = f"{verification_loss.name_of(stage.config)} loss"
        return text + f", forgeries: {self.config.verify.forgeries}"

    # ---- Training ------------------------------------------------------------

    def loss(
        self, stage: Stage, mesh: Mesh, *, shapes_only: bool = False
    ) -> Loss:
        """Returns the sum of the stage's losses, and of the forgery head's."""
        return verification_loss.make_loss(
            self.config,
            stage.config,
            len(self.classes),
            {
                **self.statistics.channels,
                "class_of": self._class_of,
                "used": self._used,
            },
        )

    def statistics_of_later_stages(
        self, batch_stats: dict[str, Any]
    ) -> dict[str, Any]:
        """Empties the memory; see `Task.statistics_of_later_stages`.

        Averaged weights have averaged its embeddings, classes and place, too.
        """
        head = batch_stats.get("head", {})
        if "memory" not in head:
            return batch_stats
        # Times 0, so that arrays stay where they are.
        empty = jax.tree.map(lambda x: 0 * x, head["memory"])
        return {**batch_stats, "head": {**head, "memory": empty}}

    def advice(self, stage: Stage, measured: Mapping[str, float]) -> str:
        """Says when all pictures have become one point; see `Task.advice`."""
        distance = measured.get("negative_distance", 2.0)
        if not distance < COLLAPSED:
            return ""
        value = metric_objective.collapse_value(
            verification_loss.name_of(stage.config),
            verification_loss.options_of(self.config),
        )
        at = "" if value is None else f" (the loss of which is {value:.4g})"
        return (
            f"the embeddings have collapsed: pictures of two identities lie "
            f"{distance:.2g} apart{at}; start again with a lower "
            f"stages[{stage.index}].learning_rate, verify.miner=all or a loss "
            "over classes such as cosface"
        )

    def evaluator(self) -> VerificationEvaluator:
        """Returns what scores the validation pairs."""
        return VerificationEvaluator(self._pairs, self._width)

    @property
    def eval_constants(self) -> dict[str, np.ndarray]:
        """See `Task.eval_constants`."""
        rows = self._pairs.rows.astype(np.int32)
        return {**self.statistics.channels, "rows": rows}

    # ---- Predictions ---------------------------------------------------------

    def export(
        self,
        data: Data,
        writer: ArtifactWriter,
        params: dict,
        batch_stats: dict,
    ) -> str:
        """Writes embeddings and pairs of both splits, and the submission.

        Returns:
          A sentence on the validation pairs.
        """
        source = data.source

        def embedded(examples, rows):
            batches = data.rows(examples, rows, self.views)
            return self._embed(batches, rows, params, batch_stats, data.mesh)

        validation = embedded(source.labelled, self._pairs.rows)
        test = None
        if source.test is not None:
            test = embedded(source.test, np.arange(len(source.test)))
        pairs = self._pairs.without(validation.bad)
        compared = pairs.compared(validation.embedding, validation.real_logit)
        self.similarity = similarity.fit(*compared, pairs.positive)
        return comm.run_on_primary(
            lambda: verification_export.write(
                self, data, pairs, writer, validation, test
            )
        )

    def predict(
        self, photos: Photos, params: dict, batch_stats: dict, files=None
    ) -> Iterator[dict[str, Any]]:
        """Yields how like the first photo each is, and its embedding.

        See `Task`. `similarity` is the probability that both show the same
        and are real; the first is the first readable one of all calls.
        """
        found = self.embed_photos(photos, params, batch_stats)
        for vector, logit, bad in zip(
            found.embedding, found.real_logit, found.bad, strict=True
        ):
            if self._first is None and not bad:
                self._first = vector, logit
            other, others = self._first or (vector, logit)
            # Unreadable, it is at cosine 0 to all, as in an export.
            cosine = 0.0 if bad else vector @ other
            alike = float(
                self.probability(
                    np.array([cosine]), np.array([logit]), np.array([others])
                )[0]
            )
            record: dict[str, Any] = {"similarity": alike}
            if self._has_head:
                record["real"] = float(np.exp(similarity.log_sigmoid(logit)))
            record["embedding"] = {
                str(n): float(value) for n, value in enumerate(vector)
            }
            yield {**record, "bad": bool(bad)}

    def probability(
        self, cosine: np.ndarray, one: np.ndarray, other: np.ndarray
    ) -> np.ndarray:
        """See `training.gallery.Embeds`.

        Raises:
          UserError: the run's export has not fitted it yet.
        """
        if self.similarity is None:
            raise UserError(
                "this run's last export has not come to its end, which fits "
                "how cosines become probabilities; run its training's command "
                "again, with --export if it is finished"
            )
        log_real = similarity.log_sigmoid(one) + similarity.log_sigmoid(other)
        log_odds = self.similarity(
            cosine, log_real if self._has_head else np.zeros(0)
        )
        return np.exp(similarity.log_sigmoid(log_odds))

    def answer(
        self, model: nnx.Module, images: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns embeddings [B, D] and log-odds of real pictures [B]."""
        found = model.embed(images)
        return {name: getattr(found, name) for name in self.answers}

    def embed_photos(
        self, photos: Photos, params: dict, batch_stats: dict
    ) -> verification_prediction.Embeddings:
        """Returns the embeddings of photos, in order."""
        transform = self.eval_transform(self.config, None, self.views)
        batches = photos.batches(photos.examples, photos.rows, transform)
        return self._embed(
            batches, photos.rows, params, batch_stats, photos.mesh
        )

    def _embed(
        self, batches, rows, params, batch_stats, mesh: Mesh
    ) -> verification_prediction.Embeddings:
        if self._step is None:
            self._step = verification_prediction.make_embed_step(
                self.abstract_model,
                self.statistics.mean,
                self.statistics.std,
                self.views,
                mesh,
            )
        return verification_prediction.embed(
            self._step, params, batch_stats, batches, rows, mesh
        )

    @classmethod
    def report_sections(cls, workdir: Path) -> Sequence[Section]:
        """Returns errors by kind, the hardest pairs, a map of embeddings."""
        from reports.verification import verification_sections

        data = (layout.read_config(workdir) or {}).get("data", {})
        pictures = functools.partial(read_pictures, data)
        return verification_sections(workdir, pictures)

    @classmethod
    def join_folds(
        cls, workdir: Path, runs: Sequence[Path], writer: ArtifactWriter
    ) -> str:
        """Joins the pairs of all folds; see `verification_export.join`."""
        return verification_export.join(workdir, runs, writer)
