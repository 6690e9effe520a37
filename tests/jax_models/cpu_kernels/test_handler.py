"""handler.h, by a handler of its own: sums of arrays times a weight each."""

from __future__ import annotations

import ctypes
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import native_build
from jax_models.cpu_kernels import dispatch

pytestmark = pytest.mark.skipif(
    not shutil.which("c++"), reason="there is no C++ compiler"
)

SOURCE = """
#include "native.h"

void WeightedSums(const Call& call) {
  const Span<float> weights = call.Numbers<float>("weights");
  const Span<int32_t> steps = call.Numbers<int32_t>("steps");
  const Span<int64_t> firsts = call.Numbers<int64_t>("firsts");
  const int64_t scale = call.Number<int64_t>("scale");
  const int32_t shift = call.Number<int32_t>("shift");
  const float factor = call.Number<bool>("negative") ? -1.0f : 1.0f;
  if (weights.size != 3 || steps.size != 3 || firsts.size != 3)
    Refuse("not three");
  for (int64_t i = 0; i < call.arguments.size(); ++i) {
    const Array x = call.arguments[i], sum = call.results[i];
    Parallel(call.pool, 1, [&](int64_t, int64_t) {
      sum.data[0] = 0;
      for (int64_t j = firsts[i]; j < x.size(); j += steps[i])
        sum.data[0] += factor * weights[i] * scale * x.data[j] + shift;
    });
  }
}
SEXTET_HANDLER(sextet_weighted_sums, WeightedSums)
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    source = tmp_path_factory.mktemp("handler") / "weighted_sums.cc"
    source.write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(source.parent))
        path = native_build.Library(
            "weighted_sums",
            [source],
            dispatch.CODE.headers,
            flags=["-I", str(dispatch.HERE)],
            includes=dispatch.CODE.includes,
        ).path()
    loaded = ctypes.CDLL(str(path))
    handler = jax.ffi.pycapsule(loaded.sextet_weighted_sums)
    jax.ffi.register_ffi_target("weighted_sums", handler, platform="cpu")
    return "weighted_sums"


OPTIONS = {
    "weights": np.float32([0.5, 2, 4]),
    "steps": np.int32([1, 1, 1]),
    "firsts": np.int64([0, 1, 2]),
    "scale": np.int64(10),
    "shift": np.int32(3),
    "negative": np.bool_(True),
}


def sums(target, *arrays, **changed):
    options = {
        name: value
        for name, value in (OPTIONS | changed).items()
        if value is not None
    }
    shapes = [jax.ShapeDtypeStruct((), jnp.float32) for _ in arrays]
    call = jax.ffi.ffi_call(target, shapes)
    return [float(value) for value in call(*arrays, **options)]


def test_any_number_of_arrays_each_with_its_own_attributes(target):
    arrays = jnp.ones((2, 3)), jnp.arange(4.0), jnp.full((3, 1), 2.0)
    found = sums(target, *arrays)
    assert found == [6 * (3 - 5), 3 * 3 - 20 * 6, 3 - 80]


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"weights": np.float64([0.5, 2, 4])}, "weights is of another type"),
        ({"weights": np.float32(1)}, "no array as attribute weights"),
        ({"scale": np.int64([1])}, "no number as attribute scale"),
        ({"negative": None}, "no number as attribute negative"),
        ({"shift": np.float32(1)}, "attribute shift is of another type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attributes_that_it_does_not_take_are_refused(target, changed, said):
    with pytest.raises(jax.errors.JaxRuntimeError, match=said) as raised:
        sums(target, jnp.ones(2), **changed)
    assert "INVALID_ARGUMENT: sextet_weighted_sums: " in str(raised.value)


def test_other_numbers_than_float32_are_refused(target):
    with pytest.raises(
        jax.errors.JaxRuntimeError, match="argument 1 is not of float32"
    ):
        sums(target, jnp.ones(3), jnp.ones(3, jnp.bfloat16))


def test_too_few_arrays_are_refused():
    if dispatch._library() is None:
        pytest.skip("nothing is compiled")
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    with pytest.raises(
        jax.errors.JaxRuntimeError,
        match="sextet_depthwise: there are only 1 arguments",
    ):
        dispatch.call("sextet_depthwise", shape, jnp.ones(3))
