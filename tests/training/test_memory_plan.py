"""What a step needs of each device, without running it."""

import math

from tiny import Run

from configs import common
from training import memory_plan
from training.loop import state as state_lib
from training.loop.stages import Stage


def test_a_backend_that_counts_no_work_is_no_error():
    class Step:
        def cost_analysis(self):
            return None

    assert math.isnan(memory_plan.flops_of(Step()))


def stage(index, **fields):
    return Stage(index, common.stage(**fields), 0, 1, 1, 1)


def test_the_heaviest_stage_is_the_one_with_most_rows_at_a_time():
    plan = [
        stage(
            0,
            batch_size=64,
            param_groups=(common.group(common.ENCODER, frozen=True),),
        ),
        stage(1, batch_size=64),
        stage(2, batch_size=128, accumulate=4),
    ]
    assert memory_plan.heaviest(plan).index == 1


def test_frozen_parameters_have_no_moments_to_hold():
    def optimizer_bytes(**fields):
        run = Run(**fields)
        state = state_lib.abstract_state(
            run.abstract_model, run.stage, run.mesh
        )
        return memory_plan._bytes(state.opt_state)

    head = common.group("^head/", frozen=True)
    # Two moments of 8 x 4 weights and 4 biases, in float32.
    saved = optimizer_bytes() - optimizer_bytes(param_groups=(head,))
    assert saved == 2 * 4 * (8 * 4 + 4)
