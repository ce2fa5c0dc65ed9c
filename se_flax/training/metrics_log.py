"""The metrics of a run on disk: `metrics.jsonl`, and TensorBoard events made from it."""

import contextlib
import json
import os
import struct
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from se_flax.errors import UserError
from se_flax.storage import AnyPath, GrowingFile, as_path, json_line

SPEED = ('images_per_second', 'data_wait', 'host_ms')
# A row is a dict of `step`, `split` (a key here), the split's fields, and `time`.
FIELDS = {
    'train': ('loss', 'top1', 'top5', 'learning_rate', *SPEED),
    'eval': ('loss', 'top1', 'top5', 'examples', 'seconds'),
}
# All other fields are equal in every digit between two runs of a recipe.
TIMING = ('time', *SPEED, 'seconds')


class MetricsWriter(contextlib.AbstractContextManager):
    """Appends rows to `workdir/metrics.jsonl`, one JSON object per line, and to TensorBoard.

    Opening it atomically removes a torn last line and the rows after `resume_step` (0 for a new
    run). A row survives a killed process after `write`, and a power cut after `flush`.
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int):
        workdir = as_path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / 'metrics.jsonl'
        rows = [row for row in read_rows(path) if row['step'] <= resume_step]
        self._last = {row['split']: row['step'] for row in rows}
        self._files = contextlib.ExitStack()
        content = b''.join(map(json_line, rows))
        self._rows = self._files.enter_context(GrowingFile(path, content))
        self._events = self._files.enter_context(_open_events(workdir / 'tensorboard', rows))

    def __exit__(self, *exc_info):
        with self._files:
            self.flush()

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row of `step`, `split` and the split's FIELDS, all finite, and adds the time.

        Does nothing if the split has a row of this step or a later one.
        """
        step, split = int(row['step']), row['split']
        if row.keys() != {'step', 'split', *FIELDS[split]}:
            raise ValueError(f'a {split} row has {", ".join(FIELDS[split])}; got {", ".join(row)}')
        if step <= self._last.get(split, -1):
            return
        values = {name: float(row[name]) for name in FIELDS[split]}
        if split == 'eval':
            values['examples'] = int(row['examples'])
        row = {'step': step, 'split': split, **values, 'time': round(time.time(), 3)}
        self._rows.write(json_line(row))
        self._events.write(_record(_event(row)))
        self._last[split] = step

    def flush(self) -> None:
        """Returns when every row is on the disk."""
        self._rows.sync()
        self._events.sync()


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl`, if any; UserError if any but the last is no row."""
    path = as_path(path)
    lines = path.read_bytes().rstrip(b'\n').split(b'\n') if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not {'step', *FIELDS[row['split']]} <= row.keys():
                raise ValueError
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise UserError(
                f'{path}, line {number} is not a row of metrics: {line[:40]!r}; '
                'delete that line, or move the file away'
            ) from None
        rows.append(row)
    return rows


def _open_events(folder: AnyPath, rows: list[dict[str, Any]]) -> GrowingFile:
    folder.mkdir(exist_ok=True)
    old = list(folder.glob('*tfevents*'))
    now = time.time()
    version = Event(wall_time=now, file_version='brain.Event:2')
    # START makes a TensorBoard that is open forget what it read before.
    start = Event(wall_time=now, session_log=SessionLog(status=SessionLog.START))
    new = folder / f'events.out.tfevents.{time.time_ns()}'  # TensorBoard reads in name order
    opened = GrowingFile(new, b''.join(map(_record, [version, start, *map(_event, rows)])))
    for path in old:
        path.unlink()
    return opened


def _event(row: Mapping[str, Any]) -> Event:
    split = row['split']
    values = [Summary.Value(tag=f'{split}/{k}', simple_value=row[k]) for k in FIELDS[split]]
    return Event(wall_time=row['time'], step=row['step'], summary=Summary(value=values))


def _record(event: Event) -> bytes:
    # A TFRecord: length, its checksum, bytes, their checksum.
    data = event.SerializeToString()
    parts = struct.pack('<Q', len(data)), data
    return b''.join(part + struct.pack('<I', masked_crc32c(part)) for part in parts)
