"""Measures what a checkpoint costs a step on a CPU: `python benchmarks/saves.py`.

A matrix product that keeps all cores busy stands in for the step and is repeated while the state of
a config's network (`--config`, of random numbers) is saved. What the products take beyond their
median from before the save is lost to it, as is the time for which `save` itself blocks. Saves in
the background and in the foreground (`async_checkpoints=false`) alternate. Writes
`benchmarks/results/saves.json` and `saves.md`, a row for each config and kind.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from record import ROOT, processor, spread, update, versions

from se_flax.parallel import data_mesh
from se_flax.tables import markdown
from se_flax.training.checkpoint import Checkpointer
from se_flax.training.config import load_config
from se_flax.training.recipe import make_model, make_start, make_training

SIDE = 2048  # of the product's matrices, 0.1 s on two cores


def make_state(config):
    """Returns a training state of random numbers, with the shapes of the config's network."""
    rng = np.random.default_rng(0)
    _, optimizer = make_training(config, num_steps=1000, steps_per_epoch=100)
    init = make_start(config, make_model(config, 1000), optimizer, data_mesh())
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape).astype(a.dtype)), shapes)


def make_product():
    """Returns a function that returns the seconds of one product."""
    square = jax.jit(lambda x: x @ x / SIDE)
    x = jnp.ones((SIDE, SIDE))
    square(x).block_until_ready()

    def product():
        begin = time.perf_counter()
        square(x).block_until_ready()
        return time.perf_counter() - begin

    return product


def measure(checkpoints, state, product):
    """Returns the seconds that a save blocks, that it takes, and that the products lose to it."""
    usual = statistics.median(product() for _ in range(50))
    begin = time.perf_counter()
    checkpoints.save(1, state, {})
    blocked = lost = time.perf_counter() - begin
    writing = threading.Thread(target=checkpoints.wait)
    writing.start()
    while writing.is_alive():
        lost += product() - usual
    return blocked, time.perf_counter() - begin, lost


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--config', default=str(ROOT / 'configs' / 'senet154.py'))
    parser.add_argument('--saves', type=int, default=5, help='of each kind')
    args = parser.parse_args()

    config = load_config(args.config)
    state, product = make_state(config), make_product()
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(state)]
    found = {True: [], False: []}
    for _ in range(args.saves):
        for background, seconds in found.items():
            with (
                tempfile.TemporaryDirectory() as folder,
                Checkpointer(folder, background=background) as checkpoints,
            ):
                seconds.append(measure(checkpoints, state, product))
    name = os.path.relpath(args.config, ROOT)
    rows = []
    for background, seconds in found.items():
        figures = zip(('blocks_s', 'takes_s', 'lost_s'), zip(*seconds, strict=True), strict=True)
        row = {'config': name, 'background': background, 'arrays': len(sizes), 'bytes': sum(sizes)}
        rows.append(row | {key: sorted(values) for key, values in figures})
    head = (
        f'{processor()}; {versions("se_flax", "jax", "jaxlib", "orbax-checkpoint")}. Medians '
        '(range) of the saves. Lost: time of a product that keeps all cores busy.'
    )
    update('saves', head, rows, ['config'], table)
    print(head, table(rows), sep='\n\n')


def table(rows):
    titles = 'config', 'save', 'arrays', 'MB', 'saves', 'blocks, s', 'takes, s', 'lost, s'
    cells = [titles]
    for row in rows:
        kind = 'in the background' if row['background'] else 'in the foreground'
        figures = (spread(row[key], '.2f') for key in ('blocks_s', 'takes_s', 'lost_s'))
        size = f'{row["bytes"] / 1e6:.0f}', str(len(row['lost_s']))
        cells.append((f'`{row["config"]}`', kind, str(row['arrays']), *size, *figures))
    return markdown(cells)


if __name__ == '__main__':
    main()
