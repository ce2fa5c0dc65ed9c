"""The plan of a study: its cells and seeds, in a file from which it is resumed, shared or extended.

`plan.json` is all a study's folder needs: which runs have finished is read from their workdirs.
"""

import bisect
import copy
import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from se_flax.analysis.study import PLAIN, SE, SE_FIELDS, Cell, Study
from se_flax.errors import MissingError, UserError
from se_flax.models import Network, create_model, twins
from se_flax.models.complexity import count
from se_flax.nn import SqueezeExcite
from se_flax.storage import AnyPath, as_path, read_json, without_lists, write_text
from se_flax.training.config import MACHINE_FIELDS, assign, make_config
from se_flax.training.fine_tune import fill_from_weights
from se_flax.training.recipe import make_model, open_split
from se_flax.training.workdir import CONFIG, read_config, saved_config
from se_flax.training.workdir import check as check_workdir

PLAN, RUNS = 'plan.json', 'runs'
KEYS = {'title', 'config', 'assignments', 'runs', 'cells', 'seeds'}  # of the file


class Task(NamedTuple):
    """One run of a study."""

    cell: Cell
    seed: int
    workdir: AnyPath
    config: ml_collections.ConfigDict  # as its file is when the task is made


class Plan(NamedTuple):
    """A study and the runs of its cells."""

    study: Study
    config: str  # FILE[:ARGUMENT] of all cells
    assignments: tuple[tuple[str, str], ...]  # (field, value) to set in it
    seeds: int  # runs per cell
    runs: AnyPath  # the folder of all workdirs

    def cell_config(self, cell: Cell) -> ml_collections.ConfigDict:
        """Returns the config of a cell, locked; raises UserError for an unknown model or field."""
        config = fill_from_weights(make_config(self.config, self.assignments))
        if cell.model in (PLAIN, SE):
            if create_model(config.model).se is None:
                raise UserError(f'{config.model} has no SE to study; use {twins(config.model)[1]}')
            if config.model_fields.get('se', '') is None:
                raise UserError(f'{config.model} with se=None has no SE to study')
        if cell.model not in (None, SE):
            target = None
            if cell.equal:
                target = make_model(config, self._num_classes(config))
            plain, _ = twins(config.model if cell.model == PLAIN else cell.model)
            config.model = plain if cell.model == PLAIN else cell.model
            if config.model == plain:
                for name in {*SE_FIELDS} & {*config.model_fields}:
                    del config.model_fields[name]
            if target:
                model = make_model(config, target.num_classes)
                with config.model_fields.ignore_type():  # a fraction in place of an integer
                    if width := equal_width(model, target, config.image_size, cell.equal):
                        config.model_fields.width = width
        for name, text in cell.fields:
            if text != str(_value(config, name)):  # equal runs have equal configs
                assign(config, name, text)
        return config.lock()

    def _num_classes(self, config: ml_collections.ConfigDict) -> int:
        run = self.runs / config.model / f'seed{config.seed}'  # a report may be without the data
        if (run / CONFIG).exists():
            return len(read_config(run)[1])
        return open_split(config, 'train').num_classes

    def tasks(self) -> list[Task]:
        """Returns all runs, seed by seed, so that comparisons are possible early.

        Raises UserError if two cells with different configs would have one folder.
        """
        configs = [self.cell_config(cell) for cell in self.study.cells]
        # A folder names the run and not the study: studies that share `runs` share equal runs.
        runs: list[tuple[Cell, AnyPath, ml_collections.ConfigDict]] = []
        of_folder: dict[str, ml_collections.ConfigDict] = {}
        for cell, config in zip(self.study.cells, configs, strict=True):
            fields = [f'{name.removeprefix("model_fields.")}={text}' for name, text in cell.fields]
            fields += [f'width={config.model_fields.get("width")}'] if cell.equal else []
            if config == self.cell_config(cell._replace(fields=(), equal=None)):
                fields = []  # they say what the config says
            name = re.sub(r'[^\w.=+-]+', '_', ' '.join([config.model, *fields])).strip('_')
            if of_folder.setdefault(name, config) != config:
                raise UserError(
                    f'cell {cell.name!r} and another one would have the same folder, {name}; '
                    'use other names, or two studies with another --runs each'
                )
            runs.append((cell, self.runs / name, config))
        return [
            Task(cell, seed, folder / f'seed{seed}', _with_seed(config, seed))
            for seed in range(configs[0].seed, configs[0].seed + self.seeds)
            for cell, folder, config in runs
        ]


def _with_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    config = copy.deepcopy(config)
    config.seed = seed
    return config


def distinct(tasks: Sequence[Task]) -> list[Task]:
    """Returns one task for each workdir: cells with equal configs share their runs."""
    first: dict[AnyPath, Task] = {}
    for task in tasks:
        first.setdefault(task.workdir, task)
    return list(first.values())


def check_run(task: Task) -> None:
    """Raises UserError if a workdir has a run of another config, such as before a file changed."""
    if (task.workdir / CONFIG).exists():
        _, class_names = read_config(task.workdir)
        check_workdir(task.workdir, saved_config(fill_from_weights(task.config), class_names))


def _value(config: ml_collections.ConfigDict, name: str) -> Any:
    """Returns the value of a field, also of one that only the network has; '' if nothing has it."""
    *of_network, field = name.split('.')
    if not of_network:
        return config.get(name, '')
    model = create_model(config.model, **config.model_fields.to_dict())
    if of_network[1:] != ['se']:
        return getattr(model, field, '')
    given = getattr(model.se, 'keywords', {})
    return given.get(field, getattr(SqueezeExcite, field, '')) if model.se else ''


@functools.cache
def equal_width(model: Network, other: Network, image_size: int, what: str) -> float | None:
    """Returns the width with which `model` has the 'params' or 'macs' of `other`, or nearly.

    None is the width that it has. Raises UserError for a network without the field `width`.
    """
    widths = {field.name: field.type for field in dataclasses.fields(model)}
    if 'width' not in widths:
        raise UserError(f'{type(model).__name__} has no width to choose for equal {what}')
    width: float = model.width
    # A step is a channel of the last stage, or the least that the network allows.
    stages = len(getattr(model, 'stage_sizes', ()))
    step = 2.0 ** (1 - stages) if widths['width'] is float else 1

    def cost(steps):
        return getattr(count(model.clone(width=width + steps * step), image_size), what)

    target = getattr(count(other, image_size), what)
    over = bisect.bisect_left(range(round(4 * width / step)), target, key=cost)
    steps = min((max(over - 1, 0), over), key=lambda steps: abs(cost(steps) - target))
    return width + steps * step if steps else None


def save_plan(directory: AnyPath, plan: Plan) -> Plan:
    """Writes the plan of a folder, or adds seeds to the one there; returns the result.

    Raises UserError if the folder has the plan of another study.
    """
    seeds = plan.seeds
    ours: dict[str, Any] = {
        'title': plan.study.title,
        'config': plan.config,
        'assignments': [a for a in plan.assignments if a[0] not in MACHINE_FIELDS],
        'runs': '' if plan.runs == directory / RUNS else str(plan.runs),
        'cells': [cell._asdict() for cell in plan.study.cells],
    }
    if (directory / PLAN).exists():
        theirs = _read(directory / PLAN)
        for key, value in json.loads(json.dumps(ours)).items():  # with lists instead of tuples
            if value != theirs[key]:
                raise UserError(
                    f'{directory} has the plan of another study, whose {key} is '
                    f'{theirs[key]!r}, not {value!r}; use another --out'
                )
        seeds = max(seeds, theirs['seeds'])
        if seeds == theirs['seeds']:
            return plan._replace(seeds=seeds)
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / PLAN, json.dumps(ours | {'seeds': seeds}, indent=1) + '\n')
    return plan._replace(seeds=seeds)


def _read(path: AnyPath) -> dict[str, Any]:
    plan = read_json(path)
    if not isinstance(plan, dict) or KEYS - plan.keys():
        raise UserError(f'{path} is not the plan of a study')
    return plan


def load_plan(directory: AnyPath) -> Plan:
    """Reads the plan of a folder; raises MissingError if it has none."""
    if not (directory / PLAN).exists():
        raise MissingError(f'{directory} has no {PLAN}; `se-flax ablate` writes it')
    plan = without_lists(_read(directory / PLAN))
    cells = tuple(Cell(**cell) for cell in plan['cells'])
    runs = as_path(plan['runs']) if plan['runs'] else directory / RUNS
    study = Study(plan['title'], cells)
    return Plan(study, plan['config'], plan['assignments'], plan['seeds'], runs)


def shard_of(tasks: Sequence[Task], text: str | None, environ: Mapping[str, str]) -> list[Task]:
    """Returns every n-th task from the i-th on, for `i/n`, i from 0.

    `/n` takes i from the completion index of an indexed Kubernetes job. None takes both from a
    SLURM array job, and is all tasks elsewhere.
    """
    index = 'JOB_COMPLETION_INDEX'
    if text is None and 'SLURM_ARRAY_TASK_ID' in environ:
        here, low, high, step, count = (
            int(environ[f'SLURM_ARRAY_TASK_{name}'])
            for name in ('ID', 'MIN', 'MAX', 'STEP', 'COUNT')
        )
        if (high - low) // step + 1 != count:
            raise UserError('a SLURM array with gaps does not determine the shard; set --shard I/N')
        text = f'{(here - low) // step}/{count}'
    if text is None:
        if index in environ:
            raise UserError(
                f'{index} is set, but the number of completions is unknown; set --shard /N'
            )
        return list(tasks)
    if text.startswith('/'):
        text = environ.get(index, '') + text
    found = re.fullmatch(r'(\d+)/(\d+)', text)
    i, n = map(int, found.groups()) if found else (0, 0)
    if i >= n:
        raise UserError(f'--shard {text}: must be I/N with I from 0 to N - 1, such as 0/4')
    return list(tasks[i::n])
