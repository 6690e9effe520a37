"""The models that the goldens were made with, and what these compute."""

from __future__ import annotations

import dataclasses
import functools
from unittest import mock

import golden_recipe as recipe
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_models
from jax_models import ImageModel, registry


def load(name: str, dtype: jnp.dtype = jnp.float32, **options) -> ImageModel:
    """The model `name` with the recipe's weights, in training mode.

    Without drop path and dropout, so that its training mode is exact too.

    Args:
      name: one of `golden_recipe.MODELS`.
      dtype: what it computes in; in float64 its weights are of that type too.
      **options: of the model.
    """
    graphdef, state = _split(name, **options)
    if dtype != jnp.float32:
        # Not drawn, only shaped: every value comes from the recipe.
        graphdef = nnx.graphdef(
            nnx.eval_shape(lambda: _make(name, dtype, **options))
        )
        state = jax.tree.map(lambda leaf: leaf.astype(dtype), state)
    return nnx.merge(graphdef, state, copy=True)


def _make(name, dtype, **options):
    return jax_models.create_model(
        name, recipe.CLASSES, dtype=dtype, **drops(name), **options
    )


def drops(name, rate=0.0):
    """Options that drop as much of a model, by default nothing."""
    _, config = registry._find(name, registry._CLASSIFIERS)
    fields = {field.name for field in dataclasses.fields(config)}
    return dict.fromkeys(fields & {"drop_path_rate", "dropout"}, rate)


@functools.lru_cache(maxsize=4)
def _split(name, **options):
    model = blank(lambda: _make(name, jnp.float32, **options))
    jax_models.import_torch(model, recipe_weights(model))
    return nnx.split(model)


def blank(make):
    """The model of `make()`, all zeros: quickly, for nothing is drawn."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, jax.tree.map(_zeros, state))


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.zeros(leaf.shape, leaf.dtype)
    # By NumPy: else XLA compiles a program for each shape.
    return jnp.asarray(np.zeros(leaf.shape, leaf.dtype))


def recipe_weights(model) -> dict[str, np.ndarray]:
    """The recipe's weights for a model, by PyTorch's names."""
    exported = jax_models.export_torch(model)
    return recipe.state_dict({k: v.shape for k, v in exported.items()})


def compiled_blocks():
    """A context in which models compile block by block.

    Blocks of a stage have the same program, so each is compiled once, where
    compiling the whole network would compile every block. For evaluation
    mode, where a block changes nothing but its input.
    """

    def run_block(self, stage, block, x):
        return _run_block(*nnx.split(block), x)

    return mock.patch.object(ImageModel, "run_block", run_block)


@functools.partial(jax.jit, static_argnums=0)
def _run_block(graphdef, state, x):
    return nnx.merge(graphdef, state)(x)


def load_segmentation(
    name: str, dtype: jnp.dtype = jnp.float32
) -> jax_models.SegmentationModel:
    """As `load`, one of `golden_recipe.SEGMENTATION`."""
    network, options = recipe.SEGMENTATION[name]
    if network == "deeplabv3plus":
        options = options | {"dropout": 0.0}
    return fill(
        lambda dtype: jax_models.create_model(
            network, recipe.PIXEL_CLASSES, dtype=dtype, **options
        ),
        dtype,
    )


def fill(make, dtype: jnp.dtype = jnp.float32):
    """A model of `make(dtype)` with the recipe's weights."""
    model = blank(lambda: make(dtype))
    jax_models.import_torch(model, recipe_weights(model))
    state = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf,
        nnx.state(model),
    )
    return nnx.merge(nnx.graphdef(model), state, copy=True)


def training_step(
    model: ImageModel | jax_models.SegmentationModel,
    shape: tuple[int, int, int, int] = recipe.CLOSE_LOOK,
) -> dict[str, np.ndarray]:
    """What the goldens have of the training mode, as `model` computes it.

    Returns:
      The loss, the logits, a sample of the gradients of the images and of
      some parameters, and of BatchNorm's updated statistics, in the type of
      the model's weights.
    """
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    dense = isinstance(model, jax_models.SegmentationModel)
    batch, height, width, _ = shape
    if dense:
        labels = recipe.pixel_labels(batch, height, width)
    else:
        labels = recipe.labels(batch)

    @jax.jit
    def step(params, rest, images):
        def loss(params, images):
            model = nnx.merge(graphdef, params, rest, copy=True)
            logits = model(images)
            chosen = jnp.take_along_axis(
                jax.nn.log_softmax(logits), labels[..., None], -1
            )
            return -chosen.mean(), (logits, nnx.state(model, nnx.BatchStat))

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, images)

    dtype = jax.tree.leaves(params)[0].dtype
    images = jnp.asarray(recipe.images(*shape), dtype)
    (loss, (logits, statistics)), grads_of = step(params, rest, images)
    to_params, to_images = grads_of
    found = {
        "train loss": np.asarray(loss),
        "train logits": recipe.sample(logits, 512) if dense else logits,
        "gradient images": recipe.sample(to_images, 512),
    }
    # The exporter turns gradients as it turns weights.
    turned = jax_models.export_torch(nnx.merge(graphdef, to_params, statistics))
    updated = [name for name in turned if ".running_" in name]
    counters = [name for name in turned if name.endswith("num_batches_tracked")]
    for name in recipe.gradient_names({*turned} - {*updated, *counters}):
        found[f"gradient {name}"] = recipe.sample(turned[name])
    for name in updated:
        found[f"updated {name}"] = recipe.sample(turned[name], 8)
    return found
