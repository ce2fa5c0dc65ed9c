"""Our training step and inference on a GPU beside timm's: `python benchmarks/gpu.py`.

bfloat16, channels last, the batch that fills the card, turn by turn in one run: ours against timm
eager and `torch.compile`. Then what SE costs, variants of the gate, of BatchNorm and of grouped
convolution. Needs jax with CUDA, flax, optax, torch and timm, and no data; stays under 8 minutes by
leaving out what comes last. Writes `benchmarks/results/gpu.json` and `gpu.md`.

`--quick` is for machines without a GPU: small networks and images, nothing written.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from functools import partial
from importlib.metadata import version

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch needs memory as well

import jax
import jax.numpy as jnp
import numpy as np
import optax

from se_flax.models import create_model, fold_batch_norm
from se_flax.models.complexity import count
from se_flax.nn import Affine, SqueezeExcite
from se_flax.nn.conv import _pieces, _stock
from se_flax.parallel import data_mesh, replicated
from se_flax.training.state import TrainState
from se_flax.training.step import jit_train_step, make_train_step

try:
    import timm
    import torch
except ImportError as error:
    sys.exit(f"benchmarks/gpu.py compares with timm ({error}): pip install '.[torch]'")

RESULTS = pathlib.Path(__file__).parent / 'results'
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
RATE, MOMENTUM = 1e-3, 0.9


class OwnPass(SqueezeExcite):
    """SE that computes BatchNorm's map first, and then gates it: the usual form."""

    def __call__(self, x):
        return super().__call__(x.map() if isinstance(x, Affine) else x)


VARIANTS = {  # of ours, what each changes
    'SE as a pass of its own': {'se': partial(OwnPass, hidden_multiple=8)},
    'BatchNorm over the whole batch': {'bn_group_size': None},
    'float32': {'dtype': jnp.float32},
}


def ours(name, batch, size, **fields):
    """Returns functions for a training step and for inference, and what compiling them told."""
    fields = {'dtype': jnp.bfloat16, 'bn_group_size': min(32, batch), **fields}
    model = create_model(name, **fields)
    mesh = data_mesh(jax.devices()[:1])
    tx = optax.sgd(RATE, MOMENTUM)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(batch, size, size, 3), dtype=np.uint8)
    labels = rng.integers(1000, size=batch, dtype=np.int32)
    given = jax.device_put({'image': images, 'label': labels}, mesh.devices.item())

    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((2, size, size, 3)))
    variables = jax.device_put(variables, replicated(mesh))
    folded, folded_variables = fold_batch_norm(model, variables)
    step = jnp.zeros((), jnp.int32)
    state = TrainState(step=step, **variables, opt_state=tx.init(variables['params']))
    state = jax.tree.map(jnp.copy, jax.device_put(state, replicated(mesh)))  # it is donated
    mean, std = (127.5,) * 3, (64.0,) * 3
    step = make_train_step(model, tx, optax.constant_schedule(RATE), mean=mean, std=std)
    begin = time.perf_counter()
    step = jit_train_step(step, mesh).lower(state, given).compile()
    seconds = time.perf_counter() - begin
    infer = jax.jit(lambda v, x: folded.apply(v, (x.astype(model.dtype) - 127.5) / 64))
    memory = step.memory_analysis()

    def train(times):
        nonlocal state
        for _ in range(times):
            state, metrics = step(state, given)
        jax.block_until_ready((state, metrics))

    def inference(times):
        for _ in range(times):
            logits = infer(folded_variables, given['image'])
        jax.block_until_ready(logits)

    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {'train': train, 'inference': inference}, {'compile_s': seconds, 'bytes': used}


def timms(name, batch, size, device, compiled):
    """The same of timm's network."""
    model = timm.create_model(name).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(batch, size, size, 3), dtype=np.uint8)
    images = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    labels = torch.from_numpy(rng.integers(1000, size=batch)).to(device)
    autocast = partial(torch.autocast, device.type, torch.bfloat16)

    def loss(images, labels):
        with autocast():
            logits = model((images.float() - 127.5) / 64)
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    def logits(images):
        with autocast():
            return model((images.float() - 127.5) / 64)

    if compiled:
        loss, logits = torch.compile(loss), torch.compile(logits)

    def wait():
        if device.type == 'cuda':
            torch.cuda.synchronize()

    def train(times):
        model.train()
        for _ in range(times):
            optimizer.zero_grad()
            loss(images, labels).backward()
            optimizer.step()
        wait()

    @torch.inference_mode()
    def inference(times):
        model.eval()
        for _ in range(times):
            logits(images)
        wait()

    return {'train': train, 'inference': inference}


def compare(sides, rounds, times):
    """Returns the seconds a step of each side, round by round; the first call is not counted."""
    first = {}
    for side, run in sides.items():
        begin = time.perf_counter()
        run(1)
        first[side] = time.perf_counter() - begin
        run(1)
    seconds = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            begin = time.perf_counter()
            run(times)
            seconds[side].append((time.perf_counter() - begin) / times)
    return seconds, first


def benchmark(name, twin, batch, size, device, rounds, times, compiled):
    """Yields a row for training and one for inference."""
    runs, told = ours(name, batch, size)
    sides = {'ours': runs}
    if twin:
        sides['eager'] = timms(twin, batch, size, device, compiled=False)
        if compiled:
            sides['compiled'] = timms(twin, batch, size, device, compiled=True)
    macs = count(create_model(name), size).macs
    for what, passes in (('train', 3), ('inference', 1)):
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        seconds, first = compare({s: r[what] for s, r in sides.items()}, rounds, times)
        yield {
            'network': name,
            'run': what,
            'batch': batch,
            'images_per_s': {s: batch / statistics.median(t) for s, t in seconds.items()},
            'spread': {s: [batch / max(t), batch / min(t)] for s, t in seconds.items()},
            'ratio': {
                s: statistics.median(b / a for a, b in zip(seconds['ours'], t, strict=True))
                for s, t in seconds.items()
                if s != 'ours'
            },
            'first_call_s': first | ({'ours': told['compile_s']} if what == 'train' else {}),
            'our_bytes': told['bytes'] if what == 'train' else None,
            'their_peak_bytes': torch.cuda.max_memory_allocated()
            if device.type == 'cuda'
            else None,
            'flops_per_s': 2 * passes * macs * batch / statistics.median(seconds['ours']),
        }


def variants(name, batch, size, rounds, times):
    """Yields the training step of ours in other forms, each beside the default."""
    default = ours(name, batch, size)[0]['train']
    for title, fields in VARIANTS.items():
        seconds, _ = compare(
            {'default': default, 'variant': ours(name, batch, size, **fields)[0]['train']},
            rounds,
            times,
        )
        pairs = zip(seconds['default'], seconds['variant'], strict=True)
        ratio = statistics.median(b / a for a, b in pairs)
        yield {'network': name, 'variant': title, 'batch': batch, 'time_ratio': ratio}


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

    seconds, _ = compare({'stock': timed(_stock), 'pieces': timed(_pieces)}, rounds, times)
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


def markdown(head, rate, rows, others, layers):
    lines = [head, '', f'A bfloat16 matrix product runs at {rate / 1e12:.3g} TFLOP/s here.', '']
    lines += [
        '| network | run | batch | ours, images/s | eager | compiled | ours / eager '
        '| ours / compiled | share of the matrix product | ours, GiB | compiled in, s |',
        f'|---|---|{"---:|" * 9}',
    ]
    for row in rows:
        speed, spread, ratio = row['images_per_s'], row['spread'], row['ratio']
        cells = [row['network'], row['run'], row['batch']]
        for side in ('ours', 'eager', 'compiled'):
            low, high = spread.get(side, (0, 0))
            cells.append(f'{speed[side]:.0f} ({low:.0f}-{high:.0f})' if side in speed else '')
        cells += [f'{ratio[side]:.2f}' if side in ratio else '' for side in ('eager', 'compiled')]
        cells.append(f'{100 * row["flops_per_s"] / rate:.0f} %')
        cells.append(f'{row["our_bytes"] / 2**30:.1f}' if row['our_bytes'] else '')
        cells.append(f'{row["first_call_s"]["ours"]:.0f}')
        lines.append(f'| {" | ".join(map(str, cells))} |')
    if others:
        lines += ['', '| training step of | other form | time / default |', '|---|---|---:|']
        lines += [f'| {r["network"]} | {r["variant"]} | {r["time_ratio"]:.3f} |' for r in others]
    if layers:
        lines += ['', '| grouped 3x3, both gradients | stock, ms | pieces, ms |', '|---|---:|---:|']
        for r in layers:
            what = f'{r["map"]}x{r["map"]}, {r["channels"]} channels, {r["groups"]} groups'
            lines.append(f'| {what} | {r["ms"]["stock"]:.2f} | {r["ms"]["pieces"]:.2f} |')
    return '\n'.join(lines) + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true', help='small, on a CPU, to no file')
    args = parser.parse_args()
    begin = time.perf_counter()
    if not args.quick and (jax.default_backend() != 'gpu' or not torch.cuda.is_available()):
        sys.exit('benchmarks/gpu.py needs a GPU that both jax and torch see; --quick needs none')

    device = torch.device('cpu' if args.quick else 'cuda')
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
    names = ('se_flax', 'jax', 'jaxlib', 'flax', 'torch', 'timm')
    head = (
        f'{gpu}; {", ".join(f"{n} {version(n)}" for n in names)}; Python {sys.version.split()[0]}; '
        f'bfloat16, {size} pixels; median (range) of {rounds} rounds of {times} steps'
    )
    print(head, flush=True)
    rate = matmul_rate(256 if args.quick else 8192, 10)
    rows, others, layers = [], [], []

    def write():
        table = markdown(head, rate, rows, others, layers)
        if not args.quick:
            RESULTS.mkdir(exist_ok=True)
            figures = {'head': head, 'matmul_flops_per_s': rate, 'rows': rows}
            figures |= {'variants': others, 'grouped': layers}
            (RESULTS / 'gpu.json').write_text(json.dumps(figures, indent=1) + '\n')
            (RESULTS / 'gpu.md').write_text(table)
        return table

    def left(what):
        enough = time.perf_counter() - begin < SECONDS
        if not enough:
            print(f'{what}: left out, the time is over', flush=True)
        return enough

    for i, (name, twin, batch) in enumerate(networks):
        if left(name):
            for row in benchmark(name, twin, batch, size, device, rounds, times, not args.quick):
                rows.append(row)
                print(name, row['run'], row['images_per_s'], row['ratio'], flush=True)
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
