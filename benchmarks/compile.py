"""How long a training step compiles, anew and from the cache: `python benchmarks/compile.py`.

The trainer's own step of a recipe, for this machine's CPU in float32, in a process of its own:
first with an empty cache, then with what that left. Tracing and lowering, which no cache saves,
are a column of their own. Writes `benchmarks/results/compile.md`.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

import jax
from aot import lower_step
from loop import cpu_model

from se_flax.parallel import data_mesh
from se_flax.tables import markdown

RESULT = pathlib.Path(__file__).parent / 'results' / 'compile.md'
NETWORKS = {'se_resnet50': 32, 'senet154': 32}  # and images


def measure(network, images):
    """Returns the seconds to lower and to compile, in this process."""
    begin = time.perf_counter()
    lowered = lower_step(network, data_mesh(jax.devices()[:1]), images, 'float32')
    middle = time.perf_counter()
    lowered.compile()
    return middle - begin, time.perf_counter() - middle


def measure_elsewhere(network, cache):
    """Returns the same of a new process that keeps what it compiles in a folder."""
    environ = os.environ | {'JAX_COMPILATION_CACHE_DIR': cache}
    command = [sys.executable, __file__, network, '--here']
    return json.loads(subprocess.check_output(command, env=environ, text=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', nargs='*', default=list(NETWORKS), help=', '.join(NETWORKS))
    parser.add_argument('--here', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.networks[0], NETWORKS[args.networks[0]])))
        return
    rows = [('step of', 'images', 'traced and lowered, s', 'compiled, s', 'from the cache, s')]
    for network in args.networks:
        with tempfile.TemporaryDirectory() as cache:
            lower, compile_ = measure_elsewhere(network, cache)
            _, cached = measure_elsewhere(network, cache)
        seconds = (f'{s:.1f}' for s in (lower, compile_, cached))
        rows.append((network, str(NETWORKS[network]), *seconds))
    names = ('se_flax', 'jax', 'jaxlib', 'flax')
    versions = ', '.join(f'{name} {version(name)}' for name in names)
    head = f'{cpu_model()}, {len(os.sched_getaffinity(0))} cores; {versions}'
    RESULT.write_text(f'{head}\n\n{markdown(rows)}\n')
    print(RESULT.read_text())


if __name__ == '__main__':
    main()
