"""Masks and probabilities of single images."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from run_folder import mask_files
from run_folder.artifacts import ArtifactWriter, is_complete
from run_folder.mask_files import MaskStyle, ProbabilityFile

STYLE = MaskStyle(("ground", "crack", "hole"), (0, 7, 255), (1, 2, 3, 4, 5, 6))


def probabilities(height=13, width=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(3), (height, width)).astype(np.float32)


def write(path, values, labels=None, stripes=4):
    height, width = values.shape[:2]
    with mask_files.write_probabilities(
        path, height, width, STYLE, labels
    ) as add:
        for top in range(0, height, stripes):
            add(values[top : top + stripes])


def test_what_is_written_in_stripes_is_read_in_others(tmp_path):
    values, path = probabilities(), tmp_path / "a.npz"
    labels = np.arange(65, dtype=np.uint8).reshape(13, 5)
    write(path, values, labels)
    file = ProbabilityFile(path)
    assert (file.style, file.shape) == (STYLE, (13, 5, 3))
    np.testing.assert_array_equal(file.labels, labels)
    parts = list(file.stripes(3))
    assert [len(part) for part in parts] == [3, 3, 3, 3, 1]
    found = np.concatenate(parts) / 255
    assert np.abs(found - values).max() <= 0.5 / 255 + 1e-6


def test_numpy_opens_the_file(tmp_path):
    values = probabilities()
    values[0, 0], values[0, 1] = (1, 0, 0), (1.0000001, 0, 0)
    write(tmp_path / "a.npz", values)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert sorted(file.files) == [
            "classes",
            "palette",
            "probabilities",
            "values",
        ]
        assert file["probabilities"].dtype == np.uint8
        assert file["probabilities"][0, :2].tolist() == [[255, 0, 0]] * 2
        assert file["values"].tolist() == [0, 7, 255]
        assert file["classes"].tolist() == ["ground", "crack", "hole"]
    assert ProbabilityFile(tmp_path / "a.npz").labels is None


def test_a_row_too_few_or_too_many_is_an_error(tmp_path):
    for height in (12, 14):
        with (
            pytest.raises(ValueError, match="rows of"),
            mask_files.write_probabilities(
                tmp_path / "a.npz", height, 5, STYLE
            ) as add,
        ):
            add(probabilities())


def rewritten(source, target, **changes):
    with np.load(source) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(target, **{**arrays, **changes})


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole, bad: bad.write_bytes(whole.read_bytes()[:300]),
        lambda whole, bad: bad.write_bytes(b""),
        lambda whole, bad: rewritten(
            whole, bad, probabilities=np.zeros((2, 2, 3))
        ),
        lambda whole, bad: rewritten(whole, bad, classes=np.array(["a", "b"])),
        lambda whole, bad: rewritten(
            whole, bad, labels=np.zeros((3, 3), np.uint8)
        ),
        lambda whole, bad: rewritten(
            whole, bad, classes=np.array([{}], dtype=object)
        ),
        lambda whole, bad: None,
    ],
)
def test_a_damaged_file_is_told_in_one_sentence(tmp_path, damage):
    write(tmp_path / "a.npz", probabilities(), np.zeros((13, 5), np.uint8))
    damage(tmp_path / "a.npz", tmp_path / "bad.npz")
    with pytest.raises(UserError, match=r"bad\.npz (cannot|is missing)"):
        ProbabilityFile(tmp_path / "bad.npz")


def test_pixels_that_rot_are_told_when_they_are_read(tmp_path):
    values = np.random.default_rng(0).random((400, 50, 3)).astype(np.float32)
    path = tmp_path / "a.npz"
    write(path, values / values.sum(-1, keepdims=True))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        at = file.getinfo("probabilities.npy").header_offset
    middle = at + (len(data) - at) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(UserError, match="export the run again"):
        list(ProbabilityFile(path).stripes(7))


def test_a_mask_has_the_values_and_colours_of_the_data(tmp_path):
    mask = np.array([[0, 1], [2, 1]], np.uint8)
    path = tmp_path / "a.png"
    mask_files.save_mask(path, STYLE.encode(mask), STYLE.palette)
    with Image.open(path) as found:
        assert np.asarray(found).tolist() == [[0, 7], [255, 7]]
        assert found.getpalette("RGB")[:6] == [1, 2, 3, 4, 5, 6]


def test_the_manifest_has_them(tmp_path):
    writer = ArtifactWriter(tmp_path, 3)
    writer.begin()
    name = "probabilities/val/city/a.npz"
    with writer.probabilities(name, 13, 5, STYLE) as add:
        add(probabilities())
    writer.finish()
    assert is_complete(tmp_path)
    assert ProbabilityFile(tmp_path / name).shape == (13, 5, 3)
    with (
        pytest.raises(ValueError, match="no artifact"),
        writer.probabilities("logits/val/a.npz", 1, 1, STYLE),
    ):
        pass
