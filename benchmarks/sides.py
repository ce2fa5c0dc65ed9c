"""Runs our side and PyTorch's side of a comparison: training step and inference, by turns."""

import statistics
import sys
import time
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from se_flax import tables
from se_flax.models import create_model, fold_batch_norm
from se_flax.models.complexity import count
from se_flax.parallel import data_mesh, replicated
from se_flax.training.state import TrainState
from se_flax.training.step import jit_train_step, make_train_step

try:
    import torch
except ImportError as error:
    sys.exit(f"this compares with PyTorch ({error}): pip install '.[torch]'")

RATE, MOMENTUM = 1e-3, 0.9
MEAN, STD = 127.5, 64.0
RUNS = {'training step': 'train', 'inference': 'inference'}


def _batch(batch, size):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(batch, size, size, 3), dtype=np.uint8)
    return images, rng.integers(10, size=batch, dtype=np.int32)  # of 10 classes, or of more


def ours(name, batch, size, *, remat=False, **fields):
    """Returns functions for steps and inference, and facts about the compiled step.

    The step is the trainer's own. `train(times)` and `inference(times, batch)` wait for the last
    one; a batch of None is the whole batch. The facts are `parameters`, `compile_s` and the
    `bytes` of arguments and temporaries.
    """
    model = create_model(name, **fields)
    mesh = data_mesh(jax.devices()[:1])
    tx = optax.sgd(RATE, MOMENTUM)
    images, labels = _batch(batch, size)
    given = jax.device_put({'image': images, 'label': labels}, mesh.devices.item())

    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((2, size, size, 3)))
    variables = jax.device_put(variables, replicated(mesh))
    step = jnp.zeros((), jnp.int32)
    state = TrainState(step=step, **variables, opt_state=tx.init(variables['params']))
    state = jax.device_put(state, replicated(mesh))
    del variables  # donated with the state
    schedule = optax.constant_schedule(RATE)
    step = make_train_step(model, tx, schedule, mean=(MEAN,) * 3, std=(STD,) * 3, remat=remat)
    begin = time.perf_counter()
    step = jit_train_step(step, mesh).lower(state, given).compile()
    seconds = time.perf_counter() - begin
    memory = step.memory_analysis()
    infer = None

    def train(times):
        nonlocal state
        for _ in range(times):
            state, metrics = step(state, given)
        jax.block_until_ready((state, metrics))

    def inference(times, batch=None):
        nonlocal infer
        if infer is None:  # not earlier, so that no second network is in memory during a step
            trained = {'params': state.params, 'batch_stats': state.batch_stats}
            trained = jax.tree.map(jnp.copy, trained)  # the next step donates these
            folded, variables = fold_batch_norm(model, trained)
            logits_of = jax.jit(lambda v, x: folded.apply(v, (x.astype(model.dtype) - MEAN) / STD))
            infer = partial(logits_of, variables)
        images = given['image'][:batch]
        for _ in range(times):
            logits = infer(images)
        jax.block_until_ready(logits)

    told = {
        'parameters': sum(p.size for p in jax.tree.leaves(state.params)),
        'compile_s': seconds,
        'bytes': memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    }
    return {'train': train, 'inference': inference}, told


def pytorchs(build, batch, size, *, device='cpu', bfloat16=False, compiled=False):
    """Returns the same for the network of `build`, channels last, eager or by `torch.compile`.

    `compile_s` is the time of the first step, `bytes` its peak allocation, None on a CPU.
    """
    device = torch.device(device)
    cuda = device.type == 'cuda'
    before = torch.cuda.memory_allocated() if cuda else 0
    model = build().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    images, labels = _batch(batch, size)
    images = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)  # NHWC in memory
    labels = torch.from_numpy(labels).to(device).long()
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bfloat16)

    def logits(images):
        with autocast():
            return model((images.float() - MEAN) / STD)

    def loss(images, labels):
        return torch.nn.functional.cross_entropy(logits(images).float(), labels)

    if compiled:
        loss, logits = torch.compile(loss), torch.compile(logits)

    def wait():
        if cuda:
            torch.cuda.synchronize()

    def train(times):
        model.train()
        for _ in range(times):
            optimizer.zero_grad()
            loss(images, labels).backward()
            optimizer.step()
        wait()

    @torch.inference_mode()
    def inference(times, batch=None):
        model.eval()
        for _ in range(times):
            logits(images[:batch])
        wait()

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    train(1)
    told = {
        'parameters': sum(p.numel() for p in model.parameters()),
        'compile_s': time.perf_counter() - begin,
        'bytes': torch.cuda.max_memory_allocated() - before if cuda else None,
    }
    return {'train': train, 'inference': inference}, told


def compare(sides, rounds, times=1):
    """Returns the seconds per step of each side, one per round.

    Does not count the first two calls, and the first call of each turn, which is affected by the
    caches and memory that the other sides leave.
    """
    for run in sides.values():
        run(1)
        run(1)
    seconds = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            run(1)
            begin = time.perf_counter()
            run(times)
            seconds[side].append((time.perf_counter() - begin) / times)
    return seconds


def median_ratio(seconds, other, ours='ours'):
    """Returns the median over the rounds of the time of `other` divided by that of `ours`."""
    pairs = zip(seconds[ours], seconds[other], strict=True)
    return statistics.median(theirs / own for own, theirs in pairs)


def figures(seconds, others):
    """Returns what is kept of the result of `compare`, with the ratio of these sides to ours."""
    return {
        'seconds': {side: statistics.median(t) for side, t in seconds.items()},
        'range': {side: (min(t), max(t)) for side, t in seconds.items()},
        'ratio': {side: median_ratio(seconds, side) for side in others},
    }


def milliseconds(row, side):
    """Returns the median and the range of a row's seconds as text."""
    low, high = (1e3 * t for t in row['range'][side])
    return f'{1e3 * row["seconds"][side]:.4g} ({low:.4g}-{high:.4g})'


def row_of(name, sides, run, batch, size, rounds, times=1):
    """Returns the figures of a network's training step, or of inference with a batch.

    `sides` has the results of `ours` and `pytorchs`, by name. Without 'ours', ratios are left out.
    """
    what = RUNS[run]
    seconds = compare(
        {
            side: functions['train'] if what == 'train' else _of(functions['inference'], batch)
            for side, (functions, _) in sides.items()
        },
        rounds,
        times,
    )
    others = [side for side in sides if side != 'ours'] if 'ours' in sides else []
    row = {'network': name, 'run': run, 'batch': batch, 'size': size, **figures(seconds, others)}
    if 'ours' in sides:
        flops = 2 * (3 if what == 'train' else 1) * _macs(name, size)
        row['flops_per_s'] = flops * batch / row['seconds']['ours']
    if what == 'train':
        for key in ('compile_s', 'bytes'):
            row[key] = {side: told[key] for side, (_, told) in sides.items()}
    return row


@cache
def _macs(name, size):
    return count(create_model(name), size).macs


def _of(inference, batch):
    return lambda times: inference(times, batch)


def markdown(rows):
    """Returns a table of rows."""
    names = ('ours', 'eager', 'compiled')
    titles = ['network', 'run', 'batch', 'pixels', *(f'{name}, ms' for name in names)]
    titles += ['eager / ours', 'compiled / ours', 'ours: images/s', 'GFLOP/s']
    table = [[*titles, *(f'{what}: {", ".join(names)}' for what in ('GiB', 'first step in, s'))]]
    for row in rows:
        cells = [row['network'], row['run'], str(row['batch']), str(row['size'])]
        cells += [milliseconds(row, side) if side in row['seconds'] else '' for side in names]
        cells += [f'{row["ratio"][s]:.2f}' if s in row['ratio'] else '' for s in names[1:]]
        rates = ('', '')
        if 'ours' in row['seconds']:
            rates = row['batch'] / row['seconds']['ours'], row['flops_per_s'] / 1e9
            rates = (f'{rate:.4g}' for rate in rates)
        cells += rates
        for key, scale in (('bytes', 2**30), ('compile_s', 1)):
            figures = [row.get(key, {}).get(side) for side in names]
            cells.append(', '.join(f'{f / scale:.3g}' for f in figures if f is not None))
        table.append(cells)
    return tables.markdown(table)
