"""Our training step and inference on a CPU beside PyTorch's: `python benchmarks/cpu.py`.

The same networks of timm or pytorchcv, eager and by `torch.compile`, channels last, with as many
threads, turn by turn in one run so that a noisy machine disturbs all. Needs the `torch` extra and,
for `torch.compile`, a C++ compiler. Writes `benchmarks/results/cpu.json` and `cpu.md`.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from loop import cpu_model

from se_flax.models import create_model, fold_batch_norm

try:
    import timm
    import torch
    from pytorchcv.model_provider import get_model
    from timm.layers import SqueezeExcite
except ImportError as error:
    sys.exit(f"benchmarks/cpu.py compares with PyTorch ({error}): pip install '.[torch]'")

RESULTS = pathlib.Path(__file__).parent / 'results'


class Pair(NamedTuple):
    """Our network and what it is compared with.

    Attributes:
        other: builds PyTorch's.
        batch, size: of the training step; inference has batches of 1 and `batch`.
        exact: whether both have as many parameters.
    """

    other: Callable[[], torch.nn.Module]
    batch: int = 8
    size: int = 224
    exact: bool = True


def with_se(name):
    """Builds pytorchcv's network, which has no SE, with timm's block behind each unit."""
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
    'senet154': Pair(partial(timm.create_model, 'legacy_senet154'), batch=2, size=160),
}
RATE, MOMENTUM = 1e-3, 0.9


def ours(name, images, labels):
    """Returns functions for a training step and inference, the parameters, what compiling told."""
    model, optimizer = create_model(name), optax.sgd(RATE, MOMENTUM)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    folded, folded_variables = fold_batch_norm(model, variables)
    params, batch_stats = jax.tree.map(jnp.copy, (variables['params'], variables['batch_stats']))
    state = params, batch_stats, optimizer.init(params)

    def step(state, images, labels):
        params, batch_stats, momentum = state

        def loss(params):
            variables = {'params': params, 'batch_stats': batch_stats}
            logits, new = model.apply(
                variables,
                images,
                train=True,
                mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(0)},
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), new['batch_stats']

        grads, batch_stats_ = jax.grad(loss, has_aux=True)(params)
        updates, momentum = optimizer.update(grads, momentum)
        return optax.apply_updates(params, updates), batch_stats_, momentum

    images, labels = jnp.asarray(images), jnp.asarray(labels)
    begin = time.perf_counter()
    step = jax.jit(step, donate_argnums=0).lower(state, images, labels).compile()
    told = {'compile_s': time.perf_counter() - begin}
    memory = step.memory_analysis()
    told['bytes'] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    infer = jax.jit(folded.apply)

    def train():
        nonlocal state
        state = jax.block_until_ready(step(state, images, labels))

    def inference(batch):
        jax.block_until_ready(infer(folded_variables, images[:batch]))

    return train, inference, sum(p.size for p in jax.tree.leaves(params)), told


def torchs(build, images, labels, compiled):
    """The same of a PyTorch network, but for the bytes."""
    model = build().to(memory_format=torch.channels_last)
    count = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    images = torch.from_numpy(images).permute(0, 3, 1, 2)  # NHWC in memory: channels last
    labels = torch.from_numpy(labels)
    forward = torch.compile(model) if compiled else model

    def train():
        model.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forward(images), labels).backward()
        optimizer.step()

    def inference(batch):
        model.eval()
        with torch.inference_mode():
            forward(images[:batch])

    return train, inference, count


def seconds(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def compare(runs, rounds):
    """Returns the seconds of each side, round by round; a first call of each is not counted."""
    for run in runs.values():
        run()
    times = {side: [] for side in runs}
    for _ in range(rounds):
        for side, run in runs.items():
            times[side].append(seconds(run))
    return times


def benchmark(name, rounds, compiled):
    """Yields a row for the training step and one for each batch of inference."""
    pair = PAIRS[name]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(pair.batch, pair.size, pair.size, 3)).astype(np.float32)
    labels = rng.integers(1000, size=pair.batch)
    train, inference, count, told = ours(name, images, labels)
    sides = {'ours': (train, inference)}
    for side in ('eager', 'compiled') if compiled else ('eager',):
        train, inference, other = torchs(pair.other, images, labels, side == 'compiled')
        if pair.exact and other != count:
            raise RuntimeError(f'{name} has {count} parameters, the other {other}')
        sides[side] = train, inference
    for batch, what in ((pair.batch, 'train'), (1, 'infer'), (pair.batch, 'infer')):
        runs = {
            side: train if what == 'train' else partial(inference, batch)
            for side, (train, inference) in sides.items()
        }
        times = compare(runs, rounds)
        yield {
            'network': name,
            'run': {'train': 'training step', 'infer': 'inference'}[what],
            'batch': batch,
            'size': pair.size,
            'seconds': {side: statistics.median(t) for side, t in times.items()},
            'range': {side: (min(t), max(t)) for side, t in times.items()},
            'ratio': {
                side: statistics.median(b / a for a, b in zip(times['ours'], t, strict=True))
                for side, t in times.items()
                if side != 'ours'
            },
            **(told if what == 'train' else {}),
        }


def markdown(head, rows):
    lines = [
        head,
        '',
        '| network | run | batch | pixels | ours, ms | eager, ms | compiled, ms | eager / ours '
        '| compiled / ours | ours: GiB | compiled in, s |',
        f'|---|---|{"---:|" * 9}',
    ]
    for row in rows:
        cells = [row['network'], row['run'], row['batch'], row['size']]
        for side in ('ours', 'eager', 'compiled'):
            if side in row['seconds']:
                low, high = (1e3 * t for t in row['range'][side])
                cells.append(f'{1e3 * row["seconds"][side]:.0f} ({low:.0f}-{high:.0f})')
            else:
                cells.append('')
        cells += [
            f'{row["ratio"][side]:.2f}' if side in row['ratio'] else ''
            for side in ('eager', 'compiled')
        ]
        cells.append(f'{row["bytes"] / 2**30:.2f}' if 'bytes' in row else '')
        cells.append(f'{row["compile_s"]:.0f}' if 'bytes' in row else '')
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines) + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', nargs='*', default=list(PAIRS), help=', '.join(PAIRS))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--eager-only', action='store_true', help='no torch.compile')
    args = parser.parse_args()
    if unknown := set(args.networks) - set(PAIRS):
        parser.error(f'no twin of {", ".join(sorted(unknown))}; take {", ".join(PAIRS)}')

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    names = ('se_flax', 'jax', 'flax', 'torch', 'timm', 'pytorchcv')
    head = (
        f'{cpu_model()}, {cores} cores; {", ".join(f"{n} {version(n)}" for n in names)}; float32, '
        f'inference of ours with BatchNorm folded; median (range) of {args.rounds} rounds. Above 1 '
        'is ours the faster.'
    )
    print(head, flush=True)
    path = RESULTS / 'cpu.json'
    old = json.loads(path.read_text())['rows'] if path.exists() else []
    rows = [row for row in old if row['network'] not in args.networks]
    for name in args.networks:
        for row in benchmark(name, args.rounds, not args.eager_only):
            rows.append(row)
            ratios = ', '.join(f'{side} / ours {r:.2f}' for side, r in row['ratio'].items())
            print(f'{name}, {row["run"]}, batch {row["batch"]}: {ratios}', flush=True)
            path.write_text(json.dumps({'head': head, 'rows': rows}, indent=1) + '\n')
            path.with_suffix('.md').write_text(markdown(head, rows))
        jax.clear_caches()
    print(markdown(head, rows))


if __name__ == '__main__':
    main()
