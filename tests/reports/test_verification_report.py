"""The sections on a verification: errors, hardest pairs, embeddings."""

from __future__ import annotations

import re

import numpy as np
import page_reader
import pytest

from core.errors import UserError
from metrics import retrieval, verification
from reports.embeddings import embedding_sections
from reports.run import run_report
from reports.verification import verification_sections
from run_folder.pair_files import PairScores

PEOPLE = ("<b>Ada", "Bo", "Cy", "Di", "Ed")
EACH = 4


@pytest.fixture
def workdir(tmp_path):
    return write_run(tmp_path)


def write_run(run):
    """Five people of four pictures each, the last of each forged."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), EACH).astype(np.int32)
    forged = (np.arange(20) % EACH == EACH - 1).astype(np.int8)
    embeddings = 2 * np.eye(5, 6)[labels] + rng.normal(0, 0.7, (20, 6))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    ids = np.array([f"{PEOPLE[n // EACH]}/{n % EACH}.jpg" for n in range(20)])
    first, second = np.triu_indices(20, 1)
    same = labels[first] == labels[second]
    kind = np.where(same, 2 * (forged[first] | forged[second]), 1)
    cosine = (embeddings[first] * embeddings[second]).sum(1).astype(np.float32)
    names = np.array(PEOPLE)[labels]
    pairs = PairScores(
        ids=np.array([f"{a}|{b}" for a, b in zip(first, second, strict=True)]),
        first=ids[first],
        second=ids[second],
        cosine=cosine,
        log_real=np.zeros(0, np.float32),
        similarity=cosine,
        kind=kind.astype(np.int8),
        identities=np.stack([names[first], names[second]], axis=1),
        fold=np.zeros(len(first), np.int32),
        metadata={
            name: "x"
            for name in ("model", "config_hash", "folds_hash", "pairs_hash")
        },
    )
    for folder in ("pairs", "embeddings"):
        (run / folder).mkdir(parents=True)
    np.savez(run / "pairs/val.npz", **pairs.arrays)
    np.savez(
        run / "embeddings/val.npz",
        ids=ids,
        embeddings=embeddings.astype(np.float32),
        labels=labels,
        forged=forged,
        bad=np.zeros(20, bool),
        classes=np.array(PEOPLE),
    )
    return run


def pictures(ids):
    for number, name in enumerate(ids):
        yield name, np.full((9, 9, 3), 10 * number, np.uint8)


def stored(workdir, name):
    return dict(np.load(workdir / f"{name}/val.npz"))


def write_history(workdir):
    page_reader.write_entries(
        workdir,
        [
            {
                "kind": "train",
                "step": step,
                "epoch": step / 2,
                "loss": 0.1,
                "positive_distance": 1 / step,
                "negative_distance": 1.5 / step,
                "triplet_active": 0.9,
                "embedding_norm": 1.0,
            }
            for step in (1, 2, 3)
        ],
    )


def test_errors_are_those_of_the_metrics(workdir):
    errors = verification_sections(workdir)[0]
    arrays = stored(workdir, "pairs")
    positive = arrays["kind"] == 0
    whole = verification.summary(arrays["similarity"], positive)
    eer, auc, fnmr, threshold = errors.figures
    assert eer.number == f"{whole['eer']:.4f}"
    assert auc.number == f"{whole['auc']:.4f}"
    assert fnmr.number == f"{whole['fnmr_at_fmr_10']:.4f}"
    _, at = verification.equal_error(arrays["similarity"], positive)
    assert threshold.number == f"{at:.3f}"
    by_kind = verification.summary_by_kind(arrays["similarity"], arrays["kind"])
    cells = re.findall(r"<td>([^<]*)</td>", errors.body)
    assert cells[0] == "all" and cells[1] == eer.number
    for name, one in by_kind.items():
        row = cells.index(
            {"other": "other identity", "one_forged": "one forged"}[name]
        )
        assert cells[row + 1] == f"{one['eer']:.4f}"
    low, high = re.search(r"interval ([\d.]+) to ([\d.]+)", eer.note).groups()
    assert float(low) <= whole["eer"] <= float(high)


def test_hardest_pairs_are_the_extremes_and_show_each_picture_once(workdir):
    sections = verification_sections(workdir, pictures)
    hardest = next(s for s in sections if s.title.startswith("Hardest"))
    arrays = stored(workdir, "pairs")
    scores = arrays["similarity"]
    groups = re.split("<h3", hardest.body)[1:]
    assert len(groups) == 3  # No pair has two forged pictures.
    for group, kind, extreme in zip(
        groups, (1, 2, 0), (np.max, np.max, np.min), strict=True
    ):
        shown = re.findall(r'class="sure">([-\d.]+)<', group)
        assert shown[0] == f"{extreme(scores[arrays['kind'] == kind]):.3f}"
        names = re.findall(r'class="name">([^<]+)<', group)
        assert len(names) == len({*names}) == 2 * len(shown)
    assert "&lt;b&gt;Ada" in hardest.body and "<b>Ada" not in hardest.body
    assert "no picture" not in hardest.body


def test_retrieval_is_of_real_pictures_among_all(workdir):
    sections = embedding_sections(workdir, pictures)
    (section,) = (s for s in sections if s.title.startswith("Retrieval"))
    arrays = stored(workdir, "embeddings")
    real = np.flatnonzero(arrays["forged"] == 0)
    labels = np.where(arrays["forged"], -1, arrays["labels"])
    x = arrays["embeddings"]
    rows, _ = retrieval.nearest(x[real], x, 10, own=real)
    ranking = retrieval.rank(rows, labels[real], labels, own=real)
    expected = retrieval.scores(ranking, (1,))
    cells = re.findall(r"<td>([^<]*)</td>", section.body)
    assert cells[:3] == [
        "1",
        f"{expected['cmc_1']:.4f}",
        f"{expected['precision_1']:.4f}",
    ]
    assert section.note.startswith("15 real pictures, each looked up among")
    # A forged picture is framed as a wrong answer.
    frames = re.findall(
        r'class="(right|not)[^>]*>\s*<figcaption[^>]*>[\d.]+ ([^<]+)<',
        section.body,
    )
    assert {look for look, name in frames if name.endswith("3.jpg")} <= {"not"}
    assert {look for look, _ in frames} == {"right", "not"}


def test_the_map_shows_every_picture_and_marks_forgeries(workdir):
    (section, _) = embedding_sections(workdir)
    assert section.body.count("<circle") == 15
    assert section.body.count("m-2.5 -2.5") == 5
    assert "&lt;b&gt;Ada" in section.body
    assert "Forged pictures are crosses" in section.note


def test_what_cannot_be_read_is_on_no_map_and_no_answer(workdir):
    arrays = stored(workdir, "embeddings")
    arrays["bad"][0] = True
    arrays["embeddings"][0] = 0
    np.savez(workdir / "embeddings/val.npz", **arrays)
    chart, retrieved = embedding_sections(workdir)
    assert chart.body.count("<circle") == 14
    assert retrieved.note.startswith("14 real pictures")
    assert str(arrays["ids"][0]) not in retrieved.body


def test_training_shows_whether_embeddings_collapse(workdir):
    write_history(workdir)
    sections = verification_sections(workdir)
    section = next(s for s in sections if "while training" in s.title)
    assert "other identity" in section.body
    assert ">triplet<" in section.body
    for path in workdir.glob("*/val.npz"):
        path.unlink()
    assert [s.title for s in verification_sections(workdir)] == [section.title]


def test_the_page_is_whole(workdir):
    write_history(workdir)
    path = run_report(workdir, verification_sections(workdir, pictures))
    reader = page_reader.read(path)
    for words in ("DET:", "Retrieval", "Map of the", "Hardest pairs"):
        assert words in reader.text
    assert "nan" not in path.read_text().replace("nance", "")


def test_pairs_of_one_kind_alone_make_a_report(workdir):
    arrays = stored(workdir, "pairs")
    kept = arrays["kind"] < 2
    arrays |= {
        name: values[kept]
        for name, values in arrays.items()
        if len(np.atleast_1d(values)) == len(kept)
    }
    np.savez(workdir / "pairs/val.npz", **arrays)
    (workdir / "embeddings/val.npz").unlink()
    errors, rates, hardest = verification_sections(workdir)
    assert errors.body.count("<tr") == 2  # One row, not the same twice.
    assert "one forged" not in rates.body
    assert "no picture" in hardest.body


def test_constant_similarities_make_a_report(workdir):
    """What a model that has collapsed writes."""
    pairs, found = stored(workdir, "pairs"), stored(workdir, "embeddings")
    pairs["similarity"] = np.ones_like(pairs["similarity"])
    found["embeddings"] = np.ones_like(found["embeddings"])
    np.savez(workdir / "pairs/val.npz", **pairs)
    np.savez(workdir / "embeddings/val.npz", **found)
    sections = verification_sections(workdir)
    assert sections[0].figures[0].number == "0.5000"
    path = run_report(workdir, sections)
    assert "NaN" not in path.read_text()


def test_damage_is_told(workdir):
    (workdir / "embeddings/val.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="--export"):
        embedding_sections(workdir)
    (workdir / "pairs/val.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="cannot be read as a pairs file"):
        verification_sections(workdir)


def test_a_run_of_another_task_has_no_sections(tmp_path):
    assert verification_sections(tmp_path) == []
