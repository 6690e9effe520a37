"""Trains one model from a recipe: photos in, checkpoints and predictions out.

    python train.py --config=configs/tinyvit.py \
        --config.data.root=/data/poses --workdir=runs/tinyvit

Without a `data.root` it trains on the digits inside scikit-learn. Run the
same command again to continue where a run was stopped. Exit codes: 0 done;
2 a mistake in the command or the data, or a full disk; 75 something is missing
for now (a bucket, another process), try again; 130, 143 and 129 stopped by
Ctrl-C, SIGTERM or SIGHUP, with what was done saved.
"""

from __future__ import annotations

if __name__ == "__main__":
    from core import hardware, output, signals

    output.install()
    hardware.keep_freed_memory()  # Before there is any other thread.
    signals.install()  # And before the imports below, which take seconds.

import contextlib
import sys

from core.errors import exit_on_user_error
from training import cli

# The data loader's worker processes import this file anew. Everything heavy
# is therefore imported where it is used: workers start fast, and so do
# `--help` and the answer to a typo.


def train(arguments: cli.Arguments, resources: contextlib.ExitStack) -> int:
    """Runs the recipe to its end, from wherever the run folder is.

    Args:
      arguments: of the command line.
      resources: closed by the caller, whatever happens.

    Returns:
      The exit code.

    Raises:
      UserError: the recipe, the data or the run folder is wrong, or the
        training diverged.
    """
    from configs import loading
    from core import signals
    from jax_models import cpu_kernels
    from run_folder import layout
    from training import data as data_lib
    from training import finish, plan, runtime, topology_plan, train_loop
    from training.checkpointing import init_from, resume
    from training.checkpointing.manager import CheckpointManager
    from training.loop import evaluate, input_stall, recorder, stages
    from training.multihost import comm, coordinated_shutdown, sharding
    from training.tasks import base, registry
    from training.tasks.statistics import Statistics

    config, workdir = arguments.config, arguments.workdir
    cache = runtime.start(config.cache_dir)
    if arguments.topology:
        mesh = topology_plan.make_mesh(arguments.topology, config.mesh.fsdp)
    else:
        mesh = sharding.make_mesh(config.mesh.fsdp)
    resources.enter_context(cpu_kernels.for_mesh(mesh))

    # ---- Data and task: refuse what can be refused before writing a file ----
    workers = runtime.default_workers(config.workers)

    def open_data() -> tuple[data_lib.Data, base.Task, dict]:
        task_class = registry.check(config)
        data = data_lib.Data(config, workdir, mesh, workers, task_class)
        task = task_class(config, data.source.classes)
        return data, task, {**data.identity(), **task.attach(data)}

    if not arguments.plan:  # Hosts that do not share it have other folds, too.
        comm.check_shared(workdir)
    data, task, identity = comm.run_on_all(open_data)
    comm.check_all_equal(identity)
    identity |= task.open_teachers(workdir, identity)
    schedule = stages.plan_stages(config, len(data.train_rows))
    encoder, pin = init_from.find_encoder(
        config, workdir, identity, task.abstract_model
    )
    identity |= pin
    if arguments.plan:
        task.statistics = Statistics.unknown(data)
        plan.show(arguments, task, data, schedule, 0, mesh)
        plan.show_costs(arguments, task, data, schedule, mesh)
        return 0

    # ---- The run folder: new, half done, or finished ------------------------
    def claim() -> None:
        plain = loading.plain(config)
        resources.enter_context(
            layout.claim(
                workdir, plain, identity, coordinated_shutdown.shutdown
            )
        )

    comm.run_on_primary(claim)
    checkpoints = CheckpointManager(
        workdir / layout.CHECKPOINTS, config.checkpoint.keep_best
    )
    resources.callback(checkpoints.close)
    here = resume.restore_latest(
        checkpoints, schedule, task.abstract_model, mesh
    )
    plan.show(arguments, task, data, schedule, here.step, mesh)
    finished = here.step == schedule[-1].end
    if finished and finish.is_exported(workdir) and not arguments.export:
        print("this run is finished; --export makes what it exports once more")
        return 0
    measured = Statistics.of(data, *data.prepare(cache))
    # Weights from elsewhere go on with images as they know them.
    task.statistics = measured.with_channels(pin.get("init_from") or {})
    finish.save_inference_spec(task, data.source, workdir)
    log = recorder.Recorder(
        workdir / layout.METRICS,
        here.history,
        schedule,
        config.log_every_steps,
        input_stall.remedy(config, workers),
        plan.listeners(arguments, task, mesh, workers, here.step),
    )
    resources.callback(log.close)

    # ---- Stages of steps ----------------------------------------------------
    run = train_loop.Run(
        config,
        task,
        data,
        schedule,
        mesh,
        checkpoints,
        log,
        signals.StopSignals(),
        encoder,
        workdir,
    )
    eval_step = evaluate.make_eval_step(
        task.abstract_model, task.evaluator(), task.eval_constants, mesh
    )
    while (stage := stages.stage_after(schedule, here.step)) is not None:
        state = here.state
        if state is None:
            state = train_loop.initial_state(run, stage)
        try:
            ended = train_loop.run_stage(
                run, stage, here.step, state, eval_step
            )
        except recorder.Diverged as diverged:
            here = resume.restore_latest(
                checkpoints, schedule, task.abstract_model, mesh
            )
            log.roll_back(stage, here.step, here.history, diverged)
            continue
        if ended.signal:
            print(f"stopped at step {ended.step}; the same command continues")
            return signals.exit_code(ended.signal)
        here = resume.ResumePoint(ended.step, {}, None)

    # ---- Predictions of the best checkpoint, and the report -----------------
    finish.finish(run, workdir)
    print(finish.where_it_is(workdir))
    return 0


def start(arguments: cli.Arguments) -> None:
    """Meets the other processes, if there are any, and trains.

    Raises:
      SystemExit: the exit code, if it is not 0.
      UserError: as `train`.
    """
    from core import output, paths
    from training import cross_validation, runtime
    from training.multihost import comm, coordinated_shutdown

    if arguments.topology:
        runtime.stay_on_cpu()
    runtime.start(arguments.config.cache_dir)
    runtime.connect(arguments.peers)
    config = arguments.config
    folders = [arguments.workdir, config.init_from, config.data.folds_file]
    folders += [stage.distill_from for stage in config.stages]
    with (
        coordinated_shutdown.shutdown_together(),
        paths.reaching(folders),
        contextlib.ExitStack() as resources,
        coordinated_shutdown.broadcasting_errors(),
        paths.reaching(folders),
    ):
        resources.enter_context(comm.silence_other_processes())
        if arguments.quiet:
            resources.enter_context(output.last_line_only())
        runtime.begin_compiling()
        if arguments.all_folds:
            code = cross_validation.train_all_folds(arguments, train)
        else:
            code = train(arguments, resources)
        if code:  # Errors while closing are printed and do not change it.
            sys.exit(code)


def main(argv: list[str]) -> int:
    """Parses the command line and trains.

    Returns:
      0.

    Raises:
      SystemExit: any other exit code.
    """
    with exit_on_user_error():
        start(cli.parse(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
