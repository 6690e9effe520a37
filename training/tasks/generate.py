"""The generation task: images of a class, from noise.

Rectified flow (Liu et al., arXiv 2209.03003) in pixel space: the network
learns with which velocity an image moves towards noise on a straight line,
at times drawn as in Esser et al., arXiv 2403.03206 (logit-normal).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jax_models
from configs.generation import UNCHANGED
from core.atomic_files import atomic_write
from core.errors import UserError
from input_pipeline.parallel_scan import with_progress
from input_pipeline.sources.base import Kind, Source
from input_pipeline.sources.pictures import read_pictures
from input_pipeline.transforms.views import SquareTransform
from jax_models.velocity import velocity_to
from run_folder import layout
from training.loop.stages import Stage
from training.loop.step import Loss
from training.multihost import comm
from training.tasks import flow_sampling
from training.tasks.base import Direction, Task
from training.tasks.flow_augmentation import augment
from training.tasks.flow_sampling import Sampling
from training.tasks.generation_export import FEWEST, export_samples
from training.tasks.judge import Judge
from training.tasks.networks import create_network

if TYPE_CHECKING:
    from reports.page import Section
    from run_folder.artifacts import ArtifactWriter
    from training.data import Data

# Times at which an image is evaluated.
TIMES = 4
# Of the picture of an evaluation: classes down, images of each across.
GRID_ROWS, GRID_COLUMNS = 10, 5


class Generation(Task):
    """Noise and a class to an image; see `Task`.

    Checkpoints are ranked by age: the last one counts. What the loss on the
    validation rows tells of sampled images is little, and choosing by it
    would let those rows into the images.
    """

    name: ClassVar[str] = "generate"
    features: ClassVar[Mapping[str, Kind]] = {
        "image": Kind.IMAGE,
        "label": Kind.LABEL,
    }
    metrics: ClassVar[Mapping[str, Direction]] = {"val_loss": "min"}
    learns_labels: ClassVar[bool] = True
    known_views: ClassVar[Sequence[str]] = ("square",)

    def __init__(self, config: ConfigDict, classes: Sequence[str] = ()):
        super().__init__(config, classes)
        self.resize = "square"
        self._judge: Judge | None = None
        self._sampler: flow_sampling.Sampler | None = None

    @classmethod
    def problems(cls, config: ConfigDict) -> Iterator[str]:
        """See `Task.problems`."""
        yield from super().problems(config)
        places = [("augment", config.augment)]
        for index, stage in enumerate(config.stages):
            places.append((f"stages[{index}].augment", stage.augment))
        for place, fields in places:
            for name, value in fields.items():
                plain = UNCHANGED.get(name, 0)
                # Without jitter, how often does not matter.
                unused = ("jitter_prob", "randaugment_magnitude")
                if name not in unused and value != plain:
                    yield (
                        f"{place}.{name} is {value}: generated images would "
                        "show what the loader does to photos; leave it at "
                        f"{plain} and set generate.augment, which they are "
                        "free of"
                    )
        for index, stage in enumerate(config.stages):
            for name, plain in (("patience", 0), ("layer_decay", 1.0)):
                if stage[name] != plain:
                    yield (
                        f"stages[{index}].{name} has no effect on the "
                        "generate task, whose weights start from nothing and "
                        "whose last checkpoint counts: leave it out"
                    )
        if config.generate.guidance != 1 and not config.generate.label_drop:
            yield (
                f"generate.guidance is {config.generate.guidance:g} and "
                "generate.label_drop 0: what no class looks like was never "
                "learned; leave guidance at 1 or train with a label_drop of .1"
            )
        for name in ("init_from", "init_names"):
            if config[name]:
                yield (
                    f"{name} has no effect on the generate task: nothing would "
                    "tell which photos those weights have seen; leave it out"
                )
        count = config.generate.count
        if config.generate.judge and 0 < count < FEWEST:
            yield (
                f"generate.count is {count}, too few images to score; take "
                f"{FEWEST} or more, or leave generate.judge empty"
            )
        if config.generate.filter and not config.generate.judge:
            yield (
                f"generate.filter is {config.generate.filter}, and there is "
                "no classifier to filter by; set generate.judge"
            )

    def attach(self, data: Data) -> dict[str, Any]:
        """Refuses photos too few for the scores, before the training."""
        halves = np.bincount(data.halves(data.train_rows), minlength=2)
        if self.config.generate.judge and halves.min() < FEWEST:
            raise UserError(
                f"the scores compare halves of the {halves.sum()} training "
                f"images, and one has {halves.min()}, fewer than {FEWEST}; "
                "leave generate.judge empty or take more images"
            )
        return {}

    @classmethod
    def eval_transform(
        cls, config: ConfigDict, source: Source | None, views: Sequence[str]
    ) -> SquareTransform:
        """Returns what cuts the square that is generated."""
        return SquareTransform(config.image_size)

    def build(self) -> nnx.Module:
        """Returns the freshly initialised network.

        Raises:
          UserError: `config.model` does not generate, or not at this size.
        """
        model = create_network(self.config, len(self.classes))
        if not isinstance(model, jax_models.VelocityModel):
            raise UserError(
                f"model is {self.config.model}, which generates no images; "
                "set --config.model to one of "
                f"{', '.join(jax_models.list_generation_models())}"
            )
        model.check_size(self.config.image_size, self.config.image_size)
        return model

    def describe(self) -> dict[str, str]:
        """Returns what the plan says of augmentation and sampling."""
        c = self.config.generate
        return {
            "augment": f"{c.augment:.0%} of each change, {c.flip:.0%} "
            "mirrored, as a condition",
            "samples": f"{c.sampler}, {c.steps} steps, guidance "
            f"{c.guidance:g}, seed {c.sample_seed}",
        }

    def describe_stage(self, stage: Stage) -> str:
        """Returns what the plan says of the loss."""
        c = self.config.generate
        shift = f", times shifted by {c.time_shift:g}" if c.time_shift else ""
        return (
            f"mean squared error of velocities, {c.label_drop:.0%} without a "
            f"class{shift}"
        )

    def merit(self, scores: Mapping[str, float], step: int) -> float:
        """Returns the step: the last checkpoint is taken."""
        return float(step)

    @property
    def eval_constants(self) -> Any:
        """Nothing: images are scaled to -1 to 1, whatever they are."""
        return {}

    def open_teachers(
        self, workdir: Path, identity: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Opens the judge; it is no part of the run, which learns nothing
        from it."""
        if self.config.generate.judge:
            self._judge = Judge(
                self.config.generate.judge,
                workdir,
                identity,
                self.config.data.fold,
            )
        return {}

    def loss(
        self, stage: Stage, mesh: Mesh, *, shapes_only: bool = False
    ) -> Loss:
        """Returns the mean squared error of the velocity."""
        config, anything = self.config.generate, len(self.classes)

        def prepare(batch, constants, key: jax.Array) -> dict[str, jax.Array]:
            augment_key, time_key, noise_key, drop_key = jax.random.split(
                key, 4
            )
            images = scaled(batch["image"])
            images, augmentation = augment(
                images, augment_key, prob=config.augment, flip=config.flip
            )
            count = images.shape[0]
            time = jax.nn.sigmoid(
                jax.random.normal(time_key, (count,)) + config.time_shift
            )
            noise = jax.random.normal(noise_key, images.shape)
            noisy = mixed(images, noise, time)
            drop = jax.random.uniform(drop_key, (count,)) < config.label_drop
            return {
                "noisy": noisy,
                "velocity": velocity_to(images, noisy, time),
                "time": time,
                "label": jnp.where(drop, anything, batch["label"]),
                "augmentation": augmentation,
                "weight": batch["weight"],
            }

        def loss(model, batch, constants) -> jax.Array:
            found = model(
                batch["noisy"],
                batch["time"],
                batch["label"],
                batch["augmentation"],
            )
            errors = jnp.square(found - batch["velocity"]).mean((1, 2, 3))
            weight = batch["weight"]
            return (errors * weight).sum() / jnp.maximum(weight.sum(), 1.0)

        return Loss(loss, {}, prepare)

    def evaluator(self) -> VelocityEvaluator:
        """Returns what averages the loss."""
        return VelocityEvaluator(
            self.config.seed, self.config.generate.time_shift
        )

    def sampler_on(self, mesh: Mesh) -> flow_sampling.Sampler:
        """Returns what makes images as the config says."""
        if self._sampler is None:
            c = self.config.generate
            how = Sampling(
                c.sampler, c.steps, c.guidance, c.sample_seed, c.chunk
            )
            self._sampler = flow_sampling.make_sampler(
                self.abstract_model, how, self.config.image_size, mesh
            )
        return self._sampler

    def after_evaluation(
        self,
        step: int,
        params: dict,
        batch_stats: dict,
        workdir: Path,
        mesh: Mesh,
    ) -> None:
        """Writes `grids/<step>.png`: a row for each of the first classes."""
        rows = min(len(self.classes), GRID_ROWS)
        labels = np.repeat(np.arange(rows), GRID_COLUMNS)
        indices = np.tile(np.arange(GRID_COLUMNS), rows)
        images = self.sampler_on(mesh)(params, batch_stats, labels, indices)
        picture = grid(np.stack(list(images)), GRID_COLUMNS)

        def write() -> None:
            from PIL import Image

            path = workdir / layout.GRIDS / f"{step:08d}.png"
            with atomic_write(path) as temporary:
                Image.fromarray(picture).save(temporary, format="png")

        comm.run_on_primary(write)

    def export(
        self,
        data: Data,
        writer: ArtifactWriter,
        params: dict,
        batch_stats: dict,
    ) -> str:
        """Writes `samples/<class>/<n>.png`, a manifest, and scores.

        Returns:
          A sentence on the scores, or on how to get some.
        """
        make = self.sampler_on(data.mesh)

        def sample(labels: np.ndarray, indices: np.ndarray) -> np.ndarray:
            images = make(params, batch_stats, labels, indices)
            if comm.is_primary():
                images = with_progress(images, len(labels), "generating")
            return np.stack(list(images))

        return export_samples(self.config, data, writer, sample, self._judge)

    @classmethod
    def report_sections(cls, workdir: Path) -> Sequence[Section]:
        """Returns scores, samples, grids and nearest training images."""
        import functools

        from reports.generation import generation_sections

        data = (layout.read_config(workdir) or {}).get("data", {})
        pictures = functools.partial(read_pictures, data)
        return generation_sections(workdir, pictures)


def scaled(images: jax.Array) -> jax.Array:
    """uint8 to float32 in -1 to 1."""
    return images.astype(jnp.float32) / 127.5 - 1


def mixed(images: jax.Array, noise: jax.Array, time: jax.Array) -> jax.Array:
    """What lies between images (time 0) and noise (time 1)."""
    time = time[:, None, None, None]
    return (1 - time) * images + time * noise


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Lays images uint8 [N, H, W, 3] out in rows: uint8 [R * H, C * W, 3]."""
    count, height, width, channels = images.shape
    rows = images.reshape(count // columns, columns, height, width, channels)
    return rows.swapaxes(1, 2).reshape(-1, columns * width, channels)


class VelocityEvaluator:
    """Sums the loss over images, each at times and noise of its own.

    Args:
      seed: of the noise.
      shift: of the times, `config.generate.time_shift`.
    """

    def __init__(self, seed: int, shift: float = 0.0):
        self._seed, self._shift = seed, shift

    def init(self) -> dict[str, np.ndarray]:
        """Returns the sums over no image."""
        zero = np.zeros((), np.float32)
        return {"loss": zero, "rows": zero}

    def update(
        self,
        totals: dict[str, jax.Array],
        model: nnx.Module,
        batch: Mapping[str, jax.Array],
        constants: dict[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """Adds a batch; see `Evaluator`.

        Times and noise follow from an image's row, so scores do not depend
        on how rows are divided into batches.
        """
        weights = batch["weight"] * ~batch["bad"]
        images = scaled(batch["image"][:, 0])
        keys = jax.vmap(lambda row: flow_sampling.key_of(self._seed, row))(
            batch["row"]
        )
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(
            keys
        )
        start = jax.vmap(
            lambda key: jax.random.uniform(jax.random.fold_in(key, 1))
        )(keys)
        label = jnp.maximum(batch["label"], 0)  # Filling has -1 and weight 0.
        loss = jnp.zeros(())
        for index in range(TIMES):
            # Of the logit-normal distribution, evenly.
            quantile = (start + index / TIMES) % 1.0
            quantile = jnp.clip(quantile, 1e-4, 1 - 1e-4)
            time = jax.nn.sigmoid(
                jax.scipy.special.ndtri(quantile) + self._shift
            )
            noisy = mixed(images, noise, time)
            found = model(noisy, time, label)
            errors = found - velocity_to(images, noisy, time)
            errors = jnp.square(errors).mean((1, 2, 3))
            loss = loss + (errors * weights).sum() / TIMES
        return {
            "loss": totals["loss"] + loss,
            "rows": totals["rows"] + weights.sum(),
        }

    def compute(self, totals: dict[str, Any]) -> dict[str, float]:
        """Returns the mean loss over the images that can be read."""
        return {"val_loss": float(totals["loss"] / max(totals["rows"], 1.0))}
