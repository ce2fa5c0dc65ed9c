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
    # No traceback before `stop_signals` handles them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(143))
    sys.exit(main(sys.argv[1:]))
