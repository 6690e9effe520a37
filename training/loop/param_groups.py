"""The parts of a model that a stage treats apart: encoder, head, frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from core.errors import UserError
from jax_models.model import HEAD

# What a stage may name instead of a module's path: all but the head.
ENCODER = "encoder"


def groups(params: Any, frozen: Sequence[str]) -> Any:
    """Returns which optimizer each parameter belongs to.

    Args:
      params: nested dict of parameters.
      frozen: a stage's frozen modules.

    Returns:
      The same tree of "encoder", "head" and "frozen".
    """

    def group(path, _) -> str:
        names = [str(key.key) for key in path]
        if _is_frozen(names, frozen):
            return "frozen"
        return "head" if names[0] == HEAD else "encoder"

    return jax.tree_util.tree_map_with_path(group, params)


def stop_frozen_gradients(params: Any, frozen: Sequence[str]) -> Any:
    """Returns `params`, the frozen ones constant to differentiation.

    XLA then leaves out the backward pass that only they would need.
    """
    if not frozen:
        return params
    return jax.tree.map(
        lambda leaf, group: (
            jax.lax.stop_gradient(leaf) if group == "frozen" else leaf
        ),
        params,
        groups(params, frozen),
    )


def set_train_mode(model: nnx.Module, frozen: Sequence[str]) -> None:
    """Puts `model` into training mode, frozen modules into evaluation mode.

    So a frozen BatchNorm neither uses nor learns the batch's statistics, and
    a frozen block drops nothing.
    """
    model.train()
    for path, module in nnx.iter_modules(model):
        if path and _is_frozen([str(name) for name in path], frozen):
            module.eval()


def check(params: Any, frozen: Sequence[str]) -> None:
    """Refuses a frozen name that no module has, and that nothing learns.

    Raises:
      UserError: which name, and what there is.
    """
    paths = [
        [str(key.key) for key in path]
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    for name in frozen:
        if not any(_is_frozen(path, [name]) for path in paths):
            tops = sorted({path[0] for path in paths})
            raise UserError(
                f"frozen names {name!r}, which is no module of the model; "
                f"choose from {ENCODER}, {', '.join(tops)}, or a path below "
                "such as stages/0"
            )
    if all(_is_frozen(path, frozen) for path in paths):
        raise UserError(
            f"frozen is {', '.join(frozen)}: nothing is left to learn; leave "
            "out one of them"
        )


def _is_frozen(path: Sequence[str], frozen: Sequence[str]) -> bool:
    joined = "/".join(path) + "/"
    return any(
        path[0] != HEAD if name == ENCODER else joined.startswith(name + "/")
        for name in frozen
    )
