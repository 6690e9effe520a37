"""Several segmentations: weights, nested scores, masks, refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from core.class_colours import IGNORE
from core.errors import UserError
from metrics import segmentation
from run_folder import layout
from run_folder.artifacts import ArtifactWriter
from run_folder.mask_files import MaskStyle
from stacking import mask_members, mask_weights, masks
from stacking.runs import find_runs

STYLE = MaskStyle(("ground", "crack", "hole"), (0, 5, 9), (0, 0, 0) * 10)
COUNT = 8


def truth_of(row, split="val"):
    rng = np.random.default_rng([row, len(split)])
    height, width = 20 + row, 30 - row
    mask = np.zeros((height, width), np.uint8)
    top, left = rng.integers(2, 8, 2)
    mask[top : top + 9, left : left + 12] = 1 + row % 2
    mask[0] = IGNORE
    return mask


def predicted(truth, noise, seed):
    """Probabilities that are right, but for noise."""
    rng = np.random.default_rng(seed)
    right = np.eye(3)[np.where(truth == IGNORE, 0, truth)]
    found = np.exp(2.5 * right + noise * rng.normal(size=right.shape))
    return found / found.sum(-1, keepdims=True)


def write_run(
    folder, noise, seed, *, rows=range(COUNT), tests=range(3), style=STYLE
):
    """A run as training leaves it, as far as masks go."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"task": "segment"}))
    writer = ArtifactWriter(folder, 1)
    counts = segmentation.ImageCounts(3, IGNORE)
    for split, numbers in (("val", rows), ("test", tests)):
        for row in numbers:
            truth = truth_of(row, split)
            values = predicted(truth, noise, [seed, row, len(split)])
            name = layout.image_file("probabilities", split, f"p{row}", ".npz")
            labels = truth if split == "val" else None
            with writer.probabilities(name, *truth.shape, style, labels) as add:
                add(values)
            if split == "val":
                counts.add(f"p{row}", truth, values.argmax(-1))
    writer.array(
        layout.MASK_COUNTS, **counts.arrays(), classes=np.array(style.classes)
    )
    writer.finish()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A good run, one that is worse, and one that only disturbs."""
    root = tmp_path_factory.mktemp("masks")
    for seed, (name, noise) in enumerate(
        {"good": 1.2, "fair": 1.5, "noise": 40.0}.items()
    ):
        write_run(root / name, noise, seed)
    return root


@pytest.fixture(scope="module")
def stacked(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "stack"
    lines = []
    results = masks.stack([f"{runs}/*"], out, trials=40, note=lines.append)
    return out, results, lines


def dice(confusions):
    return segmentation.scores(np.stack(confusions))["mean_dice"]


def test_the_mean_is_better_than_each_and_noise_gets_no_weight(stacked):
    _, results, lines = stacked
    scores = {n: s["mean_dice"] for n, s in results["scores"].items()}
    assert list(scores) == ["fair", "good", "noise", masks.MEAN, masks.WEIGHTED]
    assert scores[masks.WEIGHTED] > scores["good"] > scores["fair"]
    assert scores[masks.WEIGHTED] > scores[masks.MEAN]
    weights = results["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["noise"] < 0.1 < weights["fair"] < weights["good"]
    low, high = results["scores"][masks.WEIGHTED]["mean_dice_interval"]
    assert low < scores[masks.WEIGHTED] < high
    assert any(line.startswith(masks.WEIGHTED) for line in lines)


def test_scores_are_nested_and_those_of_the_files(stacked, runs):
    """Each image by the weights of a search that has not seen it."""
    out, results, _ = stacked
    nested = results["nested_weights"]
    assert len(nested) == 5
    names = list(results["runs"])
    ids = [f"p{row}" for row in range(COUNT)]
    folds = np.arange(COUNT) % 5
    folds = np.random.default_rng(results["seed"]).permutation(folds)
    confusions, members = [], {name: [] for name in names}
    for name, fold in zip(ids, folds, strict=True):
        total, truth = 0.0, None
        for run in names:
            with np.load(runs / run / f"probabilities/val/{name}.npz") as file:
                own = file["probabilities"].astype(np.float32)
                truth = file["labels"]
            total = total + np.float32(nested[fold][run]) * own
            members[run].append(
                segmentation.confusion_matrix(truth, own.argmax(-1), 3, IGNORE)
            )
        with Image.open(out / f"masks/val/{name}.png") as image:
            found = np.asarray(image)
            assert image.getpalette("RGB")[:3] == [0, 0, 0]
        assert set(np.unique(found)) <= {0, 5, 9}
        mask = np.searchsorted(STYLE.values, found)
        assert (mask == total.argmax(-1)).mean() > 0.999
        confusions.append(segmentation.confusion_matrix(truth, mask, 3, IGNORE))
    told = results["scores"]
    assert told[masks.WEIGHTED]["mean_dice"] == pytest.approx(dice(confusions))
    for run in names:
        assert told[run]["mean_dice"] == pytest.approx(dice(members[run]))


def test_new_images_get_the_weights_of_all(stacked, runs):
    out, results, _ = stacked
    for row in range(3):
        total = 0.0
        for run, weight in results["weights"].items():
            with np.load(runs / run / f"probabilities/test/p{row}.npz") as file:
                total = total + weight * file["probabilities"]
        with Image.open(out / f"masks/test/p{row}.png") as image:
            found = np.searchsorted(STYLE.values, np.asarray(image))
        assert found.shape == truth_of(row, "test").shape
        assert (found == total.argmax(-1)).mean() > 0.999


def test_the_report_has_the_table_and_the_classes(stacked):
    page = (stacked[0] / "report.html").read_text()
    for text in ("weighted mean", "good", "crack", "validation mDice"):
        assert text in page
    assert json.loads((stacked[0] / "scores.json").read_text())["images"] == 8


def test_the_same_again_is_the_same(stacked, runs, tmp_path):
    again = masks.stack([f"{runs}/*"], tmp_path, trials=40, note=str)
    assert again["weights"] == stacked[1]["weights"]
    for path in (stacked[0] / "masks").rglob("*.png"):
        same = tmp_path / path.relative_to(stacked[0])
        assert same.read_bytes() == path.read_bytes()


def test_folds_of_one_run_are_one_member(runs, tmp_path):
    """Each validation image by its own fold, new ones by their mean."""
    whole = tmp_path / "folded"
    for fold in range(2):
        rows = [row for row in range(COUNT) if row % 2 == fold]
        write_run(whole / f"fold-{fold}", 1.2, fold, rows=rows)
    (member, _) = mask_members.find_members(
        [str(whole), str(whole / "fold-0"), str(runs / "fair")], tmp_path / "o"
    )
    assert member.name == "folded"
    assert sorted(member.files["val"]) == [f"p{row}" for row in range(COUNT)]
    picture = mask_members.Picture("test", "p1", [member])
    (found,) = picture.stripes()
    parts = []
    for fold in range(2):
        path = whole / f"fold-{fold}/probabilities/test/p1.npz"
        with np.load(path) as file:
            parts.append(file["probabilities"] / 255)
    np.testing.assert_allclose(found[0], np.mean(parts, 0), atol=1e-6)


def test_a_sample_has_the_shares_of_the_whole(runs):
    members = mask_members.find_members([f"{runs}/*"], runs / "none")
    picture = mask_members.Picture("val", "p3", members)
    sample = mask_weights.draw(picture, 0.5, (0, 3))
    counted = picture.labels != IGNORE
    assert len(sample.labels) == round(0.5 * counted.sum())
    assert IGNORE not in sample.labels
    # In stripes of one row it is the same.
    small = pytest.MonkeyPatch()
    with small.context() as patch:
        patch.setattr(mask_members, "STRIPE_VALUES", 1)
        again = mask_weights.draw(picture, 0.5, (0, 3))
    np.testing.assert_array_equal(again.labels, sample.labels)
    np.testing.assert_array_equal(again.probabilities, sample.probabilities)
    full = mask_weights.draw(picture, 1.0, (0, 3))
    np.testing.assert_array_equal(full.labels, picture.labels[counted])
    (every,) = picture.stripes()
    np.testing.assert_allclose(
        full.probabilities, every[:, counted].astype(np.float16)
    )


def other(root, runs, **changes):
    write_run(root / "other", 1.0, 9, **changes)
    return [str(runs / "good"), str(root / "other")]


def without_file(root, runs):
    names = other(root, runs)
    (root / "other/probabilities/val/p1.npz").unlink()
    return names


def other_truth(root, runs):
    shutil.copytree(runs / "fair", root / "other")
    path = root / "other/probabilities/val/p2.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["labels"][3, 3] = 2 - arrays["labels"][3, 3]
    np.savez_compressed(path, **arrays)
    return _unchecked(root, runs)


def other_size(root, runs):
    shutil.copytree(runs / "fair", root / "other")
    folder = root / "other/probabilities/val"
    shutil.copy(folder / "p3.npz", folder / "p2.npz")
    return _unchecked(root, runs)


def _unchecked(root, runs):
    """The manifest knows the new sizes."""
    path = root / "other/artifacts.json"
    manifest = json.loads(path.read_text())
    for name, about in manifest["files"].items():
        about["bytes"] = (root / "other" / name).stat().st_size
    path.write_text(json.dumps(manifest))
    return [str(runs / "good"), str(root / "other")]


def without_probabilities(root, runs):
    names = other(root, runs)
    path = root / "other/artifacts.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {"masks/val.npz": manifest["files"]["masks/val.npz"]}
    path.write_text(json.dumps(manifest))
    return names


REFUSED = {
    "images": (
        lambda root, runs: other(root, runs, rows=range(1, COUNT)),
        r"1 val images that .*other has not \(for one, p0\)",
    ),
    "test": (
        lambda root, runs: other(root, runs, tests=range(4)),
        r"1 test images that .*good has not \(for one, p3\)",
    ),
    "classes": (
        lambda root, runs: other(
            root, runs, style=STYLE._replace(classes=("a", "b", "c"))
        ),
        "different classes",
    ),
    "truth": (other_truth, "other true classes"),
    "sizes": (other_size, "different sizes"),
    "not exported": (without_file, "not exported to its end"),
    "no probabilities": (
        without_probabilities,
        "segment.probabilities=True",
    ),
    "one run": (lambda root, runs: [str(runs / "good")], "a mean takes two"),
    "nowhere": (lambda root, runs: [str(root / "x")], "does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_runs_that_do_not_belong_together_are_refused(runs, tmp_path, case):
    make, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as error:
        masks.stack(make(tmp_path, runs), tmp_path / "out", trials=1, note=str)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/masks/test").exists()


def test_few_images_are_refused(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, 1.0, 0, rows=range(3))
    with pytest.raises(UserError, match="only 3 validation images"):
        masks.stack([f"{tmp_path}/*"], tmp_path / "out", note=str)


def test_a_run_is_not_replaced(runs, tmp_path):
    (tmp_path / "out/checkpoints/5").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run"):
        masks.stack([f"{runs}/*"], tmp_path / "out", note=str)


def test_folders_without_masks_and_earlier_stacks_are_passed_over(
    stacked, runs, tmp_path
):
    root = shutil.copytree(runs, tmp_path / "runs")
    shutil.copytree(stacked[0], root / "stack")
    (root / "empty").mkdir()
    lines = []
    members = mask_members.find_members(
        [f"{root}/*"], tmp_path / "out", lines.append
    )
    assert [member.name for member in members] == ["fair", "good", "noise"]
    assert len(lines) == 2


def test_a_run_is_one_member_by_whatever_name(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    (tmp_path / "linked").symlink_to(runs / "good")
    names = ["good", str(runs / "good"), f"../{runs.name}/good"]
    members = mask_members.find_members(
        [*names, str(tmp_path / "linked"), "fair"], tmp_path / "o"
    )
    assert sorted(member.name for member in members) == ["fair", "linked"]


def test_no_run_is_called_as_a_row_of_the_table(runs, tmp_path):
    name = shutil.copytree(runs / "good", tmp_path / masks.MEAN)
    members = mask_members.find_members(
        [str(name), str(runs / "fair")], tmp_path / "o"
    )
    assert [member.name for member in members] == [str(name), "fair"]


def test_a_damaged_stack_is_passed_over_like_a_whole_one(
    stacked, runs, tmp_path
):
    stack = shutil.copytree(stacked[0], tmp_path / "stack")
    (stack / "masks/val/p1.png").unlink()
    names = [f"{runs}/*", str(stack)]
    assert len(mask_members.find_members(names, tmp_path / "o")) == 3


def test_out_that_cannot_be_written_is_told(runs, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for out in (tmp_path / "file", tmp_path / "file/stack"):
        with pytest.raises(UserError, match="cannot write"):
            masks.stack([f"{runs}/*"], out, trials=1, note=str)


def test_images_without_a_labelled_pixel_are_told(tmp_path, monkeypatch):
    def ignored(row, split="val", real=truth_of):
        return np.full_like(real(row, split), IGNORE)

    monkeypatch.setitem(globals(), "truth_of", ignored)
    for name in ("a", "b"):
        write_run(tmp_path / name, 1.0, 0)
    with pytest.raises(UserError, match="no pixel with a class"):
        masks.stack([f"{tmp_path}/*"], tmp_path / "out", trials=1, note=str)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--trials", "0"], "'0' is no number from 1 to 1,000,000"),
        (["--seed", "-1"], "no number"),
        (["--runs", "nowhere"], "nowhere, which does not exist"),
    ],
)
def test_mistakes_in_the_command_are_told(
    words, answer, runs, tmp_path, capsys
):
    given = ["--runs", f"{runs}/*", "--out", str(tmp_path / "o"), *words]
    with pytest.raises(SystemExit) as stopped:
        masks.main(given)
    assert stopped.value.code == 2
    assert answer in capsys.readouterr().err


def test_the_command_for_logits_names_the_one_for_masks(runs):
    with pytest.raises(UserError, match=r"python -m stacking\.masks"):
        find_runs([f"{runs}/*"])
