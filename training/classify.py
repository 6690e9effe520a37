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
from errors import UserError
from input_pipeline import folds as folds_lib
from input_pipeline import mixing, pipeline
from input_pipeline.augment import Augment
from input_pipeline.sources import Images
from reports import scores
from stacking import logits as logits_lib
from training import config as config_lib
from training import dataset
from training.predict import Prediction, make_predict_step, predict
from training.stages import Stage
from training.state import LossFn, make_blueprint

# What stacking asks for at least (MIN_ROWS in stacking/session.py).
FEWEST_ROWS_TO_STACK = 10

# Validation images up to this size are decoded once and kept.
VALIDATION_BYTES_IN_MEMORY = 2**30


class Classification:
    """Images to classes, validated on one fold.

    Args:
      config: of the run.
      workdir: the run folder; `folds.csv` is kept there unless
        `data.folds_file` says otherwise.
      mesh: devices to lay batches out on.
      workers: loader processes; 0 loads in this process.

    Attributes:
      metric: ranks checkpoints; higher is better.
      data: the source with its folds.
      blueprint: the model without its numbers.

    Raises:
      UserError: the data, the model's name, a view or a batch size is wrong.
    """

    metric = "val_macro_f1"

    def __init__(
        self, config: ConfigDict, workdir: Path, mesh: Mesh, workers: int
    ):
        self._config, self._mesh, self._workers = config, mesh, workers
        self._folds_path = Path(config.data.folds_file or workdir / "folds.csv")
        pipeline.check_views(config.eval.tta)
        self.data = dataset.load(config.data, self._folds_path)
        self.blueprint = make_blueprint(self.build)
        self._check_batches()
        self._val_batches: list[dict] | None = None

    @property
    def num_train(self) -> int:
        """Images in one epoch."""
        return len(self.data.train_rows)

    def build(self) -> nnx.Module:
        """Returns the freshly initialised model."""
        config, options = self._config, {}
        if config.drop_path_rate is not None:
            options["drop_path_rate"] = config.drop_path_rate
        return jax_models.create_model(
            config.model,
            num_classes=self.data.num_classes,
            rngs=nnx.Rngs(config.seed),
            dtype=jnp.dtype(config.dtype),
            **options,
        )

    def describe(self) -> dict[str, str]:
        """Returns what the plan says of the data, as {heading: text}."""
        source, config = self.data.source, self._config.data
        test = f"{len(source.test):,} to predict" if source.test else "no test"
        where = config.root or "inside scikit-learn"
        if source.name.startswith("tfds:"):
            where = config.root or "in tfds' own folder"
        lines = {
            "data": f"{source.name}, {where}",
            "classes": f"{self.data.num_classes}",
            "images": f"{self.num_train:,} to train, "
            f"{len(self.data.val_rows):,} to validate (fold {config.fold} of "
            f"{config.folds}), {test}",
        }
        if len(self.data.val_rows) < FEWEST_ROWS_TO_STACK:
            lines["note"] = (
                "too few validation images to stack this run later; lower "
                "data.folds"
            )
        return lines

    def identity(self) -> dict[str, object]:
        """Returns what must not change while the run lives, as JSON."""
        return {
            "classes": list(self.data.source.classes),
            "folds_hash": self.data.folds_hash,
            "rows_hash": self.data.rows_hash,
        }

    def prepare(self, cache: Path) -> None:
        """Does what must be done once the run folder is ours.

        Args:
          cache: folder that keeps channel means over runs.
        """
        if not self._folds_path.exists():
            labelled = self.data.source.labelled
            folds_lib.write_folds(
                self._folds_path,
                labelled.ids,
                self.data.folds,
                self._config.data.folds_seed,
            )
        mean, std = self.data.channel_stats(cache)
        self._predict_step = make_predict_step(self.blueprint, mean, std)
        self._mean, self._std = mean, std

    def batches(self, stage: Stage, step: int) -> Iterator[dict]:
        """Returns the endless training batches of `stage`.

        Args:
          stage: of this run.
          step: global step of the first batch wanted.
        """
        return pipeline.train_batches(
            self.data.source.labelled,
            self.data.train_rows,
            Augment(**self._config.augment),
            size=self._config.image_size,
            batch_size=stage.config.batch_size,
            # Stages shuffle differently; prime, so that seeds do not meet.
            seed=self._config.seed + 7919 * stage.index,
            start_step=step - stage.start,
            workers=self._workers,
        )

    def loss(self, stage: Stage) -> LossFn:
        """Returns the loss of `stage`: see `make_loss`."""
        c = stage.config
        mix = mixing.Mixing(
            mixup_prob=c.mixup_prob,
            mixup_alpha=c.mixup_alpha,
            cutmix_alpha=c.cutmix_alpha,
            **self._config.mixing,
        )
        return make_loss(
            mix,
            self._mean,
            self._std,
            self.data.num_classes,
            c.label_smoothing,
        )

    def evaluate(self, params: dict, batch_stats: dict) -> dict[str, float]:
        """Returns validation loss, macro-F1 and accuracy, on centre crops."""
        labelled, rows = self.data.source.labelled, self.data.val_rows
        batches = self._val_batches
        if batches is None:
            batches = self._load(labelled, rows, ("center",))
            # The views are the same every time: decode them once, and spare
            # every evaluation the start of its own loader processes.
            pixels = 3 * self._config.image_size**2 * len(rows)
            if pixels <= VALIDATION_BYTES_IN_MEMORY:
                self._val_batches = batches = list(batches)
        prediction = predict(
            self._predict_step, params, batch_stats, batches, rows, self._mesh
        )
        return classification_metrics(
            labelled.labels[rows], prediction.mean(self.data.class_prior)
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
        self, images: Images, rows, views, params: dict, batch_stats: dict
    ) -> Prediction:
        batches = self._load(images, rows, views)
        return predict(
            self._predict_step, params, batch_stats, batches, rows, self._mesh
        )

    def _load(self, images: Images, rows, views) -> Iterator[dict]:
        return pipeline.eval_batches(
            images,
            rows,
            size=self._config.image_size,
            batch_size=self._config.eval.batch_size,
            views=views,
            workers=self._workers,
        )

    def _write_logits(self, path, images, rows, logits, fold) -> None:
        config, source = self._config, self.data.source
        logits_lib.write_logits(
            path,
            logits_lib.Logits(
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
            ),
        )

    def _check_batches(self) -> None:
        devices = self._mesh.size
        sizes = {
            "eval.batch_size": self._config.eval.batch_size,
            **{
                f"stages[{i}].batch_size": stage.batch_size
                for i, stage in enumerate(self._config.stages)
            },
        }
        for name, size in sizes.items():
            if size % devices:
                raise UserError(
                    f"{name} is {size}, which {devices} devices cannot share "
                    f"evenly; take a multiple of {devices}"
                )


def make_loss(
    mix: mixing.Mixing,
    mean: np.ndarray,
    std: np.ndarray,
    num_classes: int,
    label_smoothing: float,
) -> LossFn:
    """Returns softmax cross-entropy on mixed images and soft labels.

    Label smoothing (Szegedy et al. 2016) is applied here and nowhere else.
    Rows with mask 0 count for nothing; the mean is over the others.

    Args:
      mix: RandomErasing, MixUp and CutMix of the stage.
      mean: float [3], channel means over 0..1 values.
      std: float [3], channel standard deviations.
      num_classes: C.
      label_smoothing: share of the target that is spread over all classes.
    """

    def loss(
        model: nnx.Module, batch: dict[str, jax.Array], key: jax.Array
    ) -> jax.Array:
        images, targets, weights = mixing.prepare_train(
            batch, mix, mean, std, num_classes, key
        )
        images = jax.lax.optimization_barrier(images)
        targets = optax.smooth_labels(targets, label_smoothing)
        losses = optax.softmax_cross_entropy(model(images), targets)  # [B]
        return (losses * weights).sum() / jnp.maximum(weights.sum(), 1.0)

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
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "val_loss": float(losses.mean()),
        "val_macro_f1": float(
            scores.macro_f1(labels, predictions, logits.shape[1])
        ),
        "val_accuracy": float(scores.accuracy(labels, predictions)),
    }
