"""From runs to tables: the statistics against scipy's and NumPy's, the files against each other."""

import csv
import json
import pathlib

import numpy as np
import pytest

from se_flax import cli
from se_flax.analysis import ablate as ablate_module
from se_flax.analysis import results
from se_flax.analysis.ablate import ablate
from se_flax.analysis.plan import Plan
from se_flax.analysis.results import both_tables, collect, compare, read_results, write_results
from se_flax.analysis.study import STUDIES
from se_flax.errors import UserError
from se_flax.training import workdir
from se_flax.training.loop import Preempted
from se_flax.training.metrics_log import MetricsWriter

from .plan_test import QUICKSTART

pytestmark = pytest.mark.quick

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'docs' / 'experiments'


def row(name, errors, baseline='SE', paper=None):
    """A row before its comparison; `errors` are by seed."""
    errors = {'seeds': list(errors), 'top1_error': list(errors.values())}
    return {'cell': name, 'baseline': baseline, 'paper_top1_error': paper, **errors}


@pytest.mark.parametrize(
    ('differences', 'expected'),
    [
        ([], (None, None, None, '')),
        ([-1.0], (-1.0, None, None, 'only one seed')),
        ([-1.0, -1.0], (-1.0, None, None, 'not significant')),
        ([0.0, 0.0], (0.0, None, None, 'not significant')),
        ([-1.0, -1.1], (-1.05, -1.685, -0.415, 'lower')),
        ([1.0, 1.1], (1.05, 0.415, 1.685, 'higher')),
        ([1.0, -1.0], (0.0, -12.706, 12.706, 'not significant')),
    ],
)
def test_the_reading_says_no_more_than_the_test(differences, expected):
    ours = {seed: 10 + difference for seed, difference in enumerate(differences)}
    baseline, got = compare([row('SE', dict.fromkeys([*ours, 9], 10.0)), row('max', ours)])
    got = tuple(got[name] for name in ('difference', 'low', 'high', 'reading'))
    assert got == pytest.approx(expected, abs=1e-9)
    assert (baseline['difference'], baseline['reading']) == (None, '')


def test_three_comparisons_are_harder_to_pass_than_one():
    rows = [row('SE', {0: 10.0, 1: 10.0, 2: 10.0}, paper=22.28)]
    for name, rest in (('max', 0.5), ('pre', 0.9), ('post', -1.0)):
        rows.append(row(name, {0: 10.5, 1: 10.6, 2: 10.4 + rest}, paper=22.57))
    alone, together = compare(rows[:2])[1], compare(rows)[1]
    assert alone['p'] == alone['p_holm'] == together['p'] < 0.05
    assert together['p_holm'] == pytest.approx(3 * alone['p'], rel=1e-3)
    assert (alone['reading'], together['reading']) == ('higher', 'not significant')
    assert (together['low'], together['high']) == (alone['low'], alone['high'])
    assert together['paper_difference'] == 0.29


@pytest.fixture
def plan(tmp_path):
    """A study of which 2 + 1 of 4 runs have finished, with made-up results."""
    plan = Plan(STUDIES['squeeze'], QUICKSTART, (), 2, tmp_path / 'runs')
    classes = [str(i) for i in range(10)]
    results = {('average', 0): (0.9, 0.99), ('max', 0): (0.88, 0.98), ('average', 1): (0.8, 0.97)}
    for task in plan.tasks():
        if (task.cell.name, task.seed) in results:
            top1, top5 = results[task.cell.name, task.seed]
            workdir.claim(task.workdir, workdir.saved_config(task.config, classes), {})
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
    average, largest = collect(plan, plan.tasks())
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


def test_a_finished_run_of_another_config_is_not_taken(plan):
    other = plan._replace(assignments=(('learning_rate', '9'),))
    with pytest.raises(UserError, match='holds a run with another config: learning_rate was 0.1'):
        ablate(other, {}, other.tasks(), other.tasks()[:1])
    with pytest.raises(UserError, match='holds a run with another config'):  # before it trains
        ablate(other, {}, other.tasks(), other.tasks()[-1:])
    with pytest.raises(UserError, match='holds a run with another config'):
        collect(other, other.tasks())


def test_all_runs_of_a_study_have_the_config_it_began_with(tmp_path, monkeypatch):
    config, rates, folders = tmp_path / 'config.py', [], []
    text = 'from se_flax.training.config import load_config\n\n\ndef get_config():\n'
    text += '    c = load_config("quickstart")\n    c.learning_rate = RATE\n    return c\n'

    def run(config_of_run, *_):
        rates.append(config_of_run.learning_rate)
        config.write_text(text.replace('RATE', '0.9'))

    monkeypatch.setattr(ablate_module, 'run', run)
    monkeypatch.setattr(ablate_module, 'write_right', lambda _, data_dir: folders.append(data_dir))
    config.write_text(text.replace('RATE', '0.2'))
    plan = Plan(STUDIES['squeeze'], str(config), (('data_dir', '/here'),), 1, tmp_path / 'runs')
    tasks = plan.tasks()
    ablate(plan, {}, tasks, tasks)
    assert rates == [0.2, 0.2]
    assert folders == ['/here', '/here']  # where the data are now


def test_the_results_are_those_of_the_config_it_began_with(plan, tmp_path):
    config = tmp_path / 'config.py'
    text = pathlib.Path(QUICKSTART).read_text()
    config.write_text(text)
    plan = plan._replace(config=str(config))
    tasks = plan.tasks()
    config.write_text(text.replace('    return c', '    c.learning_rate = 9.0\n    return c'))
    with pytest.raises(UserError, match='learning_rate was 0.1, now 9.0'):
        write_results(tmp_path, plan, plan.tasks())
    assert len(write_results(tmp_path, plan, tasks)) == 2


def test_logs_and_pages_take_every_name(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate_module, 'run', lambda *_: print('caf\udce9'))
    monkeypatch.setattr(ablate_module, 'write_right', lambda *_: None)
    *_, last = tasks = plan.tasks()
    ablate(plan, {}, tasks, [last])
    log = last.workdir.with_name(f'{last.workdir.name}.log')
    assert log.read_text() == 'caf\\udce9\n'
    named = plan._replace(assignments=(('data', 'folder:caf\udce9'),))
    write_results(tmp_path, named, plan.tasks())
    assert 'data=folder:caf\\udce9.' in (tmp_path / 'results.md').read_text()
    workdir.claim(tmp_path / 'run', {'data': 'folder:caf\udce9', 'class_names': []}, {})
    assert cli.main(['report', str(tmp_path / 'run')]) == 0
    assert 'on folder:caf\\udce9' in (tmp_path / 'run' / 'report.html').read_text()


def test_asked_to_stop_it_begins_nothing(plan, monkeypatch):
    begun = []
    monkeypatch.setattr(ablate_module, 'run', lambda *_: begun.append('run'))
    monkeypatch.setattr(ablate_module, 'write_right', lambda *_: begun.append('write_right'))
    with pytest.raises(Preempted):  # while the first of three finished runs is evaluated
        ablate(plan, {}, plan.tasks(), plan.tasks(), lambda step: bool(begun))
    assert begun == ['write_right']


def test_a_run_that_ends_meanwhile_is_in_the_files(plan, tmp_path, monkeypatch):
    done = plan.tasks()[2].workdir / workdir.DONE
    text = done.read_text()
    done.unlink()
    calls = []

    def slow(*args):
        calls.append(collect(*args))
        done.write_text(text)
        return calls[-1]

    monkeypatch.setattr(results, 'collect', slow)
    assert write_results(tmp_path, plan, plan.tasks()) == calls[1] != calls[0]
    assert '3 of 4 runs of `' in (tmp_path / 'results.md').read_text()
    assert (tmp_path / 'results.png').exists()


def test_the_three_files_agree(plan, tmp_path):
    rows = write_results(tmp_path, plan, plan.tasks())
    lines = (tmp_path / 'results.jsonl').read_text().splitlines()
    assert list(map(json.loads, lines)) == rows
    with (tmp_path / 'results.csv').open() as file:
        cells = list(csv.DictReader(file))
    assert [float(cell['top1_error_mean']) for cell in cells] == [15.0, 12.0]
    assert cells[1]['fields'] == 'model_fields.se.squeeze=max'
    text = (tmp_path / 'results.md').read_text()
    assert '3 of 4 runs of `' in text
    assert '| average | 2 | 15.00 ± 7.07 |' in text
    assert '| max | average | +2.00 |  |  | 0 of 1 |' in text
    cells, comparisons = both_tables(rows)
    assert (len(cells), len(comparisons)) == (3, 2)  # with their headers
    for line in [*cells, *comparisons]:
        assert f'| {" | ".join(line)} |' in text


@pytest.mark.parametrize('line', ['{"cell": ', '{}', '3'])
def test_rows_that_are_none_are_refused(line, tmp_path):
    (tmp_path / 'results.jsonl').write_text(line)
    with pytest.raises(UserError, match=r'results\.jsonl is damaged'):
        read_results(tmp_path)


def test_images_are_compared_if_every_run_of_a_pair_has_them(plan):
    right = np.arange(1000) < 900
    average, largest, _ = [task.workdir for task in plan.tasks() if task.workdir.exists()]
    np.save(average / 'right.npy', right)
    assert collect(plan, plan.tasks())[1]['images_low'] is None
    np.save(largest / 'right.npy', np.roll(right, 20) & right)
    _, row = collect(plan, plan.tasks())
    low, high = row['images_low'], row['images_high']
    assert 1 < low < 2 < high < 3  # 20 of 1,000 images: 2 points, with a deviation of 0.44
    np.save(largest / 'right.npy', right[:-1])  # of other images
    assert collect(plan, plan.tasks())[1]['images_low'] is None
