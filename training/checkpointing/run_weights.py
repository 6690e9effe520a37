"""The best weights of another run, and what of them a model can take."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import loading
from core.errors import UserError
from jax_models.model import HEAD
from jax_models.segmentation import ENCODER
from run_folder import identity as identity_lib
from run_folder import inference
from training.checkpointing import weight_files
from training.checkpointing.reader import CheckpointReader
from training.loop.state import AbstractModel, abstract_weights
from training.multihost import comm


@dataclasses.dataclass(frozen=True)
class Run:
    """Another run's best weights.

    Attributes:
      folder: the run folder.
      config: its config.
      identity: its data.json: classes, folds_hash, rows_hash.
      step: of its best checkpoint so far.
      renames: `config.init_names` of the run that takes its weights.
    """

    folder: Path
    config: ConfigDict
    identity: dict[str, Any]
    step: int
    _checkpoints: CheckpointReader
    renames: Sequence[str] = ()

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
            there = contents.get(self._there(kind, names, inside))
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
                theirs[position] = self._there(kind, names, ENCODER in params)
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

    @functools.cached_property
    def _names_there(self) -> dict[str, str]:
        """{path as the model has it: path in the checkpoint}."""
        contents = self._checkpoints.contents(self.step)
        named = weight_files.renamed(contents, self.renames)
        return {here: there for there, here in named.items()}

    def _there(self, kind: str, names: Sequence[str], inside: bool) -> str:
        path = self._path(kind, names, inside)
        return self._names_there.get(path, "")

    def _path(self, kind: str, names: Sequence[str], inside: bool) -> str:
        """Where this run's checkpoint has an array, but for `renames`.

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
