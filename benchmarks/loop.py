"""The trainer's images a second beside the bare step's: `python benchmarks/loop.py`.

One run, of the quick start or of any config: every so many steps the trainer is held up, and the
same step, over and over on one batch that is on the device, has the machine as long. So a noisy
machine disturbs both. On a CPU the threads that read images have no processor of their own: what
they need, the step goes without, and it is printed as well.
"""

import argparse
import contextlib
import io
import os
import pathlib
import platform
import re
import statistics
import tempfile
import time
from importlib.metadata import version

import jax

from se_flax.data import train_batches
from se_flax.parallel import data_mesh, shard_batch
from se_flax.training.config import assign, load_config, parse_assignments
from se_flax.training.metrics_log import read_rows
from se_flax.training.recipe import make_plan, make_step
from se_flax.training.run import run
from se_flax.training.state import make_init
from se_flax.training.step import jit_train_step

QUICKSTART = pathlib.Path(__file__).parents[1] / 'configs' / 'quickstart.py'


def make_bare(config):
    """Returns a function that takes so many steps and waits for the last."""
    mesh = data_mesh()
    plan = make_plan(config, mesh.size)
    state = make_init(plan.model, plan.optimizer, config.image_size, mesh)(jax.random.key(0))
    step = jit_train_step(make_step(config, plan), mesh)
    batches = train_batches(
        plan.train_set,
        plan.train_view,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=0,
        num_steps=1,
    )
    batch = shard_batch(mesh, next(batches))

    def bare(num_steps):
        nonlocal state
        for _ in range(num_steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    bare(1)  # compiles
    return bare


def alternate(bare, num_steps, pairs):
    """Yields False at each turn of the trainer; notes the seconds of its steps and of bare ones."""
    while True:
        begin = time.perf_counter()
        bare(num_steps)
        middle = time.perf_counter()
        for _ in range(num_steps):
            yield False
        jax.block_until_ready(jax.live_arrays())  # the trainer's newest step is under way
        pairs.append((middle - begin, time.perf_counter() - middle))


def measure(config, rounds, num_steps):
    """Returns `(bare, trainer)` seconds of each round, and the rows of the trainer's steps."""
    config.num_steps = (rounds + 1) * num_steps
    config.log_every_steps = num_steps
    # Steady state: the trainer's stopwatch pauses for evaluations and saves, too.
    config.eval_every_epochs = config.checkpoint_every_epochs = None
    turns = alternate(make_bare(config), num_steps, pairs := [])
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
        run(config, pathlib.Path(workdir), stop_requested=lambda _: next(turns))
        rows = [row for row in read_rows(f'{workdir}/metrics.jsonl') if row['split'] == 'train']
    return pairs[1:], rows[1:]  # the first round compiles


def reading_seconds(config, num_batches=8):
    """Returns the CPU seconds that the images of a step take to read, decode and cut."""
    plan = make_plan(config, data_mesh().size)
    batches = train_batches(
        plan.train_set,
        plan.train_view,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=0,
        num_steps=num_batches,
    )
    begin = time.process_time()
    for _ in batches:
        pass
    return (time.process_time() - begin) / num_batches


def cpu_model():
    info = pathlib.Path('/proc/cpuinfo')
    names = re.findall(r'model name\s*: (.*)', info.read_text()) if info.exists() else []
    return names[0] if names else platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config', default=str(QUICKSTART), help='and --config.FIELD=VALUE')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--steps', type=int, default=50, help='of each kind in a round')
    args, rest = parser.parse_known_args()

    cores = len(os.sched_getaffinity(0))
    print(f'{cpu_model()}, {cores} cores; {jax.device_count()} x {jax.devices()[0].device_kind}')
    print(*(f'{name} {version(name)}' for name in ('se_flax', 'jax', 'jaxlib', 'flax', 'grain')))
    config = load_config(args.config)
    for name, value in parse_assignments(rest):
        assign(config, name, value)
    reading = reading_seconds(config)
    pairs, rows = measure(config, args.rounds, args.steps)
    images = config.batch_size * args.steps
    bare, trainer = (images / statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    ratios = sorted(bare / trainer for bare, trainer in pairs)
    print(f'medians of {args.rounds} rounds: bare {bare:.0f}, trainer {trainer:.0f} images/s')
    print(f'ratio {statistics.median(ratios):.3f}, of the rounds {ratios[0]:.3f}-{ratios[-1]:.3f}')
    wait, host = (statistics.median(row[name] for row in rows) for name in ('data_wait', 'host_ms'))
    step = 1e3 * statistics.median(pair[0] for pair in pairs) / args.steps
    print(
        f'bare step {step:.1f} ms on {cores} cores; its images take {1e3 * reading:.1f} ms of one '
        f'core; data wait {100 * wait:.1f} %, host {host:.2f} ms a step'
    )


if __name__ == '__main__':
    main()
