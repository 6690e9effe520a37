"""`eval.tta=auto`, from the command line to what predict.py reads."""

import json

from in_process import training

from configs.common import view_sets
from run_folder.predictions import read_logits

AUTO = "--config.eval.tta=('auto', 'center', 'crop', 'center_flip')"
CHOICES = view_sets(("auto", "center", "crop", "center_flip"))


def spec_views(workdir):
    return tuple(json.loads((workdir / "inference.json").read_text())["views"])


def test_what_was_chosen_is_in_every_file(tmp_path, capsys):
    workdir = tmp_path / "run"
    assert training(workdir, AUTO) == 0
    told = capsys.readouterr().out
    views = spec_views(workdir)
    assert views in CHOICES
    assert f"new images get {', '.join(views)}, and" in told
    for split in ("val", "test"):
        metadata = read_logits(workdir / f"logits/{split}.npz").metadata
        assert tuple(metadata["views"]) == views
        assert metadata["tta_views"][0] == "auto"
    # A finished run may take others, and is still the same run.
    before = read_logits(workdir / "logits/test.npz")
    fixed = "--config.eval.tta=('crop',)"
    assert training(workdir, fixed, "--export") == 0
    assert spec_views(workdir) == ("crop",)
    after = read_logits(workdir / "logits/test.npz")
    for name in ("config_hash", "family_hash"):
        assert after.metadata[name] == before.metadata[name]
    assert training(workdir, AUTO, "--export") == 0
    assert spec_views(workdir) == views


def test_every_fold_chooses_for_itself_and_all_are_joined(tmp_path):
    folds = "--config.data.folds=2"
    assert training(tmp_path, AUTO, folds, "--all-folds") == 0
    whole = read_logits(tmp_path / "logits/val.npz")
    assert len(whole) == 1437
    assert "views" not in whole.metadata
    for fold in range(2):
        assert spec_views(tmp_path / f"fold-{fold}") in CHOICES
