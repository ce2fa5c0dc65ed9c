"""Replaces a file so that a reader, or a crash, sees its old bytes or its new ones."""

import os
import pathlib


def atomic_write(path: pathlib.Path, data: bytes) -> None:
    """Writes `data` to `path` by a temporary file, fsync and rename, durable on return.

    The temporary file lies beside `path` as `.<name>.new`; one left by a crash is overwritten.
    """
    temporary = path.with_name(f'.{path.name}.new')
    with temporary.open('wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    # The rename itself lives in the folder.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
