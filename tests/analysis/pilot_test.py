"""What a pilot tells: times from the runs, seeds for the strictest test."""

import pytest

from se_flax.analysis.pilot import beginning, duration, needs, page, spent
from se_flax.analysis.plan import Plan
from se_flax.analysis.results import compare
from se_flax.analysis.statistics import seeds_needed
from se_flax.analysis.study import STUDIES
from se_flax.training import workdir

from .plan_test import QUICKSTART
from .results_test import row

pytestmark = pytest.mark.quick


def test_a_run_takes_as_long_as_those_of_its_cell(tmp_path):
    tasks = Plan(STUDIES['squeeze'], QUICKSTART, (), 3, tmp_path).tasks()

    def finish(number, seconds):
        tasks[number].workdir.mkdir(parents=True)
        workdir.finish(tasks[number].workdir, {'goodput': {'seconds': seconds}})

    assert beginning(tasks) == '6 of 6 runs remain'
    finish(0, 100.0)
    finish(2, 200.0)
    assert spent(tasks) == (300, 4 * 150)
    finish(1, 50.0)
    assert spent(tasks) == (350, 150 + 2 * 50)
    assert beginning(tasks) == '3 of 6 runs remain, about 4 min'
    for number in (3, 4, 5):
        finish(number, 1.0)
    assert beginning(tasks) == ''


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(0.4, '0 s'), (119.4, '119 s'), (120, '2 min'), (3599, '1 h 0 min'), (7260, '2 h 1 min')],
)
def test_durations_are_words(seconds, text):
    assert duration(seconds) == text


def test_each_comparison_needs_the_seeds_of_its_deviation():
    rows = [row('SE', {0: 10.0, 1: 10.0})]
    rows += [row('max', {0: 10.0, 1: 11.0}), row('pre', {0: 10.0, 1: 10.2}), row('post', {0: 9.0})]
    (_, wide, narrow, unknown), most = needs(compare(rows), 0.5, 0.01)
    assert most == seeds_needed(0.707, 0.5, 0.01) > seeds_needed(0.707, 0.5)
    assert wide == ['max', 'SE', '2', '0.71', '0.32 to 22.56', str(most)]
    assert narrow[-1] == str(seeds_needed(0.141, 0.5, 0.01))
    assert unknown == ['post', 'SE', '1', '', '', '']
    assert needs(compare(rows[:1] + rows[3:]), 0.5, 0.05)[1] == 0


def test_runs_that_have_not_told_their_time_are_no_estimate(tmp_path):
    plan = Plan(STUDIES['squeeze'], QUICKSTART, (), 2, tmp_path)
    errors = {'average': {0: 10.0, 1: 10.0}, 'max': {0: 10.0, 1: 11.0}}
    rows = compare([row(name, of, 'average') for name, of in errors.items()])
    text = page(plan, rows, 1.0, 'se-flax ablate')
    assert 'takes about' not in text
    assert text.endswith(f'To continue:\n\n    se-flax ablate --seeds {seeds_needed(0.707, 1.0)}\n')
