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
from se_flax.analysis.results import both_tables, read_results
from se_flax.training.metrics_log import read_rows

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = ROOT / 'docs' / 'experiments'
AGAIN = EXPERIMENTS / 'again'
RECORD = runpy.run_path(str(ROOT / 'benchmarks' / 'record.py'))
TIMED = {'images_per_second', 'data_wait', 'host_ms', 'seconds', 'time'}
STUDIES = sorted(path.parent for path in EXPERIMENTS.glob('*/results.jsonl'))


def rows_of(folder):
    return [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]


@pytest.mark.quick
@pytest.mark.parametrize('folder', STUDIES, ids=lambda folder: folder.name)
def test_a_study_s_tables_are_made_of_its_rows(folder):
    rows = rows_of(folder)
    assert read_results(folder) == rows  # which computes the statistics from each seed's error
    page = (folder / 'results.md').read_text()
    assert all(tables.markdown(table) in page for table in both_tables(rows))
    plan = load_plan(folder)
    assert [row['cell'] for row in rows] == [cell.name for cell in plan.study.cells]
    assert (ROOT / plan.config.partition(':')[0]).is_file()


@pytest.mark.quick
def test_every_interval_of_the_page_is_one_of_a_study():
    page = (EXPERIMENTS / 'README.md').read_text()
    told = set(re.findall(r'([+-]\d+\.\d\d) \(([+-]\d+\.\d\d) to ([+-]\d+\.\d\d)\)', page))
    rows = [row for folder in STUDIES for row in rows_of(folder)]
    known = {
        tuple(f'{row[name]:+.2f}' for name in ('difference', 'low', 'high'))
        for row in rows
        if row['low'] is not None
    }
    assert len(told) > 10
    assert told <= known


def made_with():
    """What decides how sums are rounded; a virtual machine's processor name is not enough."""
    processor = RECORD['cpuinfo']()
    names = 'model name', 'cpu family', 'model', 'stepping', 'cache size', 'flags'
    versions = RECORD['versions']('jax', 'jaxlib', 'flax', 'optax')
    return {'versions': versions} | {name: processor.get(name) for name in names}


def test_a_study_made_again_is_equal_in_every_bit(tmp_path):
    """On one core of the same processor, with the same versions; elsewhere its start is close."""
    plan, made = load_plan(AGAIN), json.loads((AGAIN / 'made_with.json').read_text())
    fields = [f'--config.{name}={text}' for name, text in plan.assignments]
    [cell] = plan.study.cells
    [(name, text)] = cell.fields
    command = ['ablate', 'grid', '--vary', f'{name}={text}', '--config', str(ROOT / plan.config)]
    environ = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    environ |= {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1'}
    command += [*fields, '--seeds', '1', '--out', tmp_path]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # of this thread, which the process inherits
    try:
        subprocess.run([sys.executable, '-m', 'se_flax.cli', *command], env=environ, check=True)
    finally:
        os.sched_setaffinity(0, cores)
    [path] = tmp_path.glob('runs/*/*/metrics.jsonl')
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in TIMED} for row in read_rows(of)]
        for of in (path, AGAIN / 'metrics.jsonl')
    )
    assert ours[0]['loss'] == pytest.approx(theirs[0]['loss'], rel=1e-3)  # before rounding grows
    if made_with() == made:
        assert ours == theirs
        [row], [was] = map(rows_of, (tmp_path, AGAIN))
        assert {**row, 'images_per_second': 0} == {**was, 'images_per_second': 0}
