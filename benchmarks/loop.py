"""Compares the trainer's speed with that of its bare step: `python benchmarks/loop.py`.

Trains one run, of the quick start or of any config (`--config`, `--config.FIELD=VALUE`). At regular
intervals the trainer pauses, and the same step runs repeatedly on one batch that is already on the
device, for the same time. Noise of the machine thus affects both. On a CPU the threads that read
images share the processor with the step; their CPU time is reported as well. With `--saves K` every
K-th round has a checkpoint, and the trainer's time ends when it is on the disk. A ratio is that of
K rounds together: short rounds keep both kinds of steps close in time. Writes
`benchmarks/results/loop.json` and `loop.md`, a row for each command.
"""

import argparse
import contextlib
import io
import os
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
from record import ROOT, processor, update, versions

from se_flax.data import train_batches
from se_flax.errors import UserError
from se_flax.parallel import data_mesh, shard_batch
from se_flax.tables import markdown
from se_flax.training import run as run_module
from se_flax.training.checkpoint import Checkpointer
from se_flax.training.config import assign, load_config, parse_assignments
from se_flax.training.loop import Preempted
from se_flax.training.metrics_log import read_rows as read_metrics
from se_flax.training.recipe import make_plan, make_step
from se_flax.training.state import make_init
from se_flax.training.step import jit_train_step

QUICKSTART = ROOT / 'configs' / 'quickstart.py'


def first_batches(plan, config, num_steps):
    options = {'batch_size': config.batch_size, 'seed': config.seed, 'start_step': 0}
    return train_batches(plan.train_set, plan.train_view, num_steps=num_steps, **options)


def make_bare(config):
    """Returns a function that takes a number of steps and waits for the last one."""
    mesh = data_mesh()
    plan = make_plan(config, mesh.size)
    state = make_init(plan.model, plan.optimizer, config.image_size, mesh)(jax.random.key(0))
    step = jit_train_step(make_step(plan, mesh), mesh)
    batch = shard_batch(mesh, next(first_batches(plan, config, 1)))

    def bare(num_steps):
        nonlocal state
        for _ in range(num_steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    bare(1)  # compiles
    return bare


def alternate(bare, num_steps, rounds, pairs, checkpointers):
    """Yields whether to stop, at each step of the trainer; records the seconds of both kinds."""
    for i in range(rounds):
        begin = time.perf_counter()
        bare(num_steps)
        middle = time.perf_counter()
        # The first round is longer, so that later ones save after a step and train meanwhile.
        for _ in range(num_steps if i else 2 * num_steps - 1):
            yield False
        jax.block_until_ready(jax.live_arrays())  # the trainer's last step is still running
        for checkpointer in checkpointers:
            checkpointer.wait()
        pairs.append((middle - begin, time.perf_counter() - middle))
    yield True


def measure(config, rounds, num_steps, saves):
    """Returns `(bare, trainer)` seconds per step, of each round or save, and the trainer's rows."""
    config.num_steps = (rounds + 2) * num_steps  # it stops before the last evaluation
    config.log_every_steps = num_steps
    # Steady state: the trainer's clock also pauses for evaluations and saves.
    config.eval_every_epochs = config.checkpoint_every_epochs = None
    config.checkpoint_every_steps = num_steps * saves or None
    checkpointers = []

    def noted(*args, **kwargs):
        checkpointers.append(Checkpointer(*args, **kwargs))
        return checkpointers[0]

    run_module.Checkpointer = noted
    turns = alternate(make_bare(config), num_steps, rounds + 1, pairs := [], checkpointers)
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(Preempted):
            run_module.run(config, pathlib.Path(workdir), stop_requested=lambda _: next(turns))
        rows = [row for row in read_metrics(f'{workdir}/metrics.jsonl') if row['split'] == 'train']
    per_step = np.array(pairs[1:]) / num_steps  # the first round compiles
    return per_step.reshape(-1, saves or 1, 2).mean(1).tolist(), rows[1:]


def reading_seconds(config, num_batches=32):
    """Returns the CPU seconds to read, decode and crop the images of a step."""
    plan = make_plan(config, data_mesh().size)
    begin = time.process_time()
    for _ in first_batches(plan, config, num_batches):
        pass
    return (time.process_time() - begin) / num_batches


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config', default=str(QUICKSTART), help='allows --config.FIELD=VALUE')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--steps', type=int, default=50, help='steps of each kind per round')
    parser.add_argument('--saves', type=int, default=0, metavar='K', help='in every K-th round')
    args, rest = parser.parse_known_args()
    if args.saves and args.rounds % args.saves:
        parser.error(f'--rounds {args.rounds} must be a multiple of --saves {args.saves}')

    try:
        config = load_config(args.config)
        for name, value in parse_assignments(rest):
            assign(config, name, value)
    except UserError as error:
        parser.error(str(error))
    reading = reading_seconds(config)
    pairs, log = measure(config, args.rounds, args.steps, args.saves)
    bare, trainer = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    ratios = sorted(bare / trainer for bare, trainer in pairs)
    saves = ['--saves', str(args.saves), '--steps', str(args.steps)] if args.saves else []
    row = {
        'config': ' '.join([os.path.relpath(args.config, ROOT), *saves, *rest]),
        'rounds': len(pairs),
        'images': config.batch_size,
        'bare_s': bare,
        'trainer_s': trainer,
        'ratio': statistics.median(ratios),
        'range': (ratios[0], ratios[-1]),
        'reading_s': reading,
        'data_wait': statistics.median(row['data_wait'] for row in log),
    }
    kind = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    head = (
        f'{processor()}; {kind}; {versions("se_flax", "jax", "jaxlib", "flax", "grain")}. Ratio: '
        'bare step / trainer, median (range) of the rounds. Reading: CPU time of one core.'
    )
    update('loop', head, [row], ['config'], table)
    print(head, table([row]), sep='\n\n')


def table(rows):
    titles = 'config', 'images', 'rounds', 'bare step, ms', 'trainer, ms', 'ratio'
    cells = [(*titles, 'reading its images, ms', 'waiting for data, %')]
    for row in rows:
        low, high = row['range']
        bare, trainer, reading = (
            f'{1e3 * row[name]:.1f}' for name in ('bare_s', 'trainer_s', 'reading_s')
        )
        ratio = f'{row["ratio"]:.3f} ({low:.3f}-{high:.3f})'
        wait = f'{100 * row["data_wait"]:.1f}'
        counts = str(row['images']), str(row['rounds'])
        cells.append((f'`{row["config"]}`', *counts, bare, trainer, ratio, reading, wait))
    return markdown(cells)


if __name__ == '__main__':
    main()
