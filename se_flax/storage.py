"""Crash-safe files in a folder of this machine or of a bucket (`gs://`, `s3://`).

An object in a bucket appears only when it is complete, so a plain write is atomic there. Objects
cannot be appended to, and folders are only prefixes of their names.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from etils import epath

from se_flax.errors import MissingError, UnreachableError, UserError, check_known

PACKAGES = {'gs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs'}  # that fsspec needs for each
AnyPath: TypeAlias = pathlib.Path | epath.Path


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """Expands `~`, which shells leave as it is in `--option=~/path`.

    Unlike pathlib, it leaves the home of an unknown user as it is, so that the path is missing.
    """
    return pathlib.Path(os.path.expanduser(path))


def as_path(path: str | os.PathLike) -> AnyPath:
    """Returns a local path, with `~` expanded, or one in a bucket.

    Raises UserError for an unknown scheme or a missing package, else as `reaching` does.
    """
    if isinstance(path, AnyPath):
        return path
    text = os.fspath(path)
    if not is_remote(text):
        return local_path(path)
    scheme = text.partition('://')[0]
    check_known('URL scheme', scheme, PACKAGES)
    with reaching(text):
        epath.Path(text).exists()  # the package is imported at the first use
    return epath.Path(text)


@contextlib.contextmanager
def reaching(path: AnyPath | str) -> Iterator[None]:
    """Raises UnreachableError for what fails in a bucket, and UserError for a missing package."""
    if not is_remote(path):
        yield
        return
    text = os.fspath(path)
    package = PACKAGES[text.partition('://')[0]]
    logger = logging.getLogger(package)
    logger.disabled = True  # it logs the traceback of what it raises
    try:
        yield
    except ImportError as error:
        raise UserError(f'{text}: {error}; try pip install {package}') from None
    except UserError:
        raise
    except Exception as error:  # each package and the network have their own
        raise UnreachableError(f'cannot reach {text}: {" ".join(str(error).split())}') from error
    finally:
        logger.disabled = False


def is_remote(path: AnyPath | str) -> bool:
    """Returns whether a path is in a bucket."""
    return '://' in os.fspath(path)


def _temporary(path: AnyPath) -> AnyPath:
    # Of this process, as all shards of a study write the same files. A crash may leave it.
    return path.with_name(f'.{path.name}.{socket.gethostname()}-{os.getpid()}.new')


def temporaries(path: AnyPath) -> list[AnyPath]:
    """Returns what killed writes of a file have left."""
    return list(path.parent.glob(f'.{path.name}.*new'))


def atomic_write(path: AnyPath, data: bytes) -> None:
    """Replaces a file durably; readers see the old bytes or the new ones, also after a crash.

    Raises as `reaching` does.
    """
    if is_remote(path):
        with reaching(path):
            path.write_bytes(data)
        return
    temporary = _temporary(path)
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(path)
    except BaseException:  # a full disk, Ctrl-C
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)  # the rename is a change of the folder


def write_text(path: AnyPath, text: str) -> None:
    """Writes text as `atomic_write` does; of file names, bytes that are not UTF-8 are escaped."""
    atomic_write(path, text.encode(errors='backslashreplace'))


def copy_missing(source: AnyPath, target: AnyPath, *, last: str) -> None:
    """Copies the files of a folder that `target` lacks or has in another size; `last` at the end.

    Raises as `reaching` does.
    """
    with reaching(target):
        sizes = {path.name: path.stat().length for path in epath.Path(target).glob('*')}
    for path in sorted(epath.Path(source).iterdir(), key=lambda path: path.name == last):
        if path.is_file() and sizes.get(path.name) != path.stat().length:
            atomic_write(target / path.name, path.read_bytes())


def read_json(path: AnyPath) -> Any:
    """Reads a JSON file; raises UserError if it is damaged, and as `reaching` does."""
    with reaching(path):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f'{path} is damaged ({error})') from None


def json_line(value: Any) -> bytes:
    """Returns a line of a .jsonl file; the same numbers are read back, as floats are in full."""
    return json.dumps(value, allow_nan=False).encode() + b'\n'


def without_lists(value: Any) -> Any:
    """Turns lists into tuples, at every depth: JSON has lists, and modules must be hashable.

    >>> without_lists({'se': {'reduction': 8}, 'stage_sizes': [3, 4]})
    {'se': {'reduction': 8}, 'stage_sizes': (3, 4)}
    """
    if isinstance(value, Mapping):
        return {key: without_lists(inner) for key, inner in value.items()}
    return tuple(map(without_lists, value)) if isinstance(value, (list, tuple)) else value


def check_writable(path: AnyPath) -> None:
    """Raises MissingError, UserError or OSError, before long work, if a write would fail."""
    if is_remote(path):
        return
    if not path.parent.is_dir():
        raise MissingError(f'cannot write {path}: no folder {path.parent}')
    if path.is_dir():
        raise UserError(f'cannot write {path}: it is a folder')
    _temporary(path).touch()
    _temporary(path).unlink()


def check_not_input(out: pathlib.Path, file: str | pathlib.Path) -> None:
    """Raises UserError if a write to `out` would replace a file that is read."""
    if out.exists() and out.samefile(file):
        raise UserError(f'{out} would overwrite the input {file}; choose another output file')


def sync(path: AnyPath) -> None:
    """Waits until the bytes of a file, or the names in a folder, are on the disk."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class GrowingFile(contextlib.AbstractContextManager):
    """A file to append to, which starts with `content`; in a bucket, `sync` rewrites it."""

    def __init__(self, path: AnyPath, content: bytes):
        if not path.exists() or path.read_bytes() != content:
            atomic_write(path, content)
        self._path, self._content = path, bytearray(content)
        self._file = None if is_remote(path) else path.open('ab')

    def __exit__(self, *exc_info):
        if self._file:
            self._file.close()

    def write(self, data: bytes) -> None:
        """Appends; on a disk, the operating system has the data on return."""
        if self._file:
            self._file.write(data)
            self._file.flush()
        else:
            self._content += data

    def sync(self) -> None:
        """Waits until all data would survive a crash of the system."""
        if self._file:
            os.fsync(self._file.fileno())
        else:
            atomic_write(self._path, bytes(self._content))
