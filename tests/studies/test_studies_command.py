"""The real commands on the digits, those of docs/studies.md among them."""

import csv
import json
import re
import shlex
import sys

import commands
import page_reader
import pytest

from run_folder.history import read_history
from studies import findings, lr_range
from studies.__main__ import COMMANDS

PAGE = (commands.ROOT / "docs" / "studies.md").read_text()
TINY = "tests/end_to_end/tiny_recipe.py"

# Seconds instead of minutes, whatever the command says.
SHORT = [
    "--config.epochs=0.3",
    "--config.data.folds=20",
    f"--config.cache_dir={commands.CACHE}",
]


def run(*words, timeout=600):
    found = commands.run("-m", "studies", *words, timeout=timeout)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def documented():
    """The commands of the page, as lists of words."""
    text = PAGE.replace("\\\n", " ")
    lines = re.findall(r"^    python -m studies (.*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_every_command_and_flag_stands_on_the_page():
    assert {words[0] for words in documented()} == set(COMMANDS)
    for command in COMMANDS:
        told = commands.run("-m", "studies", command, "--help").stdout
        flags = set(re.findall(r"--[a-z][a-z-]+", told)) - {
            "--config",
            "--help",
            "--workdir",
        }
        assert all(flag in PAGE for flag in flags), (command, flags)


def test_a_small_grid_from_beginning_to_end(tmp_path):
    told = run(
        "grid",
        f"--config={TINY}",
        "--grid=eval.tta=('center',),('center','crop')",
        "--seeds=1",
        f"--workdir={tmp_path}",
        f"--config.cache_dir={commands.CACHE}",
    )
    assert "run 1 of 1" in told and "exporting it for tta=" in told
    with open(tmp_path / findings.CSV) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11 and rows[0]["metric"] == "val_macro_f1"
    page = page_reader.read(tmp_path / findings.PAGE)
    assert "72" in page.text and "There is one seed" in page.text


def test_a_range_test_from_beginning_to_end(tmp_path):
    told = run(
        "lr_range",
        f"--config={TINY}",
        "--steps=40",
        "--low=1e-5",
        "--high=10",
        f"--workdir={tmp_path}",
        f"--config.cache_dir={commands.CACHE}",
    )
    assert "try --config.stages[0].learning_rate=" in told
    page_reader.read(tmp_path / lr_range.PAGE)
    steps = read_history(tmp_path / lr_range.RUN).train
    rates = [record.values["learning_rate"] for record in steps[:40]]
    ratio = (10 / 1e-5) ** (1 / 39)
    assert rates[0] == pytest.approx(1e-5, rel=1e-3)
    assert rates[9] / rates[0] == pytest.approx(ratio**9, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", documented(), ids=[" ".join(w[:3:2]) for w in documented()]
)
def test_the_commands_of_the_page_run(words, tmp_path):
    """As written, but for size, folders, and photos in place of digits."""
    out = tmp_path / "study"
    given = []
    for word in words:
        if word.startswith("--workdir="):
            word = f"--workdir={out}"
        if "runs/tune/best.py" in word:
            (tmp_path / "best.py").write_text(
                "from configs import loading\n"
                "def get_config(variant=''):\n"
                "    config = loading.load('configs/miniconvnext.py:demo')\n"
                "    config.mixing.prob = 0.25\n"
                "    return config\n"
            )
            word = word.replace("runs/tune/best.py", f"{tmp_path}/best.py")
        if word.startswith("--config.data.root="):
            continue
        if word.startswith("--config=configs/efficientnet_lite0.py"):
            given.append("--config.image_size=32")
            given.append("--config.model=efficientnet_lite_demo")
        if word == "arms.toml":
            (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
            path = tmp_path / "arms.toml"
            path.write_text(toml.replace(", image_size = 128", ""))
            word = str(path)
        given.append(word)
    if "efficientnet" in " ".join(words):
        # The demo's weights are in no package: a run of it has some.
        first = commands.run(
            "train.py",
            "--config=configs/efficientnet_lite0.py:demo",
            f"--workdir={tmp_path / 'weights'}",
            *SHORT,
            "--config.data.fold=0",
        )
        assert first.returncode == 0, first.stderr
        given.append(f"--config.init_from={tmp_path / 'weights'}")
    extra = {"grid": ["--seeds=1"]}
    # Without the network that enlarges, whose package may be absent.
    axes = "--axes=start,augmentation,views"
    extra |= {"transfer": ["--seeds=1", axes]}
    extra |= {"tune": ["--trials=2"], "lr_range": ["--steps=30"]}
    told = run(*given, *SHORT, *extra[words[0]], timeout=900)
    assert str(out) in told


@pytest.mark.slow
def test_two_processes_share_a_search(tmp_path):
    words = [
        sys.executable,
        *("-m", "studies", "tune", f"--config={TINY}", f"--workdir={tmp_path}"),
        "--search=stages[0].learning_rate=1e-4..1e-2 log",
        "--trials=4",
        f"--config.cache_dir={commands.CACHE}",
    ]
    files = [open(tmp_path / f"{i}.out", "w+") for i in range(2)]  # noqa: SIM115
    both = [commands.in_background(words, file) for file in files]
    assert [process.wait(600) for process in both] == [0, 0]
    folders = sorted((tmp_path / "trials").iterdir())
    assert len(folders) == 4
    for folder in folders:
        assert (folder / "metrics.jsonl").exists()
        assert json.loads((folder / "config.json").read_text())
    for file in files:
        file.close()
