"""What a run takes over: an encoder's weights, or another run as a teacher."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import loading
from core import paths
from core.errors import UserError
from jax_models.model import HEAD
from jax_models.segmentation import ENCODER
from run_folder import identity as identity_lib
from run_folder import inference, layout
from training.checkpointing import weight_files
from training.checkpointing.reader import CheckpointReader
from training.loop.state import AbstractModel, abstract_weights
from training.multihost import comm
from training.tasks import registry


@dataclasses.dataclass(frozen=True)
class Run:
    """Another run's best weights.

    Attributes:
      folder: the run folder.
      config: its config.
      identity: its data.json: classes, folds_hash, rows_hash.
      step: of its best checkpoint so far.
    """

    folder: Path
    config: ConfigDict
    identity: dict[str, Any]
    step: int
    _checkpoints: CheckpointReader

    @property
    def pin(self) -> dict[str, Any]:
        """What names the weights, as JSON: the run may train on."""
        return {
            "step": self.step,
            "fingerprint": self._checkpoints.fingerprint(self.step),
            "family": identity_lib.family_hash(
                loading.plain(self.config), self.identity
            ),
        }

    @property
    def channels(self) -> dict[str, list[float]]:
        """`mean` and `std` of the images that the weights have learned from,
        as JSON; nothing where the run does not say."""

        def read() -> dict[str, list[float]]:
            try:
                spec = inference.read(self.folder)
            except UserError:
                return {}
            return {"mean": list(spec.mean), "std": list(spec.std)}

        return comm.run_on_primary(read)

    def weights(
        self, abstract_model: AbstractModel, mesh: Mesh
    ) -> tuple[dict, dict]:
        """Returns all of its (params, batch_stats).

        Args:
          abstract_model: of the model that the run trained.
          mesh: to place them on.
        """
        params, batch_stats = abstract_weights(abstract_model, mesh)
        like = {"params": params, "batch_stats": batch_stats}
        if self._averaged:
            loaded = self._checkpoints.load(self.step, {"ema": like})["ema"]
        else:
            loaded = self._checkpoints.load(self.step, like)
        return loaded["params"], loaded["batch_stats"]

    def match(self, params: dict, batch_stats: dict) -> tuple[list, list]:
        """Returns what this run's encoder has of a model, and what it lacks.

        Args:
          params: of the model; shapes are enough.
          batch_stats: of the same.

        Returns:
          Paths in the tree of both, as keys: those with the same name and
          shape here, and those without (among them the head).

        Raises:
          UserError: nothing matches.
        """
        contents = self._checkpoints.contents(self.step)
        found, absent = [], []
        ours = {"params": params, "batch_stats": batch_stats}
        inside = ENCODER in params
        for path, leaf in jax.tree_util.tree_flatten_with_path(ours)[0]:
            kind, *names = [str(key.key) for key in path]
            there = contents.get(self._path(kind, names, inside))
            fits = names[0] != HEAD and there == tuple(leaf.shape)
            (found if fits else absent).append((kind, *names))
        if not found:
            raise UserError(
                f"nothing in {self.folder} fits this model: that run trained "
                f"{self.config.model}; give --config.init_from a run of the "
                "same architecture"
            )
        return found, absent

    def encoder_into(
        self, params: dict, batch_stats: dict
    ) -> tuple[dict, dict, str]:
        """Replaces what has the same name and shape in this run's encoder.

        Args:
          params: of a freshly initialised model.
          batch_stats: of the same.

        Returns:
          params, batch_stats, laid out as they were, and a sentence that
          names what the other run does not have and what therefore stays as
          it was, and what it has to no use.

        Raises:
          UserError: nothing matches, or the checkpoint is damaged.
        """
        found, absent = self.match(params, batch_stats)
        found = set(found)
        ours = {"params": params, "batch_stats": batch_stats}
        leaves, structure = jax.tree_util.tree_flatten_with_path(ours)
        theirs = {}  # our position -> their path
        for position, (path, _) in enumerate(leaves):
            kind, *names = [str(key.key) for key in path]
            if (kind, *names) in found:
                theirs[position] = self._path(kind, names, ENCODER in params)
        wanted = {
            path: jax.ShapeDtypeStruct(
                leaves[at][1].shape,
                leaves[at][1].dtype,
                sharding=leaves[at][1].sharding,
            )
            for at, path in theirs.items()
        }
        loaded = self._checkpoints.load(self.step, wanted)
        merged = [leaf for _, leaf in leaves]
        for at, path in theirs.items():
            merged[at] = loaded[path]
        merged = jax.tree.unflatten(structure, merged)
        told = weight_files.sentence(
            f"{self.folder}, step {self.step}",
            (names for _, *names in found),
            (names for _, *names in absent),
            *self._names(set(theirs.values())),
        )
        return merged["params"], merged["batch_stats"], told

    @functools.cached_property
    def _averaged(self) -> bool:
        contents = self._checkpoints.contents(self.step)
        return any(path.startswith("ema/") for path in contents)

    @functools.cached_property
    def _has_encoder(self) -> bool:
        """Whether it trained a model around its encoder, as MAE does."""
        contents = self._checkpoints.contents(self.step)
        return any("params/encoder/" in path for path in contents)

    def _path(self, kind: str, names: Sequence[str], inside: bool) -> str:
        """Where this run's checkpoint has an array of a model.

        Args:
          kind: "params" or "batch_stats".
          names: of the array in the model.
          inside: whether the model keeps an encoder inside, as MAE does.
        """
        parts = ["ema"] if self._averaged else []
        parts += [kind]
        if self._has_encoder and not inside:
            parts += [ENCODER]
        elif inside and not self._has_encoder:
            if names[0] != ENCODER:
                return ""  # What is around an encoder is no classifier's.
            names = names[1:]
        return "/".join([*parts, *names])

    def _names(self, used: set[str]) -> tuple[list, list]:
        """Names of this run's weights: those that are used, and the others."""
        begin = "ema/" if self._averaged else ""
        ours, others = [], []
        for path in self._checkpoints.contents(self.step):
            for kind in (f"{begin}params/", f"{begin}batch_stats/"):
                if path.startswith(kind):
                    names = path.removeprefix(kind).split("/")
                    (ours if path in used else others).append(names)
        return ours, others


Encoder = Run | weight_files.WeightFile


def open_run(
    name: str,
    workdir: Path,
    fold: int,
    field: str,
    pin: dict[str, Any] | None = None,
) -> Run:
    """Opens a run folder to take weights from; changes nothing in it.

    To be called in all processes, which see the same folder.

    Args:
      name: a path, or the bare name of a run that lies beside `workdir` (or,
        for one fold of a run over all folds, beside the whole of it).
      workdir: this run's folder.
      fold: this run's; of a run over all folds the same one is taken.
      field: of the config that names the folder, for the error.
      pin: `Run.pin` of the weights that were taken before; None takes the
        best ones.

    Raises:
      UserError: it holds no evaluated checkpoint, or not those weights.
    """
    where, plain, identity = comm.run_on_primary(
        lambda: _read(_find(name, workdir, fold), field)
    )
    run, config = paths.make_path(where), loading.from_plain(plain)
    saved = CheckpointReader(run / layout.CHECKPOINTS)
    step = saved.best() if pin is None else pin["step"]
    if step is None:
        raise UserError(
            f"{field} names {run}, which has no evaluated checkpoint yet; "
            "let it train first"
        )
    found = Run(run, config, identity, step, saved)
    if pin is not None and (
        step not in saved.steps() or not _is_pinned(found, pin)
    ):
        raise UserError(
            f"{field} names {run}, and {workdir} has learned from its step "
            f"{step}, which is gone or another one since that run trained on; "
            "restore it from a copy, or choose another --workdir"
        )
    return found


def _is_pinned(found: Encoder, pin: dict[str, Any]) -> bool:
    return all(pin.get(key) == value for key, value in found.pin.items())


def _find(name: str, workdir: Path, fold: int) -> Path:
    run = paths.make_path(name)
    if len(run.parts) == 1 and not run.is_dir():
        beside = paths.absolute(workdir).parent
        near = beside / name
        run = near if near.is_dir() else beside.parent / name
    within = run / f"fold-{fold}"
    return within if within.is_dir() else run


def _read(run: Path, field: str) -> tuple[str, dict, dict]:
    """Where a run lies, its config and its identity, as JSON."""
    try:
        config = json.loads((run / layout.CONFIG).read_text("utf-8"))
        identity = json.loads((run / layout.DATA).read_text("utf-8"))
        # All that is asked of a run later must be there.
        _ = config["task"], config["model"]
        _ = identity["classes"], identity["folds_hash"], identity["rows_hash"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        or_file = ", or a file of weights" if field == "init_from" else ""
        raise UserError(
            f"{field} names {run}, which is no run folder; give the --workdir "
            f"of an earlier run{or_file}"
        ) from error
    return str(run), config, identity


def find_encoder(
    config: ConfigDict,
    workdir: Path,
    identity: dict,
    abstract_model: AbstractModel,
) -> tuple[Encoder | None, dict[str, Any]]:
    """Finds the weights that this run starts from, or has started from.

    A run that has begun needs them no more; if the config names another place
    now, the very same weights must lie there.

    Args:
      config: of this run.
      workdir: this run's folder.
      identity: of this run's data.
      abstract_model: of this run's model.

    Returns:
      What to start from, or None; and `init_from` of the run's identity (what
      names the weights, and the `mean` and `std` that they expect of images),
      or nothing.

    Raises:
      UserError: as `open_encoder`, or the weights are others.
    """

    def begun() -> list[Any]:
        named = (layout.read_config(workdir) or {}).get("init_from", "")
        pin = layout.read_data(workdir).get("init_from")
        return [layout.has_checkpoint(workdir), named, pin]

    has_begun, named, pin = comm.run_on_primary(begun)
    if not config.init_from:
        return None, {}
    if has_begun and named == config.init_from:
        return None, {"init_from": pin}
    found = open_encoder(
        config, workdir, identity, abstract_model, pin if has_begun else None
    )
    if has_begun:
        return None, {"init_from": pin or found.pin}
    return found, {"init_from": {**found.pin, **found.channels}}


def open_encoder(
    config: ConfigDict,
    workdir: Path,
    identity: dict,
    abstract_model: AbstractModel,
    pin: dict[str, Any] | None = None,
) -> Encoder:
    """Opens what `init_from` names, and checks that it may be used.

    Args:
      config: of this run.
      workdir: this run's folder.
      identity: of this run's data.
      abstract_model: of this run's model.
      pin: as `open_run`.

    Raises:
      UserError: it is neither a run nor a file of weights, of another
        architecture, or a classifier that has learned the labels of rows that
        validate here.
    """
    path = weight_files.find(config)
    opened = path and weight_files.open_file(path, abstract_model)
    if pin and (not _is_pinned(opened, pin) if path else "step" not in pin):
        raise UserError(
            f"init_from names {config.init_from}, and {workdir} has started "
            "from other weights; name those, or choose another --workdir"
        )
    if path:
        return opened
    run = open_run(
        config.init_from, workdir, config.data.fold, "init_from", pin
    )
    run.match(
        nnx.to_pure_dict(abstract_model.params),
        nnx.to_pure_dict(abstract_model.batch_stats),
    )
    same_rows = run.identity["rows_hash"] == identity["rows_hash"]
    if registry.get(run.config.task).learns_labels and same_rows:
        refuse_leak(run, identity, config.data.fold, "init_from")
    return run


def refuse_leak(
    run: Run, identity: Mapping[str, Any], fold: int, field: str
) -> None:
    """Refuses a run that has learned the labels of rows that validate here.

    Args:
      run: the opened run.
      identity: of this run's data.
      fold: this run's.
      field: of the config that names the run.

    Raises:
      UserError: its folds are others.
    """
    same_folds = run.identity["folds_hash"] == identity["folds_hash"]
    if not same_folds or run.config.data.fold != fold:
        raise UserError(
            f"{field} names {run.folder}, which was trained on rows that "
            "validate here, so scores would be too high; take a run over the "
            f"same folds with --config.data.fold={fold}"
        )
