"""Every full recipe against the stage table that it reimplements.

The table below is written out by hand, number by number, so that a slip in a
recipe's helper functions cannot hide: nothing here is computed by configs/.
"""

import pytest

from configs import common, loading
from training import config as config_lib
from training.loop import schedules, stages
from training.tasks import registry

ONE_CYCLE, COSINE, RESTARTS = "one_cycle", "cosine", "warm_restarts"

# epochs, batch, schedule, lr, head lr (0: as the rest), end rate, weight decay,
# probability of MixUp, alpha of MixUp, alpha of CutMix
FIELDS = (
    "epochs",
    "batch_size",
    "schedule",
    "learning_rate",
    "head_rate",
    "end_rate",
    "weight_decay",
    "mixup_prob",
    "mixup_alpha",
    "cutmix_alpha",
)
TABLES = {
    "miniconvnext": [
        (75, 64, ONE_CYCLE, 3e-4, 0, 1.2e-9, 1e-4, 0.3, 1.0, 1.0),
        (75, 64, COSINE, 3e-4, 0, 0, 1e-4, 0.5, 1.0, 1.0),
        (100, 64, RESTARTS, 3e-4, 0, 0, 1e-4, 0.5, 1.0, 1.0),
        (50, 128, COSINE, 3e-4, 0, 1e-5, 1e-4, 0.5, 1.0, 1.0),
        (50, 256, COSINE, 3e-4, 0, 1e-6, 1e-4, 0.2, 1.0, 1.0),
    ],
    "tinyvit": [
        (75, 64, ONE_CYCLE, 3e-4, 0, 6e-8, 1e-4, 0.5, 1.0, 1.0),
        (75, 64, COSINE, 3e-4, 0, 1e-6, 1e-4, 0.5, 0.75, 0.75),
        (75, 64, COSINE, 3e-4, 0, 1e-7, 1e-4, 0.5, 0.5, 0.5),
        (50, 64, COSINE, 3e-4, 0, 1e-8, 1e-4, 0.5, 0.25, 0.25),
    ],
    "tinyvit_mae": [
        (50, 64, COSINE, 3e-4, 0, 1e-6, 1e-3, None, None, None),
    ],
    "tinyvit_ssl": [
        (10, 64, COSINE, 3e-4, 0, 1e-6, 1e-3, 0.5, 1.0, 1.0),
        (50, 64, ONE_CYCLE, 3e-4, 3e-3, 6e-8, 1e-3, 0.5, 1.0, 1.0),
        (100, 64, COSINE, 1e-4, 3e-4, 1e-6, 1e-3, 0.5, 0.75, 0.75),
        (75, 64, COSINE, 3e-4, 0, 1e-7, 1e-4, 0.5, 0.5, 0.5),
        (75, 64, COSINE, 3e-4, 0, 1e-7, 1e-4, 0.5, 0.25, 0.25),
        (75, 64, COSINE, 3e-4, 0, 1e-7, 1e-4, 0.5, 0.25, 0.25),
    ],
    "efficientnetv2": [
        (50, 32, ONE_CYCLE, 3e-4, 3e-3, 6e-8, 1e-4, 0.5, 1.0, 1.0),
        (75, 32, COSINE, 3e-4, 0, 1e-6, 1e-4, 0.5, 0.75, 0.75),
        (75, 32, COSINE, 3e-4, 0, 1e-6, 1e-4, 0.5, 0.5, 0.5),
        (75, 32, COSINE, 3e-4, 0, 1e-6, 1e-4, 0.5, 0.5, 0.5),
        (75, 32, COSINE, 3e-4, 0, 1e-6, 1e-4, 0.5, 0.5, 0.5),
    ],
    "convnextv2_small": [
        (50, 32, ONE_CYCLE, 3e-4, 0, 6e-8, 0.05, 0.5, 0.8, 1.0),
        (100, 32, COSINE, 3e-4, 0, 1e-6, 0.05, 0.5, 0.8, 1.0),
        (100, 32, COSINE, 3e-4, 0, 1e-6, 0.05, 0.5, 0.8, 1.0),
    ],
}
TABLES["convnextv2_base"] = TABLES["convnextv2_small"]

MODELS = {
    "miniconvnext": "miniconvnext",
    "tinyvit": "tinyvit_11m",
    "tinyvit_mae": "tinyvit_11m",
    "tinyvit_ssl": "tinyvit_11m",
    "efficientnetv2": "efficientnetv2_m",
    "convnextv2_small": "convnextv2_small",
    "convnextv2_base": "convnextv2_base",
}


def recipe(name: str):
    return loading.load(f"configs/{name}.py")


def row_of(config, stage) -> dict:
    """What a recipe says of a stage, under the names of the table."""
    head = [g for g in stage.param_groups if g.match == common.HEAD]
    rate = stage.learning_rate * head[0].rate if head else 0
    mixing = common.merged(config, stage, "mixing")
    return {**stage, **mixing, "head_rate": rate}


@pytest.mark.parametrize("name", TABLES)
def test_a_recipe_has_the_stages_of_its_table(name):
    config = recipe(name)
    assert len(config.stages) == len(TABLES[name])
    for index, row in enumerate(TABLES[name]):
        found = row_of(config, config.stages[index])
        for field, expected in zip(FIELDS, row, strict=True):
            if expected is None:  # The task does not mix.
                continue
            message = f"{field} of stage {index}"
            if isinstance(expected, str):
                assert found[field] == expected, message
            else:
                assert found[field] == pytest.approx(expected), message


@pytest.mark.parametrize("name", TABLES)
def test_what_all_recipes_share(name):
    config = recipe(name)
    assert config.model == MODELS[name]
    assert config.image_size == 224
    assert config.seed == 42
    assert config.dtype == "auto"
    assert config.task == ("mae" if name == "tinyvit_mae" else "classify")
    assert not list(config_lib.problems(config))
    registry.check(config)
    for index, stage in enumerate(config.stages):
        assert stage.label_smoothing == pytest.approx(0.1)
        assert tuple(stage.betas) == (0.9, 0.999)
        assert stage.layer_decay == 1.0
        assert stage.clip_norm == (1.0 if name == "tinyvit_mae" else 0.0)
        probes = name == "tinyvit_ssl" and index == 0
        frozen = [group.match for group in stage.param_groups if group.frozen]
        assert frozen == ([common.ENCODER] if probes else [])
        if config.task == "classify":
            assert config.mixing.prob == 1.0, "every batch is mixed"


@pytest.mark.parametrize("variant", ["", ":short", ":demo"])
@pytest.mark.parametrize("name", TABLES)
def test_every_variant_passes_all_checks(name, variant):
    config = loading.load(f"configs/{name}.py{variant}")
    assert not list(config_lib.problems(config))
    registry.check(config)


def test_the_common_augmentation():
    augment = recipe("tinyvit").augment
    assert tuple(augment.crop_scale) == (0.5, 1.0)
    assert tuple(augment.crop_ratio) == pytest.approx((3 / 4, 4 / 3), abs=1e-4)
    assert augment.flip == 0.5
    assert augment.randaugment_ops == 2
    assert augment.randaugment_magnitude == 9
    assert tuple(augment.jitter) == (0.4, 0.4, 0.4, 0.1)
    assert augment.jitter_prob == 1.0
    mixing = recipe("tinyvit").mixing
    assert mixing.erase_prob == 0.25
    assert tuple(mixing.erase_area) == (0.02, 0.2)
    assert tuple(mixing.erase_ratio) == (0.3, 3.3)


def test_the_chain_of_miniconvnext():
    config = recipe("miniconvnext")
    assert config.augment.flip == 0.7
    assert tuple(config.augment.jitter) == (0.4, 0.4, 0.4, 0.2)
    assert config.augment.jitter_prob == 0.5
    assert config.augment.grayscale == 0.2
    assert config.mixing.erase_prob == 0.5


def test_the_masked_autoencoder():
    config = recipe("tinyvit_mae")
    assert tuple(config.augment.crop_scale) == (0.8, 1.0)
    assert config.mae.mask_ratio == 0.75
    assert config.mae.decoder_width == 512
    assert config.mae.decoder_depth == 4
    assert config.mae.decoder_heads == 8
    assert config.mae.decoder_mlp_width == 2048
    assert recipe("tinyvit_ssl").init_from == "tinyvit_mae"


@pytest.mark.parametrize("name", TABLES)
def test_rates_begin_peak_and_end_where_the_table_says(name):
    """On the steps of 9,892 photos, from the schedules that train."""
    plan = stages.plan_stages(recipe(name), 9892)
    for stage, row in zip(plan, TABLES[name], strict=True):
        _, batch, schedule, peak, head, end, *_ = row
        assert stage.steps == pytest.approx(row[0] * (9892 // batch))
        rates = schedules.logged_rates(
            stage.config, stage.steps, stage.steps_per_epoch
        )
        rate = rates["learning_rate"]
        trace = [float(rate(step)) for step in range(stage.steps)]
        assert max(trace) == pytest.approx(peak, rel=1e-6)
        if schedule == ONE_CYCLE:
            divisor = 25 if name == "miniconvnext" else 10
            assert trace[0] == pytest.approx(peak / divisor, rel=1e-5)
            warm = trace.index(max(trace)) / stage.steps
            assert warm == pytest.approx(0.1, abs=0.001)
        if schedule == RESTARTS:
            starts = [
                i / stage.steps_per_epoch
                for i in range(1, stage.steps)
                if trace[i] > 2 * trace[i - 1]
            ]
            assert starts == pytest.approx([20, 60]), "T0 20, each twice"
        assert trace[-1] == pytest.approx(end, rel=1e-4, abs=1e-11)
        if head:
            rate = rates["learning_rate_head"]
            trace = [float(rate(step)) for step in range(stage.steps)]
            assert max(trace) == pytest.approx(head, rel=1e-6)
