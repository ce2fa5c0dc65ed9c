"""From runs to tables: the statistics against scipy's and NumPy's, the files against each other."""

import csv
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from se_flax import tables
from se_flax.analysis.plan import Plan
from se_flax.analysis.results import collect, paired, table, write_results
from se_flax.analysis.study import STUDIES
from se_flax.training import workdir
from se_flax.training.metrics_log import MetricsWriter

from .plan_test import QUICKSTART

pytestmark = pytest.mark.quick

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'docs' / 'experiments'


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_paired_is_the_t_interval_of_the_differences(seeds, draw):
    rng = np.random.default_rng(draw)
    ours = dict(enumerate(rng.uniform(0, 100, seeds)))
    theirs = {seed: error + rng.normal(1, 2) for seed, error in ours.items()}
    d = np.array([ours[seed] - theirs[seed] for seed in ours])
    low, high = stats.t.interval(0.95, len(d) - 1, d.mean(), stats.sem(d))
    got = paired(ours, {**theirs, 99: 5.0})  # a seed that only one of them has
    got = [got[name] for name in ('difference', 'low', 'high')]
    np.testing.assert_allclose(got, (d.mean(), low, high), atol=6e-4)  # given to three digits


@pytest.mark.parametrize(
    ('differences', 'expected'),
    [
        ([], (None, None, None, '')),
        ([-1.0], (-1.0, None, None, 'only one seed')),
        ([-1.0, -1.0], (-1.0, -1.0, -1.0, 'lower')),
        ([2.0, 2.0], (2.0, 2.0, 2.0, 'higher')),
        ([0.0, 0.0], (0.0, 0.0, 0.0, 'not significant')),
        ([-1.0, -1.1], (-1.05, -1.685, -0.415, 'lower')),
        ([1.0, -1.0], (0.0, -12.706, 12.706, 'not significant')),
    ],
)
def test_the_reading_says_no_more_than_the_interval(differences, expected):
    ours = {seed: 10 + difference for seed, difference in enumerate(differences)}
    got = paired(ours, dict.fromkeys([*ours, 'another'], 10.0))
    assert tuple(got.values()) == pytest.approx(expected, abs=1e-9)
    assert paired(ours, {'another': 10.0})['difference'] is None


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
            workdir.claim(task.workdir, workdir.saved_config(config, classes), {})
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
    assert (largest['low'], largest['reading']) == (None, 'only one seed')
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


@pytest.mark.parametrize(
    'page', sorted(EXPERIMENTS.glob('*/results.md')), ids=lambda p: p.parent.name
)
def test_the_tables_of_the_docs_are_made_from_their_rows(page):
    lines = page.with_name('results.jsonl').read_text().splitlines()
    assert tables.markdown(table(list(map(json.loads, lines)))) in page.read_text()
