"""Trains a network: `python train_main.py --help`."""

import logging
import os
import pathlib
import shlex
import signal
import sys

QUICKSTART = pathlib.Path(__file__).parent / 'configs' / 'quickstart.py'


def main(argv: list[str]) -> int:
    """Returns the exit code.

    0, 1 (not finite), 2 (a user's mistake), 69 (another process is lost), 75 (stopped) or 130.
    """
    # Not above: these take seconds, in which SIGTERM and Ctrl-C are to end it without a traceback.
    from se_flax.errors import UserError
    from se_flax.terminal import after_broken_pipe, escape_unprintable
    from se_flax.training.config import parse_args
    from se_flax.training.distributed import LOST, PEER_LOST, connect, lost_a_peer
    from se_flax.training.loop import Preempted
    from se_flax.training.memory import IN_TRAINING, explain
    from se_flax.training.preemption import EXIT_CODE, stop_signals
    from se_flax.training.run import NonFiniteError, run

    escape_unprintable()
    logging.basicConfig(format='%(levelname)s: %(message)s')
    go_on = f'to go on: {shlex.join(sys.orig_argv)}'
    try:
        config, workdir, processes = parse_args(argv, default=str(QUICKSTART))
        if processes:
            connect(*processes, heartbeat_seconds=config.heartbeat_seconds)
        with stop_signals() as stop_requested:
            result = run(config, workdir, stop_requested)
    except Preempted as stop:
        print(f'stopped after step {stop.args[0]}, nothing is lost; {go_on}')
        return EXIT_CODE
    except KeyboardInterrupt:
        print(f'interrupted, the steps since the last checkpoint are lost; {go_on}')
        return 128 + signal.SIGINT
    except RuntimeError as error:
        if line := explain(error, IN_TRAINING):
            print(f'error: {line}', file=sys.stderr)
            return 2
        if not lost_a_peer(error):
            raise
        print(error, f'error: {LOST}', sep='\n', file=sys.stderr)
        return PEER_LOST
    except NonFiniteError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except BrokenPipeError:
        return after_broken_pipe()
    except (UserError, OSError) as error:  # OSError: a full disk, a folder that is not ours
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(
        f'top-1 {100 * result["top1"]:.2f} %, top-5 {100 * result["top5"]:.2f} % of '
        f'{result["examples"]:,} images after {result["step"]:,} steps; '
        f'all of the run is in {workdir}/: curves.png, metrics.jsonl, checkpoints/'
    )
    return 0


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `stop_signals`: quiet, as SIGTERM is
    code = main(sys.argv[1:])
    if code in (69, 130):  # the usual exit waits for the other processes, which may be gone
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
