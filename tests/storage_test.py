"""A crash at any point of a write leaves the old file."""

import os
import pathlib

import pytest

from se_flax.errors import UserError
from se_flax.storage import as_path, atomic_write

pytestmark = pytest.mark.quick


def test_writes_and_replaces(tmp_path):
    path = tmp_path / 'file'
    for data in (b'first', b'second, longer', b''):
        atomic_write(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('where', ['fsync', 'replace'])
def test_crash_keeps_the_old_bytes_and_the_next_write_succeeds(tmp_path, monkeypatch, where):
    path = tmp_path / 'file'
    atomic_write(path, b'old')

    def crash(*_):
        raise OSError('no space left')

    with monkeypatch.context() as patch:
        patch.setattr(*{'fsync': (os, 'fsync'), 'replace': (pathlib.Path, 'replace')}[where], crash)
        with pytest.raises(OSError, match='no space left'):
            atomic_write(path, b'new')
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]  # a full disk has the space back
    atomic_write(path, b'new')
    assert path.read_bytes() == b'new'
    assert list(tmp_path.iterdir()) == [path]


def test_data_is_on_the_disk_before_the_rename_and_the_rename_before_return(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, pathlib.Path.replace
    monkeypatch.setattr(
        os, 'fsync', lambda fd: calls.append(os.readlink(f'/proc/self/fd/{fd}')) or fsync(fd)
    )
    monkeypatch.setattr(
        pathlib.Path, 'replace', lambda a, b: calls.append('rename') or replace(a, b)
    )
    atomic_write(tmp_path / 'file', b'data')
    temporary, *rest = calls
    assert pathlib.Path(temporary).parent == tmp_path
    assert rest == ['rename', str(tmp_path)]


def test_two_processes_may_write_a_file_at_once(tmp_path, monkeypatch):
    """As the shards of a study do; here one writes while the other is at its rename."""
    path, replace = tmp_path / 'file', pathlib.Path.replace

    def replace_late(temporary, target):
        monkeypatch.setattr(pathlib.Path, 'replace', replace)
        monkeypatch.setattr(os, 'getpid', lambda: 1)
        atomic_write(path, b'of another')
        return replace(temporary, target)

    monkeypatch.setattr(pathlib.Path, 'replace', replace_late)
    atomic_write(path, b'whole')
    assert path.read_bytes() == b'whole'
    assert list(tmp_path.iterdir()) == [path]


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert as_path('~/runs/a') == tmp_path / 'runs' / 'a'
    assert as_path('runs/~') == pathlib.Path('runs/~')
    assert as_path('~no-such-user/runs') == pathlib.Path('~no-such-user/runs')
    with pytest.raises(UserError, match="unknown URL scheme 'gz'"):
        as_path('gz://bucket/~')
