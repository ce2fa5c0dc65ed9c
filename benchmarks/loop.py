"""The trainer's images a second beside the bare step's: `python benchmarks/loop.py`.

Both run the quick start in turn, in one process: the trainer with data, metrics and progress line
as `run()` has them, the bare step over and over on one batch that is on the device. The goal is
a ratio of at least 0.95.
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
from se_flax.training.config import load_config
from se_flax.training.metrics_log import read_rows
from se_flax.training.recipe import make_plan
from se_flax.training.run import run
from se_flax.training.state import make_init
from se_flax.training.step import jit_train_step, make_train_step

QUICKSTART = pathlib.Path(__file__).parents[1] / 'configs' / 'quickstart.py'


def bare_speed(config, num_steps):
    """Returns images a second of the jitted step alone."""
    mesh = data_mesh()
    plan = make_plan(config, mesh.size)
    state = make_init(plan.model, plan.optimizer, config.image_size, mesh)(jax.random.key(0))
    step = make_train_step(
        plan.model,
        plan.optimizer,
        plan.schedule,
        mean=config.mean,
        std=config.std,
        label_smoothing=config.label_smoothing,
    )
    step = jit_train_step(step, mesh)
    batches = train_batches(
        plan.train_set,
        plan.train_view,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=0,
        num_steps=1,
    )
    batch = shard_batch(mesh, next(batches))
    state, _ = jax.block_until_ready(step(state, batch))  # compiles
    begin = time.perf_counter()
    for _ in range(num_steps):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return config.batch_size * num_steps / (time.perf_counter() - begin)


def trainer_speed(config, num_steps):
    """Returns the same of a whole run's steps, without those of the first row, which compile."""
    config = config.copy_and_resolve_references()
    config.log_every_steps = num_steps // 5
    config.num_steps = num_steps + config.log_every_steps
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
        run(config, pathlib.Path(workdir))
        rows = read_rows(pathlib.Path(workdir) / 'metrics.jsonl')
    train = [row for row in rows if row['split'] == 'train'][1:]
    return statistics.harmonic_mean([row['images_per_second'] for row in train])


def cpu_model():
    info = pathlib.Path('/proc/cpuinfo')
    names = re.findall(r'model name\s*: (.*)', info.read_text()) if info.exists() else []
    return names[0] if names else platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=100, help='that are timed in a round')
    args = parser.parse_args()
    config = load_config(str(QUICKSTART))

    cores = len(os.sched_getaffinity(0))
    print(f'{cpu_model()}, {cores} cores; {jax.device_count()} x {jax.devices()[0].device_kind}')
    print(*(f'{name} {version(name)}' for name in ('se_flax', 'jax', 'jaxlib', 'flax', 'grain')))
    rounds = []
    for i in range(args.rounds):
        bare, trainer = bare_speed(config, args.steps), trainer_speed(config, args.steps)
        rounds.append((bare, trainer, trainer / bare))
        print(f'round {i + 1}: bare {bare:.0f}, trainer {trainer:.0f}, ratio {trainer / bare:.3f}')
    bare, trainer, ratio = map(statistics.median, zip(*rounds, strict=True))
    print(f'median: bare {bare:.0f}, trainer {trainer:.0f} images/s, ratio {ratio:.3f}')


if __name__ == '__main__':
    main()
