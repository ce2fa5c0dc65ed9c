"""Times single convolutions of the networks: `python benchmarks/conv.py`.

Compares XLA's own operation, ours (`se_flax/nn/conv.py`, whose rule for CPUs is based on this
table) and PyTorch's, channels last, forward and with both gradients. They take turns in one
process. Needs the extra `torch`. Writes `benchmarks/results/conv.json` and `conv.md`.
"""

import argparse
import os
import sys
from functools import partial
from timeit import timeit

import jax
import jax.numpy as jnp
import numpy as np
from record import processor, save, versions

from se_flax.nn.conv import _stock, convolve
from se_flax.tables import markdown

try:
    import torch
except ImportError as error:
    sys.exit(f"benchmarks/conv.py compares with PyTorch ({error}): pip install '.[torch]'")

LAYERS = (  # network; height and width of the map, channels in and out, kernel, strides, groups
    ('resnet50', 56, 256, 64, 1, 1, 1),
    ('resnet50', 56, 64, 256, 1, 1, 1),
    ('resnet50', 56, 256, 512, 1, 2, 1),
    ('resnet50', 14, 1024, 256, 1, 1, 1),
    ('resnet50', 56, 64, 64, 3, 1, 1),
    ('resnet50', 14, 256, 256, 3, 1, 1),
    ('resnext50_32x4d', 56, 128, 128, 3, 1, 32),
    ('resnext50_32x4d', 56, 256, 256, 3, 2, 32),
    ('resnext50_32x4d', 14, 512, 512, 3, 1, 32),
    ('resnext50_32x4d', 7, 1024, 1024, 3, 1, 32),
    ('senet154', 56, 128, 256, 3, 1, 64),
    ('shufflenet', 28, 240, 60, 1, 1, 3),
    ('mobilenet', 112, 32, 32, 3, 1, 32),
    ('mobilenet', 56, 128, 128, 3, 1, 128),
    ('mobilenet', 14, 512, 512, 3, 1, 512),
    ('efficientnet_b0', 56, 144, 144, 5, 2, 144),
    ('efficientnet_b0', 14, 672, 672, 5, 1, 672),
)


def in_jax(conv, x, kernel, cotangent):
    """Returns functions that run forward, and forward with both gradients."""

    def both(x, kernel, cotangent):
        y, vjp = jax.vjp(conv, x, kernel)
        return y, *vjp(cotangent)

    forward, both = jax.jit(conv), jax.jit(both)
    return (
        lambda: jax.block_until_ready(forward(x, kernel)),
        lambda: jax.block_until_ready(both(x, kernel, cotangent)),
    )


def in_torch(x, kernel, cotangent, **kwargs):
    x, cotangent = (torch.from_numpy(a).permute(0, 3, 1, 2) for a in (x, cotangent))
    kernel = torch.from_numpy(kernel).permute(3, 2, 0, 1)
    x, kernel = (
        a.contiguous(memory_format=torch.channels_last).requires_grad_() for a in (x, kernel)
    )
    conv = partial(torch.nn.functional.conv2d, **kwargs)

    @torch.inference_mode()
    def forward():
        conv(x, kernel)

    return forward, lambda: torch.autograd.grad(conv(x, kernel), (x, kernel), cotangent)


def measure(runs, rounds):
    """Returns the median milliseconds of each run, not counting the first, which compiles."""
    seconds = [[timeit(run, number=1) for run in runs] for _ in range(rounds + 1)]
    return (1e3 * np.median(seconds[1:], axis=0)).tolist()


def benchmark(batch, size, channels, features, k, strides, groups, rounds):
    """Returns milliseconds of stock, ours, PyTorch: forward, then forward and both gradients."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, size, size, channels)).astype(np.float32)
    kernel = rng.normal(size=(k, k, channels // groups, features)).astype(np.float32)
    args = {'strides': strides, 'pads': [(k // 2, k // 2)] * 2, 'groups': groups}
    shape = jax.eval_shape(partial(_stock, **args), x, kernel).shape
    cotangent = rng.normal(size=shape).astype(np.float32)
    arrays = [jnp.asarray(a) for a in (x, kernel, cotangent)]
    runs = (
        in_jax(partial(_stock, **args), *arrays),
        in_jax(partial(convolve, **args), *arrays),
        in_torch(x, kernel, cotangent, stride=strides, padding=k // 2, groups=groups),
    )
    return [measure(kind, rounds) for kind in zip(*runs, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    head = (
        f'{processor()}; {versions("jax", "jaxlib", "torch")}; batch {args.batch}, float32; median '
        f'ms of {args.rounds} rounds: forward / forward and both gradients'
    )
    titles = ['layer of', 'map', 'channels', 'kernel', 'strides', 'groups']
    rows, table = [], [[*titles, 'stock', 'ours', 'PyTorch']]
    print(head, flush=True)
    for layer in LAYERS:
        network, size, channels, features, k, strides, groups = layer
        forward, both = benchmark(args.batch, *layer[1:], args.rounds)
        rows.append({'layer': layer, 'forward_ms': forward, 'both_ms': both})
        times = (f'{a:.1f} / {b:.1f}' for a, b in zip(forward, both, strict=True))
        shape = f'{size}x{size}', f'{channels} to {features}', f'{k}x{k}', str(strides), str(groups)
        table.append([network, *shape, *times])
        print(*table[-1], sep=' | ', flush=True)
    save('conv', head, markdown(table), rows)


if __name__ == '__main__':
    main()
