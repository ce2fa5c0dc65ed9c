"""A whole run: a config and a workdir to a trained network, from where it stopped the last time."""

import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from clu import parameter_overview

from se_flax.data import eval_batches, train_batches
from se_flax.evaluation import evaluate, make_eval_step
from se_flax.parallel import data_mesh, shard_batch
from se_flax.training import workdir
from se_flax.training.checkpoint import Checkpointer
from se_flax.training.curves import plot_curves
from se_flax.training.fine_tune import start_from
from se_flax.training.loop import train
from se_flax.training.metrics_log import MetricsWriter, read_rows
from se_flax.training.progress import Progress
from se_flax.training.recipe import Plan, make_plan, make_step
from se_flax.training.state import TrainState, make_init
from se_flax.training.step import jit_train_step
from se_flax.training.stopwatch import Stopwatch
from se_flax.training.summary import run_summary


class NonFiniteError(ArithmeticError):
    """The loss, the gradient or the new state of a step is infinite or not a number."""

    def __init__(self, what: str):
        super().__init__(
            f'{what} is not finite; no checkpoint has it. The same command would end there again: '
            f'take a lower learning_rate or a longer warmup, and another --workdir'
        )


def run(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains as the config says, in a workdir; started again, goes on from its last checkpoint.

    Args:
        config: of `parse_args`, or `base_config()` with a recipe.
        directory: the workdir; README says what it holds.
        stop_requested: asked before each step, such as that of `stop_signals`.

    Returns:
        The last evaluation: `step`, `loss`, `top1`, `top5` (shares, 0 to 1) and `examples`.

    Raises:
        UserError: for a config no run can have, missing data, another run's workdir.
        NonFiniteError: names the step; no checkpoint has its state.
        Preempted: after `stop_requested`, with the step that was saved.
    """
    if config.compilation_cache:
        cache = os.path.expanduser(config.compilation_cache)
        jax.config.update('jax_compilation_cache_dir', cache)
    mesh = data_mesh()
    plan = make_plan(config, mesh.size)
    workdir.claim(directory, config, plan.train_set.class_names)
    if result := workdir.finished(directory):
        print(f'{directory} has a finished run, see {workdir.DONE} there; another needs --workdir.')
        return result

    init = make_init(plan.model, plan.optimizer, config.image_size, mesh)
    key = jax.random.key(config.seed)
    checkpoints = Checkpointer(directory / workdir.CHECKPOINTS, keep=config.keep_checkpoints)
    state, best = checkpoints.restore(jax.eval_shape(init, key)) or (_start(config, init, key), {})
    start = int(state.step)
    print(parameter_overview.get_parameter_overview(state.params))
    print(_summary(config, plan, state.params))
    print(f'Workdir: {directory}, {f"going on from step {start}" if start else "a new run"}.')

    step = jit_train_step(make_step(config, plan), mesh)
    eval_step = make_eval_step(plan.model, mesh, mean=config.mean, std=config.std)
    loading = {'num_threads': config.num_threads or None, 'max_corrupt': config.max_corrupt}
    batches = train_batches(
        plan.train_set,
        plan.train_view,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start,
        num_steps=plan.num_steps,
        num_workers=config.num_workers,
        **loading,
    )
    rows = MetricsWriter(directory, resume_step=start)
    progress = Progress(
        num_steps=plan.num_steps,
        steps_per_epoch=plan.steps_per_epoch,
        batch_size=config.batch_size,
    )
    watch = Stopwatch()
    last_read = start

    def record(row):
        rows.write(row)
        progress.show(row)

    def batch(i):
        with watch.waiting():
            host_batch = next(batches)
        return shard_batch(mesh, host_batch)

    def report(i, metrics):
        nonlocal last_read
        metrics = {name: value.item() for name, value in jax.device_get(metrics).items()}
        if not metrics.pop('finite'):
            raise NonFiniteError(f'step {i}, with the loss {metrics["loss"]},')
        if plan.due('log', i):
            speed, wait = watch.read(config.batch_size * (i - last_read))
            last_read = i
            timing = {'images_per_second': speed, 'data_wait': wait}
            record({'step': i, 'split': 'train', **metrics, **timing})

    def evaluate_all(i, state):
        nonlocal best
        with watch.paused():
            begin = time.perf_counter()
            examples = eval_batches(
                plan.eval_set, plan.eval_view, batch_size=config.eval_batch_size, **loading
            )
            result = evaluate(eval_step, state.variables, examples, mesh)
            if not math.isfinite(result['loss']):
                raise NonFiniteError(f'the evaluation after step {i}')
            seconds = time.perf_counter() - begin
            record({'step': i, 'split': 'eval', **result, 'seconds': seconds})
        best = max(best, {'top1': result['top1'], 'step': i}, key=lambda b: b.get('top1', -1))

    def save(i, state):
        with watch.paused():
            rows.flush()  # first: all rows up to a checkpoint's step are on disk when it is
            checkpoints.save(i, state, best)

    with rows, progress:
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
    history = read_rows(directory / 'metrics.jsonl')
    plot_curves(history, directory / 'curves.png')
    last = next(row for row in reversed(history) if row['split'] == 'eval')
    result = {name: last[name] for name in ('step', 'loss', 'top1', 'top5', 'examples')}
    result['best'] = best
    workdir.finish(directory, result)
    return result


def _start(config: ml_collections.ConfigDict, init, key: jax.Array) -> TrainState:
    state = init(key)
    return start_from(config, state) if config.init_from else state


def _summary(config: ml_collections.ConfigDict, plan: Plan, params: Any) -> str:
    return run_summary(
        model=config.model,
        parameters=sum(p.size for p in jax.tree.leaves(params)),
        dtype=config.dtype,
        device_kind=jax.devices()[0].device_kind,
        num_devices=jax.device_count(),
        batch_size=config.batch_size,
        bn_group_size=config.bn_group_size or None,
        num_steps=plan.num_steps,
        steps_per_epoch=plan.steps_per_epoch,
        data=config.data,
        train_examples=len(plan.train_set),
        eval_examples=len(plan.eval_set),
        num_classes=plan.train_set.num_classes,
    )
