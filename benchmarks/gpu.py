"""Compares our training step and inference on a GPU with timm's: `python benchmarks/gpu.py`.

In bfloat16, channels last, with the batch that fills the card, ours, timm eager and timm compiled
by `torch.compile` take turns in one process. Then measures the cost of SE, and variants of the
gate, of BatchNorm and of grouped convolution. Needs JAX with CUDA, flax, optax, torch and timm, but
neither data nor an installed se_flax (`PYTHONPATH=.`). Stays under 8 minutes by leaving out the
last parts. Writes `benchmarks/results/gpu.json` and `gpu.md` after each row.

Each network is measured in its own process. A failure becomes a row with its reason. If memory is
too small, all sides get half the batch.

`--quick` is for machines without a GPU: small networks and images, and nothing is written.
"""

import argparse
import math
import os
import statistics
import sys
import time
import traceback
from functools import partial

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # leaves memory for torch

import jax
import jax.numpy as jnp
import numpy as np
from isolated import can_halve, measured, summary
from record import save, versions
from sides import RUNS, compare, median_ratio, ours, pytorchs, row_of
from sides import markdown as table_of

from se_flax import tables
from se_flax.nn import Affine, SqueezeExcite
from se_flax.nn.conv import _pieces, _stock

try:
    import timm
    import torch
except ImportError as error:
    sys.exit(f"benchmarks/gpu.py compares with timm ({error}): pip install '.[torch]'")

NETWORKS = (  # ours, timm's or None, batch of the training step
    ('timm_seresnet50', 'seresnet50', 256),
    ('timm_resnet50', 'resnet50', 256),
    ('timm_seresnext50_32x4d', 'seresnext50_32x4d', 256),
    ('mobilenet', 'mobilenetv1_100', 512),
    ('se_mobilenet', None, 512),
    ('timm_senet154', 'senet154', 96),
)
GROUPED = ((56, 128, 32), (28, 256, 32), (14, 512, 32), (7, 1024, 32))  # map, channels, groups
QUICK, GROUPED_QUICK = (('se_resnet8_cifar', 'test_resnet', 2),), ((4, 32, 8),)
SECONDS = 450


class OwnPass(SqueezeExcite):
    """SE in its usual form, which computes BatchNorm's map first and then gates it."""

    def __call__(self, x):
        return super().__call__(x.map() if isinstance(x, Affine) else x)


VARIANTS = {  # variants of ours, and what each changes
    'SE as a pass of its own': {'se': partial(OwnPass, hidden_multiple=8)},
    'BatchNorm over the whole batch': {'bn_group_size': None},
    'float32': {'dtype': jnp.float32},
    'remat': {'remat': True},
}


def mine(name, batch, size, **fields):
    fields = {'dtype': jnp.bfloat16, 'bn_group_size': math.gcd(32, batch), **fields}
    return ours(name, batch, size, **fields)


def working(calls, batch):
    """Returns the results of the calls, and the errors of those that fail.

    Raises errors that half the batch may avoid.
    """
    results, errors = {}, {}
    for side, call in calls.items():
        try:
            results[side] = call()
        except Exception as error:
            if can_halve(error, batch):
                raise
            traceback.print_exc()
            errors[side] = summary(error)
    return results, errors


def benchmark(twin, size, device, rounds, times, parts, batch):
    """Yields the figures of a network for the sides that work, and the errors of the others."""
    name = parts[0]['network']
    calls = {'ours': partial(mine, name, batch, size)}
    if twin:
        theirs = partial(pytorchs, partial(timm.create_model, twin), batch, size)
        calls['eager'] = partial(theirs, device=device, bfloat16=True)
        if device == 'cuda':
            calls['compiled'] = partial(calls['eager'], compiled=True)
    sides, unmade = working(calls, batch)
    for part in parts:
        what = RUNS[part['run']]
        once = {side: partial(functions[what], 1) for side, (functions, _) in sides.items()}
        works, errors = working(once, batch)
        ready = {side: sides[side] for side in works}
        row = row_of(name, ready, part['run'], batch, size, rounds, times)
        yield row | {'errors': unmade | errors}


def variants(size, rounds, times, parts, batch):
    """Yields the time of variants of our training step, each next to the default."""
    name = parts[0]['network']
    default, told = mine(name, batch, size)
    for part in parts:
        other, told_of_other = mine(name, batch, size, **VARIANTS[part['variant']])
        sides = {'default': default['train'], 'other': other['train']}
        yield {
            'time_ratio': median_ratio(compare(sides, rounds, times), 'other', ours='default'),
            'bytes_ratio': told_of_other['bytes'] / told['bytes'],
        }
        del other, sides  # frees the memory for the next one


def grouped(rounds, times, parts, batch):
    """Yields the milliseconds of two forms of a grouped 3x3 convolution with both gradients."""
    for part in parts:
        yield {'ms': _grouped(**part, batch=batch, rounds=rounds, times=times)}


def _grouped(map, channels, groups, batch, rounds, times):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, map, map, channels)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels // groups, channels)), jnp.bfloat16)

    def timed(form):
        conv = partial(form, strides=1, pads=[(1, 1)] * 2, groups=groups)

        @jax.jit
        def both(x, kernel):
            y, vjp = jax.vjp(conv, x, kernel)
            return y, *vjp(y)

        def run(times):
            for _ in range(times):
                result = both(x, kernel)
            jax.block_until_ready(result)

        return run

    seconds = compare({'stock': timed(_stock), 'pieces': timed(_pieces)}, rounds, times)
    return {form: 1e3 * statistics.median(t) for form, t in seconds.items()}


def machine(quick, parts, batch):
    """Yields the device and its `matmul_rate`, or None without a GPU unless `quick` is set."""
    there = quick or (jax.default_backend() == 'gpu' and torch.cuda.is_available())
    rate = matmul_rate(256 if quick else 8192, 10) if there else None
    yield {'device': jax.devices()[0].device_kind, 'rate': rate}


def matmul_rate(size, times):
    """Returns the best bfloat16 FLOP/s of a few square matrix products."""
    a = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(times):
            result = product(a, a)
        jax.block_until_ready(result)
        best = max(best, 2 * size**3 * times / (time.perf_counter() - begin))
    return best


def markdown(rate, done):
    """Returns the tables of all rows, and a list of failures."""
    parts = [f'A bfloat16 matrix product runs at {rate / 1e9:,.0f} GFLOP/s here.']
    parts.append(table_of([r for r in done['rows'] if r.get('seconds')]))
    if others := [r for r in done['variants'] if 'error' not in r]:
        table = [('training step of', 'other form', 'batch', 'time / default', 'memory / default')]
        for r in others:
            ratios = f'{r["time_ratio"]:.3f}', f'{r["bytes_ratio"]:.3f}'
            table.append((r['network'], r['variant'], str(r['batch']), *ratios))
        parts.append(tables.markdown(table))
    if layers := [r for r in done['grouped'] if 'error' not in r]:
        table = [('grouped 3x3, both gradients', 'batch', 'stock, ms', 'pieces, ms')]
        for r in layers:
            what = f'{r["map"]}x{r["map"]}, {r["channels"]} channels, {r["groups"]} groups'
            ms = (f'{r["ms"][form]:.2f}' for form in ('stock', 'pieces'))
            table.append((what, str(r['batch']), *ms))
        parts.append(tables.markdown(table))
    keys = ('network', 'run', 'variant', 'map', 'channels', 'groups', 'batch')
    for r in sum(done.values(), []):
        errors = {'all': r['error']} if 'error' in r else r.get('errors', {})
        what = ', '.join(f'{key} {r[key]}' for key in keys if key in r)
        parts += [f'Failed: {what}; {side}: `{error}`' for side, error in errors.items()]
    return '\n\n'.join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true', help='small, on a CPU, nothing is saved')
    args = parser.parse_args()
    deadline = time.monotonic() + SECONDS
    device = 'cpu' if args.quick else 'cuda'
    networks, layers, size, rounds, times = NETWORKS, GROUPED, 224, 7, 10
    if args.quick:
        networks, layers, size, rounds, times = QUICK, GROUPED_QUICK, 32, 2, 1

    [here] = measured(partial(machine, args.quick), [{}], 0, deadline)
    if 'error' in here:
        sys.exit(f'benchmarks/gpu.py: {here["error"]}')
    if not here['rate']:
        sys.exit('benchmarks/gpu.py needs a GPU that both jax and torch see; --quick needs none')
    head = (
        f'{here["device"]}; {versions("se_flax", "jax", "jaxlib", "flax", "torch", "timm")}; '
        f'Python {sys.version.split()[0]}; bfloat16, {size} pixels; '
        f'median (range) of {rounds} rounds of {times} steps'
    )
    print(head, flush=True)

    jobs = []
    for name, twin, batch in networks:
        job = partial(benchmark, twin, size, device, rounds, times)
        jobs.append(('rows', job, [{'network': name, 'run': run} for run in RUNS], batch))
    name, _, batch = networks[0]
    of_layers = [dict(zip(('map', 'channels', 'groups'), layer, strict=True)) for layer in layers]
    of_variants = [{'network': name, 'variant': title} for title in VARIANTS]
    jobs[1:1] = [  # what decides defaults comes first
        ('grouped', partial(grouped, rounds, times), of_layers, batch),
        ('variants', partial(variants, size, rounds, times), of_variants, batch),
    ]
    done = {'rows': [], 'variants': [], 'grouped': []}
    for kind, job, parts, batch in jobs:
        if args.quick and kind == 'variants':
            continue
        if time.monotonic() >= deadline:
            print(f'skipped, out of time: {parts}', flush=True)
        for row in measured(job, parts, batch, deadline):
            done[kind].append(row)
            print(row, flush=True)
            if not args.quick:
                figures = {'matmul_flops_per_s': here['rate'], **done}
                save('gpu', head, markdown(here['rate'], done), **figures)
    print(markdown(here['rate'], done))


if __name__ == '__main__':
    main()
