"""Trains a network: `python train_main.py` is `se-flax train`."""

import os
import signal
import sys

if __name__ == '__main__':
    # The import takes seconds; no traceback before `stop_signals` handles these.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(143))
    from se_flax import cli

    sys.argv.insert(1, 'train')
    sys.exit(cli.main())
