"""The studies of `docs/experiments`: their tables, and one that is made again."""

import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from se_flax import tables
from se_flax.analysis.plan import load_plan
from se_flax.analysis.results import table
from se_flax.training.metrics_log import read_rows

pytestmark = pytest.mark.quick

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = ROOT / 'docs' / 'experiments'
AGAIN = EXPERIMENTS / 'again'
RECORD = runpy.run_path(str(ROOT / 'benchmarks' / 'record.py'))
STUDIES = sorted(path.parent for path in EXPERIMENTS.glob('*/results.jsonl'))


@pytest.mark.parametrize('folder', STUDIES, ids=lambda folder: folder.name)
def test_a_study_s_tables_are_made_of_its_rows(folder):
    rows = read_rows(folder / 'results.jsonl')
    assert tables.markdown(table(rows)) in (folder / 'results.md').read_text()
    plan = load_plan(folder)
    assert [row['cell'] for row in rows] == [cell.name for cell in plan.study.cells]
    assert (ROOT / plan.config.partition(':')[0]).is_file()


def test_every_interval_of_the_page_is_one_of_a_study():
    page = (EXPERIMENTS / 'README.md').read_text()
    told = set(re.findall(r'([+-]\d+\.\d\d) \(([+-]\d+\.\d\d) to ([+-]\d+\.\d\d)\)', page))
    rows = [row for folder in STUDIES for row in read_rows(folder / 'results.jsonl')]
    known = {
        tuple(f'{row[name]:+.2f}' for name in ('difference', 'low', 'high'))
        for row in rows
        if row['low'] is not None
    }
    assert len(told) > 10
    assert told <= known


def test_a_study_made_again_is_equal_in_every_bit(tmp_path):
    """On this processor and with these versions; elsewhere its first loss is, up to rounding."""
    plan, made = load_plan(AGAIN), json.loads((AGAIN / 'made_with.json').read_text())
    assert [name for name, _ in plan.assignments] == ['num_steps', 'log_every_steps']
    fields = [f'--config.{name}={text}' for name, text in plan.assignments]
    axes = [f'{name}={text}' for cell in plan.study.cells for name, text in cell.fields]
    command = ['ablate', 'grid', '--vary', *axes, '--config', str(ROOT / plan.config), *fields]
    environ = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    subprocess.run(
        [sys.executable, '-m', 'se_flax.cli', *command, '--seeds', '1', '--out', str(tmp_path)],
        env=environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1'},
        check=True,
    )
    [path] = tmp_path.glob('runs/*/*/metrics.jsonl')
    ours, theirs = read_rows(path), read_rows(AGAIN / 'metrics.jsonl')
    assert ours[0]['loss'] == pytest.approx(theirs[0]['loss'], rel=1e-4)
    timed = {'images_per_second', 'data_wait', 'host_ms', 'seconds'}
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    now = RECORD['processor']().partition(',')[0], RECORD['versions']('jax', 'jaxlib', 'flax')
    if now == (made['processor'], made['versions']):
        for our, their in zip(ours, theirs, strict=True):
            assert {k: v for k, v in our.items() if k not in timed} == {
                k: v for k, v in their.items() if k not in timed
            }
        [row], [was] = (read_rows(of / 'results.jsonl') for of in (tmp_path, AGAIN))
        assert {**row, 'images_per_second': 0} == {**was, 'images_per_second': 0}
