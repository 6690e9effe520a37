"""predict.py --stack answers new photos as the stack answered the test rows."""

import csv
import json
import shutil

import commands
import numpy as np
import pytest

import predict
from core.errors import UserError
from stacking import members

TINY = f"--config={commands.ROOT / 'tests/end_to_end/tiny_recipe.py'}"


@pytest.mark.slow
def test_photos_of_the_test_split_get_the_answers_of_the_submission(tmp_path):
    data = tmp_path / "data"
    commands.write_competition(data, per_class=20)
    runs = [str(tmp_path / name) for name in ("one", "two")]
    for number, run in enumerate(runs):
        done = commands.run(
            "train.py",
            *(TINY, f"--workdir={run}", f"--config.data.root={data}"),
            *("--config.data.folds=2", "--config.epochs=4"),
            f"--config.stages[0].learning_rate={1e-3 * (number + 1)}",
            f"--config.cache_dir={commands.CACHE}",
        )
        assert done.returncode == 0, done.stderr
    stack = tmp_path / "stack"
    done = commands.run(
        *("-m", "stacking", "--runs", *runs, "--out", str(stack)),
        *("--trials", "20", "--boosters", "none"),
    )
    assert done.returncode == 0, done.stderr
    with open(stack / "submission.csv", newline="") as file:
        expected = dict(list(csv.reader(file))[1:])
    # Both were moved together.
    moved = tmp_path / "moved"
    for name in ("one", "two", "stack"):
        shutil.move(tmp_path / name, moved / name)
    done = commands.run(
        *("predict.py", "--stack", str(moved / "stack")),
        *(str(data / "img_test"), "--format", "json"),
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    answers = {
        one["photo"].split("/")[-1].removesuffix(".jpg"): one["class"]
        for one in found
    }
    assert answers == expected
    for one in found:
        np.testing.assert_allclose(
            sum(one["probabilities"].values()), 1, atol=1e-4
        )


def test_runs_are_found_where_they_were_or_beside_the_stack(tmp_path):
    stack = tmp_path / "runs/stack"
    (tmp_path / "runs/two/fold-0").mkdir(parents=True)
    (tmp_path / "runs/two/fold-1").mkdir()
    (tmp_path / "one").mkdir()
    stack.mkdir()
    families = [
        {"runs": [str(tmp_path / "one")]},
        {"runs": ["/gone/two"]},
    ]
    (stack / "scores.json").write_text(json.dumps({"families": families}))
    found = members.member_runs(stack)
    two = tmp_path / "runs/two"
    assert found == [[tmp_path / "one"], [two / "fold-0", two / "fold-1"]]
    (tmp_path / "one").rmdir()
    with pytest.raises(UserError, match="one, which is gone"):
        members.member_runs(stack)
    (stack / "scores.json").write_text("{}")
    with pytest.raises(UserError, match="stack again"):
        members.member_runs(stack)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ((), "either --run"),
        (("--run", "a", "--stack", "b"), "either --run"),
        (("--stack", "b", "--out", "c"), "leave --out away"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, words, answer):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        predict.main([*words, str(photo)])
    assert ended.value.code == 2
    assert answer in capsys.readouterr().err
