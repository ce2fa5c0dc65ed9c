"""Checkpoints that are whole or refused: Orbax writes them, a manifest of hashes checks them.

Orbax renames a finished step into place, but restores flipped bytes as wrong numbers without an
error. So each step folder gets a `manifest.json`, which is written last and read first:

    checkpoints/
      100/                  an Orbax step, item `state`, and its manifest.json
      200/
      damaged-300-0/        renamed by `restore`: the manifest and a file disagree
      incomplete-400-0/     renamed by `restore`: killed before the manifest was written
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from se_flax import storage
from se_flax.errors import MissingError, UserError
from se_flax.training.distributed import all_gather, broadcast, lost_a_peer, on_first

MANIFEST = 'manifest.json'
log = logging.getLogger(__name__)

# Orbax logs some forty INFO lines per save through absl's logger, and the traceback of what its
# background thread raises again for us; its warnings are kept.
logging.getLogger('absl').addFilter(
    lambda record: 'orbax' not in record.pathname or record.levelno == logging.WARNING
)

# One device writes an array that all have. By Orbax's default each writes a part, and to cut the
# parts it compiles a program for each shape and device.
_HANDLERS = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False))
)


def _without_late_writers(unraisable, hook=sys.unraisablehook):
    # Orbax's writers outlive a failed save, and each would print a traceback.
    if str(unraisable.exc_value) != 'Event loop is closed':
        hook(unraisable)


sys.unraisablehook = _without_late_writers


class CheckpointError(UserError):
    """A checkpoint could not be saved, or is not what was saved; earlier ones are untouched."""


class Checkpointer(contextlib.AbstractContextManager):
    """Saves the training state of one run to a folder and restores its newest good step.

    A state is a pytree of numeric `jax.Array`s. Only one Checkpointer may use a folder at a time,
    as it removes what a crashed save left. It keeps the newest `keep` steps, at least 2. In the
    `background`, a save returns once the state is copied to the host; leaving the context, or the
    next save, waits for it.

    >>> import tempfile, jax.numpy as jnp
    >>> checkpoints = Checkpointer(tempfile.mkdtemp())
    >>> checkpoints.save(7, {'w': jnp.ones(3)}, {'best_top1': 0.5})
    >>> checkpoints.restore({'w': jnp.zeros(3)})
    ({'w': Array([1., 1., 1.], dtype=float32)}, {'best_top1': 0.5})
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2, background: bool = False):
        if keep < 2:
            raise UserError(f'keep={keep} checkpoints leaves none if the newest is damaged; keep 2')
        self.directory = _absolute(directory)
        self.keep, self.background = keep, background
        begin = _lower_priority if background else None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint', begin)
        self._saving: tuple[int, concurrent.futures.Future] | None = None  # step, what writes it
        self._writes = jax.process_index() == 0  # the manifests; Orbax has each process write
        if self._writes:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()

    def __exit__(self, kind, error, traceback):
        if error is None or not lost_a_peer(error):  # without a peer no save can finish
            self.wait()

    def steps(self) -> list[int]:
        """Returns the steps in the folder, good or not, ascending."""
        return _steps(self.directory)

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Writes `state` and the JSON-able `progress` durably, then removes the oldest steps.

        Raises UserError for what cannot be restored exactly, and CheckpointError if the step is not
        above the newest one or writing fails, this time or in the background the last time. Nothing
        is left of a step that failed.
        """
        self.wait()
        if step <= (newest := max(self.steps(), default=-1)):
            raise CheckpointError(f'step {step} must be above {newest}, the newest checkpoint')
        try:
            progress = json.loads(json.dumps(progress))
        except TypeError as error:
            raise UserError(f'progress {progress} cannot be written as JSON: {error}') from None
        _check_numeric(state)
        manifest = {'step': step, 'progress': progress, 'leaves': _describe(state)}
        # Not CheckpointManager: it remembers steps, skips a save below them without an error, and
        # removes an old step before the new one has its manifest. The layout is the same.
        orbax = ocp.AsyncCheckpointer(_handler())
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state))
        try:
            # It copies the state to the host, and its writers inherit this thread's priority.
            self._thread.submit(orbax.save, self.directory / str(step), args=args).result()
        except Exception as error:
            raise self._failed(step, error) from error
        self._saving = step, self._thread.submit(self._finish, orbax, manifest)
        if not self.background:
            self.wait()

    def wait(self) -> None:
        """Returns once the last save is on the disk, in every process; raises if it failed."""
        if not self._saving:
            return
        (step, writing), self._saving = self._saving, None
        while True:
            if jax.process_count() == 1:
                concurrent.futures.wait([writing])
            # A process whose save failed never reaches the others' barrier; they must not wait.
            done = writing.done()  # once: it may fail between two questions
            error = writing.exception() if done else None
            states = all_gather(2 if error else int(done))
            if error:
                raise error
            if 2 in states:
                failed = f'process {states.index(2)} could not save step {step}'
                raise CheckpointError(f'{failed}; see its output')
            if 0 not in states:
                return
            time.sleep(0.02)

    def _finish(self, orbax: ocp.AsyncCheckpointer, manifest: dict[str, Any]) -> None:
        step = manifest['step']
        try:
            with contextlib.closing(orbax):
                orbax.wait_until_finished()
            if self._writes:
                _write_manifest(self.directory / str(step), manifest)
        except Exception as error:  # Orbax raises ValueError for a full disk
            raise self._failed(step, error) from error
        with storage.reaching(self.directory):
            for old in self.steps()[: -self.keep] if self._writes else ():
                _remove(self.directory / str(old))

    def _failed(self, step: int, error: Exception) -> Exception:
        for each in (error, error.__cause__):  # Orbax turns a lost peer into a TimeoutError
            if isinstance(each, Exception) and lost_a_peer(each):
                return each
        with storage.reaching(self.directory):
            if self._writes:
                _remove(self.directory / str(step))
                self._remove_unfinished()
            untouched = self.steps() or 'none'
        return CheckpointError(
            f'could not save step {step} to {self.directory} ({error}); '
            f'earlier steps are untouched: {untouched}'
        )

    def restore(self, target: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns state and progress of the newest good step, or None if no save has finished.

        `target` gives structure, shapes, dtypes and shardings. Newer damaged or incomplete steps
        are logged and renamed. Raises UserError if no step is good and one is damaged, or if the
        leaves differ from those of `target`.
        """
        # One process reads and hashes each file, the others rely on it.
        newest, refused = _agree_on_newest(self.directory)
        if newest < 0 and refused:
            log.warning('no finished checkpoint in %s: starting from scratch', self.directory)
        restored = None if newest < 0 else _read(self.directory / str(newest), target)
        for each in refused:
            names = (f'{each.kind}-{each.folder.name}-{n}' for n in itertools.count())
            free = next(name for name in names if not (self.directory / name).exists())
            each.folder.rename(self.directory / free)
            log.warning('renamed %s to %s', each.folder, free)
        return restored

    def verify(self, state: Any) -> None:
        """Raises CheckpointError unless the newest step, read anew, equals `state` bit for bit."""
        if not self.steps():
            raise CheckpointError(f'no checkpoint in {self.directory}')
        folder = self.directory / str(self.steps()[-1])
        _check(folder)
        saved = _leaves(_read(folder, state)[0])
        for name, leaf in _leaves(state).items():
            pairs = zip(leaf.addressable_shards, saved[name].addressable_shards, strict=True)
            if any(np.asarray(a.data).tobytes() != np.asarray(b.data).tobytes() for a, b in pairs):
                raise CheckpointError(f'{folder} differs from the state in memory at {name}')

    def _remove_unfinished(self) -> None:
        # Orbax's writers outlive a failed save for a moment and create their folder again.
        for _ in range(25):
            folders = list(self.directory.glob(f'*{ocp.utils.TMP_DIR_SUFFIX}*'))
            if not folders:
                return
            for folder in folders:
                with contextlib.suppress(OSError):
                    folder.rmtree()
            time.sleep(0.2)


def load(directory: str | os.PathLike, target: Any) -> tuple[Any, dict[str, Any]]:
    """Restores like `Checkpointer`, but only reads; raises MissingError if nothing is saved."""
    directory = _absolute(directory)
    newest, _ = _agree_on_newest(directory)
    if newest < 0:
        raise MissingError(f'no finished checkpoint in {directory}; train first')
    return _read(directory / str(newest), target)


class _Refused(CheckpointError):  # `kind` is 'damaged' or 'incomplete'
    def __init__(self, folder: epath.Path, kind: str, reason: str):
        super().__init__(f'checkpoint {folder} is {kind}: {reason}')
        self.folder, self.kind = folder, kind


def _agree_on_newest(directory: epath.Path) -> tuple[int, list[_Refused]]:
    """Returns what process 0 finds; only there with what is wrong with newer steps."""
    newest, refused = on_first(_newest_good, directory) or (-1, [])
    return broadcast(newest), refused


def _newest_good(directory: epath.Path) -> tuple[int, list[_Refused]]:
    """Returns the newest good step, -1 for none, and what is wrong with newer ones."""
    refused = []
    for step in reversed(_steps(directory)):
        try:
            _check(directory / str(step))
        except _Refused as error:
            log.warning('%s', error)
            refused.append(error)
        else:
            if refused:
                log.warning('using the older step %s', step)
            return step, refused
    # Not renamed: the same command must fail again, not start from scratch the second time.
    if any(each.kind == 'damaged' for each in refused):
        raise UserError(
            f'no good checkpoint left: {"; ".join(map(str, refused))}. '
            f'Restore a copy, or move {directory} away to start from scratch'
        )
    return -1, refused


def _read(folder: epath.Path, target: Any) -> tuple[Any, dict[str, Any]]:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    there, here = manifest['leaves'], _describe(target)
    differing = [name for name in here | there if here.get(name) != there.get(name)]
    if differing:
        shown = ', '.join(
            f'{name} is {there.get(name, "absent")} there, {here.get(name, "absent")} here'
            for name in differing[:3]
        )
        raise UserError(
            f'checkpoint {folder} belongs to another model or optimizer: {shown} '
            f'({len(differing)} of {len(here | there)} leaves differ)'
        )

    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or one), target
    )
    options = ocp.checkpoint_utils.construct_restore_args(target)
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(target, restore_args=options))
    with ocp.Checkpointer(_handler()) as orbax:
        return orbax.restore(folder, args=args).state, manifest['progress']


def _lower_priority() -> None:
    """Gives way to the step and the input pipeline where they need the cores that write."""
    if sys.platform == 'linux':  # elsewhere this is the priority of the whole process
        os.nice(10)


def _handler() -> ocp.CompositeCheckpointHandler:
    # Weights hardly compress: 7 % less to write for a third more processor time.
    options: Any = {'type_handler_registry': _HANDLERS, 'use_compression': False}
    return ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler(**options))


def _absolute(directory: str | os.PathLike) -> epath.Path:
    path = epath.Path(directory)
    return path if storage.is_remote(path) else path.absolute()  # Orbax refuses relative ones


def _steps(directory: epath.Path) -> list[int]:
    return sorted(int(p.name) for p in directory.glob('[0-9]*') if p.name.isdecimal())


def _remove(folder: epath.Path) -> None:
    # The manifest first: if killed half-way, the step is incomplete, not damaged.
    (folder / MANIFEST).unlink(missing_ok=True)
    folder.rmtree(missing_ok=True)


def _leaves(tree: Any) -> dict[str, Any]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}


def _describe(tree: Any) -> dict[str, str]:
    return {name: f'{leaf.dtype}{list(leaf.shape)}' for name, leaf in _leaves(tree).items()}


def _check_numeric(state: Any) -> None:
    for name, leaf in _leaves(state).items():
        # Orbax saves a NumPy scalar but cannot restore it; a typed key has no bytes to compare.
        if not isinstance(leaf, jax.Array) or not isinstance(leaf.dtype, np.dtype):
            kind = leaf.dtype if isinstance(leaf, jax.Array) else type(leaf).__name__
            raise UserError(
                f'state leaf {name} is a {kind}; only a jax.Array of numbers is restored exactly: '
                f'wrap it in jnp.asarray, or use jax.random.key_data of a key'
            )


def _walk(folder: epath.Path) -> Iterator[tuple[epath.Path, bool]]:
    for path in folder.iterdir():  # epath's own `walk` loses the scheme of a bucket
        yield path, (is_folder := path.is_dir())
        if is_folder:
            yield from _walk(path)


def _files(folder: epath.Path) -> dict[str, dict[str, Any]]:
    files = {}
    for path, is_folder in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if is_folder or name == MANIFEST:
            continue
        try:
            with path.open('rb') as file:
                digest = hashlib.file_digest(file, 'sha256').hexdigest()
        except OSError as error:
            raise _Refused(folder, 'damaged', f'{name} cannot be read ({error})') from None
        files[name] = {'size': path.stat().length, 'sha256': digest}
    return files


def _encode(manifest: dict[str, Any]) -> bytes:
    # They hold their own hash, so no byte can flip.
    content = {key: value for key, value in manifest.items() if key != 'sha256'}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content | {'sha256': digest}, sort_keys=True, indent=1).encode()


def _write_manifest(folder: epath.Path, manifest: dict[str, Any]) -> None:
    # The data reach the disk before their manifest; a full disk may show only here.
    for path in (*(path for path, _ in _walk(folder)), folder, folder.parent):
        storage.sync(path)
    storage.atomic_write(folder / MANIFEST, _encode(manifest | {'files': _files(folder)}))


def _check(folder: epath.Path) -> None:
    try:
        written = (folder / MANIFEST).read_bytes()
        manifest = json.loads(written)
        whole = written == _encode(manifest) and manifest['step'] == int(folder.name)
    except FileNotFoundError:
        raise _Refused(folder, 'incomplete', f'it has no {MANIFEST}') from None
    except OSError as error:
        raise _Refused(folder, 'damaged', f'{MANIFEST} cannot be read ({error})') from None
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        raise _Refused(folder, 'damaged', f'{MANIFEST} has changed')
    saved, found = manifest['files'], _files(folder)
    for name in sorted(saved | found):
        was, now = saved.get(name), found.get(name)
        left = was is None and name.rpartition('/')[2].startswith('.')  # by a file manager
        if was == now or left:
            continue
        reason = 'has changed (SHA-256)'
        if now is None:
            reason = 'is missing'
        elif was is None:
            reason = 'was added after the save'
        elif was['size'] != now['size']:
            reason = f'has {now["size"]} bytes instead of {was["size"]}'
        raise _Refused(folder, 'damaged', f'{name} {reason}')
