"""Trains a network: `python train_main.py` is `se-flax train`."""

import signal
import sys

if __name__ == '__main__':
    # The import takes seconds, in which Ctrl-C ends the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from se_flax import cli

    sys.argv.insert(1, 'train')
    sys.exit(cli.program())
