"""train.py --plan: says and draws what would be done, and does nothing."""

import re

import pytest
from commands import train
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
