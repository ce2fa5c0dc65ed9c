"""What a few seeds tell about a study: how many it needs, and how long they take."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from se_flax import tables
from se_flax.analysis.plan import Plan, Task, distinct
from se_flax.analysis.results import comparisons
from se_flax.analysis.statistics import LEVEL, deviation_interval, seeds_needed
from se_flax.training.workdir import finished

HEAD = ('', 'against', 'seeds', 'deviation', '95 %', 'seeds needed')


def needs(
    rows: Sequence[Mapping[str, Any]], points: float, level: float
) -> tuple[list[list[str]], int]:
    """Returns a line for each comparison, after a header, and the largest number of seeds.

    A line has the standard deviation of the differences by seed, in points of top-1 error, its 95 %
    interval, and the seeds that find a true difference of `points` with a power of 0.8 at `level`;
    without a deviation these are empty. The number is 0 if all are.
    """
    lines, most = [list(HEAD)], 0
    for row in comparisons(rows):
        texts = [row['cell'], row['baseline'], str(len(row['differences']))]
        if deviation := row['deviation']:
            low, high = deviation_interval(deviation, len(row['differences']))
            most = max(most, seeds := seeds_needed(deviation, points, level))
            texts += [f'{deviation:.2f}', f'{low:.2f} to {high:.2f}', f'{seeds:,}']
        lines.append(texts + [''] * (len(HEAD) - len(texts)))
    return lines, most


def spent(tasks: Sequence[Task]) -> tuple[float, float]:
    """Returns the seconds of the finished runs, and those that the others are expected to take.

    A run is expected to take the mean of its cell, else of the known cells; NaN if none is known.
    """
    seconds: dict[str, list[float]] = {}
    for task in tasks:
        if goodput := finished(task.workdir).get('goodput'):
            seconds.setdefault(task.cell.name, []).append(goodput['seconds'])
    means = {name: float(np.mean(of)) for name, of in seconds.items()}
    usual = sum(means.values()) / len(means) if means else float('nan')
    waiting = [task.cell.name for task in tasks if not finished(task.workdir)]
    return sum(map(sum, seconds.values())), sum(means.get(name, usual) for name in waiting)


def beginning(tasks: Sequence[Task]) -> str:
    """Returns how many runs remain, and how long they take if that is known; '' for none."""
    remaining = sum(not finished(task.workdir) for task in tasks)
    if not remaining:
        return ''
    text, (_, seconds) = f'{remaining} of {len(tasks)} runs remain', spent(tasks)
    return text if np.isnan(seconds) else f'{text}, about {duration(seconds)}'


def page(plan: Plan, rows: Sequence[Mapping[str, Any]], points: float, command: str) -> str:
    """Returns the table, the expected time and the `command` to continue, given without --seeds."""
    count = sum(cell.baseline != cell.name for cell in plan.study.cells)
    table, most = needs(rows, points, LEVEL / max(count, 1))  # the first step of Holm's method
    what = (
        f'The standard deviation of the difference by seed, in points of top-1 error. The seeds '
        f'needed find a true difference of {points:g} points with a probability of 80 %, in a test '
        f'at 5 % divided by the number of comparisons ({count}).'
    )
    last = 'No comparison has two seeds that differ yet, so nothing can be said.'
    if most:
        seeds = max(most, plan.seeds)
        done, rest = spent(distinct(plan._replace(seeds=seeds).tasks()))
        last = f'To continue:\n\n    {command} --seeds {seeds}'
        if done:  # else no run has told its time
            last = (
                f'With {seeds:,} seeds, and runs as long as those so far, the study takes about '
                f'{duration(done + rest)}, of which {duration(done)} are done. Shards divide the '
                f'rest. {last}'
            )
    title = f'# Pilot: {plan.study.title}'
    return '\n\n'.join([title, tables.markdown(table), what, last]) + '\n'


def duration(seconds: float) -> str:
    """Returns a time in words, rounded to minutes from two minutes on.

    >>> duration(12_000), duration(1_500), duration(40)
    ('3 h 20 min', '25 min', '40 s')
    """
    if seconds < 120:
        return f'{seconds:.0f} s'
    hours, minutes = divmod(round(seconds / 60), 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min'
