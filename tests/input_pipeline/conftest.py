from __future__ import annotations

import types
from pathlib import Path

import pytest
from sample_images import encoded, photo

from configs import inputs

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def data_config():
    """Makes a config.data; keywords change single fields."""

    def make(**changes):
        fields = dict(inputs.data())
        assert set(changes) <= set(fields)
        return types.SimpleNamespace(**(fields | changes))

    return make


@pytest.fixture
def competition(tmp_path):
    """A folder in the competition's layout: 12 labelled, 4 to predict."""
    labels = [3, 3, 3, 3, 11, 11, 11, 11, 0, 0, 0, 0]
    lines = ["img_id,target_feature"]
    (tmp_path / "img_train").mkdir()
    (tmp_path / "img_test").mkdir()
    for row, label in enumerate(labels):
        lines.append(f"{row},{label}")
        name = tmp_path / "img_train" / f"{row}.jpg"
        name.write_bytes(encoded(photo(seed=row)))
    (tmp_path / "train_answers.csv").write_text("\n".join(lines) + "\n")
    for row in (2, 10, 1, 3):
        name = tmp_path / "img_test" / f"{row}.jpg"
        name.write_bytes(encoded(photo(seed=100 + row)))
    (tmp_path / "sample_submission.csv").write_text(
        "id,target_feature\n10,0\n1,0\n2,0\n3,0\n"
    )
    return tmp_path


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real photos beside the repository, where there is one."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no sample photos at {SHARED_DATA}")
    return SHARED_DATA
