"""The models by name: made, listed, and what each costs."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from core.errors import UserError
from jax_models import (
    convnext,
    costs,
    deeplabv3plus,
    densenet,
    digits_reference,
    dit,
    efficientnet,
    efficientnet_lite,
    efficientnetv2,
    embedding,
    flow_unet,
    inception_v4,
    initializers,
    mobilenetv2,
    resnet,
    tinyvit,
    unet,
    wide_resnet,
)
from jax_models.embedding import EmbeddingModel
from jax_models.model import ImageModel
from jax_models.segmentation import SegmentationModel
from jax_models.velocity import VelocityModel

_CLASSIFIERS = (
    (convnext.ConvNeXt, convnext.VARIANTS),
    (tinyvit.TinyViT, tinyvit.VARIANTS),
    (efficientnetv2.EfficientNetV2, efficientnetv2.VARIANTS),
    (resnet.ResNet, resnet.VARIANTS),
    (efficientnet_lite.EfficientNetLite, efficientnet_lite.VARIANTS),
    (efficientnet.EfficientNet, efficientnet.VARIANTS),
    (mobilenetv2.MobileNetV2, mobilenetv2.VARIANTS),
    (densenet.DenseNet, densenet.VARIANTS),
    (wide_resnet.WideResNet, wide_resnet.VARIANTS),
    (inception_v4.InceptionV4, inception_v4.VARIANTS),
    (digits_reference.DigitsReference, digits_reference.VARIANTS),
)
_SEGMENTATION = (
    (deeplabv3plus.DeepLabV3Plus, deeplabv3plus.VARIANTS),
    (unet.UNet, unet.VARIANTS),
)
_EMBEDDING = ((EmbeddingModel, embedding.VARIANTS),)
_GENERATION = (
    (flow_unet.FlowUNet, flow_unet.VARIANTS),
    (dit.DiT, dit.VARIANTS),
)
_MODELS = _CLASSIFIERS + _SEGMENTATION + _EMBEDDING + _GENERATION


def create_model(
    name: str,
    num_classes: int,
    rngs: nnx.Rngs | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    zero_head: bool = False,
    **overrides,
) -> ImageModel | SegmentationModel | EmbeddingModel | VelocityModel:
    """Makes a freshly initialised model, in training mode.

    Args:
      name: one of `list_models()`, `list_segmentation_models()` or
        `list_generation_models()`, or `embedding`.
      num_classes: width of the logits; of an embedding 0 makes no class head;
        of a network that generates, how many classes it is asked for.
      rngs: streams for the initial weights ("params") and for dropout and
        stochastic depth ("dropout"); `nnx.Rngs(0)` when left out.
      dtype: what the model computes in. Parameters are float32, and so are
        the logits.
      zero_head: whether the classifier's weights start from zero, so that the
        first steps leave pretrained features as they are (BiT: Kolesnikov et
        al. 2020).
      **overrides: fields of the architecture's `Config`, such as
        `drop_path_rate`, `head_bias` or `remat`; of networks for
        segmentation and embedding `encoder` (one of `list_models()`) and
        `encoder_options` (a mapping).

    Raises:
      UserError: no model has that name, or its `Config` has no such field,
        or a number is replaced by something else.
    """
    model_class, config = _find(name, _MODELS)
    config = _override(name, config, overrides)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    options = dict(dtype=dtype, rngs=rngs)
    with initializers.one_draw(rngs):
        if issubclass(model_class, (SegmentationModel, EmbeddingModel)):
            options["encoder"] = _encoder(model_class, config, **options)
        model = model_class(config, num_classes, **options)
    if zero_head:
        kernel = model.head.fc.kernel
        kernel.set_value(jnp.zeros_like(kernel[...]))
    return model


def encoder_name(name: str, **overrides) -> str:
    """Returns the classifier that a model is, or has as its encoder.

    Args:
      name: as `create_model`.
      **overrides: as `create_model`.

    Raises:
      UserError: as `create_model`.
    """
    _, config = _find(name, _MODELS)
    overrides.pop("zero_head", None)
    return getattr(_override(name, config, overrides), "encoder", name)


def _find(
    name: str, families: Sequence[tuple[type, Mapping[str, Any]]]
) -> tuple[type, Any]:
    """The class and the config of the model with that name."""
    for model_class, variants in families:
        if name in variants:
            return model_class, variants[name]
    raise _no_model(name, [each for _, names in families for each in names])


def _no_model(name: str, names: Sequence[str]) -> UserError:
    close = difflib.get_close_matches(str(name), names, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return UserError(
        f"there is no model named {name!r} here; {hint}python -m jax_models "
        "lists all"
    )


def _override(name: str, config: Any, overrides: Mapping[str, Any]) -> Any:
    """The config with other values, all of them hashable."""
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
        several = hasattr(value, "__len__") and not isinstance(value, str)
        if isinstance(default, tuple) and not several:
            raise UserError(
                f"{name} has no option {key}={value!r}; give several values, "
                "as its default has"
            )
    # Modules keep options as static attributes, which must be hashable.
    return dataclasses.replace(
        config, **{key: _hashable(value) for key, value in overrides.items()}
    )


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, np.ndarray)):
        return tuple(value)
    if hasattr(value, "items"):
        return tuple((key, _hashable(each)) for key, each in value.items())
    return value


def _encoder(
    model_class: type[SegmentationModel] | type[EmbeddingModel],
    config: Any,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> ImageModel:
    """The encoder that the config of a network around one asks for."""
    encoder_class, variant = _find(config.encoder, _CLASSIFIERS)
    known = {field.name for field in dataclasses.fields(variant)}
    wanted = model_class.encoder_options(config)
    options = {key: value for key, value in wanted.items() if key in known}
    options["remat"] = config.remat
    options |= config.encoder_options
    variant = _override(config.encoder, variant, options)
    # Its classifier is taken off again.
    return encoder_class(variant, 1, dtype=dtype, rngs=rngs)


class ModelNames(tuple):
    """The names of the models; as text, a table with what each costs."""

    def __str__(self) -> str:
        return "\n".join(self.table())

    def table(self) -> Iterator[str]:
        """Yields the lines of the table, each model's once it is counted."""
        yield f"{'model':<22}{'parameters':>14}{'multiply-adds':>16}"
        yield f"{'':<22}{'1000 classes':>14}{'at this size':>22}"
        for name in self:
            # Only the shapes: nothing is drawn or computed.
            model = nnx.eval_shape(functools.partial(create_model, name, 1000))
            size = model.counted_at
            found = costs.measure(model, size)
            yield (
                f"{name:<22}{found.parameters:>14,}"
                f"{found.multiply_adds / 1e9:>14.2f} G{size:>4} px"
            )

    def matching(self, patterns: Sequence[str]) -> ModelNames:
        """Returns those that a shell's pattern such as `resnet*` matches.

        Raises:
          UserError: a pattern matches none.
        """
        for pattern in patterns:
            if not fnmatch.filter(self, pattern):
                raise _no_model(pattern, self)
        return ModelNames(
            name
            for name in self
            if any(fnmatch.fnmatchcase(name, each) for each in patterns)
        )


def list_models() -> ModelNames:
    """The names of the classifiers that `create_model` makes.

    `print(list_models())` shows a table: parameters, and multiply-adds for
    one image of the size that the network is for.
    """
    return ModelNames(name for _, variants in _CLASSIFIERS for name in variants)


def list_segmentation_models() -> tuple[str, ...]:
    """The names of the segmentation networks that `create_model` makes.

    Each goes over any of `list_models()` as its encoder.
    """
    return tuple(name for _, variants in _SEGMENTATION for name in variants)


def list_generation_models() -> tuple[str, ...]:
    """The names of the networks that generate images, for `create_model`."""
    return tuple(name for _, variants in _GENERATION for name in variants)
