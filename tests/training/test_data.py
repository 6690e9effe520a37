"""The examples of a run: what is refused, how they are divided and batched."""

import dataclasses
import hashlib
import types

import masked_photos
import numpy as np
import pytest

from configs import common
from core.errors import UserError
from input_pipeline.samplers import ShuffledSampler
from input_pipeline.sources.base import Kind
from input_pipeline.sources.generated import Generated
from run_folder import folds_file
from training import data as data_lib
from training.loop import stages
from training.multihost import sharding
from training.tasks.base import Task
from training.tasks.segment import Segmentation

IMAGE = {"image": Kind.IMAGE}


def digits(**fields):
    """The digits at 32 px, in two stages of two epochs."""
    config = common.for_digits(common.base())
    config.stages = tuple(
        common.stage(epochs=2.0, batch_size=16) for _ in range(2)
    )
    config.update_from_flattened_dict(fields)
    return config


def open_data(workdir, config=None, features=IMAGE):
    config = config or digits()
    task = type("Learner", (Task,), {"features": features})
    return data_lib.Data(config, workdir, sharding.make_mesh(), 0, task)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_data(tmp_path_factory.mktemp("run"))


# ---- What is refused --------------------------------------------------------


def test_a_feature_that_the_source_lacks_is_reported_in_one_sentence(tmp_path):
    features = {**IMAGE, "label": Kind.LABEL, "mask": Kind.MASK}
    with pytest.raises(UserError) as caught:
        open_data(tmp_path, features=features)
    assert str(caught.value) == (
        "the task learns from image, label, mask, and data.source 'digits' "
        "has no mask; set --config.data.source to one that has"
    )


def test_a_feature_of_another_kind_does_not_count(tmp_path):
    with pytest.raises(UserError, match="has no label"):
        open_data(tmp_path, features={"label": Kind.MASK})


def test_a_fold_that_is_empty_is_refused(tmp_path, data):
    file = tmp_path / "folds.csv"
    ids = data.source.labelled.ids
    folds_file.write_folds(file, ids, np.full(len(ids), 4), 42)
    config = digits(**{"data.folds_file": str(file), "data.fold": 3})
    with pytest.raises(UserError, match=r"leaves 1437 .* and 0 to validate"):
        open_data(tmp_path, config)


def test_a_folds_file_is_not_ignored_in_silence(tmp_path):
    """Where the data say themselves which images validate."""
    root = masked_photos.write(tmp_path / "data")
    fields = {"data.root": str(root), "cache_dir": str(tmp_path / "cache")}
    found = open_data(tmp_path / "run", digits(**fields))
    assert found.folds.tolist() == [1, 1, 1, 1, 0, 0]
    fields["data.folds_file"] = str(tmp_path / "mine.csv")
    with pytest.raises(UserError) as refused:
        open_data(tmp_path / "run", digits(**fields))
    assert str(refused.value) == (
        f"data.folds_file is set, but {root} says itself which images "
        "validate; leave it empty, or set --config.data.val_images= to fold "
        "the training images alone"
    )
    fields["data.val_images"] = ""
    assert len(open_data(tmp_path / "run", digits(**fields)).folds) == 4


def test_batches_that_cannot_be_shared_are_named_all_at_once():
    class Mesh:
        size = 8

    config = common.base()
    config.eval.batch_size = 12
    config.stages = (
        common.stage(batch_size=64),
        common.stage(batch_size=20),
        common.stage(batch_size=24, accumulate=2),
    )
    with pytest.raises(UserError) as refused:
        data_lib._check_batches(config, Mesh)
    for part in (
        "eval.batch_size is 12 (take a multiple of 8)",
        "stages[1].batch_size is 20 (take a multiple of 8)",
        "stages[2].batch_size is 24 in 2 parts (take a multiple of 16)",
    ):
        assert part in str(refused.value)
    assert "stages[0]" not in str(refused.value)


# ---- Folds and identity -----------------------------------------------------


def test_one_fold_validates_and_the_others_train(data):
    both = np.concatenate([data.train_rows, data.val_rows])
    np.testing.assert_array_equal(np.sort(both), np.arange(1437))
    assert (data.folds[data.val_rows] == 0).all()
    labels = data.source.labelled.labels[data.train_rows]
    share = np.bincount(labels) / len(labels)
    np.testing.assert_allclose(data.class_prior, share)


def test_the_prior_is_of_all_that_is_trained_on(tmp_path):
    """Losses that make up for rare classes would do so twice, else."""
    given = {"data.generated_share": 0.25, "data.generated_weight": 0.5}
    data = open_data(tmp_path, digits(**given))
    photos = data.class_prior
    images = types.SimpleNamespace(labels=np.array([3, 3, 7]))
    data.generated = Generated(None, images, "", "")
    expected = 0.75 * photos
    expected[3] += 0.125 * 2 / 3
    expected[7] += 0.125 / 3
    np.testing.assert_allclose(data.class_prior, expected / 0.875)


def test_folds_are_written_only_once_the_run_folder_is_ours(tmp_path, data):
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    found = open_data(workdir)
    assert not workdir.exists()
    workdir.mkdir()
    mean, std = found.prepare(cache)
    assert mean.shape == std.shape == (3,) and mean.dtype == np.float32
    assert (mean > 0).all() and (mean < 1).all() and (std > 0).all()
    assert [path.name for path in workdir.iterdir()] == ["folds.csv"]
    # From now on the file decides, whatever the seed.
    again = open_data(workdir, digits(**{"data.folds_seed": 7}))
    np.testing.assert_array_equal(again.folds, data.folds)


def test_identity_names_rows_and_their_division(tmp_path, data):
    same = open_data(tmp_path).identity()
    assert same == data.identity()
    assert same["classes"] == [str(digit) for digit in range(10)]
    other = open_data(tmp_path, digits(**{"data.folds_seed": 7})).identity()
    assert other["rows_hash"] == same["rows_hash"]
    assert other["folds_hash"] != same["folds_hash"]


def test_rows_without_masks_keep_the_hash_that_they_had(data):
    """Another one would refuse to continue runs that were begun before."""
    ids = "\n".join(data.source.labelled.ids.tolist()).encode()
    labels = data.source.labelled.labels.astype(np.int32).tobytes()
    found = hashlib.sha256(ids + labels).hexdigest()[:16]
    assert data.identity()["rows_hash"] == found


@pytest.mark.parametrize("field", ["mask_pixels", "mask_digests"])
def test_identity_notices_that_masks_were_changed(tmp_path, monkeypatch, field):
    """Also where no class has more pixels or fewer than before."""
    scenes = open_data(tmp_path, digits(**{"data.source": "digit_scenes"}))
    before = scenes.identity()
    values = getattr(scenes.source, field).copy()
    values[0] = np.roll(values[0], 1)
    changed = dataclasses.replace(scenes.source, **{field: values})
    monkeypatch.setattr(scenes, "source", changed)
    after = scenes.identity()
    assert after.pop("rows_hash") != before.pop("rows_hash")
    assert after == before


def test_identity_notices_that_a_flag_was_changed(tmp_path):
    config = digits(**{"data.source": "digit_pairs"})
    data = open_data(tmp_path, config, {**IMAGE, "forged": Kind.ID})
    before = data.identity()
    data.source.labelled.columns["forged"][3] ^= 1
    after = data.identity()
    assert after.pop("rows_hash") != before.pop("rows_hash")
    assert after == before


def test_halves_are_stratified_by_what_folds_are(tmp_path):
    config = digits(**{"data.source": "digit_pairs"})
    data = open_data(tmp_path, config)
    rows = np.arange(len(data.source.labelled))
    groups = np.array([f"person {row // 10}" for row in rows])
    strata = (rows // 10 % 5 == 0).astype(np.int32)
    data.source = dataclasses.replace(data.source, groups=groups, strata=strata)
    halves = data.halves(rows)
    for stratum in (0, 1):
        counts = np.bincount(halves[strata == stratum], minlength=2)
        assert abs(counts[0] - counts[1]) <= 10


# ---- Batches ----------------------------------------------------------------


def first_batch(data, stage, step):
    sampler = ShuffledSampler(data.train_rows, data.stage_seed(stage))
    with data.train(stage, step, sampler) as batches:
        return next(batches)


def test_a_stage_starts_its_own_stream_at_its_own_step(data):
    first, second = stages.plan_stages(digits(), len(data.train_rows))
    assert data.stage_seed(first) != data.stage_seed(second)
    sampler = ShuffledSampler(data.train_rows, data.stage_seed(second))
    with data.train(second, second.start, sampler) as batches:
        stream = [next(batches) for _ in range(3)]
    resumed = first_batch(data, second, second.start + 2)
    assert resumed.keys() == stream[2].keys()
    for name, values in resumed.items():
        np.testing.assert_array_equal(values, stream[2][name], name)
    assert set(resumed["row"]) <= set(data.train_rows)
    other = first_batch(data, first, first.start)
    assert (other["row"] != stream[0]["row"]).any()


def test_an_example_is_the_first_row_of_a_stages_first_batch(data):
    """A plan needs no more of it than shapes, and no loader processes."""
    for stage in stages.plan_stages(digits(), len(data.train_rows)):
        batch = first_batch(data, stage, stage.start)
        sampler = ShuffledSampler(data.train_rows, data.stage_seed(stage))
        example = data.example(stage, sampler)
        assert example.keys() == batch.keys()
        for name, values in example.items():
            np.testing.assert_array_equal(values, batch[name][:1])


def test_a_stage_has_the_augmentation_that_it_overrides(data):
    def images(**augment):
        config = digits()
        config.stages = (common.stage(batch_size=16, augment=augment),)
        (stage,) = stages.plan_stages(config, len(data.train_rows))
        return first_batch(data, stage, 0)["image"]

    plain = {"jitter": (0.0, 0.0, 0.0, 0.0), "randaugment_ops": 0}
    np.testing.assert_array_equal(images(), images())
    assert (images(**plain) != images()).any()


def test_every_validation_row_comes_once_and_is_decoded_once(data, monkeypatch):
    batches = data.validation()
    assert data.validation() is batches
    rows = np.concatenate([batch["row"] for batch in batches])
    np.testing.assert_array_equal(rows[rows >= 0], data.val_rows)
    for batch in batches:
        np.testing.assert_array_equal(batch["weight"], batch["row"] >= 0)
    # Not kept where they are many.
    monkeypatch.setattr(data_lib, "VALIDATION_BYTES_IN_MEMORY", 1)
    monkeypatch.setattr(data, "_validation", None)
    for _ in range(2):
        again = list(data.validation())
        assert len(again) == len(batches)
        np.testing.assert_array_equal(again[0]["image"], batches[0]["image"])


def test_masks_count_among_what_validation_keeps_in_memory(
    tmp_path, monkeypatch
):
    """At their own size, they are most of it."""
    config = digits(**{"data.source": "digit_scenes", "image_size": 8})

    def is_kept(limit):
        monkeypatch.setattr(data_lib, "VALIDATION_BYTES_IN_MEMORY", limit)
        task = type("Learner", (Segmentation,), {"features": IMAGE})
        mesh = sharding.make_mesh()
        scenes = data_lib.Data(config, tmp_path, mesh, 0, task)
        batches = scenes.validation()
        return scenes, batches, isinstance(batches, list)

    scenes, batches, kept = is_kept(2**30)
    assert kept
    rows = len(scenes.val_rows)
    size = sum(
        batches[0][name][0].nbytes
        for name in ("image", "mask", "size", "mask_size")
    )
    assert size > 2 * batches[0]["image"][0].nbytes
    assert is_kept(size * rows)[2]
    assert not is_kept(size * rows - 1)[2]
