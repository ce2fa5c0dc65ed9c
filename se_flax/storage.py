"""Files that a crash leaves whole, in a folder of this machine or of a bucket (`gs://`, `s3://`).

A bucket shows an object when all of it is there, so what takes care on a disk is one write there;
but it has no file that grows, and a folder is a part of its objects' names.
"""

import contextlib
import logging
import os
import pathlib
from typing import TypeAlias

from etils import epath

from se_flax.errors import MissingError, UserError, check_known

PACKAGES = {'gs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs'}  # what fsspec opens each with
AnyPath: TypeAlias = pathlib.Path | epath.Path


def as_path(path: str | os.PathLike) -> AnyPath:
    """Returns the path of a local folder, with `~` as one's home, or of one in a bucket.

    Raises UserError for another kind of address, where its package is not installed, and for a
    bucket that cannot be reached.
    """
    if isinstance(path, AnyPath):
        return path
    text = os.fspath(path)
    scheme, separator, _ = text.partition('://')
    if not separator:
        return pathlib.Path(path).expanduser()
    check_known('kind of address', scheme, PACKAGES)
    path = epath.Path(text)
    package = logging.getLogger(PACKAGES[scheme])
    package.addFilter(_never)  # it logs the traceback of what it raises
    try:
        path.exists()  # what opens it is looked for at the first use
    except ImportError as error:
        raise UserError(f'{text}: {error}; try pip install {PACKAGES[scheme]}') from None
    except Exception as error:  # of the network or of the package, each has its own
        raise UserError(f'cannot reach {text}: {" ".join(str(error).split())}') from error
    finally:
        package.removeFilter(_never)
    return path


def _never(record: logging.LogRecord) -> bool:
    return False


def is_remote(path: AnyPath | str) -> bool:
    """Tells whether a path is in a bucket."""
    return '://' in os.fspath(path)


def atomic_write(path: AnyPath, data: bytes) -> None:
    """Replaces a file so that a reader, or a crash, sees its old bytes or its new ones.

    On a disk by a temporary file, fsync and rename, durable on return; the temporary file lies
    beside `path` as `.<name>.new`; one left by a crash is overwritten.
    """
    if is_remote(path):
        path.write_bytes(data)
        return
    temporary = path.with_name(f'.{path.name}.new')
    temporary.write_bytes(data)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)  # the rename itself lives in the folder


def check_writable(path: AnyPath) -> None:
    """Raises MissingError, UserError or OSError where `atomic_write` would fail.

    For the start of long work: what the work is for must not be lost at its end.
    """
    if is_remote(path):
        return
    if not path.parent.is_dir():
        raise MissingError(f'no folder {path.parent} for {path.name}')
    if path.is_dir():
        raise UserError(f'{path} is a folder, not a file to write')
    temporary = path.with_name(f'.{path.name}.new')
    temporary.touch()
    temporary.unlink()


def sync(path: AnyPath) -> None:
    """Returns when a file's bytes, or a folder's names, are on the disk."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class GrowingFile(contextlib.AbstractContextManager):
    """A file that is written at its end; in a bucket, the whole of it anew at each `sync`.

    On a disk what was written is in the operating system's hands, and on the disk after `sync`.

    Args:
        path: made, or replaced where it is not `content`.
        content: what it starts with.
    """

    def __init__(self, path: AnyPath, content: bytes):
        if not path.exists() or path.read_bytes() != content:
            atomic_write(path, content)
        self._path, self._content = path, bytearray(content)
        self._file = None if is_remote(path) else path.open('ab')

    def __exit__(self, *exc_info):
        if self._file:
            self._file.close()

    def write(self, data: bytes) -> None:
        """Appends."""
        if self._file:
            self._file.write(data)
            self._file.flush()
        else:
            self._content += data

    def sync(self) -> None:
        """Returns when all of it is safe."""
        if self._file:
            os.fsync(self._file.fileno())
        else:
            self._path.write_bytes(bytes(self._content))
