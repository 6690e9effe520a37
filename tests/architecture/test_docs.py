"""What the pages in docs/ quote of the code is in the code."""

import ast
import contextlib
import re
import runpy
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("core", "configs", "input_pipeline", "jax_models", "run_folder"),
    *("metrics", "training", "stacking", "reports"),
)


def texts():
    """All text of the code, with `…` for what is filled in."""
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    for path in [*files, *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    part.value if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def sentences():
    """The sentences that the page quotes, and whether a remedy follows."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \| (.*) \|$", page, re.MULTILINE)


def test_every_sentence_is_one_of_the_code():
    known = "\n".join(texts())
    found = sentences()
    assert len(found) > 25
    gone = [sentence for sentence, _ in found if sentence not in known]
    assert not gone


def test_every_sentence_has_a_remedy():
    for sentence, remedy in sentences():
        assert re.fullmatch(r"[A-Z0-9`].{20,}[.]", remedy), sentence


def test_fields_and_files_that_are_named_exist():
    for page in ("troubleshooting.md", "extending.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for name in re.findall(r"`([\w/]+\.(?:py|md|css))`", text):
            if name in ("<name>.py",):
                continue
            found = list(ROOT.rglob(name)) if "/" not in name else [ROOT / name]
            assert any(path.exists() for path in found), name
    fields = "".join(
        (ROOT / "configs" / name).read_text(encoding="utf-8")
        for name in ("common.py", "inputs.py")
    )
    for group, field in re.findall(
        r"`(data|eval|checkpoint|mesh)\.(\w+)",
        (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"),
    ):
        assert re.search(rf"\b{field}=", fields), f"{group}.{field}"


def fields(config, before=""):
    """Dotted names of the fields of a recipe; those of all stages alike."""
    for name, value in config.items():
        yield before + name
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{before}{name}.")
        elif isinstance(value, tuple):
            for one in value:
                if isinstance(one, ConfigDict):
                    yield from fields(one, f"{before}{name}.")


def test_every_field_on_every_page_is_one_of_a_recipe():
    known = set()
    for path in (ROOT / "configs").glob("*.py"):
        recipe = runpy.run_path(str(path)).get("get_config")
        for variant in ("", "demo") if recipe else ():
            with contextlib.suppress(ValueError):  # Not all have a demo.
                known |= set(fields(recipe(variant)))
    assert {"epochs", "data.root", "stages.learning_rate"} <= known
    groups = "|".join(sorted({k.partition(".")[0] for k in known if "." in k}))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"--config\.([a-z_][\w.\[\]]*\w)", text)
        named += re.findall(rf"`((?:{groups})\.\w+)`", text)
        for name in named:
            name = re.sub(r"\[\d+\]", "", name)
            if not name.endswith((".py", ".json")):
                assert name in known, f"{page.name}: {name}"
