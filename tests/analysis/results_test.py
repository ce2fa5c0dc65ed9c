"""From runs to tables: the statistics against scipy's and NumPy's, the files against each other."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from se_flax.analysis.plan import Plan
from se_flax.analysis.results import Difference, collect, paired, table, write_results
from se_flax.analysis.study import STUDIES
from se_flax.training import workdir
from se_flax.training.metrics_log import MetricsWriter

from .plan_test import QUICKSTART


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_paired_is_the_t_interval_of_the_differences(seeds, draw):
    rng = np.random.default_rng(draw)
    ours = dict(enumerate(rng.uniform(0, 100, seeds)))
    theirs = {seed: error + rng.normal(1, 2) for seed, error in ours.items()}
    d = np.array([ours[seed] - theirs[seed] for seed in ours])
    low, high = stats.t.interval(0.95, len(d) - 1, d.mean(), stats.sem(d))
    got = paired(ours, {**theirs, 99: 5.0})  # a seed that only one of them has
    np.testing.assert_allclose(got, (d.mean(), low, high), atol=6e-4)  # given to three digits


def test_few_seeds_say_less():
    assert paired({0: 1.0}, {1: 2.0}) is None
    assert paired({0: 1.0}, {0: 2.0}) == Difference(-1.0, None, None)
    assert paired({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0}) == Difference(-1.0, -1.0, -1.0)


@pytest.mark.parametrize(
    ('low', 'high', 'reading'),
    [
        (-2.0, -0.1, 'lower'),
        (0.1, 2.0, 'higher'),
        (-0.1, 0.1, 'not told apart'),
        (0.0, 1.0, 'not told apart'),
        (None, None, 'one seed says nothing'),
    ],
)
def test_nothing_is_better_where_zero_lies_within(low, high, reading):
    assert Difference(0.0, low, high).reading == reading


@pytest.fixture
def plan(tmp_path):
    """A study of which 2 + 1 of 4 runs have finished, with made-up results."""
    plan = Plan(STUDIES['squeeze'], QUICKSTART, (), 2, tmp_path / 'runs')
    classes = [str(i) for i in range(10)]
    results = {('average', 0): (0.9, 0.99), ('max', 0): (0.88, 0.98), ('average', 1): (0.8, 0.97)}
    for task in plan.tasks():
        if (task.cell.name, task.seed) in results:
            top1, top5 = results[task.cell.name, task.seed]
            config = plan.cell_config(task.cell, task.seed)
            workdir.claim(task.workdir, workdir.told(config, classes), {})
            with MetricsWriter(task.workdir, resume_step=0) as rows:
                for step, speed in ((1, 100.0), (2, 300.0), (3, 200.0)):
                    rows.write(
                        {
                            **{'step': step, 'split': 'train', 'loss': 1.0, 'top1': 0.1},
                            **{'top5': 0.5, 'learning_rate': 0.1, 'images_per_second': speed},
                            **{'data_wait': 0.0, 'host_ms': 0.0},
                        }
                    )
            workdir.finish(task.workdir, {'top1': top1, 'top5': top5})
    return plan


def test_rows_are_a_function_of_the_finished_runs(plan):
    average, largest = collect(plan)
    assert average['seeds'] == [0, 1]
    np.testing.assert_allclose(average['top1_error'], [10, 20])
    assert (average['top1_error_mean'], average['top1_error_std']) == (15.0, 7.071)
    assert average['difference'] is None
    assert largest['seeds'] == [0]
    assert largest['top1_error_std'] is None
    assert largest['difference'] == 2.0
    assert (largest['low'], largest['reading']) == (None, 'one seed says nothing')
    assert largest['fields'] == {'model_fields.se.squeeze': 'max'}
    assert largest['images_per_second'] == 200.0
    # Both have the same layers: the quick start's network, counted in its golden summary.
    assert average['params'] == largest['params'] > 300_000
    assert largest['paper_top1_error'] == 22.57


def test_the_three_files_agree(plan, tmp_path):
    rows = write_results(tmp_path, plan)
    lines = (tmp_path / 'results.jsonl').read_text().splitlines()
    assert list(map(json.loads, lines)) == rows
    with (tmp_path / 'results.csv').open() as file:
        cells = list(csv.DictReader(file))
    assert [float(cell['top1_error_mean']) for cell in cells] == [15.0, 12.0]
    assert cells[1]['fields'] == 'model_fields.se.squeeze=max'
    text = (tmp_path / 'results.md').read_text()
    assert '3 of 4 runs of `' in text
    assert '| average | 2 | 15.00 ± 7.07 |' in text
    for line in table(rows)[1:]:
        assert f'| {" | ".join(line)} |' in text
