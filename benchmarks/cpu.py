"""Compares our training step and inference on a CPU with PyTorch's: `python benchmarks/cpu.py`.

The other side is the same network of timm or pytorchcv, eager and compiled by `torch.compile`,
channels last, with the same number of threads. The sides take turns in one process, so that noise
of the machine affects all of them. Needs the extra `torch` and, for `torch.compile`, a C++
compiler. Writes `benchmarks/results/cpu.json` and `cpu.md`.

`--tuned` runs both sides with huge pages (Linux, glibc) and uses Eigen for convolutions, which is
faster on many maps than XLA's default; such rows are marked.

Memory is the peak of a process during its second training step, measured for each side in its own
process (Linux).
"""

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from isolated import in_new_process
from record import processor, update, versions
from sides import markdown, ours, pytorchs, row_of

try:
    import timm
    import torch
    from pytorchcv.model_provider import get_model
    from timm.layers import SqueezeExcite
except ImportError as error:
    sys.exit(f"benchmarks/cpu.py compares with PyTorch ({error}): pip install '.[torch]'")


class Pair(NamedTuple):
    """The network that ours is compared with.

    Attributes:
        other: builds the PyTorch network.
        batch, size: for the training step; inference uses batches of 1 and `batch`.
        exact: whether both have the same number of parameters.
    """

    other: Callable[[], torch.nn.Module]
    batch: int = 8
    size: int = 224
    exact: bool = True


def with_se(name):
    """Builds pytorchcv's network, which has no SE, with timm's SE block after each unit."""
    model, widths = get_model(name), {}
    units = [
        (stage, key, unit)
        for stage in model.features.children()
        for key, unit in stage.named_children()
        if key.startswith('unit')
    ]
    for _, _, unit in units:
        unit.register_forward_hook(lambda unit, _, y: widths.update({unit: y.shape[1]}))
    model.eval()(torch.zeros(1, 3, 224, 224))
    for stage, key, unit in units:
        unit._forward_hooks.clear()
        se = SqueezeExcite(widths[unit], rd_ratio=1 / 16, rd_divisor=1)
        setattr(stage, key, torch.nn.Sequential(unit, se))
    return model


PAIRS = {
    'timm_seresnet50': Pair(partial(timm.create_model, 'seresnet50')),
    'timm_resnet50': Pair(partial(timm.create_model, 'resnet50')),
    'timm_seresnext50_32x4d': Pair(partial(timm.create_model, 'seresnext50_32x4d')),
    'mobilenet': Pair(partial(get_model, 'mobilenet_w1')),
    'se_mobilenet': Pair(partial(with_se, 'mobilenet_w1'), exact=False),
    'se_shufflenet': Pair(partial(with_se, 'shufflenet_g3_w1'), exact=False),
    'efficientnet_b0': Pair(partial(timm.create_model, 'efficientnet_b0')),
    'mobilenet_v3_large': Pair(partial(timm.create_model, 'mobilenetv3_large_100')),
    'regnet_y_800mf': Pair(partial(timm.create_model, 'regnety_008_tv')),
    'senet154': Pair(partial(timm.create_model, 'legacy_senet154'), batch=2, size=160),
}
TUNED = {
    'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
    'XLA_FLAGS': '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution',
}


def make_side(name, side):
    pair = PAIRS[name]
    if side == 'ours':
        return ours(name, pair.batch, pair.size)
    return pytorchs(pair.other, pair.batch, pair.size, compiled=side == 'compiled')


def peak(name, side):
    """Returns the peak memory in bytes of a process with one side during a step, or None."""
    if not pathlib.Path('/proc/self/clear_refs').exists():
        return None
    return in_new_process(peak_here, name, side)


def peak_here(name, side):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    train = make_side(name, side)[0]['train']
    train(1)
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    train(1)
    status = pathlib.Path('/proc/self/status').read_text()
    return 1024 * int(re.search(r'VmHWM:\s*(\d+) kB', status)[1])


def benchmark(name, rounds, names):
    """Yields the rows of a network."""
    pair = PAIRS[name]
    bytes_ = {side: peak(name, side) for side in names}
    sides = {side: make_side(name, side) for side in names}
    counts = {side: told['parameters'] for side, (_, told) in sides.items()}
    if pair.exact and len(set(counts.values())) > 1:
        raise RuntimeError(f'{name} is another network than its twin: parameters {counts}')
    step = row_of(name, sides, 'training step', pair.batch, pair.size, rounds)
    yield step | {'bytes': bytes_, 'parameters': counts}
    for batch in (1, pair.batch):
        yield row_of(name, sides, 'inference', batch, pair.size, rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', nargs='*', default=list(PAIRS), help=', '.join(PAIRS))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--eager-only', action='store_true', help='leave out torch.compile')
    parser.add_argument('--tuned', action='store_true', help=' '.join(map('='.join, TUNED.items())))
    args = parser.parse_args()
    if unknown := set(args.networks) - set(PAIRS):
        parser.error(f'no twin of {", ".join(sorted(unknown))}; take {", ".join(PAIRS)}')
    if args.tuned and not TUNED.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | TUNED)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    head = (
        f'{processor()}; {versions("se_flax", "jax", "flax", "torch", "timm", "pytorchcv")}; '
        f'float32, inference of ours with BatchNorm folded; median (range) of {args.rounds} '
        'rounds. Above 1, ours is faster. GiB are of a whole process during a step. Tuned: with '
        f'{" ".join(map("=".join, TUNED.items()))} for both.'
    )
    print(head, flush=True)
    suffix = ', tuned' if args.tuned else ''
    done = []
    for name in args.networks:
        names = ('ours', 'eager') if args.eager_only else ('ours', 'eager', 'compiled')
        for row in benchmark(name, args.rounds, names):
            row['network'] += suffix
            ratios = ', '.join(f'{side} / ours {r:.2f}' for side, r in row['ratio'].items())
            print(f'{row["network"]}, {row["run"]}, batch {row["batch"]}: {ratios}', flush=True)
            update('cpu', head, [row], ('network', 'run', 'batch'), markdown)
            done.append(row)
        jax.clear_caches()
    print(markdown(done))


if __name__ == '__main__':
    main()
