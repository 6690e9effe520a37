"""Tasks by name. Imports none before it is asked for: they import JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from core.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from training.tasks.base import Task

_BUILT_IN = {
    "classify": "training.tasks.classify:Classification",
    "mae": "training.tasks.mae:MaskedAutoencoding",
    "generate": "training.tasks.generate:Generation",
    "simclr": "training.tasks.simclr:ContrastiveLearning",
    "segment": "training.tasks.segment:Segmentation",
    "verify": "training.tasks.verify:Verification",
}

_registered: dict[str, type[Task]] = {}


def register(task: type[Task]) -> type[Task]:
    """Makes a task known under its `name`; also a class decorator.

    For a task outside this repository: the module of its recipe imports it.
    """
    _registered[task.name] = task
    return task


def names() -> tuple[str, ...]:
    """The names that `config.task` may have."""
    return (*_BUILT_IN, *(n for n in _registered if n not in _BUILT_IN))


def get(name: str) -> type[Task]:
    """Returns the class of a task.

    Raises:
      UserError: no task has that name.
    """
    if name in _registered:
        return _registered[name]
    if name not in _BUILT_IN:
        raise UserError(f"task is {name!r}: choose one of {', '.join(names())}")
    module, _, cls = _BUILT_IN[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def check(config: ConfigDict) -> type[Task]:
    """Returns the class of `config.task`, whose own checks have passed.

    Raises:
      UserError: all of the task's complaints about the config.
    """
    task = get(config.task)
    problems = list(task.problems(config))
    if problems:
        raise UserError("; ".join(problems))
    return task
