"""The layout of the code: who imports whom, and how large a file may be."""

import graphlib
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ("benchmarks", "scripts", "tools")
PACKAGES = sorted(
    {path.parent.name for path in ROOT.glob("[a-z]*/*.py")}
    - {*SCRIPTS, "tests"}
)
FOLDERS = (*PACKAGES, *SCRIPTS, "tests")
SOURCES = sorted(
    path.relative_to(ROOT)
    for path in (
        *ROOT.glob("*.py"),
        *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*")),
    )
    if path.suffix in (".py", ".cc", ".h", ".sh")
)

MAX_LINES = 400

# Longer ones, each with the reason.
LONG_FILES = {
    "jax_models/tinyvit.py": "one file per architecture",
    "tests/input_pipeline/test_bad_input.py": "a table of wrong input",
}


def test_every_package_is_under_contract():
    text = (ROOT / ".importlinter").read_text()
    listed = re.search(r"root_packages =\n((?:    \w+\n)+)", text)[1].split()
    assert listed == PACKAGES


def test_imports_keep_the_contracts():
    """The contracts of .importlinter, as `make lint` checks them."""
    process = subprocess.run(
        [
            Path(sys.executable).with_name("lint-imports"),
            "--no-cache",
            "--no-logo",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_no_files_import_each_other_in_a_circle():
    graph = grimp.build_graph(
        *PACKAGES, exclude_type_checking_imports=True, cache_dir=None
    )
    imports = {
        module: graph.find_modules_directly_imported_by(module)
        for module in graph.modules
    }
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_no_file_is_too_long():
    lines = {
        str(path): len((ROOT / path).read_text("utf-8").splitlines())
        for path in SOURCES
    }
    too_long = {
        path: count
        for path, count in lines.items()
        if count > MAX_LINES and path not in LONG_FILES
    }
    assert not too_long, "split them, or give the reason in LONG_FILES"
    assert LONG_FILES.keys() <= lines.keys(), "LONG_FILES names a missing file"


def test_basenames_of_tests_are_unique():
    """Without __init__.py in tests/, pytest imports them by basename."""
    names = [path.name for path in SOURCES if path.name.startswith("test_")]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice


def test_docs_name_every_room_and_only_paths_that_exist():
    docs = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    roots = "|".join((*FOLDERS, "docs"))
    missing = {
        f"{path.name}: {name}"
        for path in docs
        for name in re.findall(
            rf"(?<![\w./-])((?:{roots})/[\w./-]*[\w])", path.read_text("utf-8")
        )
        if not (ROOT / name).exists() and "NAME" not in name
    }
    assert not missing
    architecture = (ROOT / "docs/architecture.md").read_text("utf-8")
    rooms = {
        str(path.parent)
        for path in SOURCES
        if path.parts[0] in PACKAGES and path.suffix == ".py"
    }
    absent = {room for room in rooms if f"`{room}/`" not in architecture}
    assert not absent, "docs/architecture.md has one line per room"
