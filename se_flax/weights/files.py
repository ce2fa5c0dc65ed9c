"""Reads a file whole, or says why not."""

import pathlib

from se_flax.errors import MissingError, UserError


def read_bytes(path: pathlib.Path) -> bytes:
    """Returns the bytes of a file; MissingError, which names its neighbours, if there is none."""
    check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None


def check_file(path: pathlib.Path) -> None:
    """Raises MissingError, which names files of the same kind there, unless `path` is a file."""
    if not path.is_file():
        near = [p.name for p in sorted(path.parent.glob(f'*{path.suffix}')) if p.is_file()][:5]
        raise MissingError(f'no file {path}; there is {", ".join(near) or "none of its kind"}')
