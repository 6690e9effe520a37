"""An export is complete with its manifest, and with nothing less."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from core.paths import make_path
from run_folder.artifacts import ArtifactWriter, is_complete
from run_folder.predictions import Logits, read_logits

LOGITS = Logits(
    ids=np.array(["a", "b"]),
    logits=np.eye(2, dtype=np.float32),
    labels=np.array([0, 1]),
    classes=np.array(["x", "y"]),
    fold=np.array([0, 0]),
    metadata={
        "model": "m",
        "config_hash": "c",
        "folds_hash": "f",
        "tta_views": ["center"],
    },
)
PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def export(workdir, step=7):
    writer = ArtifactWriter(workdir, step)
    writer.begin()
    writer.logits("val", LOGITS)
    writer.array("embeddings/val.npz", ids=LOGITS.ids, values=np.ones(2))
    writer.image("picture.png", PIXELS)
    writer.text("note.txt", "näher\n")
    writer.json("scores.json", {"iou": [0.5, 0.25]})
    return writer


def test_files_are_written_and_listed(tmp_path):
    export(tmp_path).finish()
    assert read_logits(tmp_path / "logits/val.npz").ids.tolist() == ["a", "b"]
    with np.load(tmp_path / "embeddings/val.npz") as arrays:
        assert arrays["values"].tolist() == [1, 1]
    with Image.open(tmp_path / "picture.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), PIXELS)
    assert (tmp_path / "note.txt").read_text("utf-8") == "näher\n"
    assert json.loads((tmp_path / "scores.json").read_text()) == {
        "iou": [0.5, 0.25]
    }
    manifest = json.loads((tmp_path / "artifacts.json").read_text())
    assert manifest["step"] == 7
    assert manifest["files"] == {
        name: {
            "bytes": (tmp_path / name).stat().st_size,
            "sha256": hashlib.sha256(
                (tmp_path / name).read_bytes()
            ).hexdigest(),
        }
        for name in (
            "embeddings/val.npz",
            "logits/val.npz",
            "note.txt",
            "picture.png",
            "scores.json",
        )
    }


def test_complete_means_all_files(tmp_path):
    assert not is_complete(tmp_path)
    writer = export(tmp_path)
    assert not is_complete(tmp_path)
    writer.text("report.html", "<html>")
    writer.finish()
    assert is_complete(tmp_path)
    (tmp_path / "report.html").write_text("<ht")
    assert not is_complete(tmp_path)
    (tmp_path / "report.html").unlink()
    assert not is_complete(tmp_path)


def test_a_second_export_is_complete_only_when_it_has_finished(tmp_path):
    export(tmp_path).finish()
    writer = export(tmp_path)  # The same files, of the same sizes.
    assert not is_complete(tmp_path)
    writer.finish()
    assert is_complete(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"step": 7, "files": 1}'])
def test_a_damaged_manifest_is_no_export(tmp_path, content):
    export(tmp_path).finish()
    (tmp_path / "artifacts.json").write_text(content)
    assert not is_complete(tmp_path)


@pytest.mark.parametrize(
    "name", ["../a.npz", "/a.npz", "checkpoints/a.npz", "logits/a/b.npz", "a"]
)
def test_names_outside_the_layout_are_a_bug(tmp_path, name):
    with pytest.raises(ValueError, match="no artifact may be called"):
        ArtifactWriter(tmp_path, 7).array(name, values=np.ones(2))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "logits").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*logits/val\.npz"):
        export(tmp_path)


def test_a_file_in_a_bucket_is_sent_once_and_not_fetched(url, bucket):
    folder = make_path(url)
    before = len(bucket.requests)
    writer = ArtifactWriter(folder, 7)
    writer.text("note.txt", "one")
    asked = [method for method, _ in bucket.requests[before:]]
    assert "GET" not in asked and "POST" in asked
    writer.finish()
    assert is_complete(folder)
