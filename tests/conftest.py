"""Shared by all tests: eight CPU devices, strict ranks, golden files."""

import pathlib

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
GOLDEN = pathlib.Path(__file__).parent / 'golden'


def pytest_addoption(parser):
    parser.addoption('--update-golden', action='store_true', help='rewrite tests/golden')


@pytest.fixture(scope='session')
def shared_folder(tmp_path_factory, worker_id, testrun_uid):
    """A folder that all xdist workers of this session have."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder if worker_id == 'master' else folder.parent / testrun_uid
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def clock(monkeypatch):
    """`clock[0]` is the time of `time.monotonic`, in seconds."""
    clock = [1000.0]
    monkeypatch.setattr('time.monotonic', lambda: clock[0])
    return clock


@pytest.fixture
def golden(request):
    """`golden(path, text)` compares text with a reviewed file, or rewrites it on demand."""
    hint = f'if that is meant: pytest {request.node.nodeid} --update-golden, then review git diff'

    def compare(path, text):
        path = GOLDEN / path
        if request.config.getoption('--update-golden'):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f'no golden file {path}; {hint}'
        assert text == path.read_text(), f'{path.name} differs; {hint}'

    return compare
