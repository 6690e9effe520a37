from __future__ import annotations

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jax_models
from core import native_build
from jax_models import cpu_kernels, target
from jax_models.cpu_kernels import dispatch


def program(name="tinyvit_demo"):
    """The text of a model's forward and backward pass, as lowered here."""
    model = nnx.eval_shape(lambda: jax_models.create_model(name, 4))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)

    def loss(params, rest, images):
        return nnx.merge(graphdef, params, rest, copy=True)(images).sum()

    return str(jax.make_jaxpr(jax.grad(loss))(params, rest, images))


def test_there_is_compiled_code_where_there_is_a_compiler():
    assert (dispatch._library() is None) == (shutil.which("c++") is None)


@pytest.mark.parametrize(
    ("platform", "devices"), [("cpu", 2), ("tpu", 1), ("gpu", 1)]
)
def test_other_devices_than_one_cpu_take_no_cpp(platform, devices):
    if dispatch._library() is not None:
        assert "ffi_call" in program()
        with cpu_kernels.for_platform("cpu", 1):
            assert "ffi_call" in program()
    with cpu_kernels.for_platform(platform, devices):
        text = program()
    assert "ffi_call" not in text
    # Grouped convolutions are slow on any CPU, and right elsewhere.
    assert ("feature_group_count=128" in text) == (platform != "cpu")


def test_what_is_switched_off_stays_off_whatever_the_platform():
    with cpu_kernels.xla_only(), cpu_kernels.for_platform("cpu", 1):
        assert "ffi_call" not in program()
    with cpu_kernels.without("window_attention"):
        text = program()
    assert "sextet_window_attention" not in text
    if dispatch._library() is not None:
        assert "sextet_batch_norm" in text
    with (
        pytest.raises(ValueError, match="no kernel is called attention"),
        cpu_kernels.without("attention"),
    ):
        pass


def test_a_jitted_function_keeps_the_platform_of_its_mesh():
    mesh = jax.make_mesh((1,), ("data",))

    @jax.jit
    @cpu_kernels.for_mesh(mesh)
    def ask():
        return jnp.array(target.is_single_cpu())

    with cpu_kernels.for_platform("tpu", 4):
        assert ask()


def test_without_a_compiler_everything_works_and_nothing_is_said(tmp_path):
    code = (
        "import jax_models, jax.numpy as jnp;"
        "from jax_models.cpu_kernels import dispatch;"
        "model = jax_models.create_model('miniconvnext_demo', 3);"
        "print(model(jnp.ones((1, 16, 16, 3))).shape);"
        "assert dispatch._library() is None"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {
            "CXX": "no-such-compiler",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "(1, 3)\n"
    assert ran.stderr == ""


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no compiler")
def test_what_does_not_compile_is_told_and_done_without(
    tmp_path, monkeypatch, capfd
):
    broken = tmp_path / "broken.cc"
    broken.write_text("this is no C++\n")
    monkeypatch.setattr(
        dispatch, "CODE", native_build.Library("broken", [broken])
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert dispatch._library.__wrapped__() is None
    assert list((tmp_path / "sextet" / "native").iterdir()) == []
    told = capfd.readouterr().err
    assert "the C++ library broken cannot be built" in told
    assert "error: " in told and "broken.cc:1" in told


def test_a_library_that_does_not_load_is_told_and_done_without(
    tmp_path, monkeypatch, capfd
):
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"no library")
    monkeypatch.setattr(dispatch.CODE, "path", lambda: damaged)
    assert dispatch._library.__wrapped__() is None
    assert f"cannot load {damaged}" in capfd.readouterr().err


def test_narrow_arrays_are_taken_and_wide_or_empty_ones_are_not():
    if dispatch._library() is None:
        pytest.skip("nothing is compiled here")
    for dtype in (jnp.float32, jnp.bfloat16):
        assert dispatch.in_cpp("depthwise", jnp.ones(3, dtype))
    with jax.enable_x64(True):
        assert not dispatch.in_cpp("depthwise", jnp.ones(3))
    assert not dispatch.in_cpp("depthwise", jnp.ones((0, 3)))
