"""The end of a run: the best checkpoint predicts, and a report is written."""

from __future__ import annotations

from pathlib import Path

import reports
from input_pipeline.sources.base import Source
from run_folder import artifacts, inference, layout
from training import runtime
from training.checkpointing import resume
from training.multihost import comm
from training.tasks.base import Task
from training.train_loop import Run


def save_inference_spec(task: Task, source: Source, workdir: Path) -> None:
    """Saves what a checkpoint needs to be used without the training data.

    Args:
      task: of the run; its statistics are known.
      source: of the data.
      workdir: the run folder.
    """
    config, statistics = task.config, task.statistics
    style = task.mask_style(source)
    spec = inference.InferenceSpec(
        task=task.name,
        model=config.model,
        model_options=config.model_options.to_dict(),
        num_outputs=max(len(task.classes), 1),
        classes=task.classes,
        mean=tuple(statistics.mean.tolist()),
        std=tuple(statistics.std.tolist()),
        image_size=config.image_size,
        resize=task.resize,
        views=task.views,
        dtype=str(runtime.compute_dtype(config.dtype)),
        mask_values=style.values if style else (),
        mask_palette=style.palette if style else (),
        id_column=source.id_column,
        target_column=source.target_column,
        sample_submission=source.sample_submission,
        similarity=task.similarity_weights,
    )
    comm.run_on_primary(lambda: inference.write(workdir, spec))


def is_exported(workdir: Path) -> bool:
    """Whether `finish` has come to its end in this folder before."""
    return comm.run_on_primary(
        lambda: (
            artifacts.is_complete(workdir)
            and (workdir / layout.REPORT).exists()
        )
    )


def where_it_is(workdir: Path) -> str:
    """Returns a sentence that says what is where in a finished run folder."""
    kinds = [
        f"{name}/"
        for name in (layout.CHECKPOINTS, *layout.PREDICTION_FOLDERS)
        if (workdir / name).exists()
    ]
    found = ", ".join([layout.REPORT, *kinds])
    return f"done: everything is in {workdir} ({found})"


def finish(run: Run, workdir: Path) -> None:
    """Predicts with the best checkpoint, and reports on the run.

    Args:
      run: whose stages are done.
      workdir: the run folder.

    Raises:
      UserError: no good checkpoint is left, or the disk is full.
    """
    step, *weights = resume.restore_best_weights(
        run.checkpoints, run.stages, run.task.abstract_model, run.mesh
    )
    print(f"predicting with the best checkpoint, step {step}")
    writer = artifacts.ArtifactWriter(workdir, step)
    comm.run_on_primary(writer.begin)
    told = run.task.export(run.data, writer, *weights)
    print(told)
    # Once more: the export may have chosen the views.
    save_inference_spec(run.task, run.data.source, workdir)

    def report() -> str:
        sections = run.task.report_sections(workdir)
        path = str(
            reports.run_report(workdir, sections, f"At its end: {told}.")
        )
        writer.finish()
        return path

    print(f"report in {comm.run_on_primary(report)}")
