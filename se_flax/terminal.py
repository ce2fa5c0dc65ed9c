"""What a command does about the terminal or pipe that it prints to."""

import io
import os
import sys
from collections.abc import Iterable

BROKEN_PIPE = 141  # the exit code of a program that SIGPIPE ends


def escape_unprintable() -> None:
    """Has characters that the terminal's encoding lacks printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')


def expand_home(words: Iterable[str]) -> list[str]:
    """Expands the `~` of a path in `--option=~/path`, which shells leave as it is.

    >>> expand_home(['--size=24', 'a=~/b']) == ['--size=24', 'a=~/b']
    True
    """
    split = [word.partition('=') for word in words]
    return [
        name + equals + (os.path.expanduser(value) if name.startswith('--') else value)
        for name, equals, value in split
    ]


def after_broken_pipe() -> int:
    """Returns the exit code once nobody reads what is printed, as behind `| head`."""
    # Python writes what is left when it ends, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE
