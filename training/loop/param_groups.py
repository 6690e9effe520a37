"""Parameter groups: which parameters learn at what rate, and which do not.

A stage lists its groups as rows of pattern -> rate factor, weight decay,
frozen (`configs.common.group`), as the sharding rules are listed. The first
pattern that is found in a parameter's path decides.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """How the optimizer treats a parameter.

    Attributes:
      rate: factor of the stage's learning rate.
      weight_decay: AdamW's, 0 for what is no matrix or filter.
      frozen: whether it stays as it is.
    """

    rate: float = 1.0
    weight_decay: float = 0.0
    frozen: bool = False


def assign(params: Any, stage: ConfigDict) -> Any:
    """Returns the group of each parameter.

    Weight decay applies to kernels alone: biases, norm scales, GRN's gamma
    and beta and attention-bias tables are left out, as in the recipes of the
    papers (and unlike a bare AdamW).

    Args:
      params: nested dict of parameters; shapes are enough.
      stage: a `configs.common.stage`.

    Returns:
      The same tree of `ParamGroup`s.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [path_of(path) for path, _ in leaves]
    layers = layer_of(paths)
    groups = []
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        row = _row_of(path, stage.param_groups)
        rate, decay, frozen = 1.0, stage.weight_decay, False
        if row is not None:
            rate, frozen = row.rate, row.frozen
            decay = decay if row.weight_decay == -1 else row.weight_decay
        if not (path.split("/")[-1] == "kernel" and leaf.ndim >= 2):
            decay = 0.0
        # Layers are counted from the head, which trains at the full rate.
        rate *= stage.layer_decay ** (max(layers.values()) - layers[path])
        groups.append(
            ParamGroup(frozen=True) if frozen else ParamGroup(rate, decay)
        )
    return jax.tree.unflatten(structure, groups)


def rates(groups: Any) -> tuple[float, ...]:
    """Returns the distinct rate factors of what learns, ascending."""
    leaves = jax.tree.leaves(groups)
    return tuple(sorted({group.rate for group in leaves if not group.frozen}))


def path_of(path: tuple) -> str:
    """Returns a leaf's place in a tree as text, `stages/0/blocks/1/…`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def layer_of(paths: Sequence[str]) -> dict[str, int]:
    """Returns the depth of each parameter, for layer-wise decay.

    What comes before the first numbered block is layer 0, each block is a
    layer of its own, and the rest (norms and head after them) is the last.
    What lies between two stages, such as a downsampling, belongs to the first
    block of its stage (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT).

    Args:
      paths: of all parameters, `stages/0/blocks/1/…`.
    """
    found = {path: _BLOCK.match(path) for path in paths}
    blocks = sorted(
        {_block_of(match) for match in found.values() if match and match[3]}
    )
    layers = {}
    for path in paths:
        match = found[path]
        layers[path] = 0 if _STEM.search(path) else len(blocks) + 1
        if match is None:
            continue
        first = (match[1], int(match[2]), int(match[3] or -1))
        inside = [i for i, b in enumerate(blocks, 1) if b[:2] == first[:2]]
        if match[3]:
            layers[path] = blocks.index(first) + 1
        elif inside:
            layers[path] = inside[0]
    return layers


# What comes before the first block, by the models' names for it.
_STEM = re.compile(r"(^|/)(stem|patch_embed|conv_stem|bn1)/")

# `stages/0/blocks/1/…`: what the stages are called, which one, which block.
_BLOCK = re.compile(r"(.*?)/?(\d+)/(?:[a-z_]+/)?(?:(\d+)/)?")


def _block_of(match: re.Match) -> tuple[str, int, int]:
    return match[1], int(match[2]), int(match[3])


def stop_frozen_gradients(params: Any, stage: ConfigDict) -> Any:
    """Returns `params`, the frozen ones constant to differentiation.

    XLA then leaves out the backward pass that only they would need.
    """
    if not stage.param_groups:
        return params
    return jax.tree.map(
        lambda leaf, group: (
            jax.lax.stop_gradient(leaf) if group.frozen else leaf
        ),
        params,
        assign(params, stage),
    )


def set_train_mode(model: nnx.Module, stage: ConfigDict) -> None:
    """Puts `model` into training mode, frozen modules into evaluation mode.

    So a frozen BatchNorm neither uses nor learns the batch's statistics, and
    a frozen block drops nothing. A module is frozen if everything that it
    holds is.
    """
    model.train()
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    leaves = jax.tree_util.tree_flatten_with_path(assign(params, stage))[0]
    learning = {path_of(path) for path, group in leaves if not group.frozen}
    frozen = {path_of(path) for path, group in leaves if group.frozen}
    for path, module in nnx.iter_modules(model):
        prefix = "".join(f"{name}/" for name in path)
        if any(name.startswith(prefix) for name in learning):
            continue
        row = _row_of(prefix, stage.param_groups)  # Of one without parameters.
        if any(name.startswith(prefix) for name in frozen) or (
            row is not None and row.frozen
        ):
            module.eval()


def check(params: Any, stages: Sequence[ConfigDict]) -> None:
    """Refuses a pattern that no parameter has, and that nothing learns.

    Args:
      params: of the model; shapes are enough.
      stages: of the run.

    Raises:
      UserError: which pattern, and what there is.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = [path_of(path) for path, _ in leaves]
    for index, stage in enumerate(stages):
        for row in stage.param_groups:
            if not any(re.search(row.match, path) for path in paths):
                tops = sorted({path.split("/")[0] for path in paths})
                raise UserError(
                    f"stages[{index}].param_groups has match {row.match!r}, "
                    "which no parameter of the model has in its path; paths "
                    f"begin with {', '.join(tops)}"
                )
        if all(g.frozen for g in jax.tree.leaves(assign(params, stage))):
            raise UserError(
                f"stages[{index}].param_groups freezes every parameter, so "
                "nothing is left to learn; leave out one of its rows"
            )


def _row_of(path: str, rows: Sequence[ConfigDict]) -> ConfigDict | None:
    return next((row for row in rows if re.search(row.match, path)), None)
