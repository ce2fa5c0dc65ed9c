"""Compiles the training step with the real TPU compiler, without a TPU: `python benchmarks/aot.py`.

Compiles the trainer's own step in bfloat16, with the paper's recipes, ahead of time for TPUs that
are only described, and reports the compiler's figures for one chip: collectives, memory,
operations, bytes. The chip's public figures give a lower bound of the step's time and the cost of
an all-reduce. Needs the extra `tpu` and no accelerator. Compilation takes minutes, so each row has
its own process and is written to `benchmarks/results/aot.json` when it is done. `aot.md` is
generated from that file.
"""

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import NamedTuple

os.environ['JAX_PLATFORMS'] = 'cpu'  # the compiler runs on the CPU and needs no accelerator
os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'  # there is no chip to compete for

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from record import update, versions

from se_flax import tables
from se_flax.models import twins
from se_flax.parallel import data_mesh, split
from se_flax.training.config import check_config, load_config
from se_flax.training.recipe import (
    Plan,
    frozen_from,
    make_model,
    make_start,
    make_step,
    make_training,
    total_steps,
)
from se_flax.training.step import jit_train_step

ROOT = pathlib.Path(__file__).parents[1]


class Chip(NamedTuple):
    """Public figures of one chip (Google Cloud's "TPU v4", "TPU v5e" and "TPU v5p" pages).

    FLOP/s in bfloat16, bytes/s of memory and of all links together one way.
    """

    flops: float
    bandwidth: float
    links: float
    slices: dict[int, str]  # chips: topology
    options: dict


CHIPS = {
    'v4': Chip(
        275e12, 1228e9, 300e9, {4: '2x2x1', 256: '4x8x8'},
        {'chip_config_name': 'megacore'},  # as on Cloud TPU, both cores are one device
    ),
    'v5e': Chip(
        197e12, 819e9, 200e9, {4: '2x2', 16: '4x4', 64: '8x8', 256: '16x16'},
        {'chips_per_host_bounds': (2, 2, 1)},
    ),
    'v5p': Chip(459e12, 2765e9, 600e9, {4: '2x2x1', 256: '4x8x8'}, {}),
    'v6e': Chip(
        918e12, 1640e9, 400e9, {4: '2x2', 16: '4x4', 256: '16x16'},
        {'chips_per_host_bounds': (2, 2, 1)},
    ),
}  # fmt: skip
RECIPES = {
    'senet154': 'senet154.py',
    **{name: f'efficientnet.py:{name}' for name in twins('efficientnet_b0')},
    **{name: f'mobilenet_v3.py:{name}' for name in twins('mobilenet_v3_large')},
    'regnet_y_800mf': 'regnet.py:regnet_y_800mf',
}
CELL = 'model', 'chip', 'chips', 'images'
CELLS = [
    *(
        (model, chip, chips, images)
        for model, images in (('se_resnet50', 128), ('senet154', 32))
        for chip in ('v5e', 'v4', 'v5p')
        for chips in (4, 256)
    ),
    ('resnet50', 'v5e', 4, 128),  # what SE adds
    *(('se_resnet50', 'v6e', chips, 128) for chips in (4, 16)),
    *(('se_resnet50', 'v5e', 4, images) for images in (256, 512)),  # what fits into memory
    ('se_resnet50', 'v5e', 256, 4),  # the papers' batches, 1024 and 2048, on a whole pod
    ('senet154', 'v5e', 256, 8),
]

COLLECTIVE = re.compile(
    r'= (?P<type>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)'
    r'(?:-start)?\('
)
COMPUTATION = re.compile(
    r'^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \([^\n]*\{\n(?P<body>.*?)^\}', re.MULTILINE | re.DOTALL
)
CALLED = re.compile(r'\b(?:calls|to_apply|body|condition)=%?([\w.-]+)')
BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)')
ARRAY = re.compile(r'\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')


def described_mesh(chip: str, chips: int) -> jax.sharding.Mesh:
    """Returns the trainer's mesh over the chips of a described TPU."""
    topology = topologies.get_topology_desc(
        platform='tpu', topology_name=f'{chip}:{CHIPS[chip].slices[chips]}', **CHIPS[chip].options
    )
    return data_mesh(topology.devices)


def compile_step(model: str, mesh: jax.sharding.Mesh, images: int, **fields):
    """Returns the compiled training step of the model's recipe, `images` on each chip."""
    return lower_step(model, mesh, images, **fields).compile()


def lower_step(model: str, mesh: jax.sharding.Mesh, images: int, **fields):
    """Returns the lowered step; `fields` override config fields of the recipe."""
    config = load_config(f'{ROOT}/configs/{RECIPES.get(model, "imagenet.py:" + model)}')
    config.update({'dtype': 'bfloat16', 'batch_size': images * mesh.size, **fields})
    check_config(config, mesh.size)
    steps_per_epoch = 1_281_167 / config.batch_size
    num_steps = total_steps(config, steps_per_epoch)
    schedule, optimizer = make_training(config, num_steps, steps_per_epoch)
    plan = Plan(
        config, make_model(config, 1000), schedule, optimizer, None, None, None, None, num_steps,
        steps_per_epoch, {}, frozen_from(config, num_steps, steps_per_epoch),
    )  # fmt: skip
    state = jax.eval_shape(make_start(config, plan.model, optimizer, mesh), jax.random.key(0))
    shape = config.batch_size, config.image_size, config.image_size, 3
    batch = {
        'image': jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split(mesh)),
        'label': jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=split(mesh)),
    }
    step = jit_train_step(make_step(plan, mesh), mesh, state)
    return step.lower(state, batch)


def collectives(text: str) -> list[tuple[str, int]]:
    """Returns (kind, bytes of the result) of the collectives that a module executes.

    Of a conditional, counts only the branch that moves most.
    """
    entry, bodies = computations(text)

    def made_by(name: str) -> list[tuple[str, int]]:
        body = bodies[name]
        made = [(found['kind'], bytes_of(found['type'])) for found in COLLECTIVE.finditer(body)]
        for called in CALLED.findall(body):
            made += made_by(called)
        for branches in BRANCHES.findall(body):
            found = map(made_by, re.findall(r'[\w.-]+', branches))
            made += max(found, key=lambda branch: sum(size for _, size in branch))
        return made

    return made_by(entry)


def computations(text: str) -> tuple[str, dict[str, str]]:
    """Returns the name of a module's entry computation, and the body of each computation."""
    found = list(COMPUTATION.finditer(text))
    [entry] = [match['name'] for match in found if match['entry']]
    return entry, {match['name']: match['body'] for match in found}


def bytes_of(types: str) -> int:
    """Returns the bytes of the arrays in an HLO type.

    >>> bytes_of('(f32[64,3]{1,0:T(8,128)}, bf16[2], f32[], pred[5], f8e4m3fn[2])')
    783
    """
    total = 0
    for bits, shape in ARRAY.findall(types):
        size = math.prod(map(int, filter(None, shape.split(','))))
        total += size * int(bits or 8) // 8  # the name of a boolean has no number of bits
    return total


def figures(compiled) -> dict:
    """Returns the compiler's figures for one chip."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    found = collectives(compiled.as_text())
    return {
        'all_reduces': sum(kind == 'all-reduce' for kind, _ in found),
        'other_collectives': sum(kind != 'all-reduce' for kind, _ in found),
        'collective_bytes': sum(size for _, size in found),
        'state_bytes': memory.alias_size_in_bytes,
        'argument_bytes': memory.argument_size_in_bytes,
        'temporary_bytes': memory.temp_size_in_bytes,
        'flops': cost['flops'],
        'bytes_accessed': cost['bytes accessed'],
    }


def measure(model: str, chip: str, chips: int, images: int, hlo: str | None = None) -> dict:
    """Returns a row of the table, also if the step does not fit into memory."""
    cell = dict(zip(CELL, (model, chip, chips, images), strict=True))
    mesh = described_mesh(chip, chips)
    begin = time.perf_counter()
    try:
        compiled = compile_step(model, mesh, images)
    except jax.errors.JaxRuntimeError as error:
        if not (needed := re.search(r'Used (\S+) of (\S+) hbm', str(error))):
            raise
        return cell | {'refused': '{} of {}'.format(*needed.groups())}
    seconds = time.perf_counter() - begin
    if hlo:
        pathlib.Path(hlo).write_text(compiled.as_text())
    return cell | figures(compiled) | {'compile_s': round(seconds, 1)}


def bounds(row: dict) -> dict:
    """Returns lower bounds in seconds of a step, and of its all-reduce if nothing overlaps with it.

    A ring along each axis of the torus moves `2 (n - 1) / n` times the bytes, over the links it
    uses: both ways if the axis is a ring, one way on a short line.
    """
    chip, chips = CHIPS[row['chip']], row['chips']
    sides = [int(side) for side in chip.slices[chips].split('x')]
    closed = 16 if chip.options.get('chips_per_host_bounds') else 4
    used = sum(2 if side % closed == 0 else side > 1 for side in sides) / (2 * len(sides))
    moved = 2 * (chips - 1) / chips * row['collective_bytes']
    return {
        'compute': row['flops'] / chip.flops,
        'memory': row['bytes_accessed'] / chip.bandwidth,
        'links': moved / (chip.links * used),
    }


def markdown(rows: list[dict]) -> str:
    rows = sorted(rows, key=lambda row: (row['model'] != 'se_resnet50', *map(row.get, CELL)))
    titles = ['network', 'chips', 'images a chip', 'all-reduces', 'their MB', 'memory, GiB']
    titles += ['TFLOP', 'GB moved', 'bound by FLOP/s, ms', 'by memory, ms', 'all-reduce, ms']
    table = [[*titles, 'kept, if not hidden', 'compiled in, s']]
    for row in rows:
        cells = [row['model'], f'{row["chips"]} {row["chip"]}', row['images']]
        if 'refused' in row:
            cells += ['', '', f'refused: {row["refused"]}', *[''] * 7]
        else:
            least = bounds(row)
            step = max(least['compute'], least['memory'])
            cells += [
                row['all_reduces'],
                f'{row["collective_bytes"] / 1e6:.1f}',
                f'{(row["argument_bytes"] + row["temporary_bytes"]) / 2**30:.2f}',
                f'{row["flops"] / 1e12:.2f}',
                f'{row["bytes_accessed"] / 1e9:.1f}',
                *(f'{1e3 * least[name]:.1f}' for name in ('compute', 'memory')),
                f'{1e3 * least["links"]:.2f}',
                f'{100 * step / (step + least["links"]):.1f} %',
                row['compile_s'],
            ]
        table.append([str(cell) for cell in cells])
    return tables.markdown(table)


def save(row: dict) -> None:
    """Replaces the row of the same cell in aot.json, and writes aot.md from it."""
    head = (
        f'{versions("jax", "flax", "libtpu")}; Python {sys.version.split()[0]}. The training step '
        "of each network's recipe, bfloat16, 224 pixels, BatchNorm groups of 32; all figures are "
        "of one chip and the compiler's, none was measured on a TPU. 'First form' is the step "
        "before SE scaled BatchNorm's coefficients (docs/explanations/speed.md)."
    )
    update('aot', head, [row], CELL, markdown)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', help='only this network')
    parser.add_argument('--chip', choices=CHIPS, default='v5e')
    parser.add_argument('--chips', type=int, default=4)
    parser.add_argument('--images', type=int, default=128, help='per chip')
    parser.add_argument('--hlo', metavar='FILE', help='save the compiled module as text')
    parser.add_argument('--print', action='store_true', help='print the row instead of saving it')
    args = parser.parse_args()
    if args.chips not in CHIPS[args.chip].slices:
        sizes = ', '.join(map(str, CHIPS[args.chip].slices))
        parser.error(f'--chips={args.chips}: {args.chip} is described for {sizes}')
    if args.print and not args.model:
        parser.error('--print needs --model')
    if args.print:
        print(json.dumps(measure(args.model, args.chip, args.chips, args.images, args.hlo)))
        return
    cells = [(args.model, args.chip, args.chips, args.images)] if args.model else CELLS
    for cell in cells:
        # Each in its own process, because the compiler may abort.
        options = [f'--{name}={value}' for name, value in zip(CELL, cell, strict=True)]
        command = [sys.executable, __file__, '--print', *options]
        if args.hlo:
            command += ['--hlo', args.hlo]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE)
        if done.returncode:
            print(f'{cell}: the compiler ended with code {done.returncode}', flush=True)
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        print(row, flush=True)
        save(row)


if __name__ == '__main__':
    main()
