"""Trains one model from a recipe: photos in, checkpoints and logits out.

    python train.py --config=configs/tinyvit.py \
        --config.data.root=/data/poses --workdir=runs/tinyvit

Without a `data.root` it trains on the digits inside scikit-learn. Run the
same command again to continue where a run was stopped. Exit codes: 0 done;
2 a mistake in the command or the data, or a full disk; 75 something is missing
for now (a bucket, another process), try again; 130 and 143 stopped by Ctrl-C or
SIGTERM, with what was done saved.
"""

from __future__ import annotations

if __name__ == "__main__":
    from core import hardware, signals

    hardware.keep_freed_memory()  # Before there is any other thread.
    signals.install()  # And before the imports below, which take seconds.

import contextlib
import dataclasses
import sys

from core.errors import exit_on_user_error
from training import config as config_lib

# The data loader's worker processes import this file anew. Everything heavy
# is therefore imported where it is used: workers start fast, and so do
# `--help` and the answer to a typo.


def train(
    arguments: config_lib.Arguments, resources: contextlib.ExitStack
) -> int:
    """Runs the recipe to its end, from wherever the run folder stands.

    Args:
      arguments: of the command line.
      resources: closed by the caller, whatever happens.

    Returns:
      The exit code.

    Raises:
      UserError: the recipe, the data or the run folder is wrong, or the
        training diverged.
    """
    import reports
    from configs import loading
    from core import signals
    from run_folder import layout
    from training import feed, memory_plan, runtime
    from training.checkpointing import init_from, resume
    from training.checkpointing.manager import CheckpointManager
    from training.loop import input_stall, optimizer, recorder, stages, state
    from training.multihost import comm, sharding
    from training.tasks.classify import Classification
    from training.tasks.mae import MaskedAutoencoding

    config, workdir = arguments.config, arguments.workdir
    metric = config.checkpoint.metric
    cache = runtime.start(config.cache_dir)
    mesh = sharding.make_mesh(config.mesh.fsdp)

    # ---- The task: what can be refused is refused before a file is made -----
    workers = runtime.default_workers(config.workers)
    tasks = {"classify": Classification, "mae": MaskedAutoencoding}
    feed.share_folds(config, workdir)
    task = comm.run_on_all(
        lambda: tasks[config.task](config, workdir, mesh, workers)
    )
    comm.check_all_equal(task.identity)
    task.open_teachers(workdir)
    plan = stages.plan_stages(config, task.num_train)
    source = None
    begun = comm.run_on_primary(lambda: layout.has_checkpoint(workdir))
    if config.init_from and not begun:
        source = init_from.open_encoder(
            config, workdir, task.identity, task.abstract_model
        )
        task.identity["init_from"] = source.pin
    if arguments.plan:
        print_plan(arguments, task, plan, 0, mesh)
        for line in memory_plan.report(task, plan, mesh):
            print(line, flush=True)
        return 0

    # ---- The run folder: new, half done, or finished ------------------------
    def claim() -> None:
        plain = loading.plain(config)
        lock = layout.claim(workdir, plain, task.identity)
        resources.enter_context(lock)

    comm.run_on_primary(claim)
    workdir.mkdir(parents=True, exist_ok=True)  # In the others.
    saved = CheckpointManager(
        workdir / "checkpoints", metric, config.checkpoint.keep_best
    )
    resources.callback(saved.close)
    here = resume.restore_latest(saved, plan, task.abstract_model, mesh)
    print_plan(arguments, task, plan, here.step, mesh)
    exported = comm.run_on_primary(lambda: task.is_exported(workdir))
    exported = exported and here.step == plan[-1].end
    if exported and not arguments.export:
        print("this run is finished; --export writes its logits once more")
        return 0
    task.prepare(cache)
    log, every = workdir / "metrics.jsonl", config.log_every_steps
    remedy = input_stall.remedy(config, workers)
    recorder = recorder.Recorder(log, here.history, plan, metric, every, remedy)
    resources.callback(recorder.close)

    # ---- Stages of steps ----------------------------------------------------
    stop, agreed = signals.StopSignals(), comm.AgreedMax(mesh)
    while (stage := stages.stage_after(plan, here.step)) is not None:
        step, now = here.step, here.state
        if now is None:
            if stage.index:
                _, *weights = resume.restore_best_weights(
                    saved, plan, task.abstract_model, mesh
                )
            else:
                weights = state.init_weights(task.abstract_model, mesh)
            if source is not None and not stage.index:
                *weights, told = source.encoder_into(*weights)
                print(told)
            now = state.start_stage(stage.start, *weights, stage.config, mesh)
        schedule = (stage.config, stage.steps, stage.steps_per_epoch)
        train_step = state.make_train_step(
            task.abstract_model,
            task.loss(stage),
            stage.config,
            optimizer.rate_tables(*schedule, recorder.rate_factor(stage)),
            mesh,
            seed=config.seed,
            log_every_steps=every,
        )
        recorder.start_stage(stage, optimizer.logged_rates(*schedule))
        try:
            with (
                contextlib.ExitStack() as deferring,
                contextlib.closing(task.batches(stage, step)) as batches,
            ):
                # Fetched while the step before runs, so the device goes on.
                placed = (sharding.put_batch(one, mesh) for one in batches)
                compiled = False
                while (
                    not (stopping := agreed(stop.received)) and step < stage.end
                ):
                    batch = recorder.fetch(placed)
                    now, measured = train_step(now, batch)
                    if not compiled:  # Before, there was nothing to save.
                        deferring.enter_context(stop)
                        compiled = True
                    step += 1
                    recorder.step(step, measured)
                    if not stage.evaluates_at(step):
                        continue
                    if recorder.finish_steps() or step == stage.end:
                        scores = task.evaluate(*now.weights)
                        recorder.evaluation(step, scores)
                        history = recorder.history(step)
                        saved.save(step, now, history, scores)
                        step = history["go_on_from"]
            if stopping:
                # Between skipped steps there is nothing good to save.
                if recorder.finish_steps() and step > here.step:
                    saved.save(step, now, recorder.history(step))
                saved.wait()
                print(f"stopped at step {step}; the same command continues")
                return signals.exit_code(stopping)
            here = resume.ResumePoint(step, {}, None)
        except recorder.Diverged as diverged:
            here = resume.restore_latest(saved, plan, task.abstract_model, mesh)
            recorder.roll_back(stage, here.step, here.history, diverged)

    # ---- The best checkpoint speaks -----------------------------------------
    step, *weights = resume.restore_best_weights(
        saved, plan, task.abstract_model, mesh
    )
    print(f"predicting with the best checkpoint, step {step}")
    print(task.export(workdir, *weights))
    report = comm.run_on_primary(lambda: str(reports.run_report(workdir)))
    print(f"report in {report}")
    return 0


def print_plan(arguments, task, plan, step, mesh) -> None:
    """Prints what is going to happen, before it does; draws it on request."""
    import reports
    from jax_models.cpu_kernels import dispatch
    from training import runtime
    from training.loop import stages, state
    from training.multihost import comm, sharding

    config = arguments.config
    dtype = runtime.compute_dtype(config.dtype)
    lines = {
        "recipe": f"{arguments.recipe} -> {arguments.workdir}",
        "model": f"{config.model}, "
        f"{state.count(task.abstract_model.params):,} parameters, {dtype}, "
        f"{config.image_size} px",
        "devices": sharding.describe_mesh(mesh),
        **task.describe(),
        "steps": f"{plan[-1].end:,} in {len(plan)} stage(s)",
    }
    for stage in plan:
        lines[f"stage {stage.index + 1}"] = (
            f"{stage.describe()}; {task.describe_stage(stage)}"
        )
    if 0 < step < plan[-1].end:
        lines["continues"] = f"at step {step:,}"
    for heading, text in lines.items():
        print(f"{heading:>10}  {text}")
    if task.data.source.name == "digits" and step < plan[-1].end:
        print(
            "No data.root was given, so this trains on 1,797 small digits; "
            "give yours with --config.data.root=FOLDER. The estimated time "
            "follows after the first steps."
        )
    if dispatch.lacks_compiler():
        print(
            "There is no C++ compiler (c++, or what CXX names), so training "
            "on this CPU is slower than it could be."
        )
    if arguments.plan and comm.is_primary():
        path = arguments.workdir / "plan.html"
        rates = stages.rates_over(plan)
        reports.plan_report(path, config.model, lines, rates)
        print(f"the plan with its learning rates is in {path}")
    sys.stdout.flush()


def keep_in_bucket(
    arguments: config_lib.Arguments, resources: contextlib.ExitStack
) -> None:
    """Brings a run folder from its bucket, and keeps the bucket equal to it.

    Process 0 does it, and the others wait. A plan reads what it needs, and
    sends nothing.

    Args:
      arguments: of the command line; `remote` names the bucket.
      resources: whose end is the end of it: what is left is sent.

    Raises:
      UserError: it cannot, or may not, be used.
    """
    from training.multihost import comm, coordinated_shutdown, mirror

    config, where = arguments.config, (arguments.remote, arguments.workdir)
    others = {config.init_from, *(s.distill_from for s in config.stages)}
    comm.run_on_primary(lambda: mirror.fetch_beside(*where, sorted(others)))
    if not arguments.plan:
        kept = coordinated_shutdown.on_primary(lambda: mirror.Mirror(*where))
        resources.enter_context(kept)


def train_all_folds(
    arguments: config_lib.Arguments, resources: contextlib.ExitStack
) -> int:
    """Trains one model per fold and joins what they predict.

    Folds that are finished are passed over, so that the same command goes on
    where it was stopped.

    Args:
      arguments: of the command line.
      resources: closed by the caller; each fold has some of its own.

    Returns:
      The exit code.

    Raises:
      UserError: as `train`.
    """
    from training import cross_validation
    from training.multihost import comm

    comm.run_on_primary(lambda: cross_validation.check(arguments))
    for fold in cross_validation.arguments_of(arguments):
        print(f"fold {fold.config.data.fold} of {fold.config.data.folds}")
        with contextlib.ExitStack() as of_fold:
            code = train(fold, of_fold)
        if code or arguments.plan:
            return code
    told = comm.run_on_primary(lambda: cross_validation.join(arguments))
    if comm.is_primary():
        print(told)
    return 0


def main(argv: list[str]) -> int:
    """Parses the command line and trains.

    Returns:
      0.

    Raises:
      SystemExit: any other exit code.
    """
    with exit_on_user_error():
        start(config_lib.parse(argv))
    return 0


def start(arguments: config_lib.Arguments) -> None:
    """Meets the other processes, if there are any, and trains.

    Raises:
      SystemExit: the exit code, if it is not 0.
      UserError: as `train`.
    """
    from training import runtime
    from training.multihost import comm, coordinated_shutdown

    runtime.start(arguments.config.cache_dir)
    runtime.connect(arguments.peers)
    with (
        coordinated_shutdown.shutdown_together(),
        contextlib.ExitStack() as resources,
        coordinated_shutdown.broadcasting_errors(),
    ):
        resources.enter_context(comm.silence_other_processes())
        runtime.begin_compiling()
        workdir = comm.private_workdir(arguments.workdir, resources)
        arguments = dataclasses.replace(arguments, workdir=workdir)
        if arguments.remote:
            keep_in_bucket(arguments, resources)
        action = train_all_folds if arguments.all_folds else train
        code = action(arguments, resources)
        if code:  # What fails from now on is told, and does not change it.
            sys.exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
