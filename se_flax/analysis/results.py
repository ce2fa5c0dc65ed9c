"""From the workdirs of a study to its numbers: `results.jsonl`, `results.csv` and `results.md`."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


class Difference(NamedTuple):
    """How much larger one mean is than another, with its 95 % interval, if that can be had."""

    mean: float | None
    low: float | None
    high: float | None

    @property
    def reading(self) -> str:
        """In words; not more than the interval allows."""
        if self.low is None or self.high is None:
            return 'one seed says nothing'
        if self.low <= 0 <= self.high:
            return 'not told apart'
        return 'lower' if self.high < 0 else 'higher'


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Returns `mean(d)` and `mean(d) -+ t s(d) / sqrt(n)` over the n seeds both have.

    d are the differences of a seed, t is Student's, of n - 1 degrees of freedom; so what the seed
    does to both alike (first weights, order, augmentation) is not counted as chance.

    >>> paired({0: 11.0, 1: 12.2, 2: 10.9}, {0: 10.0, 1: 11.0, 2: 10.1})
    Difference(mean=1.0, low=0.503, high=1.497)
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    ours, theirs = (np.array([of[seed] for seed in seeds]) for of in (values, baseline))
    mean = round(float((ours - theirs).mean()), 3)
    if len(seeds) < 2:
        return Difference(mean, None, None)
    if np.ptp(ours - theirs) == 0:  # Student's t divides by it
        return Difference(mean, mean, mean)
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    return Difference(mean, round(float(low), 3), round(float(high), 3))


def collect(plan: Plan) -> list[dict[str, Any]]:
    """Returns a row for each cell of which a run has finished, a function of the workdirs alone.

    A row has `cell`, `model`, `fields`, `seeds`; `top1_error` and `top5_error`, each a seed, of the
    last evaluation, in %; their `_mean` and `_std` (n - 1; None for one seed); `baseline` and the
    difference of the top-1 error to it, `difference`, `low` and `high`, and its `reading`;
    `params`, `macs`, `images_per_second` (median over the log of all seeds) and `paper_top1_error`,
    `paper_top5_error`.
    """
    results: dict[str, dict[int, tuple]] = {cell.name: {} for cell in plan.study.cells}
    for task in plan.tasks():
        if result := finished(task.workdir):
            results[task.cell.name][task.seed] = result, task.workdir
    errors = {
        name: {seed: 100 * (1 - result['top1']) for seed, (result, _) in runs.items()}
        for name, runs in results.items()
    }
    rows = []
    for cell in plan.study.cells:
        if runs := results[cell.name]:
            difference = None
            if cell.baseline != cell.name:
                difference = paired(errors[cell.name], errors[cell.baseline])
            rows.append(_row(cell, runs, difference))
    return rows


def _row(cell: Cell, runs: Mapping[int, tuple], difference: Difference | None) -> dict[str, Any]:
    seeds, (found, workdirs) = list(runs), zip(*runs.values(), strict=True)
    config, class_names = read_config(workdirs[0])
    params, macs = count(make_model(config, len(class_names)), config.image_size)
    speeds = [
        row['images_per_second']
        for workdir in workdirs
        for row in read_rows(workdir / 'metrics.jsonl')
        if row['split'] == 'train'
    ]
    row = {'cell': cell.name, 'model': config.model, 'fields': dict(cell.fields), 'seeds': seeds}
    for name in ('top1', 'top5'):
        errors = [round(100 * (1 - result[name]), 4) for result in found]
        row[f'{name}_error'] = errors
        row[f'{name}_error_mean'] = round(float(np.mean(errors)), 3)
        spread = round(float(np.std(errors, ddof=1)), 3) if len(errors) > 1 else None
        row[f'{name}_error_std'] = spread
    told = difference or Difference(None, None, None)
    return row | {
        'baseline': cell.baseline,
        'difference': told.mean,
        'low': told.low,
        'high': told.high,
        'reading': difference.reading if difference else '',
        'params': params,
        'macs': macs,
        'images_per_second': round(float(np.median(speeds)), 1),
        'paper_top1_error': cell.paper[0] if cell.paper else None,
        'paper_top5_error': cell.paper[1] if cell.paper else None,
    }


def write_results(directory: AnyPath, plan: Plan) -> list[dict[str, Any]]:
    """Collects a study's rows and writes the three files; returns the rows."""
    rows = collect(plan)
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    atomic_write(directory / 'results.jsonl', lines.encode())
    atomic_write(directory / 'results.csv', _csv(rows).encode())
    atomic_write(directory / 'results.md', (markdown(plan, rows) + '\n').encode())
    return rows


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        table = csv.DictWriter(text, rows[0], lineterminator='\n')
        table.writeheader()
        for row in rows:
            flat = {
                key: ' '.join(map(str, v)) if isinstance(v, list) else v for key, v in row.items()
            }
            fields = ' '.join(f'{name}={value}' for name, value in row['fields'].items())
            table.writerow(flat | {'fields': fields})
    return text.getvalue()


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the rows as texts, their head first."""
    head = ['', 'seeds', 'top-1 error, %', 'against', 'difference', '95 % interval', 'reading']
    head += ['top-5 error, %', 'parameters', 'multiply-adds', 'images/s', 'paper: top-1', 'top-5']
    lines = [head]
    for row in rows:
        apart = row['difference'] is not None
        interval = f'{row["low"]:+.2f} to {row["high"]:+.2f}' if row['low'] is not None else ''
        lines.append(
            [
                row['cell'],
                str(len(row['seeds'])),
                _mean(row, 'top1'),
                row['baseline'] if apart else '',
                f'{row["difference"]:+.2f}' if apart else '',
                interval,
                row['reading'],
                _mean(row, 'top5'),
                f'{row["params"]:,}',
                f'{row["macs"] / 1e6:,.1f} M',
                f'{row["images_per_second"]:,.0f}',
                *(
                    '' if error is None else f'{error:.2f}'
                    for error in (row['paper_top1_error'], row['paper_top5_error'])
                ),
            ]
        )
    return lines


def _mean(row: Mapping[str, Any], name: str) -> str:
    mean, spread = row[f'{name}_error_mean'], row[f'{name}_error_std']
    return f'{mean:.2f}' if spread is None else f'{mean:.2f} ± {spread:.2f}'


NOTES = (
    'Errors of the last evaluation, mean ± standard deviation over the seeds. The interval is of '
    "the paired difference of the top-1 errors, seed by seed (Student's t); each holds by itself, "
    'so of twenty one may miss. "Not told apart": zero lies within. The paper\'s columns are '
    'ImageNet.'
)


def markdown(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a study's page: what was run, the table, how to read it."""
    fields = ' '.join(f'{name}={text}' for name, text in plan.assignments)
    runs, all_runs = sum(len(row['seeds']) for row in rows), len(plan.tasks())
    what = f'{runs} of {all_runs} runs of `{plan.config}`{f", {fields}" if fields else ""}.'
    return '\n'.join(
        [f'# {plan.study.title}', '', what, '', tables.markdown(table(rows)), '', NOTES]
    )
