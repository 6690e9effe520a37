"""How a run trained: its speed, its augmentations, its machine and command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.durations import duration
from reports import curves
from reports.charts import WHOLE, Line, line_chart, nice_ticks
from reports.page import Figure, Section, template
from run_folder.telemetry import Telemetry

_TEMPLATE = "run.html"
# Fields that do nothing while another one is off; absent ones are on.
_NEEDS = {
    "augment.jitter": ("augment.jitter_prob",),
    "augment.jitter_prob": ("augment.jitter",),
    "augment.randaugment_magnitude": ("augment.randaugment_ops",),
    "mixing.cutmix_alpha": ("mixing.prob",),
    "mixing.erase_area": ("mixing.erase_prob",),
    "mixing.erase_ratio": ("mixing.erase_prob",),
    "mixing.mixup_alpha": ("mixing.mixup_prob", "mixing.prob"),
    "mixing.mixup_prob": ("mixing.prob",),
}
# Which leave an image alone at 1, not at 0.
_FACTORS = ("augment.crop_", "augment.zoom")


def speed_section(measured: Telemetry | None) -> list[Section]:
    """Returns images per second and the waiting for them; [] if unknown.

    Args:
      measured: of the run.
    """
    if measured is None or not measured.speeds:
        return []
    figure = Figure(
        "time",
        duration(measured.seconds),
        "with evaluations and compilation"
        + (f", in {measured.starts} starts" if measured.starts > 1 else ""),
    )
    charts = []
    for name, label, colour in (
        ("images_per_second", "images per second", "var(--accent)"),
        ("waiting", "share of the time without images", "var(--wrong)"),
    ):
        known = [
            one for one in measured.speeds if getattr(one, name) is not None
        ]
        if not known:
            continue
        x = np.array([one.epoch for one in known])
        y = np.array([getattr(one, name) for one in known])
        line = Line(label, x, y, colour)
        # From zero: a busy moment shall not look like a standstill.
        top = float(y.max()) or 1.0
        ticks = [(tick, f"{tick:,.4g}") for tick in nice_ticks(0.0, top, 4)]
        svg = line_chart(
            [line], f"{label} over epochs", size=WHOLE, y_ticks=ticks
        )
        charts.append(curves.Chart(svg, (line,)))
    if not charts:
        return [Section("", figures=(figure,))]
    speeds = [
        one.images_per_second
        for one in measured.speeds
        if one.images_per_second
    ]
    note = (
        f"The median is {np.median(speeds):,.0f} images a second."
        if speeds
        else ""
    )
    stalls = [one.waiting for one in measured.speeds if one.waiting is not None]
    if stalls:
        share = float(np.mean(stalls))
        note += f" The device waited for images for {share:.1%} of the time."
        if share > 0.1:
            note += " More --config.workers, or data.source=records, help."
    note += " Both over epochs."
    body = template(_TEMPLATE).training(charts)
    return [Section("Speed", body, note, (figure,))]


def augment_section(config: Mapping[str, Any] | None) -> list[Section]:
    """Returns what is done to images, stage by stage; [] without a config.

    Args:
      config: content of config.json.
    """
    if not config or not config.get("stages"):
        return []
    stages = [
        {
            f"{group}.{name}": value
            for group in ("augment", "mixing")
            for name, value in {
                **config.get(group, {}),
                **(stage.get(group) or {}),
            }.items()
        }
        for stage in config["stages"]
    ]
    groups = {
        name: [_text(stage.get(name)) for stage in stages]
        for name in dict.fromkeys(name for stage in stages for name in stage)
        if any(_is_on(name, stage) for stage in stages)
    }
    if not groups:
        return [
            Section(
                "Augmentation",
                note="None by the loader, which leaves images as they are.",
            )
        ]
    heads = [f"stage {index + 1}" for index in range(len(stages))]
    note = (
        "Fields that are on. python -m input_pipeline with the same --config "
        "draws what they do to images."
    )
    body = template(_TEMPLATE).fields(heads, groups)
    return [Section("Augmentation", body, note)]


def origin_section(measured: Telemetry | None, config: str) -> list[Section]:
    """Returns the command, the machine and the config, folded.

    Args:
      measured: of the run.
      config: content of config.json, as text; "" for none.
    """
    if not config and measured is None:
        return []
    start = dict(measured.start) if measured else {}
    command = start.pop("command", "")
    facts = {
        **{
            f"{name} (package)": v
            for name, v in start.pop("packages", {}).items()
        },
    }
    facts = {name.replace("_", " "): v for name, v in start.items()} | facts
    texts = {
        name: f"{value:,}" if isinstance(value, int) else str(value)
        for name, value in facts.items()
    }
    body = template(_TEMPLATE).origin(command, texts, config)
    return [Section("How it was made", body)]


def _is_on(name: str, stage: Mapping[str, Any]) -> bool:
    """Whether a field does something to the images of a stage."""
    needed = [name, *_NEEDS.get(name, ())]
    return name in stage and all(
        _does_something(one, stage[one]) for one in needed if one in stage
    )


def _does_something(name: str, value: Any) -> bool:
    parts = value if isinstance(value, (list, tuple)) else [value]
    off = (1,) if name.startswith(_FACTORS) else (0, None, "")
    return any(part not in off for part in parts)


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
