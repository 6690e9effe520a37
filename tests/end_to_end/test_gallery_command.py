"""gallery.py: its formats, and mistakes in the command."""

import csv
import io
import json
from pathlib import Path

import pytest

import gallery

ANSWERS = [
    {"identity": "a", "picture": "a/1.jpg", "cosine": 0.5, "similarity": 0.25},
    {"identity": "b", "picture": "b,1.jpg", "cosine": 0.1, "similarity": 0.1},
]
FOUND = [(Path("new.jpg"), ANSWERS), (Path("bad.jpg"), None)]


def written(capsys, form):
    bad = gallery.write(iter(FOUND), form)
    assert bad == 1
    return capsys.readouterr().out


def test_csv_has_a_row_for_each_answer(capsys):
    rows = list(csv.DictReader(io.StringIO(written(capsys, "csv"))))
    assert [row["photo"] for row in rows] == ["new.jpg", "new.jpg", "bad.jpg"]
    assert [row["rank"] for row in rows] == ["1", "2", ""]
    assert rows[1]["picture"] == "b,1.jpg"
    assert float(rows[0]["cosine"]) == 0.5


def test_json_has_a_line_for_each_photo(capsys):
    lines = written(capsys, "json").splitlines()
    first, second = map(json.loads, lines)
    assert first == {"photo": "new.jpg", "bad": False, "nearest": ANSWERS}
    assert second == {"photo": "bad.jpg", "bad": True, "nearest": []}


def test_a_table_is_for_people(capsys):
    head, one, two, bad = written(capsys, "table").splitlines()
    assert head.split() == list(gallery.COLUMNS)
    assert one.split() == ["new.jpg", "1", "a", "a/1.jpg", "0.5000", "0.2500"]
    assert two.split()[1:3] == ["2", "b"]
    assert bad == "bad.jpg  cannot be read"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gallery={t}", "{t}/1.jpg"], "--run"),
        (["--run=x", "--gallery={t}/none", "{t}/1.jpg"], "none does not exist"),
        (["--run=x", "--gallery={t}/1.jpg", "{t}"], "1.jpg is not a folder"),
        (["--run=x", "--gallery={t}", "{t}/2.jpg"], "2.jpg does not exist"),
        (["--run=x", "--gallery={t}", "--top=0", "{t}"], "--top is 0"),
        (["--run={t}/none", "--gallery={t}", "{t}"], "none"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, arguments, words):
    (tmp_path / "1.jpg").write_bytes(b"")
    words_given = [word.format(t=tmp_path) for word in arguments]
    with pytest.raises(SystemExit) as ended:
        gallery.main(words_given)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = [x for x in told.err.splitlines() if x.startswith("error")]
    assert words in line
