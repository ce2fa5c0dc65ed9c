"""`train_main.py`: trains a network."""

from collections.abc import Sequence


def train(argv: Sequence[str], *, default: str) -> None:
    """Trains as the arguments specify; `default` is the config file if they name none."""
    from se_flax.training.config import parse_args
    from se_flax.training.distributed import connect
    from se_flax.training.preemption import stop_signals
    from se_flax.training.run import run

    config, workdir, processes = parse_args(argv, default=default)
    if processes:
        connect(processes, heartbeat_seconds=config.heartbeat_seconds)
    with stop_signals() as stop_requested:
        result = run(config, workdir, stop_requested)
    print(
        f'top-1 {100 * result["top1"]:.2f} %, top-5 {100 * result["top5"]:.2f} % of '
        f'{result["examples"]:,} images after {result["step"]:,} steps; '
        f'see {workdir}/ for curves.png, metrics.jsonl and checkpoints/'
    )
