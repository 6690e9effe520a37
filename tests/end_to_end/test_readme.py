"""Every command of the README and the quickstart exists and is understood."""

import re
import shlex
import subprocess
import sys

import pytest
from commands import ROOT

import export
import predict
from training import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKSTART = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
# In blocks of either kind, and inside a sentence.
CODE = r"```\n(.*?)```|`([^`\n]+)`|^ {4,}(.+)$"
COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for text in re.findall(CODE, README + QUICKSTART, re.S | re.M)
        for line in "\n".join(text).splitlines()
        if re.match(r"(make|python|\.venv/bin/pip) ", line.strip())
    }
)


def of(program):
    found = [c for c in COMMANDS if c.startswith(program)]
    assert found, f"the README has no {program} command"
    return found


@pytest.mark.parametrize("command", of("python train.py"))
def test_training_commands_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = cli.parse(shlex.split(command)[2:])
    assert arguments.config.stages


@pytest.mark.parametrize("command", of("python predict.py"))
def test_prediction_commands_parse(command):
    known = predict.make_parser().parse_args(shlex.split(command)[2:])
    assert known.run and known.photos


@pytest.mark.parametrize("command", of("python export.py"))
def test_export_commands_parse(command):
    known = export.make_parser().parse_args(shlex.split(command)[2:])
    assert known.run and known.out


@pytest.mark.parametrize("command", of("make"))
def test_make_targets_exist(command):
    process = subprocess.run(
        ["make", "--dry-run", *command.split()[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("command", of("python -m"))
def test_modules_explain_themselves(command):
    process = subprocess.run(
        [sys.executable, "-m", command.split()[2], "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "usage" in process.stdout
    for flag in re.findall(r" (--\w[\w-]*)", command):
        assert flag in process.stdout


def test_every_module_command_is_run_by_another_test_or_by_ci():
    ran = (ROOT / ".ci/run").read_text() + (ROOT / "Makefile").read_text()
    for command in COMMANDS:
        if command.startswith("python -m stacking"):
            assert "-m stacking" in ran


def test_linked_files_exist():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for name, _, heading in re.findall(
            r"\]\((?!https?:)([^)#\s]*)(#([^)\s]+))?\)", text
        ):
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name}: {name}"
            if heading:
                assert heading in headings(target), f"{name}#{heading}"


def headings(page):
    """What the headings of a page are called in links to it."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    kept = (re.sub(r"[^\w\- ]", "", one.lower()) for one in found)
    return {one.strip().replace(" ", "-") for one in kept}
