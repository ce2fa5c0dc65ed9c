"""Runs a study: one training run after another, and a table of how far all of them are."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence

import jax
from rich.console import Console
from rich.live import Live
from rich.table import Table

from se_flax.analysis.plan import Plan, Task
from se_flax.analysis.study import SE
from se_flax.errors import UserError
from se_flax.parallel import data_mesh
from se_flax.storage import AnyPath
from se_flax.training.recipe import make_plan
from se_flax.training.run import NonFiniteError, run
from se_flax.training.workdir import finished


def check(plan: Plan) -> dict[str, int]:
    """Returns the steps of a run of each cell.

    Raises UserError for a cell that no run can be of, before any is started.
    """
    steps = {}
    for cell in plan.study.cells:
        config = plan.cell_config(cell).copy_and_resolve_references()
        config.cache = False  # nothing is decoded for it
        try:
            plan_of_run = make_plan(config, data_mesh().size)
        except UserError as error:
            raise UserError(f'cell {cell.name!r}: {error}') from None
        if plan_of_run.model.se is None and cell.model == SE:
            raise UserError(f'{config.model} has no SE to ablate; take a model that is se_*')
        steps[cell.name] = plan_of_run.num_steps
    return steps


def ablate(
    plan: Plan,
    steps: Mapping[str, int],
    tasks: Sequence[Task],
    console: Console,
    stop_requested: Callable[[int], bool] = lambda step: False,
) -> list[str]:
    """Runs what is not finished of some tasks of a plan; returns what failed, a line each.

    What a run prints is in a `.log` beside its workdir. A run whose loss is not finite has failed,
    and the others go on.

    Args:
        plan: of all of the study's runs, which are shown.
        steps: of `check`.
        tasks: the part of the plan that is run.
        console: where the table goes.
        stop_requested: as that of `run`.

    Raises:
        UserError: for a workdir with another run.
        Preempted: after `stop_requested`; the run has saved its step.
    """
    failed: dict[AnyPath, str] = {}
    with _Progress(plan, steps, failed, console) as progress:
        for task in tasks:
            if finished(task.workdir):
                continue
            config = plan.cell_config(task.cell, task.seed)
            log = task.workdir.with_name(f'{task.workdir.name}.log')
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open('a') as file, contextlib.redirect_stdout(file):
                try:
                    run(config, task.workdir, stop_requested)
                except NonFiniteError as error:
                    failed[task.workdir] = f'{task.cell.name}, seed {task.seed}: {error}'
            jax.clear_caches()  # what is compiled stays on the disk
            progress.done(task)
    return list(failed.values())


class _Progress(contextlib.AbstractContextManager):
    """One live table on a terminal, a line for each run elsewhere."""

    def __init__(
        self,
        plan: Plan,
        steps: Mapping[str, int],
        failed: Mapping[AnyPath, str],
        console: Console,
    ):
        self._study, self._tasks = plan.study, plan.tasks()
        self._steps, self._failed, self._console = steps, failed, console
        self._exit = contextlib.ExitStack()

    def __enter__(self):
        if self._console.is_interactive:
            live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=1,
                redirect_stdout=False,  # a run's own goes to its log
                redirect_stderr=False,
            )
            self._exit.enter_context(live)
        return self

    def __exit__(self, *exc_info):
        return self._exit.__exit__(*exc_info)

    def done(self, task: Task) -> None:
        """Tells that a run has ended."""
        if not self._console.is_interactive:
            text = f'{task.cell.name}, seed {task.seed}: {self._state(task)}'
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Table:
        seeds = sorted({task.seed for task in self._tasks})
        states = {(task.cell.name, task.seed): self._state(task) for task in self._tasks}
        ended = sum(state.endswith('%') for state in states.values())
        title = f'{self._study.title}: {ended} of {len(states)} runs'
        table = Table(title=title, title_justify='left', min_width=len(title), box=None)
        for head in ('', *(f'seed {seed}' for seed in seeds)):
            table.add_column(head, justify='right' if head else 'left', no_wrap=True)
        for cell in self._study.cells:
            table.add_row(cell.name, *(states[cell.name, seed] for seed in seeds))
        return table

    def _state(self, task: Task) -> str:
        if result := finished(task.workdir):
            return f'{100 * (1 - result["top1"]):.2f} %'
        if task.workdir in self._failed:
            return 'not finite'
        row = _last_row(task.workdir / 'metrics.jsonl')
        return f'{row["step"]:,}/{self._steps[task.cell.name]:,}' if row else '-'


def _last_row(path: AnyPath) -> dict | None:
    """Returns the newest whole row of a file that may be growing."""
    try:
        with path.open('rb') as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1000))
            lines = file.read().split(b'\n')[:-1]
        return json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None
