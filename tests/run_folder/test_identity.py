"""Which fields tell one run from another, and one model from another."""

import copy
from pathlib import Path

import pytest

from configs import common, generation, loading, segmentation
from run_folder import identity

CONFIG = {
    "seed": 42,
    "workers": -1,
    "data": {"root": "/photos", "fold": 0},
    "eval": {"tta": ["center"], "every_epochs": 1.0},
    "stages": [
        {"epochs": 5.0, "accumulate": 1},
        {"epochs": 2.0, "accumulate": 1},
    ],
}


def changed(name, value):
    config = copy.deepcopy(CONFIG)
    *parents, last = name.split(".")
    inside = config
    for parent in parents:
        inside = inside[int(parent) if parent.isdigit() else parent]
    inside[last] = value
    return config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", 3),
        ("data.root", "/moved"),
        ("data.source", "records"),
        ("data.answers", "/moved/answers.csv"),
        ("data.train_masks", "/moved/masks"),
        ("data.val_images", "/moved/val"),
        ("data.val_masks", "/moved/val_masks"),
        ("data.class_list", "/moved/classes.csv"),
        ("init_from", "/moved/mae"),
        ("stages.1.distill_from", "/moved/teacher"),
        ("eval.tta", ["center", "crop"]),
        ("stages.1.accumulate", 4),
    ],
)
def test_free_fields_leave_the_run_the_same(name, value):
    other = changed(name, value)
    assert identity.config_hash(other, {}) == identity.config_hash(CONFIG, {})
    assert identity.differences(other, CONFIG) == []


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("eval.every_epochs", 2.0, "eval.every_epochs: 1.0 -> 2.0"),
        ("stages.1.epochs", 3.0, "stages.1.epochs: 2.0 -> 3.0"),
        ("data.balance", 0.5, "data.balance: absent -> 0.5"),
    ],
)
def test_all_other_fields_make_another_run_and_model(name, value, told):
    other = changed(name, value)
    assert identity.config_hash(other, {}) != identity.config_hash(CONFIG, {})
    assert identity.family_hash(other, {}) != identity.family_hash(CONFIG, {})
    assert identity.differences(other, CONFIG) == [told]


@pytest.mark.parametrize(("name", "value"), [("seed", 7), ("data.fold", 3)])
def test_seeds_and_folds_are_runs_of_one_model(name, value):
    other = changed(name, value)
    assert identity.config_hash(other, {}) != identity.config_hash(CONFIG, {})
    assert identity.family_hash(other, {}) == identity.family_hash(CONFIG, {})


def learned_from(fingerprint, family):
    pin = {"step": 1, "fingerprint": fingerprint, "family": family}
    return {"init_from": pin, "teachers": {"stages.1": pin}}


def test_runs_that_began_from_other_weights_are_others():
    a, b = learned_from("a", "x"), learned_from("b", "x")
    hashes = {identity.config_hash(CONFIG, data) for data in ({}, a, b)}
    assert len(hashes) == 3


def test_folds_that_learned_from_the_folds_of_one_model_are_one_model():
    a, b = learned_from("a", "x"), learned_from("b", "x")
    other = learned_from("a", "y")
    hashes = [identity.family_hash(CONFIG, data) for data in (a, b, other, {})]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_run_on_generated_images_is_no_run_on_photos():
    """Whose share is the default's: nothing else of the config tells."""

    photos, one, other = {}, {"generated": "1a"}, {"generated": "2b"}
    hashes = [identity.config_hash(CONFIG, of) for of in (photos, one, other)]
    assert len(set(hashes)) == 3
    # Each fold has a generator of its own.
    families = [identity.family_hash(CONFIG, of) for of in (photos, one, other)]
    assert families[0] != families[1] == families[2]


def test_every_free_field_is_a_field():
    """A renamed field would silently become part of the identity."""
    known = set()
    for config in (segmentation.base(), generation.base()):
        config.stages = (common.stage(),)
        fields = identity.flatten(loading.plain(config))
        known |= {name.replace(".0.", ".*.") for name in fields}
    assert known >= identity.FREE_FIELDS


def test_an_update_leaves_runs_what_they_were():
    before = copy.deepcopy(CONFIG)
    now = changed("data.generated_classes", [])
    assert identity.config_hash(now, {}) == identity.config_hash(before, {})
    assert identity.differences(now, before) == []
    other = changed("data.generated_classes", ["crane"])
    assert identity.config_hash(other, {}) != identity.config_hash(now, {})
    assert identity.differences(now, other) == [
        "data.generated_classes: ['crane'] -> []"
    ]


def test_fields_that_were_added_say_how_runs_were_trained_before():
    """A new field, or a new name, would disown the runs that people have."""
    root = Path(__file__).parents[2]
    first = (Path(__file__).parent / "first_fields.txt").read_text().split()
    known = set()
    for path in sorted((root / "configs").glob("*.py")):
        if "\ndef get_config" in path.read_text():
            fields = identity.flatten(loading.plain(loading.load(str(path))))
            known |= {identity.generic(name) for name in fields}
    known = {name for name in known if not name.startswith("model_options.")}
    without_a_line = known - set(first) - identity.ADDED_FIELDS.keys()
    assert not without_a_line, (
        "add them to ADDED_FIELDS, or to first_fields.txt if their task is new"
    )
    assert known >= identity.ADDED_FIELDS.keys()
