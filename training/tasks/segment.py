"""The segmentation task: a class for every pixel."""

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

from configs import common
from core.class_colours import IGNORE
from core.errors import UserError
from input_pipeline.decoding import BadImage
from input_pipeline.loader import Transform
from input_pipeline.sources.base import Examples, Kind, Source
from input_pipeline.sources.pictures import read_masked_pictures
from input_pipeline.transforms import mixing
from input_pipeline.transforms.views import (
    WHOLE_VIEWS,
    WholeTransform,
    parse_whole_view,
)
from jax_models.segmentation import SegmentationModel
from metrics import segmentation
from run_folder import layout
from run_folder.mask_files import MaskStyle
from training.loop.stages import Stage
from training.loop.step import Loss
from training.multihost import comm
from training.tasks import segmentation_evaluator, segmentation_losses
from training.tasks.base import Direction, Task
from training.tasks.networks import create_network
from training.tasks.segmentation_files import MaskFiles, write_photo
from training.tasks.segmentation_prediction import (
    PixelPredictor,
    resize_rule,
    windows_of,
)

if TYPE_CHECKING:
    from reports.page import Section
    from run_folder.artifacts import ArtifactWriter
    from run_folder.inference import InferenceSpec
    from training.data import Data
    from training.photos import PhotoFiles, Photos

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
    predicts_files: ClassVar[bool] = True
    known_views: ClassVar[Sequence[str]] = tuple(WHOLE_VIEWS)

    def __init__(self, config: ConfigDict, classes: Sequence[str] = ()):
        super().__init__(config, classes)
        self.resize = resize_rule(config)
        self._made: tuple[Any, PixelPredictor] | None = None
        self._mask_style: MaskStyle | None = None
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
    def view_problem(cls, view: str) -> str:
        """See `Task.view_problem`."""
        try:
            parse_whole_view(view)
        except UserError as error:
            return str(error)
        return ""

    @classmethod
    def eval_transform(
        cls, config: ConfigDict, source: Source | None, views: Sequence[str]
    ) -> Transform:
        """Returns what makes an example of evaluation; see `Task`."""
        canvas = (0, 0)
        if source is not None and source.mask_sizes is not None:
            width, height = source.mask_sizes.max(axis=0).tolist()
            canvas = min(width, LARGEST_CANVAS), min(height, LARGEST_CANVAS)
        return WholeTransform(config.image_size, canvas)

    def build(self) -> nnx.Module:
        """Returns the freshly initialised model.

        Raises:
          UserError: `config.model` is no segmentation network.
        """
        model = create_network(self.config, len(self.classes))
        if not isinstance(model, SegmentationModel):
            raise UserError(
                f"model is {self.config.model}, which is no segmentation "
                "network; set --config.model to unet or deeplabv3plus and "
                f"--config.model_options.encoder={self.config.model}"
            )
        return model

    def mask_style(self, source: Source) -> MaskStyle:
        """Returns how the masks of the data are written."""
        form = source.labelled.format
        return MaskStyle(form.classes, form.values, form.palette)

    def restore(self, spec: InferenceSpec) -> None:
        """See `Task.restore`."""
        super().restore(spec)
        self._mask_style = MaskStyle(
            spec.classes, spec.mask_values, spec.mask_palette
        )

    def describe(self) -> dict[str, str]:
        """Returns what the plan says of the masks, as {heading: text}."""
        how = "whole images"
        if (cut := windows_of(self.resize, self.config)) is not None:
            how = (
                f"windows of {cut.share:.1%} of an image, {cut.overlap:.0%} "
                "overlapping"
            )
        return {"masks": f"{how}; {', '.join(self.views)}"}

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
            features = mixing.erase(features, self.features, mix, key)
            features, weight = mixing.mix(
                features, self.features, mix, key, weight
            )
            images = jax.lax.optimization_barrier(features["image"])
            return {
                "image": images,
                "mask": features["mask"],
                "weight": weight,
            }

        def loss(model, batch, constants) -> jax.Array:
            labels, counted = segmentation_evaluator.labels_of(batch["mask"])
            counted *= batch["weight"][:, None, None]
            logits = model(batch["image"]).astype(jnp.float32)
            return term(logits, labels, counted, constants["class_weights"])

        return Loss(loss, self._constants(), prepare)

    def evaluator(self) -> segmentation_evaluator.SegmentationEvaluator:
        """Returns what counts pixels."""
        return segmentation_evaluator.SegmentationEvaluator(len(self.classes))

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
        source, wanted = data.source, self.config.segment.probabilities
        predictor = self._predictor(data.mesh)
        splits = [("val", source.labelled, data.val_rows, source.mask_sizes)]
        if (test := source.test) is not None:
            splits.append(("test", test, np.arange(len(test)), None))
        counts = segmentation.ImageCounts(len(self.classes), IGNORE)
        in_primary = comm.PrimaryActions()
        for split, examples, rows, sizes in splits:
            output = MaskFiles(
                writer, split, self.mask_style(source), probabilities=wanted
            )

            def write(image, output=output, examples=examples) -> None:
                name, labels = str(examples.ids[image.row]), None
                if output.split == "val":
                    labels = _true_mask(examples, image.row)
                mask = output.write(name, image, labels)
                if labels is not None:
                    counts.add(name, labels, mask)

            for number, image in enumerate(
                predictor.images(
                    data,
                    examples,
                    rows,
                    params,
                    batch_stats,
                    None if sizes is None else sizes[rows],
                ),
                1,
            ):
                if image.stripes is not None:
                    in_primary(functools.partial(write, image))
                if number % self.config.eval.batch_size == 0:
                    in_primary.agree()
            in_primary.agree()

        def finish() -> str:
            if not len(counts):
                raise UserError(
                    "none of the validation images can be read; see to the "
                    "photos, and run the same command again"
                )
            found = counts.arrays()
            classes = np.array(self.classes)
            writer.array(layout.MASK_COUNTS, **found, classes=classes)
            return segmentation.summary(found["confusion"])

        return (
            f"validation {comm.run_on_primary(finish)}; masks in "
            f"{writer.workdir / 'masks'}"
        )

    def predict(
        self,
        photos: Photos,
        params: dict,
        batch_stats: dict,
        files: PhotoFiles | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields the share of each class in each photo; see `Task`."""
        for image in self._predictor(photos.mesh).images(
            photos, photos.examples, photos.rows, params, batch_stats
        ):
            shares, record = np.zeros(len(self.classes)), {}
            if image.stripes is not None:
                if files is None:
                    mask = image.mask()
                else:
                    mask, path = write_photo(image, files, self._mask_style)
                    record["mask"] = str(path)
                shares = np.bincount(mask.ravel(), minlength=len(shares))
                shares = shares / shares.sum()
            elif files is not None:
                record["mask"] = ""
            named = dict(zip(self.classes, shares.tolist(), strict=True))
            bad = image.stripes is None
            yield {**record, "shares": named, "bad": bad}

    def answer(self, model: nnx.Module, images: jax.Array) -> jax.Array:
        """Returns logits of the pixels, float32 [B, H, W, C]."""
        return model(images).astype(jnp.float32)

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
                path = workdir / layout.image_file("masks", "val", name, ".png")
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
            f"out-of-fold {segmentation.summary(arrays['confusion'])} over "
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

    def _predictor(self, mesh: Mesh) -> PixelPredictor:
        key = mesh, self.views, self.resize
        if self._made is None or self._made[0] != key:
            made = PixelPredictor(
                self.abstract_model,
                self.statistics.mean,
                self.statistics.std,
                self.config.image_size,
                self.views,
                windows_of(self.resize, self.config),
                mesh,
            )
            self._made = key, made
        return self._made[1]


def _true_mask(examples: Examples, row: int) -> np.ndarray:
    try:
        return examples.mask(row)
    except BadImage as error:
        raise UserError(
            f"the mask of {examples.ids[row]} could be read at first and then "
            f"no more ({error}); see to the disk, and run the same command "
            "again"
        ) from error
