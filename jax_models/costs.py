"""How large a model is and how much it computes, without running it."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from jax_models import cpu_kernels
from jax_models.embedding import EmbeddingModel
from jax_models.model import ImageModel
from jax_models.segmentation import SegmentationModel


@dataclasses.dataclass(frozen=True)
class Costs:
    """Parameters, and multiply-adds for one image (half the FLOPs)."""

    parameters: int
    multiply_adds: int


def measure(
    model: ImageModel | SegmentationModel | EmbeddingModel, size: int = 224
) -> Costs:
    """Counts a model, which may be abstract (`nnx.eval_shape`).

    Args:
      model: any model of `create_model`.
      size: height and width of the image.

    Returns:
      The costs. Multiply-adds are those of matrix products and convolutions,
      in evaluation mode, as they are commonly counted.
    """
    model = nnx.clone(model)
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params, rest, image):
        return nnx.merge(graphdef, params, rest)(image)

    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with cpu_kernels.xla_only():
        program = jax.make_jaxpr(apply)(params, rest, image)
    leaves = jax.tree.leaves(params)
    return Costs(
        parameters=sum(math.prod(leaf.shape) for leaf in leaves),
        multiply_adds=_multiply_adds(program.jaxpr),
    )


def _multiply_adds(program: core.Jaxpr) -> int:
    total = 0
    for step in program.eqns:
        output = step.outvars[0].aval if step.outvars else None
        if step.primitive.name == "dot_general":
            (contracted, _), _ = step.params["dimension_numbers"]
            shape = step.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += depth * output.size
        elif step.primitive.name == "conv_general_dilated":
            # A filter's axes are height, width, inputs of its group, outputs.
            kernel = step.invars[1].aval
            numbers = step.params["dimension_numbers"]
            outputs = kernel.shape[numbers.rhs_spec[0]]
            total += output.size * kernel.size // outputs
        else:
            for parameter in step.params.values():
                if isinstance(parameter, core.ClosedJaxpr):
                    total += _multiply_adds(parameter.jaxpr)
                elif isinstance(parameter, core.Jaxpr):
                    total += _multiply_adds(parameter)
    return total
