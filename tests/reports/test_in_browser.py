"""Every page in a browser, as wide as a telephone and on a desk."""

import json
import re
import shutil
import subprocess

import pytest
import test_compare
import test_data_report
import test_ensemble_report
import test_generation_report
import test_run_report
import test_segmentation_report
import test_verification_report
from page_reader import write_metrics

from reports import plan_report, run_report
from reports.__main__ import main
from reports.classification import classification_sections
from reports.generation import generation_sections
from reports.segmentation import segmentation_sections
from reports.study import Effect, Plotted, Run, study_report
from reports.verification import verification_sections

CHROMIUM = next(
    filter(
        None,
        map(
            shutil.which,
            ("chromium", "chromium-browser", "google-chrome", "chrome"),
        ),
    ),
    None,
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium to look at pages with"
)

# Loads each page into a frame of its own, and writes down what it finds.
HARNESS = """<!doctype html><meta charset="utf-8"><pre id="found"></pre><script>
const pages = PAGES, widths = [400, 1200], found = [];
async function look() {
  for (const [name, html] of Object.entries(pages))
  for (const width of widths) {
    const frame = document.createElement("iframe");
    frame.style = `width:${width}px;height:800px;border:0`;
    // What is not lazy is loaded before the frame is.
    frame.srcdoc = html.replaceAll(' loading="lazy"', "");
    const loaded = new Promise(resolve => frame.onload = resolve);
    document.body.append(frame);
    await loaded;
    const page = frame.contentDocument;
    const pictures = [...page.images];
    found.push({
      name, width,
      wide: page.documentElement.scrollWidth,
      pictures: pictures.length,
      broken: pictures.filter(one => !one.complete || !one.naturalWidth).length,
      unnamed: pictures.filter(one => !one.alt).length
        + page.querySelectorAll('svg:not([aria-label])').length,
      height: page.documentElement.scrollHeight,
    });
    frame.remove();
  }
  document.getElementById("found").textContent =
    "FOUND" + JSON.stringify(found) + "END";
}
look();
</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{name: path} of one page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    run = folder / "run"
    write_metrics(run)
    test_run_report.write_predictions(run)
    test_run_report.write_telemetry(run)
    found = {"run": run_report(run, classification_sections(run))}
    names = [f"a-run-with-quite-a-long-name-{number}" for number in range(3)]
    for number, name in enumerate(names):
        config = {"data": {"root": f"/a/folder/that/lies/deep/{number}" * 3}}
        test_compare.make_run(folder / name, config=config, parameters=10**7)
    found["compare"] = folder / "compare.html"
    runs = [str(folder / name) for name in names]
    main(["compare", *runs, f"--out={found['compare']}"])
    for number, name in enumerate(("cat", "a_class_of_a_very_long_name")):
        (folder / "data/train" / name).mkdir(parents=True)
        for row in range(4):
            image = test_data_report.photo(10 * number + row)
            image.save(folder / f"data/train/{name}/{row}.png")
    test_data_report.photo(2).save(folder / "data/train/cat/again.png")
    found["data"] = folder / "data.html"
    main(
        [
            "data",
            "--config=configs/miniconvnext.py",
            f"--config.data.root={folder / 'data'}",
            "--config.data.folds=2",
            f"--out={found['data']}",
        ]
    )
    stack = folder / "stack"
    stack.mkdir()
    test_ensemble_report.of_two_models(stack)
    found["ensemble"] = stack / "report.html"
    rates = [
        {"epoch": float(n), "stage": 0, "learning_rate": 0.1} for n in "123"
    ]
    found["plan"] = plan_report(
        folder / "plan.html", "tiny", {"data": "a folder " * 30}, rates
    )
    for module, sections in (
        (test_segmentation_report, segmentation_sections),
        (test_verification_report, verification_sections),
        (test_generation_report, generation_sections),
    ):
        run = module.write_run(folder / module.__name__)
        pictures = getattr(module, "pictures", None) or module.examples
        found[module.__name__] = run_report(run, sections(run, pictures))
    found["data of pairs"] = folder / "pairs.html"
    config = "--config=configs/verify.py:demo"
    main(["data", config, f"--out={found['data of pairs']}"])
    change = "a_field_of_a_long_name=('one','two')"
    effect = Effect(
        "axis", change, "none", Plotted(0.1, 0.05, 0.2), {}, seeds=1, minutes=1
    )
    runs = [Run(change, 0, 0.5, 60.0), Run("none", 0, 0.4, 60.0)]
    found["study"] = study_report(
        folder / "study.html", "Study", "F1", ["Use it."], [effect], runs, 72
    )
    return found


@pytest.fixture(scope="module")
def looked_at(pages, tmp_path_factory):
    """What the browser found, and what it complained of."""
    folder = tmp_path_factory.mktemp("browser")
    texts = {name: path.read_text() for name, path in pages.items()}
    data = json.dumps(texts).replace("</", "<\\/")
    harness = folder / "harness.html"
    harness.write_text(HARNESS.replace("PAGES", data, 1))
    # Where the machine is busy, loading may outlast the virtual time.
    for seconds in (20, 100, 500):
        done = subprocess.run(
            [
                CHROMIUM,
                *("--headless", "--no-sandbox", "--disable-gpu"),
                *("--no-first-run", "--disable-background-networking"),
                "--enable-logging=stderr",
                f"--user-data-dir={folder / 'profile'}",
                f"--virtual-time-budget={1000 * seconds}",
                "--dump-dom",
                harness.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        # The script itself is in the page, too.
        if found := re.search(r"FOUND(\[.*?\])END", done.stdout):
            break
    assert found, done.stderr
    complaints = re.findall(r".*CONSOLE.*", done.stderr)
    return json.loads(found[1]), complaints


def test_no_page_scrolls_sideways(looked_at):
    found, _ = looked_at
    wide = [(one["name"], one["wide"]) for one in found if one["width"] == 400]
    assert len(wide) == 10
    assert all(width <= 400 for _, width in wide), wide


def test_every_picture_loads_and_has_a_name(looked_at):
    found, _ = looked_at
    assert {one["name"] for one in found if one["pictures"]} >= {"data"}
    assert not [one for one in found if one["broken"] or one["unnamed"]]


def test_the_console_has_no_complaint(looked_at):
    assert looked_at[1] == []


def test_pages_are_not_empty(looked_at):
    assert all(one["height"] > 300 for one in looked_at[0])
