"""`se-flax train` and `train_main.py`: train a network."""

import argparse
from typing import Any

from se_flax.commands.common import add_command


def add_to(commands: Any) -> None:
    # `parse_args` has the options and their help: listing the fields needs the extra `train`.
    parser = add_command(commands, 'train', _run, 'train a network by a recipe', add_help=False)
    parser.set_defaults(trains=True)


def _run(args: argparse.Namespace) -> None:
    from se_flax.training.clock import describe
    from se_flax.training.config import parse_args
    from se_flax.training.distributed import connect
    from se_flax.training.preemption import stop_signals
    from se_flax.training.run import run

    config, workdir, processes = parse_args(args.rest)
    if processes:
        connect(processes, heartbeat_seconds=config.heartbeat_seconds)
    with stop_signals() as stop_requested:
        result = run(config, workdir, stop_requested)
    print(
        f'top-1 {100 * result["top1"]:.2f} %, top-5 {100 * result["top5"]:.2f} % of '
        f'{result["examples"]:,} images after {result["step"]:,} steps; '
        f'see {workdir}/ for curves.png, metrics.jsonl and checkpoints/'
    )
    if 'goodput' in result:  # older runs have none
        print(describe(result['goodput']))
