"""Shapes in signatures are checked in every test, nested functions too."""

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from tests import typechecker
from training.tasks import losses


def test_shapes_that_do_not_fit_are_an_error():
    ones = jnp.ones(4)
    losses.cross_entropy(jnp.ones((2, 4)), jnp.ones((2, 4)), ones)
    with pytest.raises(TypeCheckError, match="targets"):
        losses.cross_entropy(jnp.ones((2, 4)), jnp.ones((2, 3)), ones)


@pytest.mark.parametrize("made", range(2))
def test_nested_functions_share_a_checker_and_nothing_else(made):
    def make(offset, kind):
        @jaxtyped(typechecker=typechecker.check)
        def nested(x: kind, extra: int = made):
            return x.sum() + offset + extra

        return nested

    vector, matrix = (
        make(10 + made, Float[Array, " n"]),
        make(20 + made, Float[Array, "n n"]),
    )
    assert vector(jnp.ones(3)) == 13 + 2 * made
    assert matrix(jnp.ones((3, 3))) == 29 + 2 * made
    for nested, wrong in (
        (vector, jnp.ones((3, 3))),
        (matrix, jnp.ones(3)),
        (matrix, jnp.ones((3, 2))),
    ):
        with pytest.raises(TypeCheckError):
            nested(wrong)
