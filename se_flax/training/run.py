"""A whole run: a config and a workdir to a trained network, from where it stopped the last time."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from se_flax.data import train_batches
from se_flax.evaluation.evaluator import Evaluator, Network
from se_flax.parallel import data_mesh, shard_batch, split
from se_flax.storage import AnyPath, as_path, atomic_write
from se_flax.training import workdir
from se_flax.training.checkpoint import Checkpointer
from se_flax.training.curves import plot_curves
from se_flax.training.distributed import all_or_none, on_first, tell_all
from se_flax.training.fine_tune import start_from, told_of_start
from se_flax.training.loop import train
from se_flax.training.memory import IN_TRAINING, check_step
from se_flax.training.metrics_log import MetricsWriter, read_rows
from se_flax.training.plateau import observe
from se_flax.training.progress import Progress
from se_flax.training.recipe import Plan, make_plan, make_start, make_step
from se_flax.training.state import TrainState
from se_flax.training.step import jit_train_step
from se_flax.training.stopwatch import Stopwatch
from se_flax.training.summary import doubts, run_summary
from se_flax.training.watchdog import Watchdog

log = logging.getLogger(__name__)


class NonFiniteError(ArithmeticError):
    """The loss, the gradient or the new state of a step is infinite or not a number."""

    def __init__(self, what: str):
        super().__init__(
            f'{what} is not finite; no checkpoint has it. The same command would end there again: '
            f'take a lower learning_rate or a longer warmup, and another --workdir'
        )


def run(
    config: ml_collections.ConfigDict,
    directory: str | os.PathLike,
    stop_requested: Callable[[int], bool] = lambda step: False,
) -> dict[str, Any]:
    """Trains as the config says, in a workdir; started again, goes on from its last checkpoint.

    Args:
        config: of `parse_args`, or `base_config()` with a recipe.
        directory: the workdir; README says what it holds.
        stop_requested: asked with its number before each step, as that of `stop_signals`.

    Returns:
        The last evaluation: `step`, `loss`, `top1`, `top5` (shares, 0 to 1) and `examples`.

    Raises:
        UserError: for a config no run can have, missing data, another run's workdir.
        NonFiniteError: names the step; no checkpoint has its state.
        Preempted: after `stop_requested`, with the step that was saved.
    """
    # First, as a compilation settles it; what is wrong with a config is told by `make_plan`.
    cache = getattr(config, 'compilation_cache', None)
    if cache and isinstance(cache, str):
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser(cache))
    directory = as_path(directory)
    mesh = data_mesh()
    plan = all_or_none(partial(make_plan, config, mesh.size))
    config = plan.config
    first = jax.process_index() == 0
    told = workdir.told(config, plan.train_set.class_names)
    all_or_none(partial(workdir.check, directory, told))
    if tell_all(workdir.finished(directory) is not None):
        print(f'{directory} has a finished run, see {workdir.DONE} there; another needs --workdir.')
        return workdir.result(directory)
    data = workdir.fingerprints(training=plan.train_set, evaluation=plan.eval_set)
    change = config.allow_changed_data
    all_or_none(partial(workdir.check_data, directory, data, allow_changes=change))

    init = make_start(config, plan.model, plan.optimizer, mesh)
    key = jax.random.key(config.seed)
    abstract = jax.eval_shape(init, key)
    # Ahead of the first step and of the workdir, which a batch that does not fit leaves free.
    if first:
        print(f'Compiling the step of {config.model}.', flush=True)
    jitted: Any = jit_train_step(make_step(config, plan, mesh), mesh, abstract)
    step = jitted.lower(abstract, _batch(config, mesh)).compile()
    all_or_none(partial(check_step, step, IN_TRAINING))
    on_first(partial(workdir.claim, directory, told, data))
    all_or_none(partial(workdir.check, directory, told))  # the others compare theirs with it
    all_or_none(partial(workdir.check_data, directory, data))
    checkpoints = Checkpointer(directory / workdir.CHECKPOINTS, keep=config.keep_checkpoints)
    state, best = checkpoints.restore(abstract) or (_start(plan, init, key), {})
    start = int(state.step)
    if first:
        for doubt in doubts(plan):
            log.warning('%s', doubt)
        table = parameter_overview.get_parameter_overview(state.params)
        atomic_write(directory / workdir.PARAMETERS, f'{table}\n'.encode())
        print(run_summary(plan, state, jax.devices()))
        print(f'Parameters: {len(jax.tree.leaves(state.params))} arrays, see {workdir.PARAMETERS}.')
        if config.init_from and not start:
            print(told_of_start(config, plan.train_set.class_names))
    print(f'Workdir: {directory}, {f"going on from step {start}" if start else "a new run"}.')

    loading = {'num_threads': config.num_threads or None, 'max_corrupt': config.max_corrupt}
    network = Network(plan.model, None, plan.eval_view, config.mean, config.std)
    evaluator = Evaluator(
        [network], plan.eval_set, mesh, batch_size=config.eval_batch_size, **loading
    )
    batches = train_batches(
        plan.train_set,
        plan.train_view,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start,
        num_steps=plan.num_steps,
        sampling=config.sampling,
        num_workers=config.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **loading,
    )
    open_files = contextlib.ExitStack()
    rows = progress = None
    if first:  # the others only take part
        rows = open_files.enter_context(MetricsWriter(directory, resume_step=start))
        progress = open_files.enter_context(
            Progress(
                num_steps=plan.num_steps,
                steps_per_epoch=plan.steps_per_epoch,
                batch_size=config.batch_size,
            )
        )
    watchdog = open_files.enter_context(Watchdog(config.watchdog_seconds))
    watch = Stopwatch()
    last_read = start

    def record(row):
        if first:
            rows.write(row)
            progress.show(row)

    def batch(i):
        watchdog.doing(f'the data of step {i + 1}')
        with watch.waiting('data'):
            host_batch = next(batches)
        watchdog.doing(f'step {i + 1}')
        return shard_batch(mesh, host_batch)

    def report(i, metrics):
        nonlocal last_read
        watchdog.doing(f'step {i}')
        with watch.waiting('device'):
            metrics = {name: value.item() for name, value in jax.device_get(metrics).items()}
        if not metrics.pop('finite'):
            raise NonFiniteError(f'step {i}, with the loss {metrics["loss"]},')
        if plan.due('log', i):
            timing = watch.read(i - last_read, config.batch_size)
            last_read = i
            record({'step': i, 'split': 'train', **metrics, **timing})

    def evaluate_all(i, state):
        nonlocal best
        watchdog.doing(f'the evaluation after step {i}')
        with watch.paused():
            begin = time.perf_counter()
            result = evaluator.run([state.variables]).summary()
            if not math.isfinite(result['loss']):
                raise NonFiniteError(f'the evaluation after step {i}')
            seconds = time.perf_counter() - begin
            record({'step': i, 'split': 'eval', **result, 'seconds': seconds})
        best = max(best, {'top1': result['top1'], 'step': i}, key=lambda b: b.get('top1', -1))
        with jax.transfer_guard('allow'):  # the loss is the host's
            seen = observe(
                state.opt_state,
                result['loss'],
                patience=config.drop_patience,
                factor=config.drop_factor,
                max_drops=config.max_drops,
            )
        return state.replace(opt_state=seen)

    def save(i, state):
        watchdog.doing(f'the checkpoint of step {i}')
        with watch.paused(), jax.transfer_guard('allow'):  # for the processes to agree
            if first:
                rows.flush()  # before: all rows up to a checkpoint's step are on disk when it is
            checkpoints.save(i, state, best)

    with open_files:
        state = train(
            state,
            start=start,
            num_steps=plan.num_steps,
            due=plan.due,
            evaluate=evaluate_all,
            save=save,
            batch=batch,
            step=step,
            report=report,
            stop_requested=stop_requested,
        )
    checkpoints.verify(state)
    on_first(partial(_conclude, directory, best))
    return workdir.result(directory)


def _conclude(directory: AnyPath, best: dict[str, Any]) -> None:
    """Draws the curves and writes the last evaluation as the run's result."""
    history = read_rows(directory / 'metrics.jsonl')
    plot_curves(history, directory / 'curves.png')
    last = next(row for row in reversed(history) if row['split'] == 'eval')
    result = {name: last[name] for name in ('step', 'loss', 'top1', 'top5', 'examples')}
    result['best'] = best
    workdir.finish(directory, result)


def _start(plan: Plan, init, key: jax.Array) -> TrainState:
    state = init(key)
    if not plan.config.init_from:
        return state
    return start_from(plan.config, state, plan.train_set.class_names)


def _batch(config: ml_collections.ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what `shard_batch` makes of a batch, without its numbers."""
    image = (config.batch_size, config.image_size, config.image_size, config.in_channels)
    shapes = {'image': (image, np.uint8), 'label': (image[:1], np.int32)}
    return {k: jax.ShapeDtypeStruct(*of, sharding=split(mesh)) for k, of in shapes.items()}
