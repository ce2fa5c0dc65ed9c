"""Our training step and inference on a GPU beside timm's: `python benchmarks/gpu.py`.

bfloat16, channels last, the batch that fills the card, turn by turn in one run: ours against timm
eager and `torch.compile`. Then what SE costs, variants of the gate, of BatchNorm and of grouped
convolution. Needs jax with CUDA, flax, optax, torch and timm, and no data; stays under 8 minutes by
leaving out what comes last. Writes `benchmarks/results/gpu.json` and `gpu.md`.

`--quick` is for machines without a GPU: small networks and images, nothing written.
"""

import argparse
import os
import statistics
import sys
import time
from functools import partial

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch needs memory as well

import jax
import jax.numpy as jnp
import numpy as np
from record import save, versions
from sides import compare, median_ratio, ours, pytorchs, rows
from sides import markdown as table_of

from se_flax.nn import Affine, SqueezeExcite
from se_flax.nn.conv import _pieces, _stock

try:
    import timm
    import torch
except ImportError as error:
    sys.exit(f"benchmarks/gpu.py compares with timm ({error}): pip install '.[torch]'")

NETWORKS = (  # ours, timm's (None: it has none), batch of the training step
    ('timm_seresnet50', 'seresnet50', 256),
    ('timm_resnet50', 'resnet50', 256),
    ('timm_seresnext50_32x4d', 'seresnext50_32x4d', 256),
    ('mobilenet', 'mobilenetv1_100', 512),
    ('se_mobilenet', None, 512),
    ('timm_senet154', 'senet154', 96),
)
GROUPED = ((56, 128, 32), (28, 256, 32), (14, 512, 32), (7, 1024, 32))  # map, channels, groups
SECONDS = 450


class OwnPass(SqueezeExcite):
    """SE that computes BatchNorm's map first, and then gates it: the usual form."""

    def __call__(self, x):
        return super().__call__(x.map() if isinstance(x, Affine) else x)


VARIANTS = {  # of ours, what each changes
    'SE as a pass of its own': {'se': partial(OwnPass, hidden_multiple=8)},
    'BatchNorm over the whole batch': {'bn_group_size': None},
    'float32': {'dtype': jnp.float32},
    'remat': {'remat': True},
}


def mine(name, batch, size, **fields):
    fields = {'dtype': jnp.bfloat16, 'bn_group_size': min(32, batch), **fields}
    return ours(name, batch, size, **fields)


def benchmark(name, twin, batch, size, device, rounds, times):
    """Yields a row for training and one for inference."""
    sides = {'ours': mine(name, batch, size)}
    if twin:
        theirs = partial(pytorchs, partial(timm.create_model, twin), batch, size)
        theirs = partial(theirs, device=device, bfloat16=True)
        sides['eager'] = theirs()
        if device == 'cuda':
            sides['compiled'] = theirs(compiled=True)
    yield from rows(name, sides, batch, size, (batch,), rounds, times)


def variants(name, batch, size, rounds, times):
    """Yields the training step of ours in other forms, each beside the default."""
    default, told = mine(name, batch, size)
    sides = {'default': default['train']}
    for title, fields in VARIANTS.items():
        other, told_of_other = mine(name, batch, size, **fields)
        sides['other'] = other['train']
        yield {
            'network': name,
            'variant': title,
            'batch': batch,
            'time_ratio': median_ratio(compare(sides, rounds, times), 'other', ours='default'),
            'bytes_ratio': told_of_other['bytes'] / told['bytes'],
        }


def grouped(batch, size, channels, groups, rounds, times):
    """Returns the milliseconds of a grouped 3x3 with both gradients, in two forms."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, size, size, channels)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels // groups, channels)), jnp.bfloat16)

    def timed(form):
        conv = partial(form, strides=1, pads=(1, 1), groups=groups)

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
    ms = {form: 1e3 * statistics.median(t) for form, t in seconds.items()}
    return {'map': size, 'channels': channels, 'groups': groups, 'batch': batch, 'ms': ms}


def matmul_rate(size, times):
    """Returns the bfloat16 FLOP/s of a square matrix product, the best of a few."""
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


def markdown(rate, done, others, layers):
    lines = [f'A bfloat16 matrix product runs at {rate / 1e9:,.0f} GFLOP/s here.', '']
    lines += table_of(done)
    if others:
        lines += ['', '| training step of | other form | time / default | memory / default |']
        lines += ['|---|---|---:|---:|']
        for r in others:
            ratios = f'{r["time_ratio"]:.3f} | {r["bytes_ratio"]:.3f}'
            lines.append(f'| {r["network"]} | {r["variant"]} | {ratios} |')
    if layers:
        lines += ['', '| grouped 3x3, both gradients | stock, ms | pieces, ms |', '|---|---:|---:|']
        for r in layers:
            what = f'{r["map"]}x{r["map"]}, {r["channels"]} channels, {r["groups"]} groups'
            lines.append(f'| {what} | {r["ms"]["stock"]:.2f} | {r["ms"]["pieces"]:.2f} |')
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true', help='small, on a CPU, to no file')
    args = parser.parse_args()
    begin = time.perf_counter()
    if not args.quick and (jax.default_backend() != 'gpu' or not torch.cuda.is_available()):
        sys.exit('benchmarks/gpu.py needs a GPU that both jax and torch see; --quick needs none')

    device = 'cpu' if args.quick else 'cuda'
    networks, layers_of, size, rounds, times = NETWORKS, GROUPED, 224, 7, 10
    if args.quick:
        networks, layers_of, size, rounds, times = (
            (('mobilenet', 'mobilenetv1_100', 2),),
            ((4, 32, 8),),
            32,
            2,
            1,
        )
    gpu = jax.devices()[0].device_kind
    head = (
        f'{gpu}; {versions("se_flax", "jax", "jaxlib", "flax", "torch", "timm")}; '
        f'Python {sys.version.split()[0]}; bfloat16, {size} pixels; '
        f'median (range) of {rounds} rounds of {times} steps'
    )
    print(head, flush=True)
    rate = matmul_rate(256 if args.quick else 8192, 10)
    done, others, layers = [], [], []

    def write():
        table = markdown(rate, done, others, layers)
        if not args.quick:
            figures = {'matmul_flops_per_s': rate, 'variants': others, 'grouped': layers}
            save('gpu', head, table, done, **figures)
        return table

    def left(what):
        enough = time.perf_counter() - begin < SECONDS
        if not enough:
            print(f'{what}: left out, the time is over', flush=True)
        return enough

    for i, (name, twin, batch) in enumerate(networks):
        if left(name):
            for row in benchmark(name, twin, batch, size, device, rounds, times):
                done.append(row)
                print(name, row['run'], row['seconds'], row['ratio'], flush=True)
                write()
            jax.clear_caches()
        if i == 0:  # what decides defaults comes before the other networks
            for layer in layers_of:
                layers.append(grouped(batch, *layer, rounds, times))
                print(layers[-1], flush=True)
            if not args.quick:
                for row in variants(name, batch, size, rounds, times):
                    others.append(row)
                    print(row, flush=True)
    print(write())


if __name__ == '__main__':
    main()
