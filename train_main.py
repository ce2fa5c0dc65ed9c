"""Trains a network: `python train_main.py --help`."""

import logging
import pathlib
import shlex
import sys

from se_flax.errors import UserError
from se_flax.training.config import parse_args
from se_flax.training.loop import Preempted
from se_flax.training.preemption import EXIT_CODE
from se_flax.training.run import NonFiniteError, run

QUICKSTART = pathlib.Path(__file__).parent / 'configs' / 'quickstart.py'


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, 1 (not finite), 2 (a user's mistake) or 75 (stopped, saved)."""
    logging.basicConfig(format='%(levelname)s: %(message)s')
    try:
        config, workdir = parse_args(argv, default=str(QUICKSTART))
        result = run(config, workdir)
    except Preempted as stop:
        again = shlex.join(['python', sys.argv[0], *argv])
        print(f'stopped after step {stop.args[0]}, which is saved; to go on: {again}')
        return EXIT_CODE
    except NonFiniteError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(
        f'top-1 {100 * result["top1"]:.2f} %, top-5 {100 * result["top5"]:.2f} % of '
        f'{result["examples"]:,} images after {result["step"]:,} steps; '
        f'all of the run is in {workdir}/: curves.png, metrics.jsonl, checkpoints/'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
