"""What a task is: everything that differs between learning problems.

A task is one file beside this one. train.py, the config's checks, transfer,
cross-validation, checkpoints and reports ask for what is declared here, and
name no task. `registry` knows the tasks by name.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from configs import common
from core import csv_table
from core.errors import UserError
from input_pipeline.loader import Transform
from input_pipeline.samplers import BalancedSampler, Sampler, ShuffledSampler
from input_pipeline.sources.base import Kind, Source
from input_pipeline.transforms.views import VIEWS, EvalTransform
from training.loop import grad_accumulation, param_groups
from training.loop.evaluate import Evaluator
from training.loop.stages import Stage
from training.loop.state import AbstractModel, make_abstract_model
from training.loop.step import Loss
from training.tasks import unread_fields
from training.tasks.statistics import Statistics

if TYPE_CHECKING:
    from reports.page import Section
    from run_folder.artifacts import ArtifactWriter
    from run_folder.inference import InferenceSpec
    from run_folder.mask_files import MaskStyle
    from training.data import Data
    from training.photos import PhotoFiles, Photos

Direction = Literal["max", "min"]


class Task(abc.ABC):
    """One learning problem over one config. Constructing it writes nothing.

    Args:
      config: of the run; `problems` has found none in it.
      classes: names in the order of the model's outputs; perhaps none.

    Attributes:
      name: of the task in `config.task`.
      features: of the examples that it learns from, with their kinds.
      metrics: what an evaluation gives, with the direction of better; the
        first ranks checkpoints unless `checkpoint.metric` names another.
      loss_fields: those of `unread_fields.LOSS_FIELDS` that its loss reads.
      known_views: test-time views to choose from; validation takes the first.
      chooses_views: whether its export obeys `eval.tta=auto`.
      predicts_files: whether its predictions of photos are files, too.
      explains: whether it can draw where in a photo it looked.
      answers: {name: what it is} of an exported model's arrays, if not logits.
      not_exported: parts of the model that no answer needs.
      learns_labels: whether rows that validate elsewhere must be kept from it.
      takes_generated: whether it trains on generated images (`data.generated`).
      abstract_model: the model without its numbers.
      views: test-time views for new images; under `eval.tta=auto` the first
        alone, until `export` has chosen.
      resize: the rule that cuts what the model sees out of an image.
      statistics: of the training rows; set by `train.py` once they are known,
        before anything is computed.

    Raises:
      UserError: the model, an option of it or a parameter group is wrong.
    """

    name: ClassVar[str]
    features: ClassVar[Mapping[str, Kind]] = {"image": Kind.IMAGE}
    metrics: ClassVar[Mapping[str, Direction]]
    loss_fields: ClassVar[frozenset[str]] = frozenset()
    chooses_views: ClassVar[bool] = False
    predicts_files: ClassVar[bool] = False
    explains: ClassVar[bool] = False
    answers: ClassVar[Mapping[str, str]] = {}
    not_exported: ClassVar[Sequence[str]] = ()
    learns_labels: ClassVar[bool] = False
    takes_generated: ClassVar[bool] = False
    known_views: ClassVar[Sequence[str]] = VIEWS

    statistics: Statistics

    def __init__(self, config: ConfigDict, classes: Sequence[str] = ()):
        self.config, self.classes = config, tuple(classes)
        self.views = common.view_sets(config.eval.tta)[0]
        self.resize = "center_crop"
        self.abstract_model: AbstractModel = make_abstract_model(self.build)
        grad_accumulation.check(config, self.abstract_model.batch_stats)
        param_groups.check(
            nnx.to_pure_dict(self.abstract_model.params), config.stages
        )

    # ---- What every task must say -------------------------------------------

    @abc.abstractmethod
    def build(self) -> nnx.Module:
        """Returns the freshly initialised model."""

    @abc.abstractmethod
    def loss(
        self, stage: Stage, mesh: Mesh, *, shapes_only: bool = False
    ) -> Loss:
        """Returns what a stage minimises: pure, its constants passed in.

        Args:
          stage: of the run.
          mesh: to place large constants on, such as a teacher's weights.
          shapes_only: whether shapes do for those, as in a plan.
        """

    @abc.abstractmethod
    def evaluator(self) -> Evaluator:
        """Returns what scores the validation rows."""

    @abc.abstractmethod
    def export(
        self,
        data: Data,
        writer: ArtifactWriter,
        params: dict,
        batch_stats: dict,
    ) -> str:
        """Writes what the run leaves besides its checkpoints.

        To be called in all processes; the writer writes in the primary alone.

        Args:
          data: of the run.
          writer: keeps the manifest of what is written.
          params: of the best model.
          batch_stats: of the same.

        Returns:
          A sentence for people: a score, or how to go on.
        """

    # ---- What most tasks leave as it is -------------------------------------

    @classmethod
    def problems(cls, config: ConfigDict) -> Iterator[str]:
        """Yields a sentence for each field that cannot work with this task."""
        metric = config.checkpoint.metric
        if metric and metric not in cls.metrics:
            yield (
                f"checkpoint.metric is {metric!r}: the {cls.name} task has "
                f"{', '.join(cls.metrics)}"
            )
        if common.AUTO in config.eval.tta and not cls.chooses_views:
            yield (
                f"eval.tta is {common.AUTO!r}: the {cls.name} task chooses no "
                "views; name those to average"
            )
        for view in config.eval.tta:
            if view != common.AUTO and (problem := cls.view_problem(view)):
                yield f"eval.tta: {problem}"
        yield from unread_fields.problems(config, cls.name, cls.loss_fields)

    @classmethod
    def view_problem(cls, view: str) -> str:
        """Returns what is wrong with the name of a test-time view, or ''."""
        if view in cls.known_views:
            return ""
        hint = csv_table.did_you_mean(view, cls.known_views)
        known = ", ".join(cls.known_views)
        return f"there is no view {view!r}{hint}; choose from {known}"

    @classmethod
    def eval_transform(
        cls, config: ConfigDict, source: Source | None, views: Sequence[str]
    ) -> Transform:
        """Returns what makes an example of evaluation or prediction.

        Args:
          config: of the run.
          source: of the data; None where there is none but the photos.
          views: out of `known_views`.
        """
        return EvalTransform(views, config.image_size)

    def mask_style(self, source: Source) -> MaskStyle | None:
        """Returns how masks are written; None for a task without them."""
        return None

    def attach(self, data: Data) -> dict[str, Any]:
        """Takes what the task needs of a run's data, before anything is made.

        Args:
          data: of the run.

        Returns:
          What must not change while the run lives, as JSON.

        Raises:
          UserError: the data are not what the task can learn from.
        """
        return {}

    def statistics_of_later_stages(
        self, batch_stats: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the statistics that a stage after the first begins with.

        Args:
          batch_stats: of the best weights so far, perhaps moving averages.
        """
        return batch_stats

    def advice(self, stage: Stage, measured: Mapping[str, float]) -> str:
        """Returns a sentence where a logged step shows a training that fails.

        Args:
          stage: of the run.
          measured: in that step, by name: `loss`, and what the loss tells.
        """
        return ""

    @property
    def similarity_weights(self) -> tuple[float, ...]:
        """How two pictures are compared; () for a task that does not."""
        return ()

    @property
    def metric(self) -> str:
        """The metric that ranks checkpoints."""
        return self.config.checkpoint.metric or next(iter(self.metrics))

    def merit(self, scores: Mapping[str, float], step: int) -> float:
        """Returns the score that ranks checkpoints; more is better.

        Args:
          scores: of an evaluation.
          step: global steps done by then.
        """
        value = scores[self.metric]
        return value if self.metrics[self.metric] == "max" else -value

    def after_evaluation(  # noqa: B027 (most tasks have nothing to show)
        self,
        step: int,
        params: dict,
        batch_stats: dict,
        workdir: Path,
        mesh: Mesh,
    ) -> None:
        """Shows what the model does by now, besides its scores.

        Called in all processes, before the checkpoint is saved: what it
        writes may be written once more when the run resumes.

        Args:
          step: global steps done.
          params: of the model, as evaluated.
          batch_stats: of the same.
          workdir: the run folder.
          mesh: of devices.
        """

    def sampler(self, data: Data, seed: int) -> Sampler:
        """Returns which row stands where in the endless training stream.

        Args:
          data: of the run.
          seed: of the stage.
        """
        rows, balance = data.train_rows, self.config.data.balance
        if balance == 0:
            return ShuffledSampler(rows, seed)
        labels = data.source.labelled.labels[rows]
        return BalancedSampler(rows, labels, seed, balance)

    @property
    def eval_constants(self) -> Any:
        """What `Evaluator.update` is given: a tree of arrays."""
        return {
            **self.statistics.channels,
            "class_prior": np.asarray(self.statistics.class_prior, np.float32),
        }

    def describe(self) -> dict[str, str]:
        """Returns what the plan says of the task, as {heading: text}."""
        return {}

    def describe_data(self, data: Data) -> dict[str, str]:
        """Returns what the plan says of the rows, as {heading: text}."""
        return {}

    def describe_stage(self, stage: Stage) -> str:
        """Returns what the plan says of a stage's loss."""
        return f"{self.name} loss"

    def open_teachers(
        self, workdir: Path, identity: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Opens the runs that this one learns from.

        Args:
          workdir: this run's folder, which knows them if it has begun.
          identity: of this run's data.

        Returns:
          What names their weights, as JSON: a part of the run's identity.

        Raises:
          UserError: one cannot teach this run.
        """
        return {}

    def restore(self, spec: InferenceSpec) -> None:
        """Takes what a saved run knows, to predict new images as it does."""
        classes = len(spec.classes)
        self.statistics = Statistics(
            np.array(spec.mean, np.float32),
            np.array(spec.std, np.float32),
            # The answer for a photo that cannot be read, which is reported.
            np.full(classes, 1 / max(classes, 1)),
            np.ones(classes),
        )
        self.views, self.resize = spec.views, spec.resize

    def predict(
        self,
        photos: Photos,
        params: dict,
        batch_stats: dict,
        files: PhotoFiles | None = None,
    ) -> Iterable[dict[str, Any]]:
        """Returns one JSON-able record per photo, for predict.py.

        `bad` in a record is True where the photo could not be read.

        Args:
          photos: to predict.
          params: of the model.
          batch_stats: of the same.
          files: what to write besides; None writes nothing. Only where
            `predicts_files`, or `explains` and pictures of that are wanted.

        Raises:
          UserError: the task has nothing to say of single photos.
        """
        raise UserError(
            f"the {self.name} task gives no predictions for photos; name a "
            "run of another task"
        )

    def answer(
        self, model: nnx.Module, images: Float[Array, "B H W 3"]
    ) -> Float[Array, "B ..."] | dict[str, Float[Array, "B ..."]]:
        """Returns what `answers` describes; pure, for export.py.

        Args:
          model: in evaluation mode.
          images: normalised, of the side that the task trains at.

        Raises:
          UserError: the task has no answer for single images.
        """
        raise UserError(
            f"the {self.name} task has no answer for an image; name a run of "
            "another task"
        )

    @classmethod
    def report_sections(cls, workdir: Path) -> Sequence[Section]:
        """Returns the task's part of the report on a run folder."""
        return ()

    @classmethod
    def join_folds(
        cls, workdir: Path, runs: Sequence[Path], writer: ArtifactWriter
    ) -> str:
        """Joins what the runs over the single folds have exported.

        Args:
          workdir: folder of the run over all folds.
          runs: a run folder per fold.
          writer: of `workdir`.

        Returns:
          A sentence for people, such as the out-of-fold score.
        """
        return f"{len(runs)} models in {workdir}"
