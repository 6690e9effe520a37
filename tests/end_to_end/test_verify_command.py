"""People in, similarities out: trained, killed, resumed, predicted."""

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import time

import commands
import numpy as np
import people
import pytest

from metrics import verification
from run_folder.pair_files import read_pair_scores


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    broken = ("test/00000002/1.png", "train/001/01.png")
    return people.write_data(tmp_path_factory.mktemp("people") / "data", broken)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("verify") / "run"
    done = commands.run(*people.words(workdir, data))
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_the_submission_has_the_rows_and_columns_of_the_sample(whole, data):
    found = rows_of(whole[0] / "submission.csv")
    sample = rows_of(data / "sample_submission.csv")
    assert [row[1] for row in found] == [row[1] for row in sample]
    assert found[0] == ["similarity", "pair_id"]
    similarity = np.array([float(row[0]) for row in found[1:]])
    assert np.isfinite(similarity).all()
    assert len(set(similarity)) == people.PAIRS


def test_a_picture_that_cannot_be_read_keeps_its_pair_at_cosine_0(whole):
    pairs = read_pair_scores(whole[0] / "pairs/test.npz")
    at = pairs.ids.tolist().index("00000002")
    assert pairs.cosine[at] == 0
    assert np.abs(np.delete(pairs.cosine, at)).min() > 0


def test_the_error_told_is_that_of_the_files(whole):
    pairs = read_pair_scores(whole[0] / "pairs/val.npz")
    positive = pairs.kind == verification.POSITIVE
    eer = verification.equal_error_rate(pairs.similarity, positive)
    assert f"validation equal error rate {eer:.4f}" in whole[1]
    assert set(pairs.kind) == {0, 1, 2, 3}
    # The cosines are those of the embeddings.
    with np.load(whole[0] / "embeddings/val.npz") as file:
        found = dict(zip(file["ids"], file["embeddings"], strict=True))
    cosines = [
        found[one] @ found[other]
        for one, other in zip(pairs.first, pairs.second, strict=True)
    ]
    np.testing.assert_allclose(pairs.cosine, cosines, atol=1e-6)


def test_the_log_tells_distances_and_every_kind_of_error(whole):
    records = commands.records(whole[0])
    last = [one for one in records if one["kind"] == "eval"][-1]
    assert {f"val_eer_{name}" for name in verification.KINDS[1:]} < set(last)
    step = next(one for one in records if one["kind"] == "train")
    for name in ("negative_distance", "triplet_active", "forgery_loss"):
        assert np.isfinite(step[name])


def test_the_report_shows_errors_and_the_manifest_all_files(whole):
    page = (whole[0] / "report.html").read_text()
    assert "one forged" in page
    manifest = json.loads((whole[0] / "artifacts.json").read_text())["files"]
    for name in ("pairs", "embeddings"):
        assert {f"{name}/val.npz", f"{name}/test.npz"} < set(manifest)
    assert "submission.csv" in manifest


def test_killed_and_run_again_it_comes_to_the_same_bits(whole, data, tmp_path):
    workdir = tmp_path / "run"
    with open(tmp_path / "out", "w") as output:
        process = commands.in_background(
            commands.command(*people.words(workdir, data)), output
        )
    log = workdir / "metrics.jsonl"
    end = time.monotonic() + 120
    while not log.exists() or log.read_text().count('"eval"') < 2:
        assert process.poll() is None, (tmp_path / "out").read_text()
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = commands.run(*people.words(workdir, data))
    assert again.returncode == 0, again.stderr
    assert log.read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    for name in ("submission.csv", "inference.json"):
        same = (whole[0] / name).read_bytes()
        assert (workdir / name).read_bytes() == same, name
    for name in ("pairs/val", "pairs/test", "embeddings/test"):
        with (
            np.load(workdir / f"{name}.npz") as found,
            np.load(whole[0] / f"{name}.npz") as expected,
        ):
            for key in expected.files:
                np.testing.assert_array_equal(found[key], expected[key])


def test_photos_are_compared_with_the_first_of_them(whole, data):
    photos = str(data / "train/000")
    done = commands.run(
        "predict.py", "--run", str(whole[0]), photos, "--format", "json"
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == people.REAL + people.FORGED
    vectors = np.array([list(one["embedding"].values()) for one in records])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    spec = json.loads((whole[0] / "inference.json").read_text())
    cosine, log_real, bias = spec["similarity"]
    real = np.array([one["real"] for one in records])
    odds = cosine * (vectors @ vectors[0]) + bias
    odds += log_real * (np.log(real) + np.log(real[0]))
    found = [one["similarity"] for one in records]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-odds)), rtol=1e-3)


def test_a_gallery_finds_people_that_no_training_saw(
    whole, data, tmp_path, monkeypatch
):
    run = whole[0]
    # Compiled code is kept there, and so would be the embeddings.
    monkeypatch.setenv("XDG_CACHE_HOME", str(commands.CACHE))
    for pair in range(3):
        (tmp_path / "known" / f"p{pair}").mkdir(parents=True)
        name = f"test/{pair:08d}/0.png"
        shutil.copy(data / name, tmp_path / "known" / f"p{pair}" / "0.png")
    asked = [data / f"test/{pair:08d}/0.png" for pair in range(3, 6)]
    words = "gallery.py", "--run", run, "--gallery", tmp_path / "known", *asked
    done = commands.run(*map(str, words), "--format=json", "--top=2")
    assert done.returncode == 0, done.stderr
    assert "embedded 3 of 3 new pictures" in done.stderr
    # The embeddings are those that the run has exported.
    with np.load(run / "embeddings/test.npz") as file:
        vectors = dict(zip(file["ids"], file["embeddings"], strict=True))
    for line, path in zip(done.stdout.splitlines(), asked, strict=True):
        query = vectors[f"{path.parent.name}/0.png"]
        cosines = {
            f"p{pair}": query @ vectors[f"{pair:08d}/0.png"]
            for pair in range(3)
        }
        order = sorted(cosines, key=cosines.get, reverse=True)
        nearest = json.loads(line)["nearest"]
        assert [one["identity"] for one in nearest] == order[:2]
        for one in nearest:
            expected = cosines[one["identity"]]
            assert one["cosine"] == pytest.approx(expected, abs=1e-5)
            assert 0 < one["similarity"] < 1
    shutil.rmtree(commands.CACHE / "sextet/galleries")


def test_an_exported_run_gives_the_same_answers(whole, data, tmp_path):
    """What another program needs: one file of weights, another of numbers."""
    import jax.export
    from PIL import Image
    from safetensors.numpy import load_file

    import export

    run, out = whole[0], tmp_path / "out"
    assert export.main([f"--run={run}", f"--out={out}"]) == 0
    told = json.loads((out / "model.json").read_text())
    assert told["output"]["embedding"]["shape"] == ["b", 16]
    assert told["output"]["real_logit"]["shape"] == ["b"]
    whole_file = (out / "model.stablehlo").read_bytes()
    model = jax.export.deserialize(bytearray(whole_file))
    pairs = read_pair_scores(run / "pairs/test.npz")
    pairs = pairs.take(pairs.ids != "00000002")  # Which cannot be read.
    embeddings, log_real = [], 0
    for names in (pairs.first, pairs.second):
        pictures = [Image.open(data / "test" / name) for name in names]
        pixels = np.stack([np.asarray(p.convert("RGB")) for p in pictures])
        views = [model.call(x) for x in (pixels, pixels[:, :, ::-1])]
        vectors = np.sum([view["embedding"] for view in views], axis=0)
        embeddings.append(vectors / np.linalg.norm(vectors, axis=1)[:, None])
        odds = np.mean([view["real_logit"] for view in views], axis=0)
        log_real = log_real - np.log1p(np.exp(-odds))
    cosine = np.einsum("pd,pd->p", *embeddings)
    np.testing.assert_allclose(cosine, pairs.cosine, atol=1e-4)
    np.testing.assert_allclose(log_real, pairs.log_real, atol=1e-4)
    weights = told["similarity"]
    similarity = weights["cosine"] * cosine + weights["bias"]
    similarity += weights["log_real"] * log_real
    np.testing.assert_allclose(similarity, pairs.similarity, atol=1e-3)
    arrays = load_file(out / "model.safetensors")
    # Neither classes nor embeddings of the people it was trained on.
    assert {name.split(".")[0] for name in arrays} == {
        *("encoder", "pool", "neck", "forgery")
    }


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime"))),
    reason="optional: pip install -r requirements-onnx.txt",
)
def test_onnx_has_the_names_that_its_description_has(whole, tmp_path):
    import onnxruntime

    import export

    out = f"--out={tmp_path}"
    assert export.main([f"--run={whole[0]}", out, "--format=onnx"]) == 0
    told = json.loads((tmp_path / "model.json").read_text())["output"]
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    found = {one.name: len(one.shape) for one in session.get_outputs()}
    assert found == {name: len(one["shape"]) for name, one in told.items()}


def test_a_run_is_stacked_alone(whole, data, tmp_path):
    out = tmp_path / "stack"
    done = commands.run(
        "-m", "stacking.pairs", "--runs", str(whole[0]), "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    sample = (data / "sample_submission.csv").read_text().splitlines()
    found = (out / "submission.csv").read_text().splitlines()
    assert found[0] == sample[0]
    for ours, theirs in zip(found, sample, strict=True):
        assert ours.split(",")[1] == theirs.split(",")[1]
    assert "data:image" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("--config.verify.identities=5",), "identities x verify.pictures, 20"),
        (("--config.verify.miner=harder",), "miner is 'harder'"),
        (("--config.verify.memory=8",), "it holds no batch of 16"),
        (
            tuple(f"--config.stages[{n}].loss=cosface" for n in (0, 1)),
            "cosface+supcon",
        ),
        (("--config.verify.miner=hard_cluster",), "looks at no memory"),
        (("--config.stages[0].loss=cosfase",), "did you mean cosface?"),
        (("--config.mixing.prob=0.5",), "no single identity"),
        (("--config.model=unet",), "compares no pictures"),
        (("--config.eval.tta=('center',)",), "there is no view 'center'"),
        (("--config.model_options.memory=9",), "follows from config.verify"),
        (
            (
                "--config.verify.identities=8",
                *(f"--config.stages[{n}].batch_size=32" for n in (0, 1)),
            ),
            "show 6",
        ),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else value,
)
def test_mistakes_are_refused_in_one_sentence(
    data, tmp_path, arguments, answer, capsys
):
    import train

    words = people.words(tmp_path / "run", data, *arguments)
    with pytest.raises(SystemExit) as ended:
        train.main(words[1:])
    told = capsys.readouterr().err
    assert ended.value.code == 2, told
    assert answer in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_all_folds_give_a_pair_of_every_identity(data, tmp_path):
    workdir = tmp_path / "run"
    done = commands.run(
        *people.words(workdir, data, "--all-folds", "--config.epochs=1"),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    pairs = read_pair_scores(workdir / "pairs/val.npz")
    assert len(set(pairs.identities.ravel())) == people.PEOPLE
    assert re.search(r"out-of-fold equal error rate 0\.\d{4}", done.stdout)
    parts = [
        read_pair_scores(workdir / f"fold-{fold}/pairs/test.npz")
        for fold in range(3)
    ]
    mean = np.mean([one.similarity for one in parts], axis=0)
    joined = read_pair_scores(workdir / "pairs/test.npz")
    np.testing.assert_allclose(joined.similarity, mean, rtol=1e-6)
    assert (workdir / "submission.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_several_devices_do_as_one(data, tmp_path, dtype, monkeypatch):
    """The hardest triplets of a batch are those of all devices together."""
    found = []
    for devices in (1, 4):
        flags = f"--xla_force_host_platform_device_count={devices}"
        monkeypatch.setenv("XLA_FLAGS", f"{commands.HASTY} {flags}")
        workdir = tmp_path / str(devices)
        done = commands.run(
            *people.words(workdir, data, f"--config.dtype={dtype}"),
            "--config.epochs=1",
            "--config.verify.miner=hard",
            "--config.model_options.dropout=0.0",
        )
        assert done.returncode == 0, done.stderr
        found.append(
            [
                one["loss"]
                for one in commands.records(workdir)
                if one["kind"] == "train"
            ]
        )
    close = 1e-3 if dtype == "float32" else 0.1
    np.testing.assert_allclose(found[0], found[1], rtol=close)
