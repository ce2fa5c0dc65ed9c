"""benchmarks/gpu.py, quick and with faults, so that it works on the day there is a GPU."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

pytest.importorskip('timm')
ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / 'benchmarks' / 'gpu.py'
BARE = """
import sys
from importlib import metadata

absent = 'tensorflow_datasets grain clu array_record tensorboard simplejpeg ml_collections'
sys.modules.update(dict.fromkeys(absent.split()))  # as if they were not installed


class Distribution(metadata.Distribution):
    @classmethod
    def from_name(cls, name):
        if name == 'se_flax':
            raise metadata.PackageNotFoundError(name)
        return super().from_name(name)


metadata.distribution = Distribution.from_name
"""
FAULTS = """
import os
import time


def job(parts, batch):
    for part in parts:
        if part['does'] == 'raise':
            raise ValueError('a reason, ' + 'and more\\n' * 1000)
        if part['does'] == 'abort':
            os.abort()
        if part['does'] == 'hang':
            time.sleep(3600)
        if part['does'] == 'fill' and batch > 20:
            raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory while allocating 9 bytes.')
        yield {'process': os.getpid()}
"""
OUT_OF_MEMORY = 'CUDA out of memory. Tried to allocate 20.00 GiB.'  # torch.OutOfMemoryError's
RUNS = [{'network': 'mobilenet', 'run': run} for run in ('training step', 'inference')]


@pytest.fixture
def module(monkeypatch):
    """Imports what lies in benchmarks."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module


@pytest.fixture
def faults(monkeypatch, tmp_path):
    (tmp_path / 'faults.py').write_text(FAULTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module('faults').job
    del sys.modules['faults']


@pytest.fixture
def benchmark(module, monkeypatch):
    """Runs `gpu.benchmark` on sides that do nothing but raise what `fails[side, what]` is."""
    gpu, fails = module('gpu'), {}

    def made(side):
        def does(what):
            if (side, what) in fails:
                raise RuntimeError(fails[side, what])
            time.sleep(1e-3)

        does('make')
        functions = {what: lambda *_, what=what: does(what) for what in ('train', 'inference')}
        return functions, {'compile_s': 1.0, 'bytes': 1}

    def theirs(*args, compiled=False, **fields):
        return made('compiled' if compiled else 'eager')

    monkeypatch.setattr(gpu, 'mine', lambda *args: made('ours'))
    monkeypatch.setattr(gpu, 'pytorchs', theirs)

    def run(batch=64, **errors):
        fails.update({tuple(key.split('_')): text for key, text in errors.items()})
        figures = gpu.benchmark('mobilenetv1_100', 32, 'cuda', 2, 1, RUNS, batch)
        return [part | row for part, row in zip(RUNS, figures, strict=True)]

    return run


def test_the_quick_form_runs_and_says_what_it_would_from_a_checkout_with_few_packages(tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(BARE)
    done = subprocess.run(
        [sys.executable, SCRIPT, '--quick'],
        text=True,
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith('cpu; se_flax 0.1.0 (not installed), jax ')
    rows = [line.split(' | ') for line in lines if line.startswith('| se_resnet8_cifar |')]
    assert [row[1] for row in rows] == ['training step', 'inference'], done.stderr
    for row in rows:
        # `median (least-most)`: each round's ratio lies between those of the extremes.
        (fast, slow), (least, most) = (re.findall(r'[\d.]+', cell)[1:] for cell in row[4:6])
        low, high = float(least) / float(slow), float(most) / float(fast)
        assert 0.99 * low - 0.01 < float(row[7]) < 1.01 * high + 0.01  # all are printed rounded
    assert lines[-1].startswith('| 4x4, 32 channels, 8 groups | 2 | ')  # and nothing failed


def test_without_a_gpu_it_says_so(module, monkeypatch):
    gpu = module('gpu')
    monkeypatch.setattr(gpu, 'measured', lambda job, parts, batch, deadline: job(parts, batch))
    monkeypatch.setattr(sys, 'argv', ['gpu.py'])
    with pytest.raises(SystemExit, match='needs a GPU that both jax and torch see; --quick needs'):
        gpu.main()


def test_a_failure_is_a_row_and_memory_decides_the_batch(module, faults):
    parts = [{'does': what} for what in ('well', 'raise', 'fill', 'abort', 'well')]
    rows = list(module('isolated').measured(faults, parts, 128, time.monotonic() + 600))
    assert [row['does'] for row in rows] == [part['does'] for part in parts]
    assert [row['batch'] for row in rows] == [128, 128, 16, 16, 16]
    errors = [row.get('error') for row in rows]
    assert errors[1].startswith('ValueError: a reason, and more')
    assert len(errors[1]) == 200
    assert errors[3] == 'its process ended with exit code -6'
    assert [errors[i] for i in (0, 2, 4)] == [None] * 3
    assert len({row['process'] for row in rows if 'process' in row}) == 3


def test_batches_have_a_floor(module, faults):
    [row] = module('isolated').measured(faults, [{'does': 'fill'}], 30, time.monotonic() + 600)
    assert row['batch'] == 30
    assert row['error'].startswith('RuntimeError: RESOURCE_EXHAUSTED')


def test_what_hangs_ends_with_the_time_and_keeps_what_was_measured(module, faults, monkeypatch):
    isolated, now = module('isolated'), [0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(isolated, 'time', clock)  # its own alone: multiprocessing waits by time's
    parts = [{'does': what} for what in ('well', 'hang', 'well')]
    rows = isolated.measured(faults, parts, 64, 600)
    assert 'process' in next(rows)
    now[0] = 600
    assert list(rows) == [{'does': 'hang', 'batch': 64, 'error': 'out of time'}]


@pytest.mark.parametrize('side', ['ours', 'eager', 'compiled'])
def test_a_side_that_fails_leaves_the_others_figures(module, benchmark, side):
    others = {'ours', 'eager', 'compiled'} - {side}
    rows = benchmark(**{f'{side}_make': 'no compiler'})
    for row in rows:
        assert row['seconds'].keys() == others
        assert row['ratio'].keys() == (others - {'ours'} if 'ours' in others else set())
        assert row['errors'] == {side: 'RuntimeError: no compiler'}
    text = module('gpu').markdown(1e12, {'rows': rows, 'variants': [], 'grouped': []})
    failed = (
        f'Failed: network mobilenet, run inference, batch 64; {side}: `RuntimeError: no compiler`'
    )
    assert failed in text.splitlines()
    assert text.count('\n| mobilenet |') == 2


def test_a_side_that_fails_at_inference_has_its_training_step(benchmark):
    train, inference = benchmark(compiled_inference='no compiler')
    assert train['errors'] == {}
    assert 'compiled' in train['seconds']
    assert inference['errors'] == {'compiled': 'RuntimeError: no compiler'}
    assert inference['seconds'].keys() == {'ours', 'eager'}


@pytest.mark.parametrize('when', ['make', 'train'])
def test_memory_that_is_too_small_for_one_side_ends_all_until_the_smallest_batch(benchmark, when):
    with pytest.raises(RuntimeError, match=OUT_OF_MEMORY):
        benchmark(64, **{f'eager_{when}': OUT_OF_MEMORY})
    train, _ = benchmark(16, **{f'eager_{when}': OUT_OF_MEMORY})
    assert train['errors'] == {'eager': f'RuntimeError: {OUT_OF_MEMORY}'}
    assert train['seconds'].keys() == {'ours', 'compiled'}


def test_each_row_is_written_before_the_next_is_measured(module, monkeypatch, tmp_path):
    gpu, kinds = module('gpu'), set()

    def measured(job, parts, batch, deadline):
        if job.func is gpu.machine:
            yield {'device': 'a card', 'rate': 1e12}
            return
        for part in parts:
            row = part | {'batch': batch, 'error': 'its process ended'}
            yield row
            written = json.loads((tmp_path / 'gpu.json').read_text())
            [kind] = (kind for kind in ('rows', 'variants', 'grouped') if row in written[kind])
            kinds.add(kind)
            table = (tmp_path / 'gpu.md').read_text()
            assert table.count('Failed: ') == sum(len(written[kind]) for kind in kinds)

    monkeypatch.setattr(gpu, 'measured', measured)
    monkeypatch.setattr(module('record'), 'RESULTS', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['gpu.py'])
    gpu.main()
    assert kinds == {'rows', 'variants', 'grouped'}


def test_a_write_that_breaks_off_leaves_the_old_results(module, monkeypatch, tmp_path):
    record = module('record')
    monkeypatch.setattr(record, 'RESULTS', tmp_path)
    record.save('gpu', 'head', 'table', [{'batch': 1}])
    write = pathlib.Path.write_bytes

    def break_off(path, data):
        write(path, data[:9])
        raise OSError('no space')

    monkeypatch.setattr(pathlib.Path, 'write_bytes', break_off)
    with pytest.raises(OSError, match='no space'):
        record.save('gpu', 'head', 'table', [{'batch': 2}])
    assert record.read_rows('gpu') == [{'batch': 1}]
    assert (tmp_path / 'gpu.md').read_text() == 'head\n\ntable\n'
