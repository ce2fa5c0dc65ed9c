"""Runs a study, one training run after another."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from rich.live import Live
from rich.table import Table

from se_flax.analysis.outcomes import RIGHT, write_right
from se_flax.analysis.plan import Plan, Task, check_run
from se_flax.errors import UserError
from se_flax.parallel import data_mesh
from se_flax.progress import Display, console_of
from se_flax.storage import AnyPath
from se_flax.training.loop import Preempted
from se_flax.training.metrics_log import read_rows
from se_flax.training.recipe import make_plan
from se_flax.training.run import NonFiniteError, run
from se_flax.training.workdir import finished


def check(plan: Plan) -> dict[str, int]:
    """Returns the number of steps of each cell; raises UserError for a cell that cannot run."""
    steps = {}
    for cell in plan.study.cells:
        config = plan.cell_config(cell).copy_and_resolve_references()
        config.cache = False  # do not decode the images
        try:
            steps[cell.name] = make_plan(config, data_mesh().size).num_steps
        except UserError as error:
            raise UserError(f'cell {cell.name!r}: {error}') from None
    return steps


def ablate(
    plan: Plan,
    steps: Mapping[str, int],
    every: Sequence[Task],
    tasks: Sequence[Task],
    stop_requested: Callable[[int], bool] = lambda step: False,
) -> list[str]:
    """Runs the unfinished ones of `tasks`, a part of the plan; returns a line for each failure.

    A run's output goes to a `.log` beside its workdir. A loss that is not finite ends only its own
    run. Finished runs that lack the file of `write_right` get it. A terminal shows a live table of
    `every` task of the plan; elsewhere each run is a line. `steps` are those of `check`.

    Raises UserError for a workdir with another run, and Preempted after `stop_requested`.
    """
    failed: dict[AnyPath, str] = {}
    for task in every:  # those of other shards, too
        check_run(task)
    console = console_of(sys.stdout)
    # Without redirects, as the output of a run goes to its log.
    options: Any = {'refresh_per_second': 1, 'redirect_stdout': False, 'redirect_stderr': False}
    render = partial(_table, plan, every, steps, failed)
    with Display(Live(get_renderable=render, console=console, **options)) as display:
        for task in tasks:
            if before := finished(task.workdir):  # of another shard or study, meanwhile
                check_run(task)
            if before and (task.workdir / RIGHT).exists():
                continue
            if stop_requested(0):  # while a finished run was evaluated, which does not ask
                raise Preempted(0)
            log = task.workdir.with_name(f'{task.workdir.name}.log')
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open('a', errors='backslashreplace') as file, contextlib.redirect_stdout(file):
                try:
                    if not before:
                        run(task.config, task.workdir, stop_requested)
                    write_right(task.workdir, task.config.data_dir or None)
                except NonFiniteError as error:
                    failed[task.workdir] = f'{task.cell.name}, seed {task.seed}: {error}'
                except UserError as error:
                    if not finished(task.workdir):
                        raise
                    print(f'no {RIGHT}: {error}')  # the result is there
            jax.clear_caches()  # compiled programs stay on disk
            if not before and not console.is_interactive:
                state = _state(task, steps, failed)
                display.print(f'{task.cell.name}, seed {task.seed}: {state}')
    return list(failed.values())


def _state(task: Task, steps: Mapping[str, int], failed: Mapping[AnyPath, str]) -> str:
    if result := finished(task.workdir):
        return f'{100 * (1 - result["top1"]):.2f} %'
    if task.workdir in failed:
        return 'not finite'
    rows = read_rows(task.workdir / 'metrics.jsonl')
    return f'{rows[-1]["step"]:,}/{steps[task.cell.name]:,}' if rows else '-'


def _table(
    plan: Plan, tasks: Sequence[Task], steps: Mapping[str, int], failed: Mapping[AnyPath, str]
) -> Table:
    seeds = sorted({task.seed for task in tasks})
    states = {(task.cell.name, task.seed): _state(task, steps, failed) for task in tasks}
    ended = sum(state.endswith('%') for state in states.values())
    title = f'{plan.study.title}: {ended} of {len(states)} runs'
    table = Table(title=title, title_justify='left', min_width=len(title), box=None)
    table.add_column(no_wrap=True)
    for seed in seeds:
        table.add_column(f'seed {seed}', justify='right', no_wrap=True)
    for cell in plan.study.cells:
        table.add_row(cell.name, *(states[cell.name, seed] for seed in seeds))
    return table
