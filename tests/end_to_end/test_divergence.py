"""A training that diverges goes back once, more slowly, and then gives up."""

import contextlib

import jax.numpy as jnp
import pytest
from commands import CACHE, records

import train
from training import cli
from training.loop.recorder import RATE_AFTER_ROLLBACK, Diverged
from training.tasks import classify


@pytest.fixture
def fragile(monkeypatch):
    """Makes the loss NaN once a bias of the head has left its start.

    In the first so many stages that are begun, a rollback counting as one.
    """

    def break_for(stages):
        make, begun = classify.make_loss, []

        def make_fragile(stage, teacher=None):
            loss = make(stage, teacher)
            begun.append(stage)
            # After a rollback it has left its start.
            limit = 0.03 if len(begun) == 1 else 0.0
            if len(begun) > stages:
                return loss

            def function(model, batch, constants):
                value = loss(model, batch, constants)
                far = jnp.abs(model.head.fc.bias[...]).max()
                return jnp.where(far > limit, jnp.nan, value)

            return function

        monkeypatch.setattr(classify, "make_loss", make_fragile)

    return break_for


def run(workdir):
    arguments = cli.parse(
        [
            "--config=configs/miniconvnext.py:demo",
            f"--workdir={workdir}",
            "--config.epochs=2",
            "--config.stages[0].schedule=constant",
            "--config.stages[0].learning_rate=0.01",
            "--config.log_every_steps=5",
            "--config.eval.every_epochs=0.25",
            f"--config.cache_dir={CACHE}",
        ]
    )
    with contextlib.ExitStack() as resources:
        return train.train(arguments, resources)


def test_it_rolls_back_to_the_last_good_checkpoint_at_a_lower_rate(
    tmp_path, fragile, capsys
):
    fragile(stages=1)
    assert run(tmp_path / "run") == 0
    output = capsys.readouterr().out
    assert "going back to step" in output, output
    found = records(tmp_path / "run")
    steps = [r["step"] for r in found if r["kind"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 30
    back = next(i for i, r in enumerate(found) if r["kind"] == "rollback")
    rates = [r["learning_rate"] for r in found[back:] if r["kind"] == "train"]
    assert rates[0] == pytest.approx(0.01 * RATE_AFTER_ROLLBACK)
    assert all(r.get("loss", 0) is not None for r in found)


def test_it_gives_up_the_second_time_in_one_sentence(tmp_path, fragile, capsys):
    fragile(stages=2)
    with pytest.raises(Diverged, match=r"stages\[0\].learning_rate"):
        run(tmp_path / "run")
    assert capsys.readouterr().out.count("going back") == 1
