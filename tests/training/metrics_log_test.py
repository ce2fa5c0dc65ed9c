"""The file and the events of a run cut anywhere and resumed are those of one never cut."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog

from se_flax.errors import UserError
from se_flax.training.metrics_log import FIELDS, TIMING, MetricsWriter, read_rows

pytestmark = pytest.mark.quick


def row(step, split='train', **values):
    """A row whose numbers depend on step and split alone, none of them short in decimal."""
    rng = np.random.default_rng([step, split == 'eval'])
    numbers = {name: float(rng.random()) for name in FIELDS[split]}
    if split == 'eval':
        numbers['examples'] = 2000 + step
    return {'step': step, 'split': split, **numbers, **values}


def run(workdir, steps, *, resume_step):
    """As the loop does: a train row a step, an evaluation each fourth, of step 0 too."""
    with MetricsWriter(workdir, resume_step=resume_step) as writer:
        for step in range(resume_step, steps + 1):
            if step > resume_step:
                writer.write(row(step))
            if step % 4 == 0:
                writer.write(row(step, 'eval'))


def untimed(rows):
    return [{name: r[name] for name in r if name not in TIMING} for r in rows]


def read_events(workdir):
    """All events of the folder, read by TensorBoard, which ends at the first wrong checksum."""
    paths = sorted(map(str, (workdir / 'tensorboard').iterdir()))
    return [event for path in paths for event in LegacyEventFileLoader(path).Load()]


def assert_events_equal_rows(workdir):
    version, start, *events = read_events(workdir)
    assert version.file_version == 'brain.Event:2'
    assert start.session_log.status == SessionLog.START
    rows = read_rows(workdir / 'metrics.jsonl')
    assert [(e.step, e.wall_time) for e in events] == [(r['step'], r['time']) for r in rows]
    for event, r in zip(events, rows, strict=True):
        want = {f'{r["split"]}/{name}': np.float32(r[name]) for name in FIELDS[r['split']]}
        assert {v.tag: np.float32(v.simple_value) for v in event.summary.value} == want


def test_a_line_is_a_json_object_with_the_named_fields_and_the_time(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        writer.write(row(5))
        writer.write(row(5, 'eval'))
    train, evaluation = map(json.loads, (tmp_path / 'metrics.jsonl').read_text().splitlines())
    assert train.pop('time') == pytest.approx(evaluation.pop('time'), abs=60)
    assert train == row(5)
    assert evaluation == row(5, 'eval')
    assert isinstance(evaluation['examples'], int)


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(finite | st.floats(width=32, allow_nan=False, allow_infinity=False).map(np.float32))
)
@settings(max_examples=30, deadline=None)
def test_every_digit_is_kept(losses):
    with tempfile.TemporaryDirectory() as folder:
        with MetricsWriter(folder, resume_step=0) as writer:
            for step, loss in enumerate(losses):
                writer.write(row(step, loss=loss))
        got = [r['loss'] for r in read_rows(f'{folder}/metrics.jsonl')]
    assert list(map(repr, got)) == [repr(float(loss)) for loss in losses]


@pytest.mark.parametrize('cut', range(9))
def test_resumed_file_equals_the_uninterrupted(tmp_path, cut):
    """Cut at step 8 or before, when rows up to step 8 were written, some after the checkpoint."""
    run(tmp_path / 'whole', 13, resume_step=0)
    run(tmp_path / 'cut', 8, resume_step=0)
    kept = (tmp_path / 'cut/metrics.jsonl').read_bytes().splitlines(keepends=True)
    kept = b''.join(line for line in kept if json.loads(line)['step'] <= cut)
    run(tmp_path / 'cut', 13, resume_step=cut)
    whole, resumed = (read_rows(tmp_path / name / 'metrics.jsonl') for name in ('whole', 'cut'))
    assert untimed(resumed) == untimed(whole)
    assert (tmp_path / 'cut/metrics.jsonl').read_bytes().startswith(kept)
    assert_events_equal_rows(tmp_path / 'cut')


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('written')
    run(workdir, 5, resume_step=0)
    return (workdir / 'metrics.jsonl').read_bytes()


def whole_rows(data):
    """Rows of which every byte is there; the newline may be torn off."""
    return [
        json.loads(line)
        for line in data.split(b'\n')
        if line.startswith(b'{') and line[-1:] == b'}'
    ]


def test_reading_leaves_out_a_line_torn_at_any_byte(tmp_path, written):
    path = tmp_path / 'metrics.jsonl'
    for cut in range(len(written) + 1):
        path.write_bytes(written[:cut])
        assert read_rows(path) == whole_rows(written[:cut])


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_opening_drops_a_torn_line_and_goes_on(written, data):
    """Torn at a byte, or followed by what a file system leaves after a power cut."""
    cut = data.draw(st.integers(0, len(written)))
    tail = data.draw(st.just(b'') | st.just(bytes(30)) | st.binary().map(lambda b: b'{' + b))
    torn = written[:cut] + tail.replace(b'\n', b'')
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        (workdir / 'metrics.jsonl').write_bytes(torn)
        with MetricsWriter(workdir, resume_step=100) as writer:
            writer.write(row(101))
        rows = read_rows(workdir / 'metrics.jsonl')
        kept = whole_rows(torn if not tail else torn[: torn.rfind(b'\n') + 1])
        assert rows[:-1] == kept
        assert untimed(rows[-1:]) == untimed([row(101)])
        assert_events_equal_rows(workdir)


def test_crash_between_temporary_file_and_rename_leaves_the_old_rows(tmp_path, monkeypatch):
    run(tmp_path, 8, resume_step=0)
    old = (tmp_path / 'metrics.jsonl').read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, 'replace', crash)
        with pytest.raises(KeyboardInterrupt):
            MetricsWriter(tmp_path, resume_step=5)
    assert (tmp_path / 'metrics.jsonl').read_bytes() == old
    run(tmp_path, 13, resume_step=5)
    run(tmp_path / 'whole', 13, resume_step=0)
    assert untimed(read_rows(tmp_path / 'metrics.jsonl')) == untimed(
        read_rows(tmp_path / 'whole/metrics.jsonl')
    )
    assert_events_equal_rows(tmp_path)


def test_nothing_to_drop_leaves_the_file_alone(tmp_path):
    run(tmp_path, 8, resume_step=0)
    before = (tmp_path / 'metrics.jsonl').stat()
    with MetricsWriter(tmp_path, resume_step=8):
        pass
    after = (tmp_path / 'metrics.jsonl').stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_step_evaluated_again_leaves_one_row(tmp_path):
    run(tmp_path, 8, resume_step=0)
    run(tmp_path, 8, resume_step=8)
    steps = [r['step'] for r in read_rows(tmp_path / 'metrics.jsonl') if r['split'] == 'eval']
    assert steps == [0, 4, 8]
    assert_events_equal_rows(tmp_path)


@pytest.mark.faults
def test_a_killed_process_has_lost_no_row(tmp_path):
    code = (
        'import os, sys\n'
        'from se_flax.training.metrics_log import MetricsWriter\n'
        f'writer = MetricsWriter({str(tmp_path)!r}, resume_step=0)\n'
        f'writer.write({row(1)!r})\n'
        'os.kill(os.getpid(), 9)\n'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == -9
    assert untimed(read_rows(tmp_path / 'metrics.jsonl')) == untimed([row(1)])
    assert_events_equal_rows(tmp_path)


def test_flush_reaches_the_disk(tmp_path, monkeypatch):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        writer.write(row(1))
        synced = []
        monkeypatch.setattr(
            os, 'fsync', lambda fd: synced.append(os.readlink(f'/proc/self/fd/{fd}'))
        )
        writer.flush()
    (events,) = (tmp_path / 'tensorboard').iterdir()
    assert {str(tmp_path / 'metrics.jsonl'), str(events)} <= set(synced)


@pytest.mark.parametrize('bad', [b'', b'{"step": 2, "sp', b'[1]', b'null', b'{"step": 2}'])
def test_a_bad_line_in_the_middle_is_named_and_nothing_is_touched(tmp_path, written, bad):
    lines = written.split(b'\n')
    lines[2] = bad
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'\n'.join(lines))
    with pytest.raises(UserError, match=r'metrics\.jsonl, line 3 is not a row of metrics'):
        MetricsWriter(tmp_path, resume_step=1)
    assert path.read_bytes() == b'\n'.join(lines)


def test_a_row_with_other_fields_or_not_finite_is_refused_and_not_written(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        with pytest.raises(ValueError, match='a train row has loss, top1, top5, learning_rate'):
            writer.write(row(1, seconds=1.0))
        with pytest.raises(ValueError, match='JSON compliant'):
            writer.write(row(1, loss=np.nan))
        writer.write(row(1))
    assert untimed(read_rows(tmp_path / 'metrics.jsonl')) == untimed([row(1)])


def test_what_a_run_writes_and_shows_needs_no_tensorflow_and_no_pyplot():
    code = (
        'import sys\n'
        'import clu.parameter_overview\n'
        'from se_flax.training import curves, metrics_log, progress, summary\n'
        "print({'tensorflow', 'matplotlib.pyplot'} & set(sys.modules))\n"
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout == 'set()\n'
