"""What a run saves for whoever uses it."""

import dataclasses
import json

import pytest

from core.errors import UserError
from run_folder import inference
from run_folder.inference import InferenceSpec

SPEC = InferenceSpec(
    task="classify",
    model="tinyvit",
    model_options={"drop_path_rate": 0.1, "depths": [2, 2]},
    num_outputs=2,
    classes=("cat", "dog"),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    image_size=224,
    resize="center_crop",
    views=("center", "crop_flip"),
    dtype="bfloat16",
    id_column="id",
    target_column="label",
)


def test_what_is_written_is_read(tmp_path):
    inference.write(tmp_path, SPEC)
    assert inference.read(tmp_path) == SPEC


def test_a_task_without_classes(tmp_path):
    spec = dataclasses.replace(SPEC, task="mae", classes=(), num_outputs=768)
    inference.write(tmp_path, spec)
    assert inference.read(tmp_path) == spec


WRONG = [
    ({"format": 99}, "it has format 99, not 3"),
    ({"colour": 1}, "field 'colour' is unknown"),
    ({"model": None}, "model is None"),
    ({"num_outputs": 3}, "2 classes for 3 outputs"),
    ({"mask_values": [0]}, "1 mask_values for 2 classes"),
    ({"num_outputs": True}, "num_outputs is True"),
    ({"mean": [0.5, 0.5]}, r"mean is \[0.5, 0.5\]"),
    ({"mean": [0.5, 0.5, float("nan")]}, "mean is"),
    ({"std": [0.2, 0.0, 0.2]}, "std is"),
    ({"image_size": 224.0}, "image_size is 224.0"),
    ({"views": []}, r"views is \[\]"),
    ({"dtype": "float16"}, "dtype is 'float16'"),
    ({"id_column": 3}, "id_column is 3"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_values_that_cannot_be_are_one_sentence(tmp_path, change, words):
    inference.write(tmp_path, SPEC)
    path = tmp_path / "inference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=words) as caught:
        inference.read(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "cannot be read"), ("[]", "no object"), ("{}", "format None")],
)
def test_a_damaged_file_is_one_sentence(tmp_path, content, words):
    (tmp_path / "inference.json").write_text(content)
    with pytest.raises(UserError, match=words):
        inference.read(tmp_path)


def test_a_missing_field_is_named(tmp_path):
    inference.write(tmp_path, SPEC)
    path = tmp_path / "inference.json"
    content = json.loads(path.read_text())
    del content["std"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="field 'std' is missing"):
        inference.read(tmp_path)


def test_no_file_names_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"has no inference\.json; name the"):
        inference.read(tmp_path)


def test_a_wrong_spec_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="2 classes for 5 outputs"):
        inference.write(tmp_path, dataclasses.replace(SPEC, num_outputs=5))
    assert not (tmp_path / "inference.json").exists()
