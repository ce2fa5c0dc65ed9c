"""The plan of a study: its cells and seeds in a file, so that it can go on, be shared, be extended.

`plan.json` is all that a folder needs: what has been run is asked of the runs themselves.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_collections

from se_flax.analysis.study import PLAIN, SE, Cell, Study
from se_flax.errors import MissingError, UserError
from se_flax.models import check_model
from se_flax.storage import AnyPath, as_path, atomic_write
from se_flax.training.config import MACHINE_FIELDS, assign, make_config
from se_flax.training.fine_tune import fill_from_weights

PLAN, RUNS = 'plan.json', 'runs'
# Of networks with SE; on another, `se` would put blocks into it.
SE_FIELDS = ('se', 'placement', 'se_stages')


class Task(NamedTuple):
    """A run of a study: what it is of, and where."""

    cell: Cell
    seed: int
    workdir: AnyPath


class Plan(NamedTuple):
    """A study of `seeds` runs a cell, each as `config` and the assignments to its fields say.

    `runs` is the folder that has them.
    """

    study: Study
    config: str
    assignments: tuple[tuple[str, str], ...]
    seeds: int
    runs: AnyPath

    def cell_config(self, cell: Cell, seed: int | None = None) -> ml_collections.ConfigDict:
        """Returns the config of a run, locked; raises UserError for an unknown model or field."""
        config = fill_from_weights(make_config(self.config, self.assignments))
        if cell.model not in (None, SE):
            twin = config.model.removeprefix('se_')
            if cell.model == PLAIN and twin == config.model:
                raise UserError(f'{config.model} has no name without SE; take a model that is se_*')
            config.model = twin if cell.model == PLAIN else cell.model
            check_model(config.model)
            if not config.model.startswith('se_'):
                for name in {*SE_FIELDS} & {*config.model_fields}:
                    del config.model_fields[name]
        for name, text in cell.fields:
            assign(config, name, text)
        if seed is not None:
            config.seed = seed
        return config.lock()

    def tasks(self) -> list[Task]:
        """Returns all runs, seed by seed, so that what is compared is there early."""
        folders = {cell: self.runs / self._folder(cell) for cell in self.study.cells}
        first = self.cell_config(self.study.cells[0]).seed
        return [
            Task(cell, seed, folder / f'seed{seed}')
            for seed in range(first, first + self.seeds)
            for cell, folder in folders.items()
        ]

    def _folder(self, cell: Cell) -> str:
        """Names what a run is, not whose: studies that share `runs` share equal runs."""
        words = [self.cell_config(cell).model]
        words += [f'{name.removeprefix("model_fields.")}={text}' for name, text in cell.fields]
        return re.sub(r'[^\w.=+-]+', '_', ' '.join(words)).strip('_')


def save_plan(directory: AnyPath, plan: Plan) -> Plan:
    """Writes the plan of a folder, or adds seeds to the one there; returns what holds now.

    Raises UserError where the folder has another study's.
    """
    ours = _to_json(directory, plan)
    if (directory / PLAN).exists():
        theirs = _read(directory)
        differing = [key for key in ours if key != 'seeds' and ours[key] != theirs.get(key)]
        if differing:
            key = differing[0]
            raise UserError(
                f'{directory} has the plan of another study: its {key} is {theirs.get(key)!r}, '
                f'here it is {ours[key]!r}. Take another --out'
            )
        ours['seeds'] = max(ours['seeds'], theirs['seeds'])
        plan = plan._replace(seeds=ours['seeds'])
        if ours == theirs:
            return plan
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / PLAN, (json.dumps(ours, indent=1) + '\n').encode())
    return plan


def load_plan(directory: AnyPath) -> Plan:
    """Reads the plan of a folder; raises MissingError where there is none."""
    if not (directory / PLAN).exists():
        raise MissingError(f'{directory} has no {PLAN}; `se-flax ablate` makes one')
    known = _read(directory)
    cells = [
        Cell(
            cell['name'],
            tuple(map(tuple, cell['fields'])),
            cell['model'],
            cell['paper'] and tuple(cell['paper']),
            cell['baseline'],
        )
        for cell in known['cells']
    ]
    return Plan(
        Study(known['title'], tuple(cells)),
        known['config'],
        tuple(map(tuple, known['assignments'])),
        known['seeds'],
        as_path(known['runs']) if known['runs'] else directory / RUNS,
    )


def shard_of(tasks: Sequence[Task], text: str | None, environ: Mapping[str, str]) -> list[Task]:
    """Returns every n-th task from the i-th on, for `i/n`, i from 0.

    For `/n` the completion index of an indexed Kubernetes job is i. Without any, a SLURM array job
    tells both; elsewhere all tasks are meant.
    """
    index = 'JOB_COMPLETION_INDEX'
    if text is None and 'SLURM_ARRAY_TASK_ID' in environ:
        here, low, high, step, count = (
            int(environ[f'SLURM_ARRAY_TASK_{name}'])
            for name in ('ID', 'MIN', 'MAX', 'STEP', 'COUNT')
        )
        if (high - low) // step + 1 != count:
            raise UserError('a SLURM array with gaps does not tell its place: --shard I/N')
        text = f'{(here - low) // step}/{count}'
    if text is None:
        if index in environ:
            raise UserError(f'{index} is set, but not the number of completions: --shard /N')
        return list(tasks)
    if text.startswith('/'):
        text = environ.get(index, '') + text
    found = re.fullmatch(r'(\d+)/(\d+)', text)
    i, n = map(int, found.groups()) if found else (0, 0)
    if i >= n:
        raise UserError(f'--shard {text}: it is I/N with I from 0 to N - 1, such as 0/4')
    return list(tasks[i::n])


def _to_json(directory: AnyPath, plan: Plan) -> dict:
    known = {
        'title': plan.study.title,
        'config': plan.config,
        'assignments': [a for a in plan.assignments if a[0] not in MACHINE_FIELDS],
        'runs': '' if plan.runs == directory / RUNS else str(plan.runs),
        'cells': [cell._asdict() for cell in plan.study.cells],
        'seeds': plan.seeds,
    }
    return json.loads(json.dumps(known))  # tuples are lists there


def _read(directory: AnyPath) -> dict:
    try:
        return json.loads((directory / PLAN).read_text())
    except ValueError as error:
        raise UserError(f'{directory / PLAN} is not as it was written ({error})') from None
