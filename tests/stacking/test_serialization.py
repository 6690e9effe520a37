"""What was fitted can be stored, and predicts the same bits again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from made_up_runs import CLASSES, made_up, write_run

from core.errors import UserError
from stacking import pipeline, serialization
from stacking.align import make_table
from stacking.runs import find_runs, read_runs
from stacking.stack_model import Settings


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    """(folder of runs, folder of the stack): made once for this module."""
    folder = tmp_path_factory.mktemp("stacked")
    logits, labels = made_up(220, len(CLASSES), 3, seed=0)
    for index, name in enumerate(("first", "second", "third")):
        write_run(
            folder / "runs" / name,
            (logits[index, :160], labels[:160]),
            (logits[index, 160:], np.full(60, -1, np.int32)),
            id_column="image",
            target_column="answer",
        )
    pipeline.stack(
        pipeline.Job(
            runs=[f"{folder}/runs/*"],
            out=folder / "stack",
            settings=Settings(trials=10, decision="prior"),
        )
    )
    return folder / "runs", folder / "stack"


def test_predict_gives_the_same_bits(stacked, tmp_path):
    runs, stack = stacked
    for kind in ("labels", "probabilities"):
        pipeline.predict(
            stack,
            # In another order, and on another number of threads.
            [f"{runs}/{name}" for name in ("third", "first", "second")],
            tmp_path / f"{kind}.csv",
            submission_format=kind,
            threads=1,
        )
    again = (tmp_path / "labels.csv").read_bytes()
    assert again == (stack / "submission.csv").read_bytes()
    assert again.startswith(b"image,answer\n")
    lines = (tmp_path / "probabilities.csv").read_text().splitlines()
    assert lines[0] == "image,10,11,13,20" and len(lines) == 61
    first = [float(value) for value in lines[1].split(",")[1:]]
    assert sum(first) == pytest.approx(1, abs=1e-5)


def test_probabilities_are_bit_identical_after_loading(stacked):
    runs, stack = stacked
    table = make_table(read_runs(find_runs([f"{runs}/*"]), ("val", "test")))
    found = [
        pipeline.predict_rows(
            serialization.load(stack).stack, table.test.logits, threads
        )[1]
        for threads in (1, 2)
    ]
    np.testing.assert_array_equal(*found)
    # Row by row too: a row does not depend on its neighbours.
    some = pipeline.predict_rows(
        serialization.load(stack).stack, table.test.logits[:, 5:9], 1
    )
    np.testing.assert_allclose(some[1], found[0][5:9], rtol=1e-5)


def test_description_names_settings_versions_hashes_and_models(stacked):
    _, stack = stacked
    description = json.loads((stack / "stack.json").read_text())
    assert description["classes"] == list(CLASSES)
    assert [f["name"] for f in description["families"]] == [
        "first",
        "second",
        "third",
    ]
    assert {"python", "catboost", "lightgbm", "numpy"} <= set(
        description["versions"]
    )
    assert description["settings"]["blend"] == "guarded"
    assert description["settings"]["decision"] == "prior"
    for path in description["sha256"]:
        assert (stack / path).exists()
    assert not list(stack.rglob("*.pkl"))


def test_other_models_are_refused(stacked, tmp_path):
    runs, stack = stacked
    with pytest.raises(UserError, match="made with the model third"):
        pipeline.predict(
            stack, [f"{runs}/first", f"{runs}/second"], tmp_path / "x.csv"
        )
    logits, _ = made_up(60, 4, 1, seed=9)
    extra = write_run(
        tmp_path / "fourth", None, (logits[0], np.full(60, -1, np.int32))
    )
    with pytest.raises(UserError, match="made without fourth"):
        pipeline.predict(stack, [f"{runs}/*", str(extra)], tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


def test_same_model_trained_otherwise_is_refused(stacked, tmp_path):
    runs, stack = stacked
    logits, _ = made_up(60, 4, 1, seed=9)
    write_run(
        tmp_path / "third",
        None,
        (logits[0], np.full(60, -1, np.int32)),
        config_hash="another recipe",
    )
    with pytest.raises(UserError, match="made with the model third"):
        pipeline.predict(
            stack,
            [f"{runs}/first", f"{runs}/second", str(tmp_path / "third")],
            tmp_path / "x.csv",
        )


def test_other_classes_are_refused(stacked, tmp_path):
    _, stack = stacked
    logits, _ = made_up(60, 3, 3, seed=9)
    for index, name in enumerate(("first", "second", "third")):
        write_run(
            tmp_path / name,
            None,
            (logits[index], np.full(60, -1, np.int32)),
            classes=CLASSES[:3],
        )
    with pytest.raises(UserError, match=r"4 classes and these runs have 3"):
        pipeline.predict(stack, [f"{tmp_path}/*"], tmp_path / "x.csv")


@pytest.mark.parametrize(
    "path", ["stack.npz", "boosters/catboost_0.cbm", "boosters/lightgbm_1.txt"]
)
def test_changed_or_missing_file_is_refused(stacked, tmp_path, path):
    _, stack = stacked
    copy = tmp_path / "stack"
    shutil.copytree(stack, copy)
    content = bytearray((copy / path).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / path).write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is not the file"):
        serialization.load(copy)
    (copy / path).unlink()
    with pytest.raises(UserError, match=f"{path} is not the file"):
        serialization.load(copy)


def test_a_description_cannot_name_files_outside_its_folder(stacked, tmp_path):
    _, stack = stacked
    copy = tmp_path / "stack"
    shutil.copytree(stack, copy)
    inside, outside = "boosters/catboost_0.cbm", "../catboost_0.cbm"
    shutil.copy(copy / inside, copy / outside)
    text = (copy / "stack.json").read_text()
    (copy / "stack.json").write_text(text.replace(inside, outside))
    with pytest.raises(UserError, match=r"\.\./catboost_0\.cbm is not the"):
        serialization.load(copy)


def test_folder_without_a_stack(tmp_path):
    with pytest.raises(UserError, match=r"holds no stack \(no stack\.json\)"):
        serialization.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_description_that_is_none(tmp_path, text):
    (tmp_path / "stack.json").write_text(text)
    with pytest.raises(UserError, match=r"stack\.json cannot be read"):
        serialization.load(tmp_path)


def test_other_format(stacked, tmp_path):
    _, stack = stacked
    copy = tmp_path / "stack"
    shutil.copytree(stack, copy)
    text = (copy / "stack.json").read_text()
    (copy / "stack.json").write_text(
        text.replace(f'"format": {serialization.FORMAT}', '"format": 99')
    )
    with pytest.raises(UserError, match="has format 99"):
        serialization.load(copy)


def test_validation_rows_can_be_predicted_too(stacked, tmp_path):
    runs, stack = stacked
    rows = pipeline.predict(
        stack, [f"{runs}/*"], tmp_path / "val.csv", split="val"
    )
    assert rows == 160


def write_new_images(folder, **metadata):
    """Logits of the stack's three models for 40 images it never met."""
    logits, _ = made_up(40, 4, 3, seed=5)
    for index, name in enumerate(("first", "second", "third")):
        write_run(
            folder / name,
            None,
            (logits[index], np.full(40, -1, np.int32)),
            id_column="image",
            **metadata,
        )
        path = folder / name / "logits" / "test.npz"
        with np.load(path) as archive:
            arrays = dict(archive)
        arrays["ids"] = np.array([f"new-{i:03}" for i in range(40)])
        np.savez(path, **arrays)
    return f"{folder}/*"


def sample(path, ids):
    path.write_text("id,x\n" + "".join(f"{name},0\n" for name in ids))
    return str(path)


def test_new_images_are_predicted_beside_their_own_sample(stacked, tmp_path):
    runs, _ = stacked
    old = sample(tmp_path / "old.csv", [f"test-{i:05}" for i in range(60)])
    pipeline.stack(
        pipeline.Job(
            runs=[f"{runs}/*"],
            out=tmp_path / "stack",
            settings=Settings(trials=5, boosters=()),
            sample_submission=old,
        )
    )

    def predicted(pattern, **options):
        pipeline.predict(
            tmp_path / "stack", [pattern], tmp_path / "out.csv", **options
        )
        return (tmp_path / "out.csv").read_text().splitlines()

    # The images it was made beside: its own sample, without naming it again.
    assert predicted(f"{runs}/*")[0] == "id,x"
    # Others do not fit that sample, and that is said with the way out.
    images = write_new_images(tmp_path / "new")
    with pytest.raises(UserError, match="--sample-submission=none"):
        predicted(images)
    lines = predicted(images, sample_submission="none")
    assert lines[0] == "image,answer" and lines[1].startswith("new-000,")
    # Unless their logits name a sample that does.
    ids = [f"new-{i:03}" for i in reversed(range(40))]
    new = sample(tmp_path / "new.csv", ids)
    images = write_new_images(tmp_path / "new", sample_submission=new)
    lines = predicted(images)
    assert lines[0] == "id,x" and lines[1].startswith("new-039,")
