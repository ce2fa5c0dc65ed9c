"""Trains a network: `python train_main.py --help`."""

import functools
import os
import pathlib
import signal
import sys

QUICKSTART = pathlib.Path(__file__).parent / 'configs' / 'quickstart.py'


def main(argv: list[str]) -> int:
    """Returns the exit code, see `se_flax.cli.exit_code`."""
    # These imports take seconds, in which SIGTERM and Ctrl-C end the program without a traceback.
    from se_flax import cli
    from se_flax.commands.train import train

    return cli.exit_code(functools.partial(train, argv, default=str(QUICKSTART)), trains=True)


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback before `stop_signals` handles it
    code = main(sys.argv[1:])
    if code in (69, 130):  # a normal exit waits for the other processes, which may be gone
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
