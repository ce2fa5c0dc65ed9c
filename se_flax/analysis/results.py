"""Results of a study, read from its workdirs: `results.jsonl`, `results.csv`, `results.md`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from se_flax import tables
from se_flax.analysis.plan import Plan
from se_flax.analysis.study import Cell
from se_flax.models.complexity import count
from se_flax.storage import AnyPath, atomic_write
from se_flax.training.metrics_log import read_rows
from se_flax.training.recipe import make_model
from se_flax.training.workdir import finished, read_config

NOTES = (
    'Errors of the last evaluation, mean ± standard deviation over the seeds. The interval is the '
    "confidence interval of the difference of the top-1 errors, paired by seed (Student's t), not "
    'corrected for multiple comparisons. "Not significant": it contains zero. The paper\'s columns '
    'are for ImageNet.'
)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """Returns the mean difference over the seeds that both have, Student's t interval, a reading.

    Pairing by seed removes what the seed does to both alike (first weights, order, augmentation).

    >>> paired({0: 11.0, 1: 12.2, 2: 10.9}, {0: 10.0, 1: 11.0, 2: 10.1})
    {'difference': 1.0, 'low': 0.503, 'high': 1.497, 'reading': 'higher'}
    """
    differences = np.array([values[seed] - baseline[seed] for seed in values if seed in baseline])
    found: dict[str, Any] = {'difference': None, 'low': None, 'high': None, 'reading': ''}
    if not len(differences):
        return found
    mean = low = high = round(float(differences.mean()), 3)
    if len(differences) == 1:
        return found | {'difference': mean, 'reading': 'only one seed'}
    if np.ptp(differences):  # Student's t divides by the deviation
        interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        low, high = (round(float(bound), 3) for bound in interval)
    reading = 'not significant' if low <= 0 <= high else 'lower' if high < 0 else 'higher'
    return {'difference': mean, 'low': low, 'high': high, 'reading': reading}


def collect(plan: Plan) -> list[dict[str, Any]]:
    """Returns a row for each cell with a finished run, computed from the workdirs alone.

    A row has `cell`, `model`, `fields`, `seeds`; `top1_error` and `top5_error` of the last
    evaluation of each seed, in %, and their `_mean` and `_std` (n - 1; None for one seed);
    `baseline` and the difference of the top-1 error to it: `difference`, `low`, `high` and its
    `reading`; `params`, `macs`, `images_per_second` (median over the logs of all seeds) and
    `paper_top1_error`, `paper_top5_error`.
    """
    results: dict[str, dict[int, tuple]] = {cell.name: {} for cell in plan.study.cells}
    for task in plan.tasks():
        if result := finished(task.workdir):
            results[task.cell.name][task.seed] = result, task.workdir
    return [_row(cell, results) for cell in plan.study.cells if results[cell.name]]


def _row(cell: Cell, results: Mapping[str, Mapping[int, tuple]]) -> dict[str, Any]:
    seeds = list(results[cell.name])
    found, workdirs = zip(*results[cell.name].values(), strict=True)
    config, class_names = read_config(workdirs[0])
    row = {'cell': cell.name, 'model': config.model, 'fields': dict(cell.fields), 'seeds': seeds}
    for name in ('top1', 'top5'):
        errors = [round(100 * (1 - result[name]), 4) for result in found]
        row[f'{name}_error'] = errors
        row[f'{name}_error_mean'] = round(float(np.mean(errors)), 3)
        spread = round(float(np.std(errors, ddof=1)), 3) if len(errors) > 1 else None
        row[f'{name}_error_std'] = spread
    own, baseline = (
        {seed: 100 * (1 - result['top1']) for seed, (result, _) in results[name].items()}
        for name in (cell.name, cell.baseline)
    )
    difference = paired(own, {} if cell.baseline == cell.name else baseline)
    params, macs = count(make_model(config, len(class_names)), config.image_size)
    speeds = [
        row['images_per_second']
        for workdir in workdirs
        for row in read_rows(workdir / 'metrics.jsonl')
        if row['split'] == 'train'
    ]
    paper = cell.paper or (None, None)
    return row | {
        'baseline': cell.baseline,
        **difference,
        'params': params,
        'macs': macs,
        'images_per_second': round(float(np.median(speeds)), 1),
        'paper_top1_error': paper[0],
        'paper_top5_error': paper[1],
    }


def write_results(directory: AnyPath, plan: Plan) -> list[dict[str, Any]]:
    """Collects a study's rows and writes the three files; returns the rows."""
    rows = collect(plan)
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    atomic_write(directory / 'results.jsonl', lines.encode())
    text = tables.csv_text(rows[0], map(_cells, rows)) if rows else ''
    atomic_write(directory / 'results.csv', text.encode())
    atomic_write(directory / 'results.md', (markdown(plan, rows) + '\n').encode())
    return rows


def _cells(row: Mapping[str, Any]) -> list[Any]:
    fields = [f'{name}={value}' for name, value in row['fields'].items()]
    values = {**row, 'fields': fields}.values()
    return [' '.join(map(str, v)) if isinstance(v, list) else v for v in values]


def _text(form: str, *values: float | None) -> str:
    return '' if None in values else form.format(*values)


def _mean(row: Mapping[str, Any], name: str) -> str:
    return f'{row[f"{name}_mean"]:.2f}' + _text(' ± {:.2f}', row[f'{name}_std'])


COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    '': lambda row: row['cell'],
    'seeds': lambda row: str(len(row['seeds'])),
    'top-1 error, %': lambda row: _mean(row, 'top1_error'),
    'against': lambda row: '' if row['difference'] is None else row['baseline'],
    'difference': lambda row: _text('{:+.2f}', row['difference']),
    '95 % interval': lambda row: _text('{:+.2f} to {:+.2f}', row['low'], row['high']),
    'reading': lambda row: row['reading'],
    'top-5 error, %': lambda row: _mean(row, 'top5_error'),
    'parameters': lambda row: f'{row["params"]:,}',
    'multiply-adds': lambda row: f'{row["macs"] / 1e6:,.1f} M',
    'images/s': lambda row: f'{row["images_per_second"]:,.0f}',
    'paper: top-1': lambda row: _text('{:.2f}', row['paper_top1_error']),
    'top-5': lambda row: _text('{:.2f}', row['paper_top5_error']),
}


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the rows as texts, after a header."""
    return [list(COLUMNS), *([text(row) for text in COLUMNS.values()] for row in rows)]


def markdown(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a study's page in four paragraphs: title, what was run, table, notes."""
    fields = ' '.join(f'{name}={text}' for name, text in plan.assignments)
    runs, all_runs = sum(len(row['seeds']) for row in rows), len(plan.tasks())
    what = f'{runs} of {all_runs} runs of `{plan.config}`{f", {fields}" if fields else ""}.'
    return '\n\n'.join([f'# {plan.study.title}', what, tables.markdown(table(rows)), NOTES])
