"""Whose run folder it is."""

import errno
import json
import os
from pathlib import Path

import pytest

from core.errors import UserError
from run_folder import layout

IDENTITY = {"classes": ["a", "b"], "folds_hash": "1", "rows_hash": "2"}


def config(**fields):
    return {"seed": 42, "workers": -1, "stages": [{"epochs": 1.0}], **fields}


def begin(workdir):
    """A run with a checkpoint."""
    layout.claim(workdir, config(), IDENTITY).close()
    (workdir / "checkpoints" / "7").mkdir(parents=True)


def test_before_the_first_checkpoint_the_config_may_be_fixed(tmp_path):
    layout.claim(tmp_path, config(), IDENTITY).close()
    layout.claim(tmp_path, config(seed=7), IDENTITY).close()
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7
    assert layout.read_config(tmp_path)["seed"] == 7


def test_a_begun_run_keeps_its_config(tmp_path):
    begin(tmp_path)
    layout.claim(tmp_path, config(workers=3), IDENTITY).close()
    with pytest.raises(UserError, match="seed: 42 -> 7"):
        layout.claim(tmp_path, config(seed=7), IDENTITY)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("classes", ["b", "a"], "the classes"), ("folds_hash", "9", "the folds")],
)
def test_a_begun_run_keeps_its_data(tmp_path, name, value, told):
    begin(tmp_path)
    with pytest.raises(UserError, match=f"{told} are not those"):
        layout.claim(tmp_path, config(), {**IDENTITY, name: value})


def test_data_is_read_once_there_is_a_checkpoint(tmp_path):
    layout.claim(tmp_path, config(), IDENTITY).close()
    assert layout.read_data(tmp_path) == {}
    begin(tmp_path)
    assert layout.read_data(tmp_path) == IDENTITY
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*data\.json"):
        layout.read_data(tmp_path)


def test_one_process_at_a_time(tmp_path):
    lock = layout.claim(tmp_path, config(), IDENTITY)
    with pytest.raises(UserError, match="another process"):
        layout.claim(tmp_path, config(), IDENTITY)
    lock.close()
    layout.claim(tmp_path, config(), IDENTITY).close()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --workdir"):
        layout.claim(tmp_path / "file" / "run", config(), IDENTITY)


def test_a_save_that_was_killed_is_no_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not layout.has_checkpoint(tmp_path)
    (folder / "5").mkdir()
    assert layout.has_checkpoint(tmp_path)


def test_a_folder_of_all_folds_is_no_folder_of_one(tmp_path):
    for fold in (10, 9):
        layout.fold_folder(tmp_path / "run", fold).mkdir(parents=True)
    names = [path.name for path in layout.fold_folders(tmp_path / "run")]
    assert names == ["fold-9", "fold-10"]
    with pytest.raises(UserError, match="a run over all folds"):
        layout.claim(tmp_path / "run", config(), {})


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_run_that_cannot_be_read_now_is_not_begun_anew(
    tmp_path, monkeypatch, code
):
    begin(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    iterdir = Path.iterdir

    def fail(path):
        if path.name == "checkpoints":
            raise OSError(code, os.strerror(code), str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(UserError, match=r"cannot read the folder .*checkpo"):
        layout.claim(tmp_path, config(seed=7), IDENTITY)
    assert (tmp_path / "config.json").read_bytes() == before
