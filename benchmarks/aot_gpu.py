"""Compiles the training step for an H100 with XLA's GPU compiler: `python benchmarks/aot_gpu.py`.

Compiles the trainer's own step in bfloat16, with the paper's recipes, ahead of time for the GPU
that `h100.txtpb` describes, and sums what its kernels read and write. Needs the extra `cuda-aot`
and no GPU. Nothing is timed, so the figures have no noise. Nothing is autotuned either, so a real
GPU may use other algorithms. Writes `benchmarks/results/aot_gpu.json` and `aot_gpu.md`.

Each time a kernel reads an operand, the whole operand is counted, even if only a part is read or a
cache holds it. The sum is for comparing two programs; it is not a time.
"""

import argparse
import collections
import json
import pathlib
import re
import time
from typing import NamedTuple

from aot import bytes_of, compile_step, computations  # first, because it selects the platform
from jax.experimental import topologies
from record import update, versions

from se_flax import tables
from se_flax.models import create_model
from se_flax.models.complexity import count
from se_flax.parallel import data_mesh

HERE = pathlib.Path(__file__).parent
CELLS = [  # network, images
    ('resnet50', 128),
    ('se_resnet50', 128),
    ('se_resnext50_32x4d', 128),
    ('senet154', 32),
    ('efficientnet_b0_no_se', 128),
    ('efficientnet_b0', 128),
    ('mobilenet_v3_large_no_se', 128),
    ('mobilenet_v3_large', 128),
    ('regnet_y_800mf', 128),
    ('se_resnet8_cifar', 32),  # small, because CI compares it with the table
]
FLOPS, BANDWIDTH = 989e12, 3.35e12  # bfloat16 FLOP/s and bytes/s in NVIDIA's data sheet
LARGEST = 20

COMMENT = re.compile(r'/\*.*?\*/')
INSTRUCTION = re.compile(
    r'^ +(?:ROOT )?%(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<op>[\w-]+)'
    r'\((?P<operands>.*?)\)(?P<rest>.*)'
)
FREE = {'parameter', 'get-tuple-element', 'tuple', 'bitcast', 'constant'}  # these are not kernels


class Kernel(NamedTuple):
    """One kernel of a compiled module.

    Attributes:
        kind: what it does, from its name in XLA.
        bytes: size of its result and operands.
        type: HLO type of its result.
        operands: HLO types of its operands.
        origin: the operation, by the names of Flax modules.
        source: its file and line in se_flax, if the compiler knows it.
    """

    kind: str
    bytes: int
    type: str
    operands: tuple[str, ...]
    origin: str
    source: str


def kernels(text: str) -> list[Kernel]:
    """Returns the kernels of a module; of a conditional, those of the branch that moves most."""
    sources = _sources(text)
    entry, bodies = computations(text)

    def kernels_of(body):
        types, found = {}, []
        for line in body.splitlines():
            match = INSTRUCTION.match(COMMENT.sub('', line))
            if not match:
                continue
            types[match['name']] = match['type']
            if match['op'] in FREE:
                continue
            if match['op'] == 'conditional':
                named = re.findall(r'%([\w.-]+)', match['rest'])
                branches = [kernels_of(bodies[name]) for name in named if name in bodies]
                found += max(branches, key=lambda branch: sum(kernel.bytes for kernel in branch))
                continue
            names = re.findall(r'%([\w.-]+)', match['operands'])
            operands = tuple(types.get(name, '') for name in names)
            origin = re.search(r'op_name="([^"]*)', match['rest'])
            frame = re.search(r'stack_frame_id=(\d+)', match['rest'])
            found.append(
                Kernel(
                    _kind(match['op'], match['name'], match['rest']),
                    bytes_of(match['type']) + sum(map(bytes_of, operands)),
                    match['type'],
                    operands,
                    origin[1] if origin else '',
                    sources(int(frame[1])) if frame else '',
                )
            )
        return found

    return kernels_of(bodies[entry])


def _kind(op: str, name: str, rest: str) -> str:
    if op == 'custom-call':
        target = re.search(r'custom_call_target="([^"]*)', rest)[1]
        return 'convolution' if 'conv' in target else 'matrix product' if 'mm' in target else target
    if 'transpose' in name:
        return 'transpose'
    if op == 'copy' or name.startswith(('copy', 'wrapped_copy')):
        return 'copy'
    if op == 'fusion':
        return 'reduction' if 'kind=kInput' in rest else 'loop'
    return op


def _sources(text: str):
    """Returns a function from a stack frame's number to the innermost line in se_flax."""

    def table(title, pattern):
        body = re.search(rf'^{title}\n(.*?)\n\n', text, re.MULTILINE | re.DOTALL)
        rows = re.finditer(rf'^(\d+) {pattern}', body[1], re.MULTILINE) if body else ()
        return {int(row[1]): row.groups()[1:] for row in rows}

    files = table('FileNames', '"(.*)"')
    places = table('FileLocations', r'\{file_name_id=(\d+) .*?\bline=(\d+)')
    frames = table('StackFrames', r'\{file_location_id=(\d+) parent_frame_id=(\d+)')

    def source(frame):
        while frame in frames:
            place, parent = map(int, frames[frame])
            file, line = places[place]
            path = files[int(file)][0]
            if '/se_flax/' in path:
                return f'{path.rpartition("/se_flax/")[2]}:{line}'
            frame = parent - 1  # the table starts at 1; 0 means none
        return ''

    return source


def is_float32_map(kernel: Kernel, images: int) -> bool:
    """Returns whether a kernel writes a float32 `[images, H, W, C]` with more than one position."""
    if kernel.origin.startswith('state.'):
        return False  # a parameter with the same number of channels
    shapes = re.findall(rf'\bf32\[{images},(\d+),(\d+),\d+\]', kernel.type)
    return any(int(height) * int(width) > 1 for height, width in shapes)


def compile_for_gpu(model: str, images: int, gpus: int = 1, **fields):
    """Returns the compiled step for `images` per GPU, its text, and the seconds to compile it."""
    topology = topologies.get_topology_desc(
        platform='cuda',
        topology_name='h100',
        topology=f'1x{gpus}x1',
        target_config=(HERE / 'h100.txtpb').read_text(),
    )
    begin = time.perf_counter()
    compiled = compile_step(model, data_mesh(topology.devices), images, **fields)
    return compiled, compiled.as_text(), time.perf_counter() - begin


def measure(model: str, images: int, hlo: str | None = None) -> dict:
    """Returns a row of the table."""
    compiled, text, seconds = compile_for_gpu(model, images)
    if hlo:
        pathlib.Path(hlo).write_text(text)
    found = kernels(text)
    kinds = collections.defaultdict(lambda: [0, 0.0])
    for kernel in found:
        kinds[kernel.kind][0] += 1
        kinds[kernel.kind][1] += kernel.bytes
    memory = compiled.memory_analysis()
    largest = sorted(found, key=lambda kernel: -kernel.bytes)[:LARGEST]
    return {
        'model': model,
        'images': images,
        'kernels': len(found),
        'bytes': sum(kernel.bytes for kernel in found),
        'kinds': dict(sorted(kinds.items(), key=lambda item: -item[1][1])),
        'float32_maps': sum(is_float32_map(kernel, images) for kernel in found),
        'temporary_bytes': memory.temp_size_in_bytes,
        # A multiply-add is two operations; the backward pass does each twice more.
        'flops': 6 * count(create_model(model), 224).macs * images,
        'compile_s': round(seconds, 1),
        'largest': [
            [kernel.bytes, kernel.kind, _short(kernel.origin), kernel.source] for kernel in largest
        ],
    }


def _short(origin: str) -> str:
    origin = origin.split(';')[0].removeprefix('jit(train_step)/')
    backward = origin.startswith('transpose(')
    path = re.sub(r'^(?:transpose\()?jvp\(\w+\)\)?/', '', origin)
    return ('backward of ' if backward else '') + path


def markdown(rows: list[dict]) -> str:
    kinds = list(dict.fromkeys(kind for row in rows for kind in row['kinds']))
    plural = {'copy': 'copies'}
    titles = ['network', 'images', 'kernels', 'GB']
    titles += [plural.get(kind, f'{kind}s') for kind in kinds]
    titles += ['float32 maps', 'temporaries, GiB', 'bytes / bandwidth, ms', 'FLOPs / peak, ms']
    titles += ['compiled in, s']
    order = {cell: i for i, cell in enumerate(CELLS)}
    rows = sorted(rows, key=lambda row: order.get((row['model'], row['images']), len(order)))
    table = [titles]
    for row in rows:
        cells = [row['model'], row['images'], f'{row["kernels"]:,}', f'{row["bytes"] / 1e9:.2f}']
        for kind in kinds:
            number, size = row['kinds'].get(kind, (0, 0))
            cells.append(f'{size / 1e9:.2f} ({number})' if number else '')
        cells += [
            row['float32_maps'],
            f'{row["temporary_bytes"] / 2**30:.2f}',
            f'{1e3 * row["bytes"] / BANDWIDTH:.1f}',
            f'{1e3 * row["flops"] / FLOPS:.1f}',
            row['compile_s'],
        ]
        table.append([str(cell) for cell in cells])
    lines = [tables.markdown(table)]
    for row in rows:
        lines += ['', f'The largest kernels of {row["model"]}:', '', '| GB | kind | of | line |']
        lines += ['|---:|---|---|---|']
        for size, kind, origin, source in row['largest']:
            lines.append(f'| {size / 1e9:.3f} | {kind} | {origin} | {source} |')
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', help='only this network')
    parser.add_argument('--images', type=int, default=128)
    parser.add_argument('--hlo', metavar='FILE', help='save the compiled module as text')
    parser.add_argument('--print', action='store_true', help='print the row instead of saving it')
    args = parser.parse_args()

    cells = [(args.model, args.images)] if args.model else CELLS
    for model, images in cells:
        row = measure(model, images, args.hlo)
        if args.print:
            print(json.dumps(row))
            continue
        print(f'{model}: {row["kernels"]:,} kernels, {row["bytes"] / 1e9:.2f} GB', flush=True)
        head = (
            f'{versions("jax", "jax-cuda13-plugin", "flax")}. The training step of each '
            "network's recipe, bfloat16, 224 pixels, BatchNorm groups of 32, compiled for one "
            'H100 (80 GB HBM3); GB (kernels) by kind. No GPU was there: nothing is measured.'
        )
        update('aot_gpu', head, [row], ('model', 'images'), markdown)


if __name__ == '__main__':
    main()
