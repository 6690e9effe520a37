"""A recipe for masks, trained by PyTorch on smp's network, with our batches.

    python benchmarks/segmentation_torch.py --workdir=FOLDER \
        --config=configs/unet.py:pretrained --config.data.root=FOLDER

Everything that decides a score is as in train.py: batches, normalisation,
weights to start from, loss, AdamW and its rates, averaged weights, the choice
of the best evaluation, test-time views, sizes. It leaves `masks/val.npz` as a
run folder has it.

Needs requirements-torch.txt.
"""

from __future__ import annotations

import copy
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import torch_side

import segmentation_models_pytorch as smp  # isort: skip

import jax_models
from input_pipeline.sources.mask_format import IGNORE
from input_pipeline.transforms.views import WHOLE_VIEWS
from jax_models.torch import files, pretrained
from metrics import segmentation
from run_folder import layout
from training import cli, data, runtime
from training.checkpointing import weight_files
from training.loop import schedules, stages
from training.multihost import sharding
from training.tasks import segmentation_losses, segmentation_stripes
from training.tasks.segment import Segmentation
from training.tasks.statistics import Statistics

# What smp calls encoders of other names than ours, and where it keeps them.
ENCODERS = {
    "efficientnet_lite0": ("tu-tf_efficientnet_lite0", "encoder.model.")
}


def make_network(config, classes: int) -> torch.nn.Module:
    """Returns smp's network with the weights that the recipe starts from."""
    name = jax_models.encoder_name(config.model, **config.model_options)
    theirs, prefix = ENCODERS.get(name, (name, "encoder."))
    torch.manual_seed(config.seed)
    assert config.model == "unet", config.model
    options = {}
    if "channels" in config.model_options:
        options["decoder_channels"] = tuple(config.model_options.channels)
    model = smp.Unet(theirs, encoder_weights=None, classes=classes, **options)
    if name.startswith("efficientnet_lite"):
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.01  # TensorFlow's .99, as ours.
    if config.init_from:
        weights = files.read(weight_files.find(config))
        if name.startswith("efficientnet_lite"):
            depths = [len(blocks) for blocks in model.encoder.model.blocks]
            weights = pretrained.timm_names(weights, depths)
        own = model.state_dict()
        wanted = {n for n in own if n.startswith(prefix)}
        given = {
            prefix + n: torch.from_numpy(np.array(w))
            for n, w in weights.items()
            if prefix + n in wanted
        }
        lacking = {n for n in wanted - set(given) if "num_batches" not in n}
        assert not lacking, lacking
        model.load_state_dict({**own, **given})
    return model


def loss_of(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    terms: Sequence[str],
) -> torch.Tensor:
    """Cross-entropy and soft Dice, of the classes in the labels.

    Args:
      logits: [B, C, H, W].
      labels: int64 [B, H, W], `IGNORE` where nothing counts.
      weights: [C], of the cross-entropy.
      terms: which of "cross_entropy" and "dice".
    """
    loss = logits.new_zeros(())
    if "cross_entropy" in terms:
        loss = loss + torch.nn.functional.cross_entropy(
            logits, labels, weights, ignore_index=IGNORE
        )
    if "dice" in terms:
        counted = labels != IGNORE
        shares = logits.softmax(1) * counted[:, None]
        truth = torch.nn.functional.one_hot(
            labels * counted, logits.shape[1]
        ).permute(0, 3, 1, 2)
        truth = truth * counted[:, None]
        hits, sizes = (
            term.sum((0, 2, 3)) for term in (shares * truth, shares + truth)
        )
        present = truth.sum((0, 2, 3)) > 0
        loss = loss + (1 - 2 * hits / sizes.clamp(min=1e-12))[present].mean()
    return loss


class Side:
    """The network, its optimizer and its averaged weights.

    Args:
      config: of the run.
      stage: of its only stage.
      classes: how many.
      statistics: of the training images.
    """

    def __init__(self, config, stage, classes: int, statistics: Statistics):
        self.stage = stage
        network = make_network(config, classes)
        self.model = network.to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.model).eval()
        self.terms = segmentation_losses.terms_of(self.stage.loss)
        assert set(self.terms) <= {"cross_entropy", "dice"}, self.terms
        self.weights = torch.from_numpy(
            segmentation_losses.class_weights(
                config.segment.class_weights,
                statistics.class_prior,
                statistics.class_prior_where_present,
            )
        )
        self.mean, self.std = (
            torch.from_numpy(x).view(1, 3, 1, 1)
            for x in (statistics.mean, statistics.std)
        )
        groups = {}  # (rate, weight decay) -> parameters
        for name, value in self.model.named_parameters():
            path = name.replace(".", "/")
            rows = self.stage.param_groups
            rate = next((r.rate for r in rows if re.search(r.match, path)), 1.0)
            key = (rate, self.stage.weight_decay if value.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(value)
        self.rates = [rate for rate, _ in groups]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": values, "weight_decay": decay}
                for (_, decay), values in groups.items()
            ],
            betas=tuple(self.stage.betas),
            fused=True,
        )

    def images(self, batch: np.ndarray) -> torch.Tensor:
        """Normalises uint8 [B, H, W, 3]; gives float32 [B, 3, H, W]."""
        images = torch.from_numpy(batch).permute(0, 3, 1, 2)
        return (images / 255 - self.mean) / self.std

    def step(self, batch: dict, rates: Sequence[float]) -> float:
        """Makes one step; returns its loss."""
        labels = torch.from_numpy(batch["mask"]).long()
        labels[torch.from_numpy(batch["weight"]) == 0] = IGNORE
        self.model.train()
        logits = self.model(self.images(batch["image"]))
        loss = loss_of(logits, labels, self.weights, self.terms)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.stage.clip_norm:
            torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.stage.clip_norm
            )
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            kept = self.averaged.state_dict()
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    kept[name].lerp_(value, 1 - self.stage.ema_decay)
        return float(loss)

    def confusions(self, batches, examples, views, classes: int):
        """Yields (id, confusion matrix) of images at their own size."""
        for batch in batches:
            images = self.images(batch["image"][:, 0])
            total = 0.0
            with torch.inference_mode():
                for view in views:
                    axes = [
                        axis
                        for axis, flipped in zip(
                            (3, 2), WHOLE_VIEWS[view], strict=True
                        )
                        if flipped
                    ]
                    logits = self.averaged(images.flip(axes))
                    total = total + logits.softmax(1).flip(axes)
            outputs = (total / len(views)).clamp(min=1e-30).log()
            outputs = outputs.permute(0, 2, 3, 1).numpy()
            for row, output, size, bad in zip(
                batch["row"], outputs, batch["size"], batch["bad"], strict=True
            ):
                if row >= 0 and not bad:
                    stripes = segmentation_stripes.resized(
                        iter([output]), *output.shape[1::-1], *size.tolist()
                    )
                    mask = np.concatenate([one.argmax(-1) for one in stripes])
                    yield (
                        examples.ids[row],
                        segmentation.confusion_matrix(
                            examples.mask(row), mask, classes, IGNORE
                        ),
                    )


def train(config, workdir: Path) -> None:
    """Trains and scores a recipe of one stage."""
    assert not config.mixing.prob and not config.mixing.erase_prob
    workdir.mkdir(parents=True, exist_ok=True)
    cache = runtime.start(config.cache_dir)
    mesh = sharding.make_mesh()
    run_data = data.Data(config, workdir, mesh, 0, Segmentation)
    examples = run_data.source.labelled
    task = Segmentation(config, run_data.source.classes)
    statistics = Statistics.of(run_data, *run_data.prepare(cache))
    if path := config.init_from and weight_files.find(config):
        opened = weight_files.open_file(path, task.abstract_model)
        statistics = statistics.with_channels(opened.channels)
    (stage,) = stages.plan_stages(config, len(run_data.train_rows))
    torch_side.use_all_cores()
    side = Side(config, stage.config, len(task.classes), statistics)
    tables = [
        schedules.make_schedule(
            stage.config, stage.steps, stage.steps_per_epoch, rate
        )(np.arange(stage.steps))
        for rate in side.rates
    ]

    def score(batches, views: Sequence[str]) -> tuple[list, np.ndarray]:
        found = side.confusions(batches, examples, views, len(task.classes))
        ids, counts = zip(*found, strict=True)
        return list(ids), np.stack(counts)

    sampler = task.sampler(run_data, run_data.stage_seed(stage))
    best, kept = -1.0, {}
    with run_data.train(stage, 0, sampler) as batches:
        for step in range(stage.end):
            loss = side.step(next(batches), [table[step] for table in tables])
            if not stage.evaluates_at(step + 1):
                continue
            _, counts = score(run_data.validation(), ("whole",))
            dice = segmentation.scores(counts)["mean_dice"]
            print(
                f"step {step + 1} of {stage.end}: loss {loss:.4f}, mean_dice "
                f"{dice:.4f}, {time.process_time():.0f} s",
                flush=True,
            )
            if dice > best:
                best, kept = dice, copy.deepcopy(side.averaged.state_dict())
    side.averaged.load_state_dict(kept)
    whole = run_data.rows(examples, run_data.val_rows, ("whole",))
    ids, counts = score(whole, tuple(config.eval.tta))
    path = workdir / layout.MASK_COUNTS
    path.parent.mkdir(exist_ok=True)
    np.savez(
        path,
        ids=np.array(ids),
        confusion=counts,
        boundary=np.zeros((*counts.shape[:2], 2), np.int64),
        classes=np.array(task.classes),
    )
    print(segmentation.scores(counts))


if __name__ == "__main__":
    arguments = cli.parse(sys.argv[1:])
    train(arguments.config, arguments.workdir)
