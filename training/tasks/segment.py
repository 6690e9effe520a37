"""The segmentation task: a class for every pixel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from configs import common
from core.errors import UserError
from input_pipeline.loader import Transform
from input_pipeline.sources.base import Kind, Source
from input_pipeline.sources.mask_format import IGNORE
from input_pipeline.sources.pictures import read_masked_pictures
from input_pipeline.transforms import mixing
from input_pipeline.transforms.views import WHOLE_VIEWS, WholeTransform
from jax_models.segmentation import SegmentationModel
from metrics import segmentation
from run_folder import layout
from training.loop.predict import predictions
from training.loop.stages import Stage
from training.loop.step import Loss
from training.multihost import comm
from training.tasks import segmentation_losses, segmentation_outputs
from training.tasks.base import Direction, Task, build_encoder

if TYPE_CHECKING:
    from reports.page import Section
    from run_folder.artifacts import ArtifactWriter
    from training.data import Data

# Larger masks are reduced for the evaluation during training; the scores of
# the export are always those of the masks as they are.
LARGEST_CANVAS = 1024


class Segmentation(Task):
    """Images to masks, validated on one fold; see `Task`."""

    name: ClassVar[str] = "segment"
    features: ClassVar[Mapping[str, Kind]] = {
        "image": Kind.IMAGE,
        "mask": Kind.MASK,
    }
    metrics: ClassVar[Mapping[str, Direction]] = {
        "val_mean_dice": "max",
        "val_mean_iou": "max",
        "val_image_dice": "max",
        "val_image_iou": "max",
        "val_pixel_accuracy": "max",
        "val_loss": "min",
    }
    loss_fields: ClassVar[frozenset[str]] = frozenset(
        {"loss", "label_smoothing", "focal_gamma", "mixing"}
    )
    learns_labels: ClassVar[bool] = True
    known_views: ClassVar[Sequence[str]] = tuple(WHOLE_VIEWS)

    def __init__(self, config: ConfigDict, classes: Sequence[str] = ()):
        super().__init__(config, classes)
        self._predict_step = None
        # Refuses another number of weights than of classes.
        even = np.full(len(classes), 1 / max(len(classes), 1))
        segmentation_losses.class_weights(
            config.segment.class_weights, even, even
        )

    @classmethod
    def problems(cls, config: ConfigDict) -> Iterator[str]:
        """See `Task.problems`."""
        yield from super().problems(config)
        for index, stage in enumerate(config.stages):
            known = segmentation_losses.TERMS
            terms = segmentation_losses.terms_of(stage.loss)
            for name in (name for name in terms if name not in known):
                yield (
                    f"stages[{index}].loss has {name!r}: choose from "
                    f"{', '.join(known)}, with + between them"
                )
            mix = common.merged(config, stage, "mixing")
            if mix["prob"] and mix["mixup_prob"]:
                yield (
                    f"mixing.mixup_prob is {mix['mixup_prob']}: MixUp leaves "
                    "no single class per pixel; set it to 0, which is CutMix "
                    "alone, or mixing.prob to 0"
                )
        if problem := segmentation_losses.weights_problem(
            config.segment.class_weights
        ):
            yield f"segment.class_weights is {problem}"

    @classmethod
    def eval_transform(
        cls, config: ConfigDict, source: Source | None, views: Sequence[str]
    ) -> Transform:
        """Returns what makes an example of evaluation; see `Task`."""
        canvas = (0, 0)
        if source is not None and source.mask_sizes is not None:
            width, height = source.mask_sizes.max(axis=0).tolist()
            canvas = min(width, LARGEST_CANVAS), min(height, LARGEST_CANVAS)
        return WholeTransform(config.image_size, canvas, IGNORE)

    def build(self) -> nnx.Module:
        """Returns the freshly initialised model.

        Raises:
          UserError: `config.model` is no segmentation network.
        """
        model = build_encoder(self.config, len(self.classes))
        if not isinstance(model, SegmentationModel):
            raise UserError(
                f"model is {self.config.model}, which is no segmentation "
                "network; set --config.model to unet or deeplabv3plus and "
                f"--config.model_options.encoder={self.config.model}"
            )
        return model

    def describe_data(self, data: Data) -> dict[str, str]:
        """Returns what the plan says of the classes, as {heading: text}."""
        shares = zip(self.classes, data.class_prior, strict=True)
        return {
            "pixels": ", ".join(f"{name} {share:.1%}" for name, share in shares)
        }

    def describe_stage(self, stage: Stage) -> str:
        """Returns what the plan says of the loss."""
        terms = segmentation_losses.terms_of(stage.config.loss)
        text = " + ".join(terms)
        if weights := self.config.segment.class_weights:
            text += f", class weights {weights}"
        return text

    def loss(
        self, stage: Stage, mesh: Mesh, *, shapes_only: bool = False
    ) -> Loss:
        """Returns the sum of the stage's losses over pixels."""
        mix = mixing.Mixing(
            **common.merged(self.config, stage.config, "mixing")
        )
        term = segmentation_losses.make_loss(stage.config)

        def prepare(batch, constants, key: jax.Array) -> dict[str, jax.Array]:
            channels = constants["mean"], constants["std"]
            features = {
                "image": mixing.images_of(batch, *channels),
                "mask": batch["mask"],
            }
            weight = batch["weight"]
            features = mixing.erase(features, self.features, mix, key, IGNORE)
            features = mixing.mix(features, self.features, mix, key, weight)
            images = jax.lax.optimization_barrier(features["image"])
            return {
                "image": images,
                "mask": features["mask"],
                "weight": weight,
            }

        def loss(model, batch, constants) -> jax.Array:
            labels, counted = segmentation_outputs.labels_of(batch["mask"])
            counted *= batch["weight"][:, None, None]
            logits = model(batch["image"]).astype(jnp.float32)
            return term(logits, labels, counted, constants["class_weights"])

        return Loss(loss, self._constants(), prepare)

    def evaluator(self) -> segmentation_outputs.SegmentationEvaluator:
        """Returns what counts pixels."""
        return segmentation_outputs.SegmentationEvaluator(len(self.classes))

    def export(
        self,
        data: Data,
        writer: ArtifactWriter,
        params: dict,
        batch_stats: dict,
    ) -> str:
        """Writes `masks/<split>/<id>.png`, and the scores of the validation.

        Returns:
          A sentence on the validation scores.
        """
        source = data.source
        splits = [("val", source.labelled, data.val_rows)]
        if source.test is not None:
            splits.append(("test", source.test, np.arange(len(source.test))))
        for split, examples, rows in splits:
            masks = self._masks(
                data.rows(examples, rows, ("whole",)),
                rows,
                params,
                batch_stats,
                data.mesh,
            )
            seen, confusions, edges = [], [], []
            for row, mask in masks:
                name = _mask_name(split, examples.ids[row])
                form = examples.format
                comm.run_on_primary(
                    lambda name=name, mask=mask, form=form: str(
                        writer.mask(name, form.encode(mask), form.palette)
                    )
                )
                if split == "val":
                    truth = examples.mask(row)
                    size = len(self.classes), IGNORE
                    confusions.append(
                        segmentation.confusion_matrix(truth, mask, *size)
                    )
                    edges.append(
                        segmentation.boundary_counts(truth, mask, *size)
                    )
                    seen.append(row)
            if split == "val":
                if not seen:
                    raise UserError(
                        "none of the validation images can be read; see to "
                        "the photos, and run the same command again"
                    )
                counts = np.stack(confusions)
                arrays = {
                    "ids": examples.ids[seen],
                    "confusion": counts,
                    "boundary": np.stack(edges),
                    "classes": np.array(self.classes),
                }
                comm.run_on_primary(
                    lambda arrays=arrays: str(
                        writer.array(layout.MASK_COUNTS, **arrays)
                    )
                )
        return (
            f"validation {_told(counts)}; masks in {writer.workdir / 'masks'}"
        )

    def predict(
        self,
        batches: Iterable[dict[str, np.ndarray]],
        rows: np.ndarray,
        params: dict,
        batch_stats: dict,
        mesh: Mesh,
    ) -> list[dict[str, Any]]:
        """Returns the share of each class in each photo; see `Task`."""
        shares = {}
        for row, mask in self._masks(batches, rows, params, batch_stats, mesh):
            counts = np.bincount(mask.ravel(), minlength=len(self.classes))
            shares[row] = counts / counts.sum()
        nothing = np.zeros(len(self.classes))
        return [
            {
                "shares": dict(
                    zip(
                        self.classes,
                        shares.get(int(row), nothing).tolist(),
                        strict=True,
                    )
                ),
                "bad": int(row) not in shares,
            }
            for row in rows
        ]

    @classmethod
    def report_sections(cls, workdir: Path) -> Sequence[Section]:
        """Returns scores per class, and the best and worst masks."""
        from reports.segmentation import Example, segmentation_sections

        config = layout.read_config(workdir) or {}

        def examples(ids: Sequence[str]) -> Iterator[Example]:
            cache = Path(config["cache_dir"]).expanduser()
            for name, image, truth, form in read_masked_pictures(
                config["data"], ids, cache
            ):
                path = workdir / _mask_name("val", name)
                yield Example(
                    name, image, truth, form.decode(path.read_bytes())
                )

        return segmentation_sections(workdir, examples)

    @classmethod
    def join_folds(
        cls, workdir: Path, runs: Sequence[Path], writer: ArtifactWriter
    ) -> str:
        """Joins what was counted on the validation images of all folds.

        Returns:
          A sentence on the out-of-fold scores.
        """
        from reports.segmentation import read_counts

        found = [read_counts(run) for run in runs]
        arrays = {
            name: np.concatenate([getattr(one, name) for one in found])
            for name in ("ids", "confusion", "boundary")
        }
        writer.array(layout.MASK_COUNTS, **arrays, classes=found[0].classes)
        return (
            f"out-of-fold {_told(arrays['confusion'])} over "
            f"{len(arrays['ids']):,} images; masks in the folders of the folds"
        )

    def _constants(self) -> dict[str, np.ndarray]:
        return {
            **self.statistics.channels,
            "class_weights": segmentation_losses.class_weights(
                self.config.segment.class_weights,
                self.statistics.class_prior,
                self.statistics.class_prior_where_present,
            ),
        }

    def _masks(
        self, batches, rows, params: dict, batch_stats: dict, mesh: Mesh
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (row, mask uint8 [H, W]) of the images that can be read."""
        if self._predict_step is None:
            self._predict_step = segmentation_outputs.make_mask_step(
                self.abstract_model,
                self.statistics.mean,
                self.statistics.std,
                tuple(self.config.eval.tta),
                mesh,
            )
        for batch in predictions(
            self._predict_step, params, batch_stats, batches, rows, mesh
        ):
            for row, outputs, size, bad in zip(
                batch["row"],
                batch["outputs"],
                batch["size"],
                batch["bad"],
                strict=True,
            ):
                if not bad:
                    yield (
                        int(row),
                        segmentation_outputs.full_size_mask(
                            outputs, *size.tolist()
                        ),
                    )


def _mask_name(split: str, image_id: str) -> str:
    """Where an image's mask is written: `masks/<split>/<id>.png`.

    Ids that are in two splits begin with theirs, which is left out.
    """
    for prefix in ("train/", "val/"):
        image_id = image_id.removeprefix(prefix)
    return f"masks/{split}/{image_id}.png"


def _told(confusions: Int[np.ndarray, "N C C"]) -> str:
    """Scores in words, with an interval."""
    found = segmentation.scores(confusions)
    low, high = segmentation.bootstrap_interval(
        confusions, segmentation.mean_dice_from_confusion
    )
    return (
        f"mDice {found['mean_dice']:.4f} ({low:.4f} to {high:.4f}), mIoU "
        f"{found['mean_iou']:.4f}; per image {found['image_dice']:.4f} and "
        f"{found['image_iou']:.4f}"
    )
