"""A whole run: from a config and a workdir to a trained network, resumed where it stopped."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from se_flax.data import train_batches
from se_flax.evaluation.evaluator import Evaluator, Network
from se_flax.parallel import data_mesh, shard_batch, split
from se_flax.storage import AnyPath, as_path, write_text
from se_flax.training import curves, fine_tune, memory, optimizer, recipe, summary, workdir
from se_flax.training.checkpoint import Checkpointer
from se_flax.training.clock import Clock
from se_flax.training.distributed import all_or_none, broadcast, on_first
from se_flax.training.lock import Lock
from se_flax.training.loop import train
from se_flax.training.metrics_log import MetricsWriter, read_rows
from se_flax.training.profile import Trace
from se_flax.training.progress import Progress
from se_flax.training.state import TrainState
from se_flax.training.step import jit_train_step
from se_flax.training.tracker import Tracker

log = logging.getLogger(__name__)


class NonFiniteError(ArithmeticError):
    """The loss, the gradient or the new state of a step is infinite or not a number."""

    def __init__(self, what: str):
        super().__init__(
            f'{what} is not finite; no checkpoint contains it. The same command would fail again: '
            f'use a lower learning_rate or a longer warmup, and another --workdir'
        )


def run(
    config: ml_collections.ConfigDict,
    directory: str | os.PathLike,
    stop_requested: Callable[[int], bool] = lambda step: False,
) -> dict[str, Any]:
    """Trains `config` in the workdir `directory`, or resumes from its last checkpoint.

    Returns the last evaluation: `step`, `loss`, `top1`, `top5` (shares, 0 to 1) and `examples`; and
    the `goodput`, the shares of all time, see `Clock.goodput`.
    Raises UserError for an invalid config, missing data or another run's workdir, NonFiniteError,
    and Preempted after the save that `stop_requested(step)` asked for, see `stop_signals`.
    """
    clock = Clock()
    # Before anything is compiled; `make_plan` reports what is wrong with the config.
    cache = getattr(config, 'compilation_cache', None)
    if cache and isinstance(cache, str):
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser(cache))
    directory = as_path(directory)
    mesh = data_mesh()
    plan = all_or_none(recipe.make_plan, config, mesh.size)
    config = plan.config
    saved = workdir.saved_config(config, plan.train_set.class_names)
    all_or_none(workdir.check, directory, saved)
    if broadcast(bool(workdir.finished(directory))):
        print(
            f'The run in {directory} is finished, see {workdir.DONE}; for a new one set --workdir.'
        )
        return workdir.finished(directory)
    data = workdir.fingerprints(training=plan.train_set, evaluation=plan.eval_set)
    all_or_none(workdir.check_data, directory, data, allow_changes=config.allow_changed_data)

    held = Lock(directory)
    on_first(held.check_free)

    init = recipe.make_start(config, plan.model, plan.optimizer, mesh)
    abstract = jax.eval_shape(init, jax.random.key(config.seed))
    # Compiled before the workdir is claimed: a batch that does not fit in memory leaves no trace.
    with clock.spending('compiling', 'compiling the step'):
        step = _compiled_step(plan, mesh, abstract)
    with held:
        on_first(workdir.claim, directory, saved, data)
        all_or_none(workdir.check_shared, directory)
        all_or_none(workdir.check, directory, saved)  # the other processes compare with it
        all_or_none(workdir.check_data, directory, data)
        keep, background = config.keep_checkpoints, config.async_checkpoints
        folder = directory / workdir.CHECKPOINTS
        checkpoints = Checkpointer(folder, keep=keep, background=background)
        state, best = checkpoints.restore(abstract) or (init(jax.random.key(config.seed)), {})
        start = int(state.step)
        if config.init_from and not start:
            state = fine_tune.start_from(config, state, plan.train_set.class_names)
        if jax.process_index() == 0:
            _describe(plan, state, directory)
        print(f'Workdir: {directory}, {f"resuming from step {start}" if start else "a new run"}.')
        trainer = Trainer(
            plan, mesh, directory, held, checkpoints, step, stop_requested, start, best, clock
        )
        with (
            trainer.files,
            clock.spending('saving', 'the last checkpoint'),
            checkpoints,
            clock.spending('steps', 'the first step'),
        ):
            # Fewer images may have made this step the last one.
            ended = start >= plan.num_steps
            if ended and not broadcast(bool(on_first(_evaluated, directory, start))):
                trainer.evaluate(start, state)
            state = train(trainer, state, start)
        checkpoints.verify(state)
        on_first(_conclude, directory, {'best': trainer.best, 'goodput': clock.goodput()})
    return workdir.finished(directory)


@dataclasses.dataclass
class Trainer:
    """The run that `loop.train` drives: its data, compiled step, files and clock."""

    plan: recipe.Plan
    mesh: Mesh
    directory: AnyPath
    held: Lock
    checkpoints: Checkpointer
    compiled: Any  # the step: state, batch -> state, metrics
    stop_requested: Callable[[int], bool]
    start: int  # the restored step
    best: dict[str, Any]  # `top1` and `step` of the best evaluation; at first the restored ones
    clock: Clock

    def __post_init__(self):
        plan, config = self.plan, self.plan.config
        self.num_steps, self.due = plan.num_steps, plan.due
        self.last_logged = self.start
        loading = {'num_threads': config.num_threads or None, 'max_corrupt': config.max_corrupt}
        network = Network(plan.model, None, plan.eval_view, config.mean, config.std)
        self.evaluator = Evaluator(
            [network], plan.eval_set, self.mesh, batch_size=config.eval_batch_size, **loading
        )
        self.batches = train_batches(
            plan.train_set,
            plan.train_view,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=self.start,
            num_steps=plan.num_steps,
            sampling=config.sampling,
            repeats=config.repeats,
            num_workers=config.num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **loading,
        )
        self.files = contextlib.ExitStack()
        enter, folder = self.files.enter_context, self.directory
        self.rows = None
        if jax.process_index() == 0:
            self.rows = enter(MetricsWriter(folder, resume_step=self.start))
            self.progress = enter(Progress(plan))
            enter(self.clock.keeping(folder / workdir.TIMES, self.start))
            self.tracker = enter(Tracker(config.tracker, json.loads(config.to_json()), folder))
        self.trace = enter(Trace(folder / workdir.PROFILE, config.profile_steps, self.clock))
        enter(self.clock.watching(config.watchdog_seconds))

    def next_batch(self, i: int) -> dict[str, jax.Array]:
        with self.clock.spending('data', f'the data of step {i + 1}'):
            batch = next(self.batches)
        self.trace.before(i + 1)
        self.clock.doing(f'step {i + 1}')
        return shard_batch(self.mesh, batch)

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        with jax.profiler.StepTraceAnnotation('train', step_num=self.trace.step):
            return self.compiled(state, batch)

    def report(self, i: int, metrics: Mapping[str, jax.Array]) -> None:
        with self.clock.spending('device', f'step {i}'):
            row = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self.trace.after(i)
        if not row.pop('finite'):
            raise NonFiniteError(f'step {i}, with the loss {row["loss"]},')
        if self.due('log', i):
            timing = self.clock.read(i - self.last_logged, self.plan.config.batch_size)
            self.last_logged = i
            self._record({'step': i, 'split': 'train', **row, **timing})

    def evaluate(self, i: int, state: TrainState) -> TrainState:
        config = self.plan.config
        with self.clock.spending('evaluation', f'the evaluation after step {i}'):
            begin = time.perf_counter()
            result = self.evaluator.run([state.variables]).summary()
            if not math.isfinite(result['loss']):
                raise NonFiniteError(f'the evaluation after step {i}')
            seconds = time.perf_counter() - begin
            self._record({'step': i, 'split': 'eval', **result, 'seconds': seconds})
        if result['top1'] > self.best.get('top1', -1):
            self.best = {'top1': result['top1'], 'step': i}
        with jax.transfer_guard('allow'):  # the loss is on the host
            drops = {'patience': config.drop_patience, 'factor': config.drop_factor}
            drops |= {'max_drops': config.max_drops}
            opt_state = optimizer.observe(state.opt_state, result['loss'], **drops)
        return state.replace(opt_state=opt_state)

    def save(self, i: int, state: TrainState) -> None:
        with (
            self.clock.spending('saving', f'the checkpoint of step {i}'),
            jax.transfer_guard('allow'),  # the processes exchange numbers
        ):
            on_first(self.held.check)
            if self.rows:
                self.rows.flush()  # first, so that no checkpoint on disk lacks rows
            self.checkpoints.save(i, state, self.best)
        self.clock.note(i, durably=True)

    def _record(self, row: dict[str, Any]) -> None:
        if self.rows:
            self.rows.write(row)
            self.progress.show(row)
            self.tracker.write(row)
            self.clock.note(row['step'])


def _compiled_step(plan: recipe.Plan, mesh: Mesh, state: TrainState) -> Any:
    config = plan.config
    print(f'Compiling the training step of {config.model}.', flush=True)
    image = (config.batch_size, config.image_size, config.image_size, config.in_channels)
    batch = {
        'image': jax.ShapeDtypeStruct(image, np.uint8, sharding=split(mesh)),
        'label': jax.ShapeDtypeStruct(image[:1], np.int32, sharding=split(mesh)),
    }
    jitted: Any = jit_train_step(recipe.make_step(plan, mesh), mesh, state)
    step = jitted.lower(state, batch).compile()
    all_or_none(memory.check_step, step, memory.IN_TRAINING)
    return step


def _describe(plan: recipe.Plan, state: TrainState, directory: AnyPath) -> None:
    config = plan.config
    for doubt in summary.doubts(plan):
        log.warning('%s', doubt)
    table = parameter_overview.get_parameter_overview(state.params)
    write_text(directory / workdir.PARAMETERS, f'{table}\n')
    print(summary.run_summary(plan, state, jax.devices()))
    print(f'Parameters: {len(jax.tree.leaves(state.params))} arrays, see {workdir.PARAMETERS}.')
    if config.init_from and not state.step:
        print(fine_tune.start_message(config, plan.train_set.class_names))


def _evaluated(directory: AnyPath, step: int) -> bool:
    rows = read_rows(directory / 'metrics.jsonl')
    return any((row['step'], row['split']) == (step, 'eval') for row in rows)


def _conclude(directory: AnyPath, more: dict[str, Any]) -> None:
    history = read_rows(directory / 'metrics.jsonl')
    curves.save(curves.draw_curves(history), directory / 'curves.png')
    last = next(row for row in reversed(history) if row['split'] == 'eval')
    result = {name: last[name] for name in ('step', 'loss', 'top1', 'top5', 'examples')}
    workdir.finish(directory, result | more)
