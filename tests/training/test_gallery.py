"""A gallery of known pictures: what is embedded anew, what is found."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from training import gallery


@dataclasses.dataclass
class Found:
    embedding: np.ndarray
    real_logit: np.ndarray
    bad: np.ndarray


class FakeModel:
    """Embeds a picture by its mean colour; knows what it was asked."""

    def __init__(self):
        self.asked: list[str] = []

    def __call__(self, paths):
        self.asked += [os.path.basename(path) for path in paths]
        vectors, bad = [], []
        for path in paths:
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"), np.float32)
                vector = pixels.mean(axis=(0, 1)) - 127
                vectors.append(vector / np.linalg.norm(vector))
                bad.append(False)
            except OSError:
                vectors.append(np.zeros(3))
                bad.append(True)
        count = len(paths)
        return Found(
            np.float32(vectors), np.zeros(count, np.float32), np.array(bad)
        )


def paint(path, *colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


@pytest.fixture
def people(tmp_path):
    paint(tmp_path / "people/red/1.png", 250, 10, 10)
    paint(tmp_path / "people/red/2.png", 220, 40, 10)
    paint(tmp_path / "people/green/1.png", 10, 250, 10)
    paint(tmp_path / "people/blue.png", 10, 10, 250)
    return tmp_path / "people"


def opened(people, tmp_path, key="a", lines=None):
    model = FakeModel()
    note = (lambda line: None) if lines is None else lines.append
    known = gallery.open_gallery(people, model, key, tmp_path / "cache", note)
    return known, model.asked


def answers_to(known, *paths, count=2):
    def probability(cosine, one, other):
        return (1 + cosine) / 2 + 0 * (one + other)

    found = FakeModel()([str(path) for path in paths])
    return list(known.answers(found, paths, count, probability))


def test_the_nearest_come_first_with_their_identities(people, tmp_path):
    known, _ = opened(people, tmp_path)
    paint(tmp_path / "new.png", 240, 20, 10)
    (found,) = answers_to(known, tmp_path / "new.png", count=9)
    assert len(found) == 4  # All there are.
    assert [one["identity"] for one in found][:2] == ["red", "red"]
    assert {one["identity"] for one in found[2:]} == {"green", "blue"}
    cosines = [one["cosine"] for one in found]
    assert cosines == sorted(cosines, reverse=True)
    query = FakeModel()([str(tmp_path / "new.png")]).embedding[0]
    other = FakeModel()([str(people / found[1]["picture"])]).embedding[0]
    assert cosines[1] == pytest.approx(query @ other, abs=1e-6)


def test_a_picture_is_no_answer_to_itself(people, tmp_path):
    known, _ = opened(people, tmp_path)
    (tmp_path / "link").symlink_to(people)
    for place in (people, tmp_path / "link"):
        (found,) = answers_to(known, place / "red/1.png", count=1)
        assert found[0]["picture"] == "red/2.png"


def test_a_linked_picture_is_no_answer_to_itself(people, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (people / "red/1.png").rename(tmp_path / "elsewhere/1.png")
    (people / "red/1.png").symlink_to(tmp_path / "elsewhere/1.png")
    (people / "green").rename(tmp_path / "elsewhere/green")
    (people / "green").symlink_to(tmp_path / "elsewhere/green")
    known, _ = opened(people, tmp_path)
    for path in (people / "red/1.png", tmp_path / "elsewhere/1.png"):
        (found,) = answers_to(known, path, count=1)
        assert found[0]["picture"] == "red/2.png"
    (found,) = answers_to(known, people / "green/1.png", count=1)
    assert found[0]["identity"] != "green"


def test_only_what_changed_is_embedded_again(people, tmp_path):
    _, asked = opened(people, tmp_path)
    assert len(asked) == 4
    known, asked = opened(people, tmp_path)
    assert asked == [] and known.added == 0
    # An identity more, without any training.
    paint(people / "white/w.png", 250, 250, 250)
    paint(people / "red/2.png", 200, 60, 10)
    os.utime(people / "red/2.png", ns=(1, 1))
    (people / "green/1.png").unlink()
    known, asked = opened(people, tmp_path)
    assert sorted(asked) == ["2.png", "w.png"]
    names = {"red/1.png", "red/2.png", "white/w.png", "blue.png"}
    assert set(known.names) == names
    paint(tmp_path / "new.png", 255, 255, 240)
    (found,) = answers_to(known, tmp_path / "new.png", count=1)
    assert found[0]["identity"] == "white"
    # What is gone stays gone.
    assert len(opened(people, tmp_path)[0]) == 4


def test_another_model_knows_nothing_yet(people, tmp_path):
    opened(people, tmp_path)
    assert len(opened(people, tmp_path, "b")[1]) == 4
    assert opened(people, tmp_path, "a")[1] == []


def test_a_damaged_cache_is_made_again(people, tmp_path):
    known, _ = opened(people, tmp_path)
    (path,) = (tmp_path / "cache/galleries").iterdir()
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"PK" + whole[5:]):
        path.write_bytes(damage)
        again, asked = opened(people, tmp_path)
        assert len(asked) == 4
        assert again.embedding.tolist() == known.embedding.tolist()


def test_pictures_that_cannot_be_read_are_no_answers(people, tmp_path):
    (people / "red/3.png").write_bytes(b"none")
    known, _ = opened(people, tmp_path)
    assert known.bad == ["red/3.png"]
    assert "red/3.png" not in known.names.tolist()
    (tmp_path / "bad.png").write_bytes(b"none")
    paint(tmp_path / "new.png", 240, 20, 10)
    bad, good = answers_to(known, tmp_path / "bad.png", tmp_path / "new.png")
    assert bad is None and good[0]["identity"] == "red"


def test_what_was_embedded_before_a_kill_is_kept(people, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "PICTURES_AT_ONCE", 1)
    monkeypatch.setattr(gallery, "CHUNKS_PER_SAVE", 2)

    class Dies(FakeModel):
        def __call__(self, paths):
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            return super().__call__(paths)

    with pytest.raises(KeyboardInterrupt):
        gallery.open_gallery(people, Dies(), "a", tmp_path / "cache")
    assert len(opened(people, tmp_path)[1]) == 2


def test_folders_that_are_no_gallery(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no picture"):
        opened(tmp_path / "empty", tmp_path)
    (tmp_path / "empty/1.png").write_bytes(b"none")
    with pytest.raises(UserError, match="none of the 1 pictures"):
        opened(tmp_path / "empty", tmp_path)
