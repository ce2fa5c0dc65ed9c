"""Options by which the processes of a command find each other; imports no JAX."""

import argparse
from typing import TypeAlias

Processes: TypeAlias = tuple[str | None, int | None, int | None]  # coordinator, number, own number


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `processes_of` reads."""
    many = parser.add_argument_group('several processes, each started with this command')
    many.add_argument(
        '--distributed',
        action='store_true',
        help='read the three options below from Cloud TPU, SLURM, Open MPI, or the variables '
        'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID',
    )
    many.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0, with a free port')
    many.add_argument('--num-processes', type=int, metavar='N')
    many.add_argument('--process-id', type=int, metavar='I', help='0 to N - 1')


def processes_of(args: argparse.Namespace) -> Processes | None:
    """Returns what `distributed.connect` takes; None for one process."""
    processes = args.coordinator, args.num_processes, args.process_id
    return processes if args.distributed or processes != (None, None, None) else None
