"""Generated images among photos: their order, their weight, their folds."""

import hashlib
import json
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import inputs
from core.errors import UserError
from input_pipeline import loader, samplers
from input_pipeline.samplers import MixedSampler, ShuffledSampler
from input_pipeline.sources.base import ArrayExamples, Source
from input_pipeline.sources.folders import open_folders
from input_pipeline.sources.generated import open_generated
from input_pipeline.transforms.policy import Augment, TrainTransform

PLAIN = Augment(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip=0.0,
    randaugment_ops=0,
    jitter=(0.0, 0.0, 0.0, 0.0),
)


def photos(count=20):
    ids = np.array([f"photo-{row}" for row in range(count)])
    pixels = np.zeros((count, 8, 8, 3), np.uint8)
    return ArrayExamples(ids, np.arange(count, dtype=np.int32) % 2, pixels)


def source(count=20):
    return Source(
        name="digits",
        labelled=photos(count),
        test=None,
        classes=("a", "b"),
        sample_submission=None,
        id_column="id",
        target_column="label",
        fingerprint="",
    )


def generator(folder, saw, classes=("a", "b"), count=6):
    """A run folder with white images, as the export leaves it."""
    images, files = [], {}
    for index in range(count):
        name = f"samples/{classes[index % 2]}/{index:05d}.png"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "white").save(path)
        content = path.read_bytes()
        files[name] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        images.append({"file": name, "label": index % 2})
    about = {
        "classes": classes,
        "images": images,
        "saw": saw,
        "fold": 0,
        "rows_hash": "same",
    }
    (folder / "samples/manifest.json").write_text(json.dumps(about))
    (folder / "artifacts.json").write_text(json.dumps({"files": files}))
    return folder


def opened(folder, val_rows=(18, 19)):
    rows = np.array(val_rows)
    return open_generated(str(folder), source(), rows, folder.parent, 0)


SAW = [f"photo-{row}" for row in range(18)]


def mixed_rows(share, photos=1000, images=700, blocks=2, seed=0):
    """The first blocks of a stream: photos from 0, images from 10,000."""
    sampler = MixedSampler(
        ShuffledSampler(np.arange(photos), seed),
        ShuffledSampler(np.arange(images), seed + 1),
        share,
        offset=10_000,
        seed=seed + 2,
    )
    count = blocks * samplers._MIXED_BLOCK
    rows = np.array([sampler.row(position) for position in range(count)])
    # Position by position, in any order.
    assert [sampler.row(p) for p in (1999, 3)] == rows[[1999, 3]].tolist()
    return rows


@given(
    share=st.floats(0, 1),
    photos=st.integers(1, 12),
    images=st.integers(1, 12),
    seed=st.integers(0, 5),
)
@settings(max_examples=30, deadline=None)
def test_every_block_has_its_share_and_no_row_comes_before_its_turn(
    share, photos, images, seed
):
    rows = mixed_rows(share, photos, images, seed=seed)
    generated = rows >= 10_000
    ends = np.cumsum(generated)[samplers._MIXED_BLOCK - 1 :: 1024]
    assert np.abs(ends - share * 1024 * np.arange(1, 3)).max() <= 1 + 1e-9
    for found, count in (
        (rows[generated] - 10_000, images),
        (rows[~generated], photos),
    ):
        often = np.bincount(found, minlength=count)
        assert len(often) == count and np.ptp(often) <= 1


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_neighbours_are_of_either_kind_as_often_as_chance_has_it(share):
    """MixUp and CutMix mix neighbours in a batch."""
    generated = mixed_rows(share, blocks=8) >= 10_000
    pairs = np.stack([generated[1:], generated[:-1]], axis=1).sum(axis=1)
    found = np.bincount(pairs, minlength=3) / len(pairs)
    expected = (1 - share) ** 2, 2 * share * (1 - share), share**2
    # Four standard errors of 8,191 pairs.
    np.testing.assert_allclose(found, expected, atol=0.025)


def test_batches_hold_both_each_with_its_weight_and_label(tmp_path):
    generated = opened(generator(tmp_path / "flow", SAW))
    data = types.SimpleNamespace(generated_share=0.5, generated_weight=0.25)
    known = photos()
    examples, sampler = generated.mixed(
        known, ShuffledSampler(np.arange(18), 0), data, seed=3
    )
    with loader.train_batches(
        examples, TrainTransform(PLAIN, 8), sampler, batch_size=8, seed=0
    ) as batches:
        batch = next(batches)
    white = batch["image"].mean((1, 2, 3)) > 254
    np.testing.assert_array_equal(white, batch["row"] >= 20)
    assert 0 < white.sum() < 8
    np.testing.assert_array_equal(
        batch["weight"], np.where(white, 0.25, 1.0).astype(np.float32)
    )
    labels = np.concatenate([known.labels, generated.examples.labels])
    np.testing.assert_array_equal(batch["label"], labels[batch["row"]])
    assert batch["weight"].dtype == np.float32


def test_a_damaged_generated_image_counts_nothing(tmp_path, capsys):
    folder = generator(tmp_path / "flow", SAW)
    generated = opened(folder)
    for path in folder.glob("samples/*/*.png"):
        path.write_bytes(b"x" * path.stat().st_size)
    data = types.SimpleNamespace(generated_share=0.5, generated_weight=1.0)
    examples, sampler = generated.mixed(
        photos(), ShuffledSampler(np.arange(18), 0), data, seed=3
    )
    with loader.train_batches(
        examples, TrainTransform(PLAIN, 8), sampler, batch_size=8, seed=0
    ) as batches:
        batch = next(batches)
    generated = batch["row"] >= 20
    assert 0 < generated.sum() < 8
    np.testing.assert_array_equal(batch["weight"], np.where(generated, 0, 1))
    assert "bad image" in capsys.readouterr().err


def test_as_folders_they_are_no_photos_and_it_is_said(tmp_path):
    folder = generator(tmp_path / "flow", SAW) / "samples"
    data = inputs.data()
    (told,) = open_folders(data, folder).notes
    assert "a generator made these images" in told
    (folder / "manifest.json").write_text('{"images": []}')
    assert open_folders(data, folder).notes == []


def test_what_it_is_depends_on_the_content_of_the_images(tmp_path):
    one = opened(generator(tmp_path / "one", SAW))
    same = opened(generator(tmp_path / "same", SAW))
    other = opened(generator(tmp_path / "other", SAW, count=4))
    assert one.digest == same.digest != other.digest


SHARES = np.array([0.9, 0.1])


@pytest.mark.parametrize("wanted", [("rare",), ("b",)])
def test_of_some_classes_alone(tmp_path, wanted):
    whole = opened(generator(tmp_path / "flow", SAW))
    found = whole.of_classes(wanted, ("a", "b"), SHARES)
    assert found.examples.labels.tolist() == [1, 1, 1]
    names = [f"samples/b/{index:05d}.png" for index in (1, 3, 5)]
    assert found.examples.ids.tolist() == names
    assert found.examples.read(2) == whole.examples.read(5)
    data = types.SimpleNamespace(generated_share=0.2, generated_weight=1.0)
    (told,) = found.describe(data, "same").values()
    assert told.startswith("3 images of b in ")
    assert told.endswith("weight 1")
    (told,) = found.describe(data, "another").values()
    assert "learned from other data" in told


def test_all_classes_unless_some_are_named(tmp_path):
    whole = opened(generator(tmp_path / "flow", SAW))
    assert whole.of_classes((), ("a", "b"), SHARES) is whole
    # Digits may be given as numbers, and a class may be called rare.
    found = whole.of_classes((7,), ("7", "8"), SHARES)
    assert found.examples.labels.tolist() == [0, 0, 0]
    found = whole.of_classes(("rare",), ("rare", "b"), SHARES)
    assert found.examples.labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("wanted", "shares", "told"),
    [
        (("bb",), SHARES, r"have no class 'bb' \(did you mean 'b'\?\)"),
        (("rare", "b"), SHARES, "have no class 'rare'"),
        (("rare",), np.full(2, 0.5), "all classes have as many photos"),
        (("b",), SHARES, "has no image of b; export more"),
    ],
)
def test_classes_that_cannot_be_taken(tmp_path, wanted, shares, told):
    whole = opened(generator(tmp_path / "flow", SAW, count=1))
    with pytest.raises(UserError, match=told):
        whole.of_classes(wanted, ("a", "b"), shares)


def test_of_a_run_over_all_folds_the_same_fold_is_taken(tmp_path):
    inside = generator(tmp_path / "flow" / "fold-0", SAW)
    assert opened(tmp_path / "flow").folder == inside
    # A fold of the run that trains looks beside the whole of it.
    (tmp_path / "mixed").mkdir()
    found = open_generated(
        "flow", source(), np.array([19]), tmp_path / "mixed", 0
    )
    assert found.folder == inside


def test_leaks_and_strangers_are_refused(tmp_path):
    folder = generator(tmp_path / "flow", SAW)
    with pytest.raises(UserError) as refused:
        opened(folder, val_rows=(17, 19))
    assert "photos that validate here (1 of them, such as 'photo-17')" in str(
        refused.value
    )
    stranger = generator(tmp_path / "stranger", ["somebody", "else"])
    with pytest.raises(UserError, match="by other ids"):
        opened(stranger)
    other = generator(tmp_path / "other", SAW, classes=("a", "c"))
    with pytest.raises(UserError, match="other classes"):
        opened(other)
    image = next(folder.glob("samples/*/*.png"))
    content = bytearray(image.read_bytes())
    content[-1] ^= 1  # Of the same size.
    image.write_bytes(content)
    with pytest.raises(UserError, match="is gone or has changed"):
        opened(folder)
    image.unlink()
    with pytest.raises(UserError, match="is gone or has changed"):
        opened(folder)
    (folder / "artifacts.json").unlink()
    with pytest.raises(UserError, match="no finished export"):
        opened(folder)
    with pytest.raises(UserError, match="there is no such folder"):
        opened(tmp_path / "nothing")
