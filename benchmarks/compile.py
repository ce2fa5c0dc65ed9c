"""Times compiling a training step, with and without the cache: `python benchmarks/compile.py`.

Compiles the trainer's own step of a recipe for this machine's CPU in float32, in its own process:
first with an empty cache, then with the filled one. Tracing and lowering, which no cache saves,
have their own column. Writes `benchmarks/results/compile.json` and `compile.md`.
"""

import argparse
import os
import tempfile
import time

import jax
from aot import lower_step
from isolated import in_new_process
from record import processor, save, versions

from se_flax.parallel import data_mesh
from se_flax.tables import markdown

NETWORKS = {'se_resnet50': 32, 'senet154': 32}  # images per step


def measure(network, images):
    """Returns the seconds to lower and to compile, in this process."""
    begin = time.perf_counter()
    lowered = lower_step(network, data_mesh(jax.devices()[:1]), images, dtype='float32')
    middle = time.perf_counter()
    lowered.compile()
    return middle - begin, time.perf_counter() - middle


def measure_elsewhere(network, cache):
    """Returns the same from a new process with its compilation cache in a folder."""
    os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
    return in_new_process(measure, network, NETWORKS[network])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', nargs='*', default=list(NETWORKS), help=', '.join(NETWORKS))
    args = parser.parse_args()
    if unknown := set(args.networks) - set(NETWORKS):
        parser.error(f'{", ".join(sorted(unknown))}: take {", ".join(NETWORKS)}')
    rows = []
    for network in args.networks:
        with tempfile.TemporaryDirectory() as cache:
            lower, compile_ = measure_elsewhere(network, cache)
            _, cached = measure_elsewhere(network, cache)
        row = {'network': network, 'images': NETWORKS[network]}
        rows.append(row | {'lower_s': lower, 'compile_s': compile_, 'from_cache_s': cached})
    head = f'{processor()}; {versions("se_flax", "jax", "jaxlib", "flax")}'
    titles = 'step of', 'images', 'traced and lowered, s', 'compiled, s', 'from the cache, s'
    cells = [[f'{x:.1f}' if isinstance(x, float) else str(x) for x in row.values()] for row in rows]
    table = markdown([titles, *cells])
    save('compile', head, table, rows)
    print(head, table, sep='\n\n')


if __name__ == '__main__':
    main()
