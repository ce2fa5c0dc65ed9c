"""One trainer per workdir: a lock that names its holder, and that a dead holder loses."""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any

from se_flax.errors import UserError
from se_flax.storage import AnyPath, atomic_write, is_remote, reaching
from se_flax.training.distributed import on_first

FILE = 'lock.json'
RENEWAL = 10.0  # seconds
PATIENCE = 30.0  # seconds without a renewal until a holder on another machine counts as dead
log = logging.getLogger(__name__)


class Lock(contextlib.AbstractContextManager):
    """The lock of a workdir, which process 0 holds in the context and a thread renews.

    A holder on this machine is dead if its process is. One on another machine is dead if it does
    not renew the lock for PATIENCE. In a bucket the lock is a plain write: of two processes that
    start within the same second, both may continue until the first of them calls `check`.
    """

    def __init__(self, workdir: AnyPath):
        self._workdir, self._path = workdir, workdir / FILE
        self._dead: dict[str, Any] | None = None  # what a dead holder left
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._own: dict[str, Any] = {
            'host': socket.gethostname(),
            'pid': os.getpid(),
            'since': time.strftime('%Y-%m-%d %H:%M:%S %Z'),
            'machine': _machine(),
            'started': _started(os.getpid()),
            'token': uuid.uuid4().hex,
            'renewals': 0,
        }

    def __enter__(self):
        on_first(self._acquire)
        return self

    def __exit__(self, *exc_info):
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
            with contextlib.suppress(UserError), reaching(self._path):
                self.check()
                self._path.unlink()

    def check_free(self) -> None:
        """Raises UserError if another process trains in the workdir; may wait once for PATIENCE."""
        seen = _read(self._path)
        here = seen is not None and seen.get('machine') == _machine()
        if seen in (None, self._dead) or (here and _started(seen['pid']) != seen['started']):
            self._dead = seen
            return
        if not here:
            log.warning('%s: waiting %g s for a sign of life', self._in_use(seen), PATIENCE)
            end = time.monotonic() + PATIENCE
            while (found := _read(self._path)) == seen and time.monotonic() < end:
                time.sleep(PATIENCE / 100)
            if found is None or found == seen:
                self._dead = found
                return
        raise UserError(f'{self._in_use(seen)}; stop that process, or use another --workdir')

    def check(self) -> None:
        """Raises UserError if the lock is not ours any more, as after a long suspension."""
        found = _read(self._path)
        if found is None:
            raise UserError(f'{self._path} is gone, so another process could start; this one stops')
        if found.get('token') != self._own['token']:
            raise UserError(f'{self._in_use(found)}; this process stops')

    def _acquire(self) -> None:
        self.check_free()
        content = json.dumps(self._own).encode()
        if is_remote(self._path):
            atomic_write(self._path, content)
            time.sleep(1)  # for another process that found it free at the same time
        else:
            self._workdir.mkdir(parents=True, exist_ok=True)
            if self._dead:
                self._remove(self._dead)
            with contextlib.suppress(FileExistsError), self._path.open('xb') as file:
                try:
                    file.write(content)
                    file.flush()
                except OSError:  # a full disk
                    self._path.unlink()
                    raise
        self.check()
        self._thread.start()

    def _remove(self, dead: dict[str, Any]) -> None:
        aside = self._path.with_name(f'{FILE}.{self._own["token"]}')
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(aside)  # of several processes only one succeeds
            if _read(aside) == dead:
                aside.unlink()
            else:
                aside.rename(self._path)  # that of a process that was faster

    def _renew(self) -> None:
        while not self._released.wait(RENEWAL):
            try:
                self.check()
                self._own['renewals'] += 1
                atomic_write(self._path, json.dumps(self._own).encode())
            except OSError as error:  # a bucket out of reach included
                log.warning('cannot renew %s: %s', self._path, error)
            except UserError:
                return  # the next `check` of the run raises it

    def _in_use(self, holder: dict[str, Any]) -> str:
        who = 'process {pid} on {host} has been training in it since {since}'.format_map(holder)
        return f'{self._workdir} is in use: {who}'


def _read(path: AnyPath) -> dict[str, Any] | None:
    with reaching(path):
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:  # its holder has just created it, or was killed then
            return {'pid': 'unknown', 'host': 'unknown', 'since': 'just now'}


def _machine() -> str:
    """Returns what two processes share if each finds the other's process id."""
    try:
        boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return f'{boot} {os.readlink("/proc/self/ns/pid")}'
    except OSError:  # not Linux
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """Returns when a process started, in ticks since boot; None if it has ended."""
    try:
        fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        if pathlib.Path('/proc/self/stat').exists():
            return None
        with contextlib.suppress(ProcessLookupError):  # not Linux
            with contextlib.suppress(PermissionError):  # it is another user's
                os.kill(pid, 0)
            return 'unknown'
        return None
    return None if fields[0] == 'Z' else fields[19]
