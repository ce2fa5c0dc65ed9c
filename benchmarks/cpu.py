"""Our training step and inference on a CPU beside PyTorch's: `python benchmarks/cpu.py`.

The same networks as timm's, eager and channels last, with as many threads, turn by turn in one run
so that a noisy machine disturbs both. Needs the `torch` extra. The goal is a training step of at
most 3 times timm's. Writes `benchmarks/results/cpu.json` and `cpu.md`.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import optax
from loop import cpu_model

from se_flax.models import create_model

try:
    import timm
    import torch
except ImportError as error:
    sys.exit(f"benchmarks/cpu.py compares with timm ({error}): pip install '.[torch]'")

RESULTS = pathlib.Path(__file__).parent / 'results'
SAME = {  # our name, timm's
    'timm_seresnet50': 'seresnet50',
    'timm_seresnext50_32x4d': 'seresnext50_32x4d',
    'mobilenet': 'mobilenetv1_100',
}
RATE, MOMENTUM = 1e-3, 0.9


def ours(name, images, labels):
    """Returns the functions that run one training step and one inference, and the parameters."""
    model, optimizer = create_model(name), optax.sgd(RATE, MOMENTUM)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    params, batch_stats = variables['params'], variables['batch_stats']
    state = params, batch_stats, optimizer.init(params)

    def step(state, images, labels):
        params, batch_stats, momentum = state

        def loss(params):
            variables = {'params': params, 'batch_stats': batch_stats}
            logits, new = model.apply(variables, images, train=True, mutable=['batch_stats'])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), new['batch_stats']

        grads, batch_stats_ = jax.grad(loss, has_aux=True)(params)
        updates, momentum = optimizer.update(grads, momentum)
        return optax.apply_updates(params, updates), batch_stats_, momentum

    step, infer = jax.jit(step, donate_argnums=0), jax.jit(model.apply)
    images, labels = jnp.asarray(images), jnp.asarray(labels)

    def train():
        nonlocal state
        state = jax.block_until_ready(step(state, images, labels))

    def inference():
        params, batch_stats, _ = state
        variables = {'params': params, 'batch_stats': batch_stats}
        jax.block_until_ready(infer(variables, images))

    return train, inference, sum(p.size for p in jax.tree.leaves(params))


def timms(name, images, labels):
    """The same of timm's network."""
    model = timm.create_model(name).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    images = torch.from_numpy(images).permute(0, 3, 1, 2)  # NHWC in memory: channels last
    labels = torch.from_numpy(labels)

    def train():
        model.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def inference():
        model.eval()
        with torch.inference_mode():
            model(images)

    return train, inference, sum(p.numel() for p in model.parameters())


def seconds(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def compare(what, run, other, rounds):
    """Returns a row of the table; the first call of each compiles and is not counted."""
    first, _ = seconds(run), other()
    pairs = [(seconds(run), seconds(other)) for _ in range(rounds)]
    mine, theirs = zip(*pairs, strict=True)
    return {
        'run': what,
        'compile_s': first,
        'ours_s': statistics.median(mine),
        'ours_range_s': (min(mine), max(mine)),
        'timm_s': statistics.median(theirs),
        'timm_range_s': (min(theirs), max(theirs)),
        'ratio': statistics.median(a / b for a, b in pairs),
    }


def benchmark(name, batch, size, rounds):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, size, size, 3)).astype(np.float32)
    labels = rng.integers(1000, size=batch)
    train, inference, count = ours(name, images, labels)
    their_train, their_inference, their_count = timms(SAME[name], images, labels)
    if count != their_count:
        raise RuntimeError(f'{name} has {count} parameters, timm {SAME[name]} {their_count}')
    yield {'network': name, **compare('training step', train, their_train, rounds)}
    yield {'network': name, **compare('inference', inference, their_inference, rounds)}


def markdown(head, rows):
    lines = [
        head,
        '',
        '| network | run | ours, ms | timm, ms | ratio | first call, s |',
        '|---|---|---|---|---|---|',
    ]
    for row in rows:
        mine, theirs = (
            '{:.0f} ({:.0f}-{:.0f})'.format(
                *(1e3 * s for s in (row[f'{who}_s'], *row[f'{who}_range_s']))
            )
            for who in ('ours', 'timm')
        )
        lines.append(
            f'| {row["network"]} | {row["run"]} | {mine} | {theirs} | {row["ratio"]:.2f} '
            f'| {row["compile_s"]:.0f} |'
        )
    return '\n'.join(lines) + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', nargs='*', default=list(SAME), help=', '.join(SAME))
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    if unknown := set(args.networks) - set(SAME):
        parser.error(f'timm has no twin of {", ".join(sorted(unknown))}; take {", ".join(SAME)}')

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    versions = (f'{name} {version(name)}' for name in ('se_flax', 'jax', 'flax', 'torch', 'timm'))
    head = (
        f'{cpu_model()}, {cores} cores; {", ".join(versions)}; batch {args.batch}, {args.size} '
        f'pixels, float32; median (range) of {args.rounds} rounds, ratio ours / timm'
    )
    print(head, flush=True)
    rows = []
    for name in args.networks:
        for row in benchmark(name, args.batch, args.size, args.rounds):
            rows.append(row)
            print(f'{name} {row["run"]}: ratio {row["ratio"]:.2f}', flush=True)
    RESULTS.mkdir(exist_ok=True)
    table = markdown(head, rows)
    print(table)
    (RESULTS / 'cpu.md').write_text(table)
    (RESULTS / 'cpu.json').write_text(json.dumps({'head': head, 'rows': rows}, indent=2) + '\n')


if __name__ == '__main__':
    main()
