"""Weights to start from: where they land, what is reported and refused."""

import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from blocks import small_autoencoder
from flax import nnx

import jax_models
from configs import common, loading
from core import weight_packages
from core.errors import UserError
from jax_models.contrastive import ContrastiveModel
from training.checkpointing import init_from, weight_files
from training.checkpointing.manager import CheckpointManager
from training.loop import state
from training.multihost import sharding

LITE = "efficientnet_lite_demo"


def segmentation(encoder=LITE):
    return state.make_abstract_model(
        lambda: jax_models.create_model("unet", 3, encoder=encoder)
    )


def classifier(classes=10):
    return state.make_abstract_model(
        lambda: jax_models.create_model(LITE, classes)
    )


def autoencoder():
    return state.make_abstract_model(lambda: small_autoencoder(LITE))


def contrastive_model():
    return state.make_abstract_model(
        lambda: ContrastiveModel(
            jax_models.create_model(LITE, 1),
            width=8,
            outputs=4,
            rngs=nnx.Rngs(0),
        )
    )


def embedding():
    return state.make_abstract_model(
        lambda: jax_models.create_model(
            "embedding", 3, encoder=LITE, forgery_head=True, memory=8
        )
    )


def fill(model, seed):
    """(params, batch_stats) of random numbers, on the devices."""
    rng = np.random.default_rng(seed)
    shapes = state.abstract_weights(model, sharding.make_mesh())
    return jax.tree.map(
        lambda leaf: jax.device_put(
            rng.random(leaf.shape, np.float32), leaf.sharding
        ),
        shapes,
    )


def flat(params, batch_stats):
    tree = {"params": params, "batch_stats": batch_stats}
    return {
        tuple(str(key.key) for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


@pytest.fixture(scope="module")
def source():
    return jax_models.create_model(LITE, 10, nnx.Rngs(5))


@pytest.fixture
def file(tmp_path, source):
    """Of a classifier, as PyTorch names its weights."""
    path = tmp_path / "lite.safetensors"
    safetensors.numpy.save_file(jax_models.export_torch(source), path)
    return path


def test_a_file_lands_in_the_encoder_and_says_what_is_left(file, source):
    model = segmentation()
    before = fill(model, 0)
    opened = weight_files.open_file(file, model)
    *after, told = opened.encoder_into(*before)
    names = nnx.to_flat_state(nnx.state(source, nnx.Param))
    right = {tuple(map(str, path)): value[...] for path, value in names}
    old, new = flat(*before), flat(*after)
    taken = [path for path in new if (old[path] != new[path]).any()]
    assert {path[1] for path in taken} == {"encoder"}
    for kind, *path in taken:
        if kind == "params":
            found = new[(kind, *path)]
            np.testing.assert_array_equal(found, right[tuple(path[1:])])
    arrays = sum(path[1] == "encoder" for path in new)
    assert told == (
        f"starts from the encoder in {file}: {arrays} of {len(new)} arrays; "
        "of no use: bn2, classifier, conv_head; initialised anew: decoder, head"
    )
    assert opened.channels == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert json.loads(json.dumps(opened.pin)) == opened.pin


def test_files_with_other_weights_have_another_pin(file):
    first = weight_files.open_file(file, classifier()).pin
    arrays = safetensors.numpy.load_file(file)
    arrays["conv_stem.weight"] += 1
    safetensors.numpy.save_file(arrays, file)
    assert weight_files.open_file(file, classifier()).pin != first


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("nowhere.pth", "cannot read nowhere.pth"),
        ("gs://bucket/weights.pth", "copy it to a disk"),
        ("imagenet", "no package has weights for efficientnet_lite_demo"),
        ("nowhere", "no run folder.* or a file of weights"),
    ],
)
def test_what_cannot_be_read_is_refused(name, answer, tmp_path):
    config = common.base("segment")
    config.model, config.init_from = "unet", name
    config.model_options.encoder = LITE
    with pytest.raises(UserError, match=answer):
        init_from.find_encoder(config, tmp_path / "run", {}, segmentation())


def test_imagenet_is_the_encoders_own_package(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(weight_packages, "path_of", asked.append)
    config = common.base("segment")
    config.model, config.init_from = "unet", "imagenet"
    weight_files.find(config)
    config.model_options.encoder = "efficientnet_lite1"
    weight_files.find(config)
    del config.model_options.encoder
    config.model = "tinyvit_5m"
    weight_files.find(config)
    assert asked == ["resnet34", "efficientnet_lite1", "tinyvit_5m"]


def save(folder, model, task, seed):
    """A run folder with one evaluated checkpoint; returns its weights."""
    folder.mkdir()
    config = common.base(task)
    config.stages = (common.stage(),)
    identity = {"classes": [], "folds_hash": "", "rows_hash": task}
    (folder / "config.json").write_text(json.dumps(loading.plain(config)))
    (folder / "data.json").write_text(json.dumps(identity))
    weights = fill(model, seed)
    mesh = sharding.make_mesh()
    manager = CheckpointManager(folder / "checkpoints")
    started = state.start_stage(3, *weights, config.stages[0], mesh)
    manager.save(3, started, {}, {"merit": 1.0})
    manager.close()
    return flat(*weights)


MODELS = {
    "classify": classifier,
    "mae": autoencoder,
    "simclr": contrastive_model,
    "segment": segmentation,
    "verify": embedding,
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """task -> (its run folder, its weights), each saved once."""
    root = tmp_path_factory.mktemp("others")
    return functools.cache(
        lambda task: (
            root / task,
            save(root / task, MODELS[task](), task, 1),
        )
    )


@pytest.mark.parametrize(
    ("theirs", "ours", "prefixes", "anew"),
    [
        # From, into; where an encoder's arrays lie in each; what is new.
        ("classify", "segment", ((), ("encoder",)), "decoder, head"),
        ("mae", "segment", (("encoder",), ("encoder",)), "decoder, head"),
        ("mae", "classify", (("encoder",), ()), "head"),
        ("segment", "segment", ((), ()), "head"),
        ("segment", "classify", (("encoder",), ()), "bn2, conv_head, head"),
        ("mae", "mae", ((), ()), ""),
        ("simclr", "classify", (("encoder",), ()), "head"),
        ("simclr", "segment", (("encoder",), ("encoder",)), "decoder, head"),
        ("classify", "verify", ((), ("encoder",)), "forgery, head, neck"),
        ("verify", "classify", (("encoder",), ()), "head"),
        ("verify", "verify", ((), ()), "head"),
    ],
)
def test_a_run_of_any_task_gives_its_encoder(
    run_of, tmp_path, theirs, ours, prefixes, anew
):
    folder, there = run_of(theirs)
    config = common.base(ours)
    config.init_from = str(folder)
    model = MODELS[ours]()
    run, pin = init_from.find_encoder(
        config, tmp_path / "run", {"rows_hash": ""}, model
    )
    assert pin["init_from"] == run.pin  # It has no inference.json.
    before = fill(model, 2)
    *after, told = run.encoder_into(*before)
    found = told.partition("initialised anew: ")[2]
    assert ", ".join(sorted(found.split(", "))) == anew
    old, new = flat(*before), flat(*after)
    inside, own = prefixes
    fresh = tuple(anew.split(", ")) if anew else ()
    for (kind, *names), array in new.items():
        if names[0] in fresh:
            right = old[(kind, *names)]
        else:
            right = there[(kind, *inside, *names[len(own) :])]
        np.testing.assert_array_equal(array, right, err_msg="/".join(names))


# ---- Other names, and what they may have learned from -----------------------


def renamed_file(file, prefix):
    arrays = safetensors.numpy.load_file(file)
    path = file.with_name("renamed.safetensors")
    safetensors.numpy.save_file(
        {prefix + name: array for name, array in arrays.items()}, path
    )
    return path


def test_names_that_differ_are_mapped(file):
    path, model = renamed_file(file, "net.backbone."), classifier()
    with pytest.raises(UserError, match="missing"):
        weight_files.open_file(path, model)
    rows = (r"^net\. ->", r"^backbone\.(\w) -> \1")
    opened = weight_files.open_file(path, model, rows)
    before = fill(model, 0)
    *found, _ = opened.encoder_into(*before)
    *right, _ = weight_files.open_file(file, model).encoder_into(*before)
    same = jax.tree.map(np.array_equal, found, right)
    assert jax.tree.all(same)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((r"^backbone\. ->",), "no name of the weights"),
        ((r"^.* -> one",), "two arrays the name one"),
    ],
)
def test_a_map_that_cannot_be_meant_is_refused(file, rows, said):
    with pytest.raises(UserError, match=said):
        weight_files.open_file(file, classifier(), rows)


def test_a_run_with_other_names_is_mapped(tmp_path):
    there = save(tmp_path / "other", classifier(), "classify", 1)
    config = common.base()
    config.init_from = str(tmp_path / "other")
    # The first norm goes by another name; those of the blocks do not.
    config.init_names = (
        "(.*)/bn1/(.*) -> \\1/bn0/\\2",
        "(blocks/0/0)/bn0/ -> \\1/bn1/",
        "(blocks/.*)/bn0/ -> \\1/bn1/",
    )
    model = classifier()
    run, _ = init_from.find_encoder(
        config, tmp_path / "run", {"rows_hash": ""}, model
    )
    *after, _ = run.encoder_into(*fill(model, 2))
    new = flat(*after)
    key = ("params", "blocks", "1", "0", "bn1", "scale")
    np.testing.assert_array_equal(new[key], there[key])
    key = ("params", "bn1", "scale")
    assert (new[key] != there[key]).all()


def test_a_caution_is_told_once_where_images_may_have_been_seen(
    file, tmp_path, capsys
):
    config = common.base()
    config.init_from = str(file)
    init_from.find_encoder(config, tmp_path / "run", {}, classifier())
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert str(file) in told and "too high" in told
    # Nobody has shown labels to an autoencoder.
    save(tmp_path / "other", autoencoder(), "mae", 1)
    config.init_from = str(tmp_path / "other")
    identity = {"rows_hash": ""}
    init_from.find_encoder(config, tmp_path / "run", identity, classifier())
    assert capsys.readouterr().out == ""
    # It has seen these photos, and whether they validated cannot be known.
    identity = {"rows_hash": "mae", "folds_hash": "others"}
    init_from.find_encoder(config, tmp_path / "run", identity, classifier())
    assert "validate here, without their labels" in capsys.readouterr().out
    identity = {"rows_hash": "mae", "folds_hash": ""}
    init_from.find_encoder(config, tmp_path / "run", identity, classifier())
    assert capsys.readouterr().out == ""
    save(tmp_path / "third", classifier(), "classify", 1)
    config.init_from = str(tmp_path / "third")
    init_from.find_encoder(config, tmp_path / "run", identity, classifier())
    assert "third" in capsys.readouterr().out
