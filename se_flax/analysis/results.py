"""Results of a study, read from its workdirs: `results` as .jsonl, .csv, .md and .png."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from se_flax import tables
from se_flax.analysis.outcomes import RIGHT, read_right
from se_flax.analysis.plan import Plan, Task, check_run
from se_flax.analysis.plots import draw_study
from se_flax.analysis.statistics import LEVEL, holm, over_images, paired
from se_flax.analysis.study import Cell
from se_flax.errors import MissingError, UserError
from se_flax.models.complexity import count
from se_flax.storage import AnyPath, write_text
from se_flax.training.curves import save
from se_flax.training.metrics_log import read_rows
from se_flax.training.recipe import make_model
from se_flax.training.workdir import finished, read_config

NOTES = """\
* **Cells**: errors of the last evaluation, mean ± standard deviation over the seeds; images/s is
  the median while training. The paper's columns are for ImageNet.
* **Pairs**: runs of one seed share the order of the data, the augmentation and the initial values
  of the weights that both networks have, so cells are compared seed by seed.
* **difference**: mean difference of the top-1 errors, in points; below 0, the cell is better.
* **95 %, seeds**: the interval of the difference over seeds (Student's t), which answers: would
  this recipe, trained again, gain? Not corrected for the number of comparisons.
* **95 %, images**: the interval of the difference if other evaluation images are drawn and the
  networks stay (bootstrap), which answers: are these very networks better on other images of this
  kind? Not corrected for the number of comparisons.
* **p (Holm)**: of the paired t test over seeds, corrected for the number of comparisons.
* **improved**: the seeds with a lower error than the other cell has with the same seed.
* **detectable**: the smallest true difference that a study with this number of seeds and this
  standard deviation of the differences finds with a probability of 80 %, at 5 % uncorrected.
* **paper**: the difference of its two errors, on ImageNet.
* **reading**: "lower" or "higher" if p is below 0.05. "Not significant" does not mean equal."""


def collect(plan: Plan, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Returns a row for each cell with a finished run, computed from the workdirs of all tasks.

    A row has `cell`, `model`, `fields`, `seeds`; `top1_error` and `top5_error` of the last
    evaluation of each seed, in %, and their `_mean` and `_std` (n - 1; None for one seed);
    `params`, `macs`, `images_per_second` (median over the logs of all seeds), `paper_top1_error`,
    `paper_top5_error`, `baseline`; what `compare` adds; and `images_low` and `images_high`, see
    `over_images`, None if a run of a pair lacks its outcomes. Raises UserError for a run of another
    config than its task.
    """
    workdirs: dict[str, dict[int, AnyPath]] = {cell.name: {} for cell in plan.study.cells}
    for task in tasks:
        if finished(task.workdir):
            check_run(task)
            workdirs[task.cell.name][task.seed] = task.workdir
    cells = [cell for cell in plan.study.cells if workdirs[cell.name]]
    rows = compare([_row(cell, workdirs[cell.name]) for cell in cells])
    for row in rows:
        low, high = _over_images(workdirs[row['cell']], workdirs[row['baseline']])
        row |= {'images_low': low, 'images_high': high}
    return rows


def _row(cell: Cell, workdirs: Mapping[int, AnyPath]) -> dict[str, Any]:
    config, class_names = read_config(next(iter(workdirs.values())))
    fields = dict(cell.fields)
    row = {'cell': cell.name, 'model': config.model, 'fields': fields, 'seeds': list(workdirs)}
    results = [finished(workdir) for workdir in workdirs.values()]
    for name in ('top1', 'top5'):
        errors = [round(100 * (1 - result[name]), 4) for result in results]
        row[f'{name}_error'] = errors
        row[f'{name}_error_mean'] = round(float(np.mean(errors)), 3)
        spread = round(float(np.std(errors, ddof=1)), 3) if len(errors) > 1 else None
        row[f'{name}_error_std'] = spread
    params, macs = count(make_model(config, len(class_names)), config.image_size)
    speeds = [
        row['images_per_second']
        for workdir in workdirs.values()
        for row in read_rows(workdir / 'metrics.jsonl')
        if row['split'] == 'train'
    ]
    paper = cell.paper or (None, None)
    return row | {
        'params': params,
        'macs': macs,
        'images_per_second': round(float(np.median(speeds)), 1),
        'paper_top1_error': paper[0],
        'paper_top5_error': paper[1],
        'baseline': cell.baseline,
    }


def compare(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows with what `paired` tells of each and its baseline, and a reading of it.

    They get `p_holm`, corrected for all rows, and `paper_difference`, in points, too.
    """
    by_name = {row['cell']: row for row in rows}
    compared = []
    for row in rows:
        other = by_name.get(row['baseline'], row)
        own, theirs = (dict(zip(r['seeds'], r['top1_error'], strict=True)) for r in (row, other))
        found = paired(own, {} if other is row else theirs)
        papers = row['paper_top1_error'], other['paper_top1_error']
        told = found['difference'] is not None and None not in papers
        found['paper_difference'] = round(papers[0] - papers[1], 2) if told else None
        compared.append({**row, **found, 'p_holm': None})
    tested = [row for row in compared if row['p'] is not None]
    for row, p in zip(tested, holm([row['p'] for row in tested]), strict=True):
        row['p_holm'] = p
    return [row | {'reading': _reading(row)} for row in compared]


def _reading(row: Mapping[str, Any]) -> str:
    if len(row['differences']) < 2:
        return 'only one seed' if row['differences'] else ''
    if row['p_holm'] is None or row['p_holm'] >= LEVEL:
        return 'not significant'
    return 'lower' if row['difference'] < 0 else 'higher'


def _over_images(
    workdirs: Mapping[int, AnyPath], baseline: Mapping[int, AnyPath]
) -> tuple[float | None, float | None]:
    seeds = [] if baseline is workdirs else [seed for seed in workdirs if seed in baseline]
    rights = [read_right(of[seed]) for of in (workdirs, baseline) for seed in seeds]
    found = [right for right in rights if right is not None]
    if not found or len(found) < len(rights) or len({*map(len, found)}) > 1:
        return None, None
    own, other = np.split(np.stack(found), 2)
    return over_images(own, other)


def write_results(directory: AnyPath, plan: Plan, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Collects a study's rows and writes the files, the picture if any; returns the rows.

    Again if a run ended meanwhile: its shard may have written the files of all before these.
    """
    workdirs = [task.workdir for task in tasks]
    rows: list[dict[str, Any]] = []
    written: list[tuple[bool, bool]] | None = None
    while (there := _there(workdirs)) != written:
        rows, written = collect(plan, tasks), there
        lines = ''.join(json.dumps(row) + '\n' for row in rows)
        write_text(directory / 'results.jsonl', lines)
        text = tables.csv_text(rows[0], map(_cells, rows)) if rows else ''
        write_text(directory / 'results.csv', text)
        write_text(directory / 'results.md', markdown(plan, rows) + '\n')
        if rows:
            save(draw_study(plan.study.title, rows), directory / 'results.png')
    return rows


def _there(workdirs: Sequence[AnyPath]) -> list[tuple[bool, bool]]:
    """Returns whether each run has finished, and whether it has its outcomes."""
    return [(bool(finished(of)), (of / RIGHT).exists()) for of in workdirs]


def read_results(directory: AnyPath) -> list[dict[str, Any]]:
    """Returns the rows of a study's folder, compared anew.

    Raises MissingError if it has none, and UserError if they are damaged.
    """
    path = directory / 'results.jsonl'
    if not path.exists():
        raise MissingError(f'{directory} has no {path.name}; `se-flax ablate` writes it')
    try:
        return compare([json.loads(line) for line in path.read_text().splitlines()])
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f'{path} is damaged ({error!r})') from None


def _cells(row: Mapping[str, Any]) -> list[Any]:
    fields = [f'{name}={value}' for name, value in row['fields'].items()]
    values = {**row, 'fields': fields}.values()
    return [' '.join(map(str, v)) if isinstance(v, list) else v for v in values]


def _text(form: str, *values: float | None) -> str:
    return '' if None in values else form.format(*values)


def _mean(row: Mapping[str, Any], name: str) -> str:
    return f'{row[f"{name}_mean"]:.2f}' + _text(' ± {:.2f}', row[f'{name}_std'])


CELLS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    '': lambda row: row['cell'],
    'seeds': lambda row: str(len(row['seeds'])),
    'top-1 error, %': lambda row: _mean(row, 'top1_error'),
    'top-5 error, %': lambda row: _mean(row, 'top5_error'),
    'parameters': lambda row: f'{row["params"]:,}',
    'multiply-adds': lambda row: f'{row["macs"] / 1e6:,.1f} M',
    'images/s': lambda row: f'{row["images_per_second"]:,.0f}',
    'paper: top-1': lambda row: _text('{:.2f}', row['paper_top1_error']),
    'top-5': lambda row: _text('{:.2f}', row['paper_top5_error']),
}
COMPARISONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    '': lambda row: row['cell'],
    'against': lambda row: row['baseline'],
    'difference': lambda row: _text('{:+.2f}', row['difference']),
    '95 %, seeds': lambda row: _text('{:+.2f} to {:+.2f}', row['low'], row['high']),
    'p (Holm)': lambda row: _text('{:.2g}', row['p_holm']),
    'improved': lambda row: f'{row["improved"]} of {len(row["differences"])}',
    'detectable': lambda row: _text('{:.2f}', row['detectable']),
    '95 %, images': lambda row: _text('{:+.2f} to {:+.2f}', row['images_low'], row['images_high']),
    'paper': lambda row: _text('{:+.2f}', row['paper_difference']),
    'reading': lambda row: row['reading'],
}


def both_tables(rows: Sequence[Mapping[str, Any]]) -> list[list[list[str]]]:
    """Returns the tables of the cells and of their comparisons, unless empty, with headers."""
    return [
        [list(columns), *([text(row) for text in columns.values()] for row in shown)]
        for columns, shown in ((CELLS, rows), (COMPARISONS, comparisons(rows)))
        if shown
    ]


def comparisons(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the rows that have a difference."""
    return [row for row in rows if row['difference'] is not None]


def markdown(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a study's page in paragraphs: title, what was run, the two tables, notes."""
    fields = ' '.join(f'{name}={text}' for name, text in plan.assignments)
    runs, all_runs = sum(len(row['seeds']) for row in rows), plan.seeds * len(plan.study.cells)
    what = f'{runs} of {all_runs} runs of `{plan.config}`{f", {fields}" if fields else ""}.'
    pages = map(tables.markdown, both_tables(rows))
    return '\n\n'.join([f'# {plan.study.title}', what, *pages, NOTES])
