"""The same training on every layout of devices, and one checkpoint for all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from core.errors import UserError
from tests.several_processes import communicate_all, free_address
from training.multihost import sharding

HERE = Path(__file__).parent
# Sums in another order: float32 rounds to 6e-8, and a step amplifies it.
CLOSE = {"rtol": 2e-5}


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, HERE / "train_in_layouts.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(*processes):
    found = []
    for output, errors, code in communicate_all(processes, 600):
        assert code == 0, errors
        found.append(json.loads(output.splitlines()[-1]))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What train_in_layouts.py prints."""
    return results(start(tmp_path_factory.mktemp("layouts")))[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What it prints as two processes of four devices each."""
    folder = tmp_path_factory.mktemp("pair")
    meeting = free_address()
    return results(*(start(folder, meeting, index) for index in "01"))


@pytest.mark.parametrize("layout", ["data", "fsdp"])
def test_losses_do_not_depend_on_the_layout(found, layout):
    """With BatchNorm, dropout and noise; nothing moved without being asked."""
    one = found["one"]["losses"]
    np.testing.assert_allclose(found[layout]["losses"], one, **CLOSE)
    assert len(set(one)) == len(one)


@pytest.mark.parametrize("layout", ["parts", "parts on fsdp"])
def test_losses_do_not_depend_on_accumulation(found, layout):
    """With drop path and dropout, and rows that do not count."""
    np.testing.assert_allclose(
        found[layout]["losses"], found["plain"]["losses"], **CLOSE
    )


def test_fsdp_splits_a_parameter_with_its_moments_and_average(found):
    assert found["one"]["split"] == found["data"]["split"] == []
    kernels = [p for p in found["fsdp"]["split"] if p.endswith("head/kernel")]
    starts = sorted(path.removesuffix("/head/kernel") for path in kernels)
    assert len(kernels) == 4
    assert starts[:2] == ["ema/params", starts[1]] and "params" in starts
    assert sum("/mu" in start or "/nu" in start for start in starts) == 2


def test_data_parallel_steps_gather_nothing(found):
    assert found["gathers"] == 0


def test_a_checkpoint_of_one_layout_resumes_on_any_other(found):
    np.testing.assert_allclose(found["restored"], found["straight"], **CLOSE)


def test_two_processes_train_as_one_and_restore_what_they_saved(found, pair):
    for one in pair:
        losses = found["fsdp"]["losses"]
        np.testing.assert_allclose(one["losses"], losses, **CLOSE)
        assert one["split"] == found["fsdp"]["split"]
        assert one["labels"] == found["labels"]


def test_damage_on_a_shared_disk_is_raised_in_all_processes(pair):
    for one in pair:
        # The step that is damaged; then none was evaluated, and one is left.
        assert one["damage"] == [2, None, [4]]


def test_each_process_writes_the_shards_of_its_own_devices(pair):
    written = pair[0]["written"]
    assert written == pair[1]["written"]
    assert list(written) == ["ocdbt.process_0", "ocdbt.process_1"]
    # Process 0 also writes what is whole on all devices.
    assert 0 < written["ocdbt.process_1"] < written["ocdbt.process_0"]


def test_two_processes_exchange_messages(pair):
    for one in pair:
        assert one["answer"] == {"process": 0}
        assert one["texts"] == ["", "x"]
        assert one["refusals"] == [
            "process 0 refuses",
            "process 1 refuses",
            "process 0 refuses",
        ]
        # Sent to process 1 alone, in step 1; known to both a step later.
        assert one["signal"] == [0, 0, 15, 0]


class Mesh:
    shape = MappingProxyType({"data": 2, "fsdp": 4})


def test_the_largest_divisible_dimension_is_sharded():
    def layout(*shape):
        return sharding.shard_largest(shape, Mesh)

    assert layout(512, 128) == PartitionSpec("fsdp")
    assert layout(3, 3, 64, 256) == PartitionSpec(None, None, None, "fsdp")
    assert layout(1001, 64) == PartitionSpec(None, "fsdp")
    assert layout(1001, 1003) == PartitionSpec()
    assert layout(64, 64) == PartitionSpec()  # small


def test_kernels_are_sharded_biases_and_statistics_replicated():
    mesh = sharding.make_mesh()
    leaf = jax.ShapeDtypeStruct((2**20,), np.float32)
    rules = {
        path: next(
            r
            for found, r in sharding.PARTITION_RULES
            if sharding.re.search(found, path)
        )
        for path in ("/a/kernel", "/a/bias", "/ema/params/a/kernel", "/step")
    }
    assert rules["/a/kernel"] is rules["/ema/params/a/kernel"]
    assert rules["/a/kernel"] is sharding.shard_largest
    assert rules["/a/bias"] is rules["/step"] is sharding.replicate
    placed = sharding.with_shardings({"a": {"bias": leaf}}, mesh)
    assert placed["a"]["bias"].sharding == sharding.replicated(mesh)


def test_an_fsdp_size_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(UserError, match=r"mesh.fsdp is 3.*one of 1"):
        sharding.make_mesh(3)
    assert sharding.make_mesh(-1).shape["fsdp"] == jax.device_count()


def test_one_process_holds_all_rows_of_a_batch():
    places = sharding.local_rows(sharding.make_mesh(), 12)
    np.testing.assert_array_equal(places, np.arange(12))
