"""Folders of identities and pairs: what is read, refused and told."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from sample_images import encoded, photo

from core.errors import UserError
from input_pipeline.folds import folds_for
from input_pipeline.sources import open_source
from input_pipeline.sources.base import Kind

PICTURE = encoded(photo())


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)


@pytest.fixture
def faces(tmp_path):
    """Six people of three pictures, one forged; three pairs to compare."""
    flags = {}
    for who in range(6):
        for n in range(3):
            name = f"train/{who:02d}/{n}.jpg"
            write(tmp_path, name)
            flags[name] = int(n == 2)
    write(tmp_path, *(f"test/{p:03d}/{n}.jpg" for p in range(3) for n in "01"))
    (tmp_path / "meta.json").write_text(json.dumps(flags))
    (tmp_path / "sample_submission.csv").write_text(
        "pair_id,similarity\n002,0.5\n000,0.5\n001,0.5\n"
    )
    return tmp_path


@pytest.fixture
def opened(data_config):
    def opened(root, **fields):
        return open_source(
            data_config(
                source="pairs",
                root=str(root),
                submission_id_column="pair_id",
                target_column="similarity",
                **fields,
            )
        )

    return opened


def refused(opened, root, message, **fields):
    with pytest.raises(UserError, match=message) as caught:
        opened(root, **fields)
    assert "\n" not in str(caught.value)


def test_folders_of_identities_and_pairs(faces, opened):
    source = opened(faces)
    assert source.classes == tuple(f"{who:02d}" for who in range(6))
    assert source.labelled.ids[:3].tolist() == [
        "00/0.jpg",
        "00/1.jpg",
        "00/2.jpg",
    ]
    assert source.labelled.labels.tolist() == np.repeat(range(6), 3).tolist()
    forged = source.labelled.columns["forged"]
    assert forged.dtype == np.int32
    assert forged.tolist() == [0, 0, 1] * 6
    assert source.labelled.kinds["forged"] is Kind.ID
    assert source.labelled.read(4)["image"] == PICTURE
    pairs = source.test_pairs
    assert pairs.ids.tolist() == ["000", "001", "002"]
    assert pairs.kind is None
    names = source.test.ids
    assert names[pairs.first].tolist() == [
        "000/0.jpg",
        "001/0.jpg",
        "002/0.jpg",
    ]
    assert names[pairs.second].tolist() == [
        "000/1.jpg",
        "001/1.jpg",
        "002/1.jpg",
    ]
    assert set(source.test.labels.tolist()) == {-1}
    assert source.sample_submission == str(faces / "sample_submission.csv")
    assert "6 of 18 pictures are forged" in source.describe()["notes"]
    assert pickle.loads(pickle.dumps(source.labelled)).ids.tolist()


def test_nothing_to_predict_and_no_forgery(faces, opened):
    source = opened(faces, forgeries="", pairs="")
    assert source.test is None and source.test_pairs is None
    assert not source.labelled.columns["forged"].any()
    (faces / "meta.json").unlink()
    (faces / "test").rename(faces / "elsewhere")
    source = opened(faces)
    assert source.test is None
    assert not source.labelled.columns["forged"].any()


def test_tables_of_identities_and_pairs(faces, opened):
    rows = ["path,identity,forged,donor"]
    for who in range(6):
        for n in range(3):
            # 2 lends a part to 3, a picture of 0 to 1, and somebody unknown
            # to 4 and to 5.
            named = {1: "train/00/0.jpg", 3: "2", 4: "zoe", 5: "zoe"}
            donor = named.get(who, "") if n == 2 else ""
            rows.append(f"train/{who:02d}/{n}.jpg,{who},{int(n == 2)},{donor}")
    (faces / "people.csv").write_text("\n".join(rows))
    (faces / "pairs.csv").write_text(
        "pair_id,first,second\n"
        "002,test/000/0.jpg,test/001/0.jpg\n"
        "000,test/000/0.jpg,test/000/1.jpg\n"
        "001,test/001/0.jpg,test/002/0.jpg\n"
    )
    source = opened(faces, identities="people.csv", pairs="pairs.csv")
    assert source.classes == tuple("012345")
    assert source.labelled.ids[4] == "train/01/1.jpg"
    assert source.labelled.read(4)["image"] == PICTURE
    assert source.labelled.columns["forged"].tolist() == [0, 0, 1] * 6
    assert "meta.json is not read" in source.describe()["notes"]
    # Each picture once, though two are in two pairs.
    assert len(source.test) == 4
    assert source.test_pairs.ids.tolist() == ["002", "000", "001"]
    assert source.test.ids[source.test_pairs.first].tolist() == [
        "test/000/0.jpg",
        "test/000/0.jpg",
        "test/001/0.jpg",
    ]
    of = dict(zip(source.labelled.labels.tolist(), source.groups, strict=True))
    assert of[0] == of[1] and of[2] == of[3] and of[4] == of[5]
    assert len(set(of.values())) == 3


def test_folds_hold_whole_people_and_alike_numbers_of_pictures(
    tmp_path, opened
):
    sizes = [2] * 10 + [5] * 10 + [9] * 10
    for who, size in enumerate(sizes):
        write(tmp_path, *(f"train/{who:03d}/{n}.jpg" for n in range(size)))
    source = opened(tmp_path)
    folds = folds_for(source, 5, 0, tmp_path / "folds.csv")
    labels = source.labelled.labels
    for fold in range(5):
        inside = set(labels[folds == fold].tolist())
        assert not inside & set(labels[folds != fold].tolist())
        assert sorted(sizes[who] for who in inside) == [2, 2, 5, 5, 9, 9]


def test_flags_that_name_no_file(faces, opened):
    flags = json.loads((faces / "meta.json").read_text())
    flags["train/07/0.jpg"] = 1
    flags["../outside.jpg"] = 1
    (faces / "meta.json").write_text(json.dumps(flags))
    refused(opened, faces, r"flags 2 of 20 paths.*for one, 'train/07/0.jpg'")


def test_flags_may_start_at_the_identities_and_leave_some_out(faces, opened):
    (faces / "meta.json").write_text(
        json.dumps(
            {"03\\1.jpg": True, "./train/04/0.jpg": 1.0, "test/000/0.jpg": 1}
        )
    )
    source = opened(faces)
    names = source.labelled.ids[source.labelled.columns["forged"] == 1]
    assert names.tolist() == ["03/1.jpg", "04/0.jpg"]
    notes = source.describe()["notes"]
    assert "16 pictures are not in meta.json and count as real" in notes
    assert "1 flags of meta.json are of files that are not trained on" in notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"meta\.json is not JSON"),
        ("[1]", r"is not one object"),
        ('{"train/00/0.jpg": 2}', r"says 2 of 'train/00/0\.jpg'"),
        ('{"train/00/0.jpg": "1"}', r'says "1" of'),
        ('{"train/00/0.jpg": null}', r"says null of"),
        (
            '{"train/00/0.jpg": 1, "train/00/0.jpg": 0}',
            r"flags .* as 1 and as 0",
        ),
        ("[" * 100_000, r"meta\.json is not JSON"),
        ("\xff\xfe", r"meta\.json is not JSON"),
    ],
)
def test_bad_flags(faces, opened, text, message):
    (faces / "meta.json").write_bytes(text.encode("latin-1"))
    refused(opened, faces, message)


def test_one_identity(tmp_path, opened):
    write(tmp_path, "train/anna/0.jpg", "train/anna/1.jpg")
    refused(opened, tmp_path, r"has one identity, 'anna'")


def test_nobody_with_two_real_pictures(faces, opened):
    flags = json.loads((faces / "meta.json").read_text())
    flags = {name: int(not name.endswith("0.jpg")) for name in flags}
    (faces / "meta.json").write_text(json.dumps(flags))
    refused(opened, faces, r"none of the 6 identities .* two real pictures")


def test_names_that_differ_in_case_only(faces, opened):
    write(faces, "train/Anna/0.jpg", "train/anna/0.jpg")
    refused(opened, faces, r"identities .* 'Anna' and 'anna', .* only in case")
    (faces / "train" / "Anna" / "0.jpg").unlink()
    (faces / "train" / "Anna").rmdir()
    (faces / "sample_submission.csv").unlink()
    write(faces, *(f"test/{p}/{n}.jpg" for p in ("ab", "AB") for n in "01"))
    refused(opened, faces, r"pairs .* 'AB' and 'ab', .* only in case")


def test_pairs_that_lack_a_picture_or_have_three(faces, opened):
    (faces / "test/001/1.jpg").unlink()
    refused(opened, faces, r"1 of 3 pairs .*001 has 1\); each needs just two")
    (faces / "test/001/1.heic").write_bytes(b"\0\0\0\x18ftypheic")
    refused(opened, faces, r"001 has 1 beside .*001/1\.heic\)")
    write(faces, "test/001/1.jpg", "test/001/2.jpg")
    refused(opened, faces, r"001 has 3")
    (faces / "test/003").mkdir()
    refused(opened, faces, r"2 of 4 pairs .* \(for one, .*001 has 3")


def test_pair_ids_twice_in_a_table(faces, opened):
    line = "000,test/000/0.jpg,test/000/1.jpg\n"
    (faces / "pairs.csv").write_text("pair_id,first,second\n" + 2 * line)
    refused(opened, faces, r"1 pair ids more than once", pairs="pairs.csv")


def test_a_table_that_names_no_file(faces, opened):
    head = "pair_id,first,second\n"
    (faces / "pairs.csv").write_text(head + "000,test/000/0.jpg,test/9.jpg\n")
    message = r"1 of 2 paths .*pairs\.csv are no file .*'test/9\.jpg'"
    refused(opened, faces, message, pairs="pairs.csv")
    (faces / "pairs.csv").write_text(head + "000,test/000/0.jpg,/etc/passwd\n")
    refused(opened, faces, r"points out of the image", pairs="pairs.csv")
    (faces / "people.csv").write_text("path,identity\ntrain/00/9.jpg,0\n")
    message = r"1 of 1 paths in .*people\.csv are no file"
    refused(opened, faces, message, identities="people.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0,\n", r"has no identity for 'train/00/0\.jpg'"),
        ("0,nan\n", r"labelled 'nan', which is how missing values"),
        ("0,Anna\n1,anna\n", r"'Anna' and 'anna', which differ only"),
    ],
)
def test_identities_of_a_table_that_are_none(faces, opened, rows, message):
    lines = [f"train/00/{line[0]}.jpg{line[1:]}" for line in rows.splitlines()]
    (faces / "people.csv").write_text("path,identity\n" + "\n".join(lines))
    refused(opened, faces, message, identities="people.csv")


def test_a_flag_of_a_table_that_is_none(faces, opened):
    (faces / "people.csv").write_text(
        "path,identity,forged\ntrain/00/0.jpg,0,maybe\n"
    )
    refused(opened, faces, r"says 'maybe' of", identities="people.csv")


def test_a_sample_of_other_pairs(faces, opened):
    sample = faces / "sample_submission.csv"
    sample.write_text("pair_id,similarity\n000,0\n7,0\n002,0\n")
    refused(
        opened,
        faces,
        r"other pairs: 1 pairs are only in .*sample_submission\.csv \(for one, "
        r"'7'\) and 1 pairs are only in .*test \(for one, '001'\)",
    )
    sample.write_text("pair_id,a,b\n000,0,0\n001,0,0\n002,0,0\n")
    refused(opened, faces, r"sample submission")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"identities": "people"}, r"people does not exist.*data\.identities"),
        ({"forgeries": "fake.json"}, r"fake\.json does not exist"),
        ({"pairs": "pares"}, r"pares does not exist.*data\.pairs"),
        ({"sample_submission": "s.csv"}, r"s\.csv does not exist"),
        ({"group_column": "person"}, r"group_column .* leave it empty"),
    ],
)
def test_what_the_config_names_must_be_there(faces, opened, fields, message):
    refused(opened, faces, message, **fields)


def test_what_is_not_taken_is_told(faces, opened):
    write(faces, "train/loose.jpg", "test/loose.jpg", "train/00/deep/9.jpg")
    (faces / "train/empty").mkdir()
    (faces / "train/00/notes.txt").write_text("text")
    source = opened(faces)
    told = source.describe()
    assert "00/deep/9.jpg" in source.labelled.ids
    assert "1 pictures lie in subfolders" in told["notes"]
    assert "1 identity folders hold no picture" in told["notes"]
    problems = {(file.split, file.problem) for file in source.left_out}
    assert problems == {
        ("train", "no class"),
        ("train", "no image"),
        ("test", "no pair"),
    }


def test_pairs_inside_the_folder_of_identities(faces, opened):
    for person in (faces / "train").iterdir():
        person.rename(faces / person.name)
    (faces / "train").rmdir()
    (faces / "meta.json").unlink()
    source = opened(faces, identities=".")
    assert len(source.labelled) == 18
    assert len(source.test) == 6


def test_identities_one_folder_too_high(faces, opened):
    refused(
        opened,
        faces,
        r"18 of 18 pictures .* lie deeper .*data\.identities",
        identities=".",
        forgeries="",
    )


def test_identities_outside_of_the_root(faces, opened, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "meta.json").write_text('{"00/2.jpg": 1}')
    source = opened(other, identities=str(faces / "train"))
    assert source.labelled.ids[source.labelled.columns["forged"] == 1] == [
        "00/2.jpg"
    ]


def test_a_sample_without_its_leading_zeros(faces, opened):
    (faces / "sample_submission.csv").write_text(
        "pair_id,similarity\n0,0\n1,0\n2,0\n"
    )
    refused(opened, faces, r"pair '0' and .*test has '000': the zeros")


def test_a_sample_and_no_pairs(faces, opened):
    (faces / "test").rename(faces / "elsewhere")
    notes = opened(faces).describe()["notes"]
    assert "there is sample_submission.csv, and no pairs to compare" in notes


def test_an_audit_lists_pairs_that_training_refuses(faces, data_config):
    (faces / "test/001/1.jpg").unlink()
    (faces / "test/003").mkdir()
    config = data_config(
        source="pairs", root=str(faces), submission_id_column="pair_id"
    )
    source = open_source(config, keep_going=True)
    assert source.test_pairs.ids.tolist() == ["000", "002"]
    found = {file.path: file.detail for file in source.left_out}
    assert found == {
        str(faces / "test/001"): "1 pictures",
        str(faces / "test/003"): "0 pictures",
    }
    assert {file.problem for file in source.left_out} == {"half pair"}
