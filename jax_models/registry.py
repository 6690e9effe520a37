"""The models by name: made, listed, and what each costs."""

from __future__ import annotations

import dataclasses
import difflib
import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from core.errors import UserError
from jax_models import convnext, costs, efficientnetv2, initializers, tinyvit
from jax_models.model import ImageModel

_FAMILIES = (
    (convnext.ConvNeXt, convnext.VARIANTS),
    (tinyvit.TinyViT, tinyvit.VARIANTS),
    (efficientnetv2.EfficientNetV2, efficientnetv2.VARIANTS),
)


def create_model(
    name: str,
    num_classes: int,
    rngs: nnx.Rngs | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    **overrides,
) -> ImageModel:
    """Makes a freshly initialised model, in training mode.

    Args:
      name: one of `list_models()`.
      num_classes: width of the logits.
      rngs: streams for the initial weights ("params") and for dropout and
        stochastic depth ("dropout"); `nnx.Rngs(0)` when left out.
      dtype: what the model computes in. Parameters are float32, and so are
        the logits.
      **overrides: fields of the architecture's `Config`, such as
        `drop_path_rate`, `head_bias` or `remat`.

    Raises:
      UserError: no model has that name, or its `Config` has no such field,
        or a number is replaced by something else.
    """
    found = [family for family in _FAMILIES if name in family[1]]
    if not found:
        close = difflib.get_close_matches(name, list_models(), 1)
        hint = f"did you mean {close[0]}?" if close else "choose one of them"
        raise UserError(
            f"there is no model named {name!r} among "
            f"{', '.join(list_models())}; {hint}"
        )
    model_class, variants = found[0]
    config = variants[name]
    fields = [field.name for field in dataclasses.fields(config)]
    unknown = sorted(set(overrides) - set(fields))
    if unknown:
        raise UserError(
            f"{name} has no option {', '.join(unknown)}; its options are "
            f"{', '.join(fields)}"
        )
    for key, value in overrides.items():
        default = getattr(config, key)
        if isinstance(default, (int, float)) and isinstance(value, str):
            raise UserError(
                f"{name} has no option {key}={value!r}; give a number, or True "
                "or False, as its default has"
            )
    # Modules keep options as static attributes, which must be hashable.
    overrides = {
        key: tuple(value) if isinstance(value, (list, np.ndarray)) else value
        for key, value in overrides.items()
    }
    config = dataclasses.replace(config, **overrides)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    with initializers.one_draw(rngs):
        return model_class(config, num_classes, dtype=dtype, rngs=rngs)


class ModelNames(tuple):
    """The names of the models; as text, a table with what each costs."""

    def __str__(self) -> str:
        lines = [
            f"{'model':<22}{'parameters':>14}{'multiply-adds':>16}",
            f"{'':<22}{'1000 classes':>14}{'224 x 224':>16}",
        ]
        for name in self:
            # Only the shapes: nothing is drawn or computed.
            model = nnx.eval_shape(functools.partial(create_model, name, 1000))
            found = costs.measure(model)
            lines.append(
                f"{name:<22}{found.parameters:>14,}"
                f"{found.multiply_adds / 1e9:>14.2f} G"
            )
        return "\n".join(lines)


def list_models() -> ModelNames:
    """The names that `create_model` takes.

    `print(list_models())` shows a table: parameters, and multiply-adds for
    one image of 224 x 224 pixels.
    """
    return ModelNames(name for _, variants in _FAMILIES for name in variants)
