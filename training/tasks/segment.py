"""The segmentation task: a class for every pixel."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from configs import common
from core.errors import UserError
from input_pipeline.loader import Transform
from input_pipeline.sources.base import Kind, Source
from input_pipeline.sources.mask_format import IGNORE
from input_pipeline.sources.pictures import read_masked_pictures
from input_pipeline.transforms import mixing
from input_pipeline.transforms.views import WHOLE_VIEWS, WholeTransform
from jax_models import cpu_kernels
from metrics import segmentation
from run_folder import layout
from training.loop.predict import predictions
from training.loop.stages import Stage
from training.loop.step import Loss
from training.multihost import comm
from training.tasks import segmentation_losses
from training.tasks.base import Direction, Task, build_encoder

if TYPE_CHECKING:
    from reports.page import Section
    from run_folder.artifacts import ArtifactWriter
    from training.data import Data

# Larger masks are reduced for the evaluation during training; the scores of
# the export are always those of the masks as they are.
LARGEST_CANVAS = 1024

# Pixels of a photo that are brought to full size at once, to bound memory.
STRIPE_PIXELS = 1 << 20


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
    views: ClassVar[Sequence[str]] = tuple(WHOLE_VIEWS)

    def __init__(self, config: ConfigDict, classes: Sequence[str] = ()):
        super().__init__(config, classes)
        self._predict_step = None

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
        if problem := _weights_problem(config.segment.class_weights):
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
        """Returns the freshly initialised model."""
        return build_encoder(self.config, len(self.classes))

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
            labels, counted = _labels(batch["mask"])
            counted *= batch["weight"][:, None, None]
            logits = model(batch["image"]).astype(jnp.float32)
            return term(logits, labels, counted, constants["class_weights"])

        return Loss(loss, self._constants(), prepare)

    def evaluator(self) -> SegmentationEvaluator:
        """Returns what counts pixels."""
        return SegmentationEvaluator(len(self.classes))

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
        counts = np.zeros((0, 1, 1), np.int64)
        for split, examples, rows in splits:
            found = self._masks(
                data.rows(examples, rows, ("whole",)),
                rows,
                params,
                batch_stats,
                data.mesh,
            )
            confusions, edges = [], []
            for row, mask in found:
                name = f"masks/{split}/{examples.ids[row]}.png"
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
            if split == "val":
                counts = np.stack(confusions)
                ids = examples.ids[rows]
                comm.run_on_primary(
                    lambda ids=ids, counts=counts, edges=edges: str(
                        writer.array(
                            layout.MASK_COUNTS,
                            ids=ids,
                            confusion=counts,
                            boundary=np.stack(edges),
                            classes=np.array(self.classes),
                        )
                    )
                )
        found = segmentation.scores(counts)
        low, high = segmentation.bootstrap_interval(
            counts, segmentation.mean_dice_from_confusion
        )
        return (
            f"validation mDice {found['mean_dice']:.4f} ({low:.4f} to "
            f"{high:.4f}), mIoU {found['mean_iou']:.4f}; per image "
            f"{found['image_dice']:.4f} and {found['image_iou']:.4f}; masks in "
            f"{writer.workdir / 'masks'}"
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
                path = workdir / "masks/val" / f"{name}.png"
                yield Example(
                    name, image, truth, form.decode(path.read_bytes())
                )

        return segmentation_sections(workdir, examples)

    def _constants(self) -> dict[str, np.ndarray]:
        return {
            **self.statistics.channels,
            "class_weights": class_weights(
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
            self._predict_step = make_mask_step(
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
                    yield int(row), full_size_mask(outputs, *size.tolist())


class SegmentationEvaluator:
    """Counts pixels at the size of the masks, over the data set and per image.

    Args:
      num_classes: C.
    """

    def __init__(self, num_classes: int):
        self._num_classes = num_classes

    def init(self) -> dict[str, np.ndarray]:
        """Returns the totals over no image."""
        classes = self._num_classes
        zero = np.zeros((), np.float32)
        return {
            # 64 bits in two halves: JAX has no wider integers by default,
            # and 32 are full after some thousand photos.
            "low": np.zeros((classes, classes), np.uint32),
            "high": np.zeros((classes, classes), np.uint32),
            "image_dice": zero,
            "image_iou": zero,
            "images": zero,
            "loss": zero,
            "pixels": zero,
        }

    def update(
        self,
        totals: dict[str, jax.Array],
        model: nnx.Module,
        batch: Mapping[str, jax.Array],
        constants: dict[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """Adds a batch; see `Evaluator`."""
        images = mixing.normalize(
            batch["image"][:, 0], constants["mean"], constants["std"]
        )
        logits = model(images).astype(jnp.float32)
        logits = resized_to_canvas(
            logits, batch["mask_size"], batch["mask"].shape[1:]
        )
        labels, counted = _labels(batch["mask"])
        counted *= (batch["weight"] * ~batch["bad"])[:, None, None]
        log_p = jax.nn.log_softmax(logits)
        own = jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
        confusion = _confusions(labels, logits.argmax(-1), counted, logits)
        dice, iou, seen = _image_scores(confusion)
        summed = confusion.sum(0).astype(jnp.uint32)
        low = totals["low"] + summed
        return {
            "low": low,
            "high": totals["high"] + (low < summed),  # It has wrapped around.
            "image_dice": totals["image_dice"] + dice.sum(),
            "image_iou": totals["image_iou"] + iou.sum(),
            "images": totals["images"] + seen.sum(),
            "loss": totals["loss"] - (own * counted).sum(),
            "pixels": totals["pixels"] + counted.sum(),
        }

    def compute(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns the scores; see `metrics.segmentation`."""
        confusion = totals["high"].astype(np.int64) << 32
        confusion += totals["low"]
        images = max(float(totals["images"]), 1.0)
        return {
            "val_mean_dice": float(
                segmentation.mean_dice_from_confusion(confusion)
            ),
            "val_mean_iou": float(
                segmentation.mean_iou_from_confusion(confusion)
            ),
            "val_image_dice": float(totals["image_dice"]) / images,
            "val_image_iou": float(totals["image_iou"]) / images,
            "val_pixel_accuracy": float(
                segmentation.pixel_accuracy_from_confusion(confusion)
            ),
            "val_loss": float(totals["loss"]) / max(float(totals["pixels"]), 1),
        }


def class_weights(
    text: str,
    prior: Float[np.ndarray, " C"],
    prior_where_present: Float[np.ndarray, " C"],
) -> Float[np.ndarray, " C"]:
    """Returns the weights that `segment.class_weights` asks for, float32 [C].

    Raises:
      UserError: numbers are given, but not one for each class.
    """
    if not text:
        return np.ones(len(prior), np.float32)
    if text in segmentation.WEIGHTINGS:
        weights = segmentation.frequency_weights(
            prior, prior_where_present, text
        )
        return weights.astype(np.float32)
    weights = np.array([float(part) for part in text.split(",")], np.float32)
    if len(weights) != len(prior):
        raise UserError(
            f"segment.class_weights has {len(weights)} numbers and the data "
            f"{len(prior)} classes; give one for each class"
        )
    return weights


def _weights_problem(text: str) -> str:
    """What is wrong with `segment.class_weights`, or ''."""
    if text in ("", *segmentation.WEIGHTINGS):
        return ""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if numbers and all(0 <= n < np.inf for n in numbers) and any(numbers):
        return ""
    return (
        f"{text!r}: choose one of {', '.join(segmentation.WEIGHTINGS)}, or "
        "give a number for each class, with commas between them"
    )


# ---- Pixels ------------------------------------------------------------------


def resized_to_canvas(
    outputs: Float[Array, "B h w C"],
    sizes: Int[Array, "B 2"],
    canvas: tuple[int, int],
) -> Float[Array, "B H W C"]:
    """Resizes each image's outputs to its own size, in one frame.

    Bilinear with half-pixel centres, as two products with small matrices;
    what lies beyond an image's size is not defined.

    Args:
      outputs: of the model.
      sizes: width and height of each image in the frame.
      canvas: height and width of the frame, H and W.
    """
    height, width = canvas
    down = _bilinear(jnp, sizes[:, 1], height, outputs.shape[1])  # [B, H, h]
    across = _bilinear(jnp, sizes[:, 0], width, outputs.shape[2])  # [B, W, w]
    rows = jnp.einsum("bHh,bhwc->bHwc", down, outputs)
    return jnp.einsum("bWw,bHwc->bHWc", across, rows)


def full_size_mask(
    outputs: Float[np.ndarray, "h w C"], width: int, height: int
) -> np.ndarray:
    """Returns an image's mask at its own size, uint8 [height, width].

    The same resizing as `resized_to_canvas`, before the argmax, in stripes: a
    photo of 24 megapixels in 12 classes would take more than a gigabyte.
    """
    down = _bilinear(np, np.array([height]), height, outputs.shape[0])[0]
    across = _bilinear(np, np.array([width]), width, outputs.shape[1])[0]
    wide = np.einsum("Ww,hwc->hWc", across, outputs, optimize=True)
    mask = np.empty((height, width), np.uint8)
    step = max(1, STRIPE_PIXELS // width)
    for top in range(0, height, step):
        stripe = np.tensordot(down[top : top + step], wide, 1)  # [s, W, C]
        mask[top : top + step] = stripe.argmax(-1)
    return mask


def _bilinear(xp, lengths, frame: int, length: int):
    """Interpolation matrices [B, frame, length] to `lengths` int [B]."""
    scale = length / xp.maximum(lengths, 1)[:, None]  # [B, 1]
    where = (xp.arange(frame) + 0.5) * scale - 0.5  # [B, frame]
    where = xp.clip(where, 0, length - 1)[..., None]
    weights = 1 - xp.abs(where - xp.arange(length))
    return xp.maximum(weights, 0).astype(xp.float32)


def make_mask_step(abstract_model, mean, std, views: Sequence[str], mesh: Mesh):
    """Returns the jitted step: (params, batch_stats, images) -> outputs.

    images: uint8 [B, 1, S, S, 3]. outputs: float32 [B, S, S, C], logarithms
    of the classes' probabilities, averaged over the views (`WHOLE_VIEWS`).
    """

    @jax.jit
    @cpu_kernels.for_mesh(mesh)
    def step(params, batch_stats, images, mean, std):
        model = abstract_model.merge(params, batch_stats)
        model.eval()
        images = mixing.normalize(images[:, 0], mean, std)
        total = 0.0
        for view in views:
            axes = [
                axis
                for axis, flipped in zip((2, 1), WHOLE_VIEWS[view], strict=True)
                if flipped
            ]
            logits = model(jnp.flip(images, axes)).astype(jnp.float32)
            total += jnp.flip(jax.nn.softmax(logits), axes)
        return jnp.log(jnp.maximum(total / len(views), 1e-30))

    # As arguments: folds differ in them, and need not compile anew.
    return functools.partial(_with_channels, step, mean, std)


def _with_channels(step, mean, std, params, batch_stats, images):
    return step(params, batch_stats, images, mean, std)


def _labels(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Class indices int32, 0 where ignored, and which pixels count, float."""
    counted = mask != IGNORE
    return jnp.where(counted, mask, 0).astype(jnp.int32), counted.astype(
        jnp.float32
    )


def _confusions(labels, predicted, counted, logits) -> jax.Array:
    """float32 [B, C, C], exact: an image has less than 2^24 pixels here."""
    classes = logits.shape[-1]
    true = jax.nn.one_hot(labels, classes) * counted[..., None]
    found = jax.nn.one_hot(predicted, classes)
    return jnp.einsum("bhwt,bhwp->btp", true, found)


def _image_scores(confusion) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Dice and IoU of each image over its classes, 0 for one without pixels."""
    hits = jnp.diagonal(confusion, axis1=1, axis2=2)
    sizes = confusion.sum(1) + confusion.sum(2)  # [B, C]
    present = sizes > 0
    dice = jnp.where(present, 2 * hits / jnp.maximum(sizes, 1), 0.0)
    iou = dice / (2 - dice)
    count = jnp.maximum(present.sum(1), 1)
    seen = present.any(1).astype(jnp.float32)
    return dice.sum(1) / count, iou.sum(1) / count, seen
