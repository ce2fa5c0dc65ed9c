"""What a command does about the terminal or pipe that it prints to."""

import io
import os
import sys

BROKEN_PIPE = 141  # the exit code of a program that SIGPIPE ends


def escape_unprintable() -> None:
    """Has characters that the terminal's encoding lacks printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')


def after_broken_pipe() -> int:
    """Returns the exit code once nobody reads what is printed, as behind `| head`."""
    # Python writes what is left when it ends, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE
