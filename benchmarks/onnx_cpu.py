"""Times our ONNX files in ONNX Runtime beside PyTorch's: `python benchmarks/onnx_cpu.py`.

The other sides are the same network of timm or pytorchcv, exported by `torch.onnx` and run by the
same ONNX Runtime, and eager PyTorch, channels last. All sides take turns in one process, with the
same number of threads and the same float32 images `[B, 3, H, W]`. Needs the extras `onnx` and
`torch`, and onnxscript. Writes `benchmarks/results/onnx_cpu.json` and `onnx_cpu.md`.
"""

import argparse
import collections
import io

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import torch
from cpu import PAIRS
from record import processor, update, versions
from sides import compare, figures, milliseconds

from se_flax import tables
from se_flax.export import export_onnx
from se_flax.models import create_model

NETWORKS = (
    *('timm_seresnet50', 'timm_seresnext50_32x4d', 'se_mobilenet'),
    *('efficientnet_b0', 'mobilenet_v3_large', 'regnet_y_800mf'),
)
SIDES = {'ours': 'ours', 'torch': "PyTorch's export", 'eager': 'eager PyTorch'}


def ours(name, size):
    model = create_model(name)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    pixels = {'mean': (0.0,) * 3, 'std': (1.0,) * 3}
    return export_onnx(model, variables, size, nchw=True, **pixels)


def torchs(model, images):
    """Returns the model as `torch.onnx` exports it, for any batch."""
    program = torch.onnx.export(
        model,
        (torch.from_numpy(images),),
        input_names=['images'],
        dynamic_shapes=({0: torch.export.Dim('batch')},),
        dynamo=True,
        verbose=False,
    )
    file = io.BytesIO()
    program.save(file)
    return onnx.load_model_from_string(file.getvalue())


def in_runtime(exported, images):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    runtime = onnxruntime.InferenceSession(exported.SerializeToString(), options)

    def run(times):
        for _ in range(times):
            runtime.run(None, {'images': images})

    return run


def eager(model, images):
    model = model.to(memory_format=torch.channels_last)
    images = torch.from_numpy(images).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(times):
        for _ in range(times):
            model(images)

    return run


def nodes(exported):
    """The nodes that ONNX Runtime is given, by kind, the most frequent first."""
    kinds = collections.Counter(node.op_type for node in exported.graph.node)
    return dict(kinds.most_common())


def benchmark(name, rounds):
    pair = PAIRS[name]
    model = pair.other().eval()
    images = np.random.default_rng(0).normal(size=(8, 3, pair.size, pair.size)).astype('f')
    exports = {'ours': ours(name, pair.size), 'torch': torchs(model, images[:2])}
    for batch in (1, 8):
        sides = {side: in_runtime(e, images[:batch]) for side, e in exports.items()}
        sides['eager'] = eager(model, images[:batch])
        seconds = compare(sides, rounds, times=8 // batch)
        row = {'network': name, 'batch': batch, **figures(seconds, ('torch', 'eager'))}
        yield row | {'nodes': {side: nodes(e) for side, e in exports.items()}}


def markdown(rows):
    titles = ['network', 'batch', *(f'{title}, ms' for title in SIDES.values())]
    titles += [f'{SIDES[side]} / ours' for side in ('torch', 'eager')] + ["nodes: ours, PyTorch's"]
    table = [titles]
    for row in rows:
        cells = [row['network'], str(row['batch']), *(milliseconds(row, side) for side in SIDES)]
        cells += [f'{row["ratio"][side]:.2f}' for side in ('torch', 'eager')]
        cells.append(', '.join(f'{sum(kinds.values())}' for kinds in row['nodes'].values()))
        table.append(cells)
    return tables.markdown(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', nargs='*', default=NETWORKS, help=', '.join(PAIRS))
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    packages = ('se_flax', 'jax', 'onnx', 'onnxruntime', 'torch', 'timm', 'pytorchcv')
    head = (
        f'{processor()}; {versions(*packages)}; float32, median (range) of {args.rounds} rounds. '
        'Above 1, ours is faster.'
    )
    print(head, flush=True)
    for name in args.networks:
        for row in benchmark(name, args.rounds):
            print(markdown([row]).splitlines()[-1], flush=True)
            update('onnx_cpu', head, [row], ('network', 'batch'), markdown)


if __name__ == '__main__':
    main()
