"""train.py --plan: says and draws what would be done, and does nothing."""

import importlib.util
import re

import pytest
from commands import needs_libtpu, train
from in_process import training

# The recipes, with siblings that compile in seconds.
RECIPES = {
    "tinyvit_mae": ("tinyvit_demo",),
    "convnextv2_base": (
        "convnextv2_demo",
        "--config.mesh.fsdp=-1",
        "--config.stages[0].accumulate=4",
        "--config.stages[0].layer_decay=0.9",
        "--config.remat=True",
    ),
}


@pytest.mark.parametrize(
    "recipe",
    [pytest.param("tinyvit_mae", marks=pytest.mark.slow), "convnextv2_base"],
)
def test_a_plan_trains_nothing(tmp_path, recipe):
    workdir = tmp_path / recipe
    path = f"--config=configs/{recipe}.py"
    model, *fields = RECIPES[recipe]
    small = (f"--config.model={model}", "--config.image_size=64")
    process = train(
        workdir, path, *small, "--config.epochs=0", *fields, "--plan"
    )
    assert process.returncode == 0, process.stderr
    for part in ("parameters", "to train", "stage 1", "lr "):
        assert part in process.stdout
    assert re.search(r"36,?864|384 x 96 +whole +\S+kernel", process.stdout)
    assert re.search(r"fits  yes, .* GiB of this machine", process.stdout)
    assert re.search(r"work  [\d.e+]+ FLOPs a step", process.stdout)
    assert [p.name for p in workdir.iterdir()] == ["plan.html"]
    page = (workdir / "plan.html").read_text()
    assert "Learning rate" in page and "<svg" in page


def test_a_plan_names_what_is_not_there_to_start_from(tmp_path, capsys):
    assert training(tmp_path, "--config.init_from=nowhere", "--plan") == 2
    assert "init_from names" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--topology=v5e:2x4"], ["--topology", "--plan"]),
        (["--plan", "--topology=v5e:8"], ["'v5e:8'", "v5e:2x4", "v5p:2x2x2"]),
        (["--plan", "--topology=tpu"], ["'tpu'", "v5e:2x4", "h200:8"]),
    ],
)
def test_a_wrong_topology_is_answered_in_one_sentence(
    tmp_path, capsys, flags, parts
):
    assert training(tmp_path, *flags) == 2
    answer = capsys.readouterr().err
    assert answer.startswith("error: ") and answer.count("\n") == 1
    for part in parts:
        assert part in answer
    assert not list(tmp_path.iterdir())


def test_without_libtpu_the_answer_is_how_to_install_it(
    tmp_path, capsys, monkeypatch
):
    find = importlib.util.find_spec

    def nowhere(name, *arguments):
        return None if name == "libtpu" else find(name, *arguments)

    monkeypatch.setattr(importlib.util, "find_spec", nowhere)
    assert training(tmp_path, "--plan", "--topology=v5e:2x4") == 2
    answer = capsys.readouterr().err
    assert answer.count("\n") == 1
    assert re.search(r"pip install 'libtpu==0\.0\.\d+", answer)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_libtpu
def test_a_plan_for_chips_that_are_not_here(tmp_path):
    workdir = tmp_path / "run"
    process = train(workdir, "--plan", "--topology=v5e:2x4")
    assert process.returncode == 0, process.stderr
    assert not process.stderr
    for pattern in (
        r"bfloat16, 32 px",
        r"devices  8 x TPU v5 lite",
        r"fits  yes, \d+% of a chip",
        r"work  [\d.e+]+ FLOPs a step on each chip",
        r"traffic  [\d.]+ MiB between chip and memory",
        r"exchange  \d+ all-reduce of \d+ KiB in all",
        r"bound  [\d.]+ ms a step by the roofline, limited by (memory|links)",
        r"speed  [\d,]+ images/s at most",
    ):
        assert re.search(pattern, process.stdout), pattern
    assert [path.name for path in workdir.iterdir()] == ["plan.html"]


@pytest.mark.slow
@needs_libtpu
def test_a_step_too_large_for_the_chips_is_told_with_what_helps(tmp_path):
    process = train(
        tmp_path / "run",
        "--config.image_size=512",
        "--config.stages[0].batch_size=8192",
        "--plan",
        "--topology=v5e:2x4",
    )
    assert process.returncode == 0, process.stderr
    assert re.search(r"fits  NO, it needs [\d.]+G of the 15", process.stdout)
    assert "--config.remat=True" in process.stdout
