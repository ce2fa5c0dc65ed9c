"""Checkpoints that are whole or refused: Orbax writes them, a manifest of hashes vouches for them.

Orbax renames a finished step into place but restores flipped bytes as wrong numbers, without a
word. So each step folder gets a `manifest.json`, written last and read first:

    checkpoints/
      100/                  an Orbax step, item `state`, and its manifest.json
      200/
      damaged-300-0/        set aside by `restore`: the manifest and a file disagree
      incomplete-400-0/     set aside by `restore`: killed before the manifest was written
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from se_flax import storage
from se_flax.errors import MissingError, UserError
from se_flax.training.distributed import lost_a_peer, on_first, tell_all

MANIFEST = 'manifest.json'
log = logging.getLogger(__name__)

# Orbax tells every save in some forty INFO lines through absl's logger; its warnings stay.
logging.getLogger('absl').addFilter(
    lambda record: record.levelno > logging.INFO or 'orbax' not in record.pathname
)


class CheckpointError(UserError):
    """A checkpoint could not be saved, or is not what was saved; earlier ones are untouched."""


class Checkpointer:
    """Saves the training state of one run to a folder and goes on from the newest good step.

    A state is any pytree whose leaves are `jax.Array`s of numbers. One live Checkpointer a folder:
    it removes what a crashed save left behind. Whoever only reads takes `load`.

    Args:
        directory: holds one folder a step; made if it is not there.
        keep: newest steps that are kept, at least 2, so that a damaged one has a predecessor.

    >>> import tempfile, jax.numpy as jnp
    >>> checkpoints = Checkpointer(tempfile.mkdtemp())
    >>> checkpoints.save(7, {'w': jnp.ones(3)}, {'best_top1': 0.5})
    >>> checkpoints.restore({'w': jnp.zeros(3)})
    ({'w': Array([1., 1., 1.], dtype=float32)}, {'best_top1': 0.5})
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        if keep < 2:
            raise UserError(f'keep={keep} checkpoints leaves none if the newest is damaged; take 2')
        self.directory = _absolute(directory)
        self.keep = keep
        if _writes():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()

    def steps(self) -> list[int]:
        """Returns the steps that are there, whole or not, ascending."""
        return [int(folder.name) for folder in _step_folders(self.directory)]

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Writes `state` and the JSON-able `progress` as `step`, then drops the oldest steps.

        On return all of it is on disk. Raises UserError for a leaf or progress that can not be
        restored as it is, CheckpointError where a step is not above the newest or the disk says
        no; nothing of the step is left then.
        """
        newest = max(self.steps(), default=-1)
        if step <= newest:
            raise CheckpointError(f'step {step} must be above {newest}, the newest checkpoint')
        manifest = {
            'step': step,
            'progress': _checked_progress(progress),
            'leaves': {name: _describe(leaf) for name, leaf in _checked_leaves(state).items()},
        }
        folder = self.directory / str(step)
        try:
            with _orbax() as orbax:
                orbax.save(folder, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
            if _writes():
                _write_manifest(folder, manifest)
        except Exception as error:  # Orbax raises ValueError for a full disk
            if lost_a_peer(error):
                raise
            if _writes():
                _remove(folder)
                self._remove_unfinished()
            raise CheckpointError(
                f'could not save step {step} to {self.directory} ({error}); '
                f'earlier steps are untouched: {self.steps() or "none"}'
            ) from error
        if _writes():
            for old in _step_folders(self.directory)[: -self.keep]:
                _remove(old)
        tell_all(step)  # a step that one process calls saved is whole for all

    def restore(self, target: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns state and progress of the newest good step, or None if no save ever finished.

        `target` gives structure, shapes, dtypes and shardings, as arrays or ShapeDtypeStructs.
        Newer steps that are damaged or incomplete are named in a warning and renamed, so that
        their numbers are free again. Raises UserError if nothing but damage is left (then renames
        nothing), or if the leaves are not those of `target`.
        """
        # One process reads and hashes each file, the others take its word.
        found = on_first(partial(_newest_good, self.directory))
        folder, manifest, refused = found or (None, {}, [])
        step = tell_all(int(folder.name) if folder else -1)
        if step >= 0 and not folder:
            folder = self.directory / str(step)
            manifest = json.loads((folder / MANIFEST).read_bytes())
        restored = folder and _read(folder, manifest, target)
        for each in refused:
            log.warning('kept %s as %s', each.folder, _set_aside(each))
        return restored

    def verify(self, state: Any) -> None:
        """Raises CheckpointError unless the newest step, read anew, is `state` bit for bit."""
        folders = _step_folders(self.directory)
        if not folders:
            raise CheckpointError(f'no checkpoint in {self.directory}')
        try:
            saved, _ = _read(folders[-1], _checked_manifest(folders[-1]), state)
        except _Refused as error:
            raise CheckpointError(str(error)) from None
        saved = _leaves(saved)
        for name, leaf in _leaves(state).items():
            if not _same_bits(leaf, saved[name]):
                raise CheckpointError(f'{folders[-1]} differs from the state in memory at {name}')

    def _remove_unfinished(self) -> None:
        # Orbax's writers outlive a failed save for a moment and make their folder anew.
        for _ in range(25):
            folders = list(self.directory.glob(f'*{ocp.utils.TMP_DIR_SUFFIX}*'))
            if not folders:
                return
            for folder in folders:
                with contextlib.suppress(OSError):
                    folder.rmtree()
            time.sleep(0.2)


def load(directory: str | os.PathLike, target: Any) -> tuple[Any, dict[str, Any]]:
    """Returns what `Checkpointer.restore` would, changes nothing: safe beside a running trainer.

    Raises MissingError where there is no finished checkpoint.
    """
    directory = _absolute(directory)
    folder, manifest, _ = _newest_good(directory)
    if folder is None:
        raise MissingError(f'no finished checkpoint in {directory}; train first')
    return _read(folder, manifest, target)


class _Refused(Exception):
    """A step folder that must not be restored: `kind` is damaged or incomplete."""

    def __init__(self, folder: epath.Path, kind: str, reason: str):
        super().__init__(f'checkpoint {folder} is {kind}: {reason}')
        self.folder, self.kind = folder, kind


def _newest_good(directory: epath.Path) -> tuple[epath.Path | None, dict[str, Any], list[_Refused]]:
    refused = []
    for folder in reversed(_step_folders(directory)):
        try:
            manifest = _checked_manifest(folder)
        except _Refused as error:
            log.warning('%s', error)
            refused.append(error)
        else:
            if refused:
                log.warning('going on from the older step %s', folder.name)
            return folder, manifest, refused
    # Not renamed: the same command must fail again, not start from nothing the second time.
    if any(each.kind == 'damaged' for each in refused):
        raise UserError(
            f'no good checkpoint left: {"; ".join(map(str, refused))}. '
            f'Put a copy back, or move {directory} away to start afresh'
        )
    if refused:
        log.warning('no finished checkpoint in %s: starting from nothing', directory)
    return None, {}, refused


def _read(folder: epath.Path, manifest: dict[str, Any], target: Any) -> tuple[Any, dict[str, Any]]:
    here = {name: _describe(leaf) for name, leaf in _leaves(target).items()}
    there = manifest['leaves']
    differing = [name for name in here | there if here.get(name) != there.get(name)]
    if differing:
        shown = ', '.join(
            f'{name} is {there.get(name, "absent")} there and {here.get(name, "absent")} here'
            for name in differing[:3]
        )
        raise UserError(
            f'checkpoint {folder} is of another model or optimizer: {shown} '
            f'({len(differing)} of {len(here | there)} leaves differ)'
        )
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or default
        ),
        target,
    )
    with _orbax() as orbax:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return orbax.restore(folder, args=args).state, manifest['progress']


def _orbax() -> ocp.Checkpointer:
    # Not CheckpointManager: it remembers steps, skips a save below them without an error, and
    # drops an old step before the new one has its manifest. The layout on disk is the same.
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _absolute(directory: str | os.PathLike) -> epath.Path:
    path = epath.Path(directory)
    return path if storage.is_remote(path) else path.absolute()  # Orbax refuses relative ones


def _writes() -> bool:
    return jax.process_index() == 0


def _step_folders(directory: epath.Path) -> list[epath.Path]:
    folders = [path for path in directory.glob('[0-9]*') if path.name.isdecimal()]
    return sorted(folders, key=lambda folder: int(folder.name))


def _remove(folder: epath.Path) -> None:
    # The manifest goes first: killed half-way, this leaves an incomplete step, not a damaged one.
    (folder / MANIFEST).unlink(missing_ok=True)
    folder.rmtree(missing_ok=True)


def _set_aside(refused: _Refused) -> str:
    folder = refused.folder
    names = (f'{refused.kind}-{folder.name}-{n}' for n in itertools.count())
    return folder.rename(next(p for p in map(folder.with_name, names) if not p.exists())).name


def _leaves(tree: Any) -> dict[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}


def _describe(leaf: Any) -> str:
    return f'{leaf.dtype}{list(leaf.shape)}'


def _checked_leaves(state: Any) -> dict[str, jax.Array]:
    leaves = _leaves(state)
    for name, leaf in leaves.items():
        # Orbax saves a NumPy scalar but cannot restore it; a typed key has no bytes to compare.
        if not isinstance(leaf, jax.Array) or not isinstance(leaf.dtype, np.dtype):
            kind = leaf.dtype if isinstance(leaf, jax.Array) else type(leaf).__name__
            raise UserError(
                f'state leaf {name} is a {kind}; only a jax.Array of numbers is restored as it '
                f'was: wrap it in jnp.asarray, or take jax.random.key_data of a key'
            )
    return leaves


def _same_bits(a: jax.Array, b: jax.Array) -> bool:
    pairs = zip(a.addressable_shards, b.addressable_shards, strict=True)  # this process's
    return all(np.asarray(x.data).tobytes() == np.asarray(y.data).tobytes() for x, y in pairs)


def _checked_progress(progress: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(progress))
    except TypeError as error:
        raise UserError(f'progress {progress} cannot be written as JSON: {error}') from None


def _files(folder: epath.Path) -> dict[str, epath.Path]:
    files = {
        path.relative_to(folder).as_posix(): path
        for path, is_folder in sorted(_walk(folder))
        if not is_folder
    }
    return {name: path for name, path in files.items() if name != MANIFEST}


def _walk(folder: epath.Path) -> Iterator[tuple[epath.Path, bool]]:
    """Yields all that is below a folder, and whether it is a folder itself."""
    for path in folder.iterdir():
        is_folder = path.is_dir()
        yield path, is_folder
        if is_folder:
            yield from _walk(path)


def _sha256(path: epath.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _encode(manifest: dict[str, Any]) -> bytes:
    """The canonical bytes of a manifest; they hold its own hash, so no byte of it can flip."""
    content = {key: value for key, value in manifest.items() if key != 'sha256'}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content | {'sha256': digest}, sort_keys=True, indent=1).encode()


def _write_manifest(folder: epath.Path, manifest: dict[str, Any]) -> None:
    # The data reaches the disk before what vouches for it; a full disk may show only here.
    for path in (*(path for path, _ in _walk(folder)), folder, folder.parent):
        storage.sync(path)
    files = {
        name: {'size': path.stat().length, 'sha256': _sha256(path)}
        for name, path in _files(folder).items()
    }
    storage.atomic_write(folder / MANIFEST, _encode(manifest | {'files': files}))


def _checked_manifest(folder: epath.Path) -> dict[str, Any]:
    """Returns the manifest of a step after reading every file; raises _Refused with the reason."""
    try:
        written = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise _Refused(folder, 'incomplete', f'it has no {MANIFEST}') from None
    except OSError as error:
        raise _Refused(folder, 'damaged', f'{MANIFEST} cannot be read ({error})') from None
    try:
        manifest = json.loads(written)
        whole = written == _encode(manifest) and manifest['step'] == int(folder.name)
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        raise _Refused(folder, 'damaged', f'{MANIFEST} is not as it was written')
    there, recorded = _files(folder), manifest['files']
    for name in sorted(there | recorded):
        if reason := _difference(there.get(name), recorded.get(name)):
            raise _Refused(folder, 'damaged', f'{name} {reason}')
    return manifest


def _difference(path: epath.Path | None, recorded: dict[str, Any] | None) -> str | None:
    if path is None:
        return 'is missing'
    if recorded is None:
        return 'was not there when it was saved'
    if (size := path.stat().length) != recorded['size']:
        return f'has {size} bytes instead of {recorded["size"]}'
    try:
        return None if _sha256(path) == recorded['sha256'] else 'has changed (SHA-256)'
    except OSError as error:
        return f'cannot be read ({error})'
