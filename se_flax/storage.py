"""Replaces a file so that a reader, or a crash, sees its old bytes or its new ones."""

import os
import pathlib


def atomic_write(path: pathlib.Path, data: bytes) -> None:
    """Writes `data` to `path` by a temporary file, fsync and rename, durable on return.

    The temporary file lies beside `path` as `.<name>.new`; one left by a crash is overwritten.
    """
    temporary = path.with_name(f'.{path.name}.new')
    temporary.write_bytes(data)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)  # the rename itself lives in the folder


def sync(path: pathlib.Path) -> None:
    """Returns when a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
