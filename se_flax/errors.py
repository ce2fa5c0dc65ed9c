"""Exceptions and checks; a message has the value, the rule and the nearest valid choice."""

import contextlib
import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Packages and the extras that install them; the extra of all others is `train`.
EXTRAS = {
    'safetensors': 'weights',
    'google': 'weights',
    'huggingface_hub': 'weights',
    'flatbuffers': 'export',
    'onnx': 'onnx',
    'onnxruntime': 'onnx',
    'torch': 'torch',
}


class UserError(ValueError):
    """A mistake in what the user asked for; commands print it without a traceback."""


class MissingError(UserError, FileNotFoundError):
    """A missing file, folder or data set; the message says how to get it."""


class UnreachableError(UserError, OSError):
    """A bucket that cannot be reached; the message has its address."""


class Problems:
    """Collects mistakes to raise them together, each once; `wrong` are the names concerned."""

    def __init__(self) -> None:
        self.wrong: set[str] = set()
        self._errors: dict[str, UserError] = {}

    def add(self, names: Iterable[str], error: UserError | str) -> None:
        self.wrong.update(names)
        error = UserError(error) if isinstance(error, str) else error
        self._errors.setdefault(str(error), error)

    def check(
        self, names: Iterable[str], act: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Returns the result of `act`, or adds its UserError; skipped if a name is wrong."""
        if self.wrong.isdisjoint(names):
            try:
                return act(*args, **kwargs)
            except UserError as error:
                self.add(names, error)
        return None

    def raise_all(self) -> None:
        """Raises the only mistake, or a UserError that lists them."""
        if len(self._errors) == 1:
            raise next(iter(self._errors.values()))
        if self._errors:
            raise UserError(f'{len(self._errors)} mistakes:\n  ' + '\n  '.join(self._errors))


def extra_to_install(error: ImportError) -> str:
    """Returns how to install a missing package; '' without an extra that has it."""
    package = (error.name or '').partition('.')[0]
    if package in ('', 'se_flax'):
        return ''
    return f"this needs {error.name}; pip install 'se_flax[{EXTRAS.get(package, 'train')}]'"


@contextlib.contextmanager
def extra_needed() -> Iterator[None]:
    """Adds how to install a package to a ModuleNotFoundError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if hint := extra_to_install(error):
            raise ModuleNotFoundError(hint, name=error.name) from None
        raise


def check_known(what: str, key: Any, known: Iterable[Any]) -> None:
    """Raises UserError unless `key` is in `known`; suggests the nearest entries, else all or some.

    >>> check_known('model', 'seresnet50', ['se_resnet50', 'vgg16'])
    Traceback (most recent call last):
    se_flax.errors.UserError: unknown model 'seresnet50': did you mean se_resnet50?
    >>> check_known('class', 'goldfish', range(1000))
    Traceback (most recent call last):
    se_flax.errors.UserError: unknown class 'goldfish': one of 0, 1, 2, 3, 4, ... (1,000 in all)
    """
    known = list(dict.fromkeys(known))
    if key in known:
        return
    near = difflib.get_close_matches(str(key), map(str, known), n=3, cutoff=0.5)
    shown = known if len(known) <= 100 else [*known[:5], f'... ({len(known):,} in all)']
    hint = f'did you mean {" or ".join(near)}?' if near else f'one of {", ".join(map(str, shown))}'
    raise UserError(f'unknown {what} {key!r}: {hint}')


def check_multiple(what: str, value: int, of_what: str, of: int) -> None:
    """Raises UserError unless `value` is a positive multiple of `of`; suggests the two nearest.

    >>> check_multiple('batch', 100, 'group_size', 32)
    Traceback (most recent call last):
    se_flax.errors.UserError: batch=100 is not a multiple of group_size=32; use 96 or 128
    """
    if value <= 0 or value % of:
        below = max(value // of * of, 0)
        near = [str(v) for v in (below, below + of) if v]
        raise UserError(
            f'{what}={value} is not a multiple of {of_what}={of}; use {" or ".join(near)}'
        )


def check_at_least(what: str, value: Any, least: int, *, whole: bool = True) -> None:
    """Raises UserError unless `value` is an integer (or a finite number) of at least `least`.

    >>> check_at_least('batch_size', 0, 1)
    Traceback (most recent call last):
    se_flax.errors.UserError: batch_size=0 must be at least 1
    """
    kind, name = (numbers.Integral, 'an integer') if whole else (numbers.Real, 'a number')
    if isinstance(value, bool) or not isinstance(value, kind):
        raise UserError(f'{what}={value!r} must be {name}')
    if not (whole or math.isfinite(value)):
        raise UserError(f'{what}={value} must be finite')
    if value < least:
        raise UserError(f'{what}={value} must be at least {least}')


def check_images(images: Any, channels: int = 3, smallest: int = 1) -> None:
    """Raises UserError unless `images` is a float batch `[B, H, W, channels]`, H, W >= smallest."""
    if len(images.shape) != 4 or images.shape[-1] != channels:
        raise UserError(
            f'images have shape {tuple(images.shape)}; this network takes [B, H, W, {channels}]'
        )
    if images.dtype.kind in 'iub':
        raise UserError(f'images are {images.dtype}; normalize them to a float dtype first')
    height, width = images.shape[1:3]
    if min(height, width) < smallest:
        raise UserError(
            f'images are {height} x {width}; this network needs at least {smallest} x {smallest}'
        )
