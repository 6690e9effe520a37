"""train.py --plan: says and draws what would be done, and does nothing."""

from commands import train

RECIPES = ("tinyvit_mae", "efficientnetv2", "convnextv2_base")


def test_a_plan_trains_nothing(tmp_path):
    for recipe in RECIPES:
        workdir = tmp_path / recipe
        path = f"--config=configs/{recipe}.py"
        process = train(workdir, path, "--config.epochs=0", "--plan")
        assert process.returncode == 0, process.stderr
        for part in ("parameters", "to train", "stage 1", "lr "):
            assert part in process.stdout
        assert [p.name for p in workdir.iterdir()] == ["plan.html"]
        page = (workdir / "plan.html").read_text()
        assert "Learning rate" in page and "<svg" in page
