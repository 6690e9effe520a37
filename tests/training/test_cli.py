"""The command line: overrides, and one sentence for every mistake."""

import shlex

import pytest

from core.errors import UserError
from training import cli
from training.tasks import registry

DEMO = "--config=configs/miniconvnext.py:demo"


def test_overrides_reach_fields_stages_and_options_of_the_model():
    arguments = cli.parse(
        [
            DEMO,
            "--config.data.root=/photos",
            "--config.stages[1].epochs=7",
            "--config.model_options.drop_path_rate=0.2",
            "--config.eval.tta=('center',)",
        ]
    )
    config = arguments.config
    assert config.data.root == "/photos"
    assert config.stages[1].epochs == 7.0
    assert config.model_options.drop_path_rate == 0.2
    assert config.eval.tta == ("center",)
    assert str(arguments.workdir) == "runs/miniconvnext-demo"


def test_auto_chooses_among_the_views_of_the_recipe():
    config = cli.parse([DEMO, "--config.eval.tta=auto"]).config
    assert config.eval.tta == ("auto", "center", "crop")
    listed = "--config.eval.tta=('auto', 'center')"
    assert cli.parse([DEMO, listed]).config.eval.tta == ("auto", "center")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--config=configs/tinyvt.py"], ["configs/tinyvt.py", "tinyvit.py"]),
        (
            ["--config=configs/tinyvit.py:dmeo"],
            ["'dmeo'", "short_strong, demo"],
        ),
        (["--config=README.md"], ["README.md", "config"]),
        ([DEMO, "--config.data.rot=x"], ["data.rot", "config.data.root"]),
        ([DEMO, "--config.fold=1"], ["'fold'", "config.data.fold"]),
        ([DEMO, "--config.stages[5].epochs=1"], ["stages[5].epochs"]),
        ([DEMO, "--config.image_size=big"], ["image_size=big"]),
        ([DEMO, "--wrkdir=x"], ["--wrkdir=x", "--workdir"]),
        ([DEMO, "surplus"], ["'surplus'"]),
        ([DEMO, "--config.data.fold=9"], ["data.fold is 9", "0 to 4"]),
        ([DEMO, "--config.dtype=float16"], ["'float16'", "bfloat16"]),
        ([DEMO, "--config.image_size=8"], ["image_size is 8"]),
        (
            [DEMO, "--config.stages[0].schedule=one_cicle"],
            ["stages[0].schedule", "one_cycle"],
        ),
    ],
)
def test_a_mistake_is_named_with_its_remedy(argv, parts):
    with pytest.raises(UserError) as caught:
        cli.parse(argv)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        cli.parse(
            [
                DEMO,
                "--wrkdir=x",
                "--config.data.rot=x",
                "--config.image_size=big",
                "--config.seed=large",
                "--config.data.fold=9",
                "--config.stages[0].schedule=one_cicle",
            ]
        )
    message = str(caught.value)
    for part in (
        "did you mean --workdir",
        "did you mean config.data.root",
        "image_size=big",
        "seed=large",
        "0 to 4",
        "stages[0].schedule is 'one_cicle'",
    ):
        assert part in message
    assert "\n" not in message


def test_what_a_pretraining_would_ignore_is_refused():
    mae = "--config=configs/tinyvit_mae.py"
    registry.check(cli.parse([mae]).config)
    arguments = cli.parse(
        [
            mae,
            "--config.stages[0].loss=focal",
            "--config.stages[0].label_smoothing=0.2",
            "--config.stages[0].mixing.prob=0.5",
        ]
    )
    with pytest.raises(UserError) as caught:
        registry.check(arguments.config)
    for field in ("loss", "label_smoothing", "mixing"):
        assert f"stages[0].{field} has no effect" in str(caught.value)


def test_a_stage_may_differ_in_augmentation_and_mixing():
    config = cli.parse(
        [
            DEMO,
            "--config.stages[0].augment.flip=0.25",
            "--config.stages[0].mixing.prob=0.5",
        ]
    ).config
    assert config.stages[0].augment.flip == 0.25
    assert list(config.stages[0].augment) == ["flip"]
    assert config.augment.flip == 0.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs=nan", "epochs is nan"),
        ("eval.every_epochs=inf", "eval.every_epochs is inf"),
        ("stages[0].betas=(0.9,'x')", "stages[0].betas"),
        ("stages[0].learning_rate=nan", "stages[0].learning_rate is nan"),
        ("stages[0].end_rate=1.0", "above learning_rate"),
        ("stages[0].warmup=1.0", "warmup is 1.0"),
        ("stages[0].patience=-1", "patience is -1"),
        ("stages[0].augment.flip=7.0", "augment.flip is 7.0"),
        ("stages[0].augment.flop=0.1", "stages[0].augment.flop"),
        ("stages[0].layer_decay=0.0", "layer_decay is 0.0"),
        ("stages[0].param_groups=('^head/',)", "as common.group"),
        ("stages[0].mixing.erase_prob=-3.0", "mixing.erase_prob is -3.0"),
        ("augment.randaugment_magnitude=40", "0 to 30"),
        ("augment.crop_scale=(0.5,3.0)", "at most 1"),
        ("augment.jitter=(0.4,0.4,0.4,0.9)", "hue"),
        ("data.balance=1.5", "data.balance is 1.5"),
        ("data.folds_seed=-1", "data.folds_seed is -1"),
        ("workers=-7", "workers is -7"),
        ("task=clasify", "classify, mae"),
    ],
)
def test_values_that_cannot_work_are_refused(override, words):
    with pytest.raises(UserError) as caught:
        cli.parse([DEMO, f"--config.{override}"])
    assert words in str(caught.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        cli.parse(
            [DEMO, "--config.data.fold=9", "--config.stages[0].epochs=-1"]
        )
    assert "data.fold" in str(caught.value)
    assert "stages[0].epochs" in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--coordinator=a:1"], "belong together"),
        (
            ["--coordinator=a", "--num-processes=2", "--process-id=0"],
            "free port",
        ),
        (
            ["--coordinator=a:1", "--num-processes=2", "--process-id=2"],
            "from 0 to 1",
        ),
        (["--config.mesh.fsdp=0"], "mesh.fsdp is 0"),
        (["--workdir=gs://bucket"], "names no run folder"),
        (["--config.stages[0].accumulate=5"], "a divisor of batch_size"),
    ],
)
def test_flags_that_cannot_work(flags, reason):
    with pytest.raises(UserError, match=reason):
        cli.parse([DEMO, *flags])


def test_what_is_not_installed_is_told_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        cli.parse([DEMO, "--wandb=digits"])
    assert not cli.parse([DEMO]).wandb


def test_the_command_can_be_given_to_a_shell_again():
    argv = [DEMO, "--config.eval.tta=('auto', 'center')"]
    command = cli.parse(argv).command
    assert shlex.split(command) == ["python", "train.py", *argv]
