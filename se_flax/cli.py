"""The console script `se-flax`: its parser, and how each command ends."""

import argparse
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial

from se_flax.commands import (
    ablate,
    analyze,
    convert,
    data,
    evaluate,
    export,
    models,
    predict,
    train,
)
from se_flax.errors import UserError, extra_to_install

COMMANDS = (models, data, train, evaluate, predict, convert, export, ablate, analyze)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code, see `exit_code`."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not args.trains:  # those that train take --config.FIELD=VALUE
        parser.error(f'unrecognized arguments: {" ".join(rest)}')
    args.rest = rest
    return exit_code(partial(args.run, args), trains=args.trains)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of `se-flax` with all of its commands."""
    parser = argparse.ArgumentParser(prog='se-flax', description='Squeeze-and-Excitation networks.')
    parser.set_defaults(trains=False)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def exit_code(run: Callable[[], int | None], *, trains: bool) -> int:
    """Calls `run` and returns the exit code of the program; prints a line if `run` raises.

    0: success. 1: a loss is not finite, or a run of a study failed. 2: an error of the user, the
    disk, the memory or a missing package. 130: interrupted. 141: the output has no reader, as with
    `| head`. 142: another process of the run is lost. 143: stopped as requested, the same command
    resumes. Any other exception is a bug and is raised.

    `trains` selects the wording for commands that train.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # some encodings lack characters of a file name
            stream.reconfigure(errors='backslashreplace')
    logging.basicConfig(format='%(levelname)s: %(message)s')
    try:
        code = run() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python flushes stdout once more at exit and would print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        if trains:
            print(f'interrupted, the steps since the last checkpoint are lost; {_resume()}')
        else:
            print('interrupted', file=sys.stderr)
        return _leave(130)
    except Exception as error:
        code, line = _explain(error, trains)
        if not line:
            raise
        # One write, or OpenCV's warnings from other threads could come between line and end.
        (sys.stdout if code == 143 else sys.stderr).write(f'{line}\n')
        return _leave(code)


def _explain(error: Exception, trains: bool) -> tuple[int, str]:
    """Returns the exit code and what to print; '' for a bug."""
    if isinstance(error, UserError | OSError):  # OSError: a full disk, a folder without permission
        return 2, f'error: {error}'
    if isinstance(error, ImportError):
        hint = extra_to_install(error)
        return 2, hint and f'error: {hint}'
    if isinstance(error, RuntimeError):
        from se_flax.training.distributed import LOST, PEER_LOST, lost_a_peer
        from se_flax.training.memory import IN_TRAINING, IN_USE, explain

        if line := explain(error, IN_TRAINING if trains else IN_USE):
            return 2, f'error: {line}'
        if lost_a_peer(error):
            return PEER_LOST, f'{error}\nerror: {LOST}'
    if trains:
        from se_flax.training.loop import Preempted
        from se_flax.training.preemption import EXIT_CODE
        from se_flax.training.run import NonFiniteError

        if isinstance(error, Preempted):
            step = error.args[0]
            return EXIT_CODE, f'stopped after step {step}, nothing is lost; {_resume()}'
        if isinstance(error, NonFiniteError):
            return 1, f'error: {error}'
    return 1, ''


def _leave(code: int) -> int:
    import jax

    if jax.distributed.is_initialized():
        # A normal exit waits for threads, and those of a failed save wait for other processes.
        sys.stdout.flush()
        if code not in (130, 142):
            jax.distributed.shutdown()  # the others, too, have the time to print what happened
        os._exit(code)
    return code


def _resume() -> str:
    return f'to resume: {shlex.join(sys.orig_argv)}'


if __name__ == '__main__':
    sys.exit(main())
