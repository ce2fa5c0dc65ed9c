"""`se-flax export` writes a network as StableHLO or ONNX, to run it without se_flax."""

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from se_flax.commands import common
from se_flax.errors import UserError, check_known
from se_flax.storage import check_not_input, check_writable, local_path

PLATFORMS = ('cpu', 'cuda', 'tpu')


def add_to(commands: Any) -> None:
    text = 'write a network as StableHLO or ONNX, to run it without se_flax'
    parser = common.add_command(commands, 'export', _run, text)
    common.add_network(parser.add_mutually_exclusive_group(required=True))
    option = parser.add_argument
    option('--format', default='stablehlo', help='stablehlo (default) or onnx')
    option('--out', type=local_path, metavar='FILE', required=True)

    option = parser.add_argument_group('StableHLO').add_argument
    option('--fold', action='store_true', help=f'{common.FOLD}; always done for ONNX')
    option('--dtype', help=common.DTYPE)
    option('--batch-size', type=int, metavar='B', help='images per batch; default: any number')
    text = f'default: {",".join(PLATFORMS)}'
    option('--platforms', type=common.names, metavar='NAME,NAME', help=text)

    option = parser.add_argument_group('ONNX').add_argument
    text = 'nhwc: uint8 images, normalized inside (default); nchw: float images, normalized before'
    option('--input', help=text)
    option('--opset', type=int, metavar='N', help='default: 17')


def _run(args: argparse.Namespace) -> None:
    check_known('format', args.format, FORMATS)
    run, options = FORMATS[args.format]
    for name in ('batch_size', 'platforms', 'input', 'opset'):
        if name not in options and getattr(args, name) is not None:
            option = f'--{name.replace("_", "-")}'
            raise UserError(f'{option} is not an option of --format {args.format}')
    check_writable(args.out)
    trained = common.open_network(args.network, args.dtype, args.fold)
    opener, source = args.network
    if opener == 'open_weights':
        check_not_input(args.out, source)
    run(args, trained)


def _of(network: Any, export: Callable[..., Any]) -> Callable[..., Any]:
    return partial(
        export,
        network.model,
        network.variables,
        network.view.image_size,
        mean=network.mean,
        std=network.std,
    )


def _stablehlo(args: argparse.Namespace, trained: Any) -> None:
    from se_flax.export import export_network, save_exported

    view, platforms = trained.network.view, args.platforms or PLATFORMS
    exported = _of(trained.network, export_network)(batch_size=args.batch_size, platforms=platforms)
    save_exported(args.out, exported)
    images, logits = exported.in_avals[0].str_short(), exported.out_avals[0].str_short()
    print(
        f'{args.out}: {trained.name} for {", ".join(exported.platforms)}; images {images}, '
        f'{_pixels(view)}; logits {logits}'
    )


def _onnx(args: argparse.Namespace, trained: Any) -> None:
    from se_flax.export import export_onnx, save_exported

    network, view = trained.network, trained.network.view
    layout, opset = args.input or 'nhwc', 17 if args.opset is None else args.opset
    check_known('input', layout, ('nhwc', 'nchw'))
    exported = _of(network, export_onnx)(
        nchw=layout == 'nchw', opset=opset, metadata=_metadata(trained, layout)
    )
    save_exported(args.out, exported)
    size, channels = view.image_size, view.channels
    images = f'float32[b,{channels},{size},{size}], normalized'
    if layout == 'nhwc':
        images = f'uint8[b,{size},{size},{channels}]'
    width = exported.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    print(
        f'{args.out}: {trained.name} in ONNX, opset {opset}; images {images}, {_pixels(view)}; '
        f'logits float32[b,{width}]'
    )


def _metadata(trained: Any, layout: str) -> Mapping[str, str]:
    """The properties that `se_flax.inference.open_onnx` reads; all but texts are JSON."""
    from importlib.metadata import version

    network, view = trained.network, trained.network.view
    values = {
        'mean': [float(v) for v in network.mean],
        'std': [float(v) for v in network.std],
        'image_size': view.image_size,
        'resize': view.resize,
        'exif_orientation': view.exif_orientation,
        'class_names': trained.class_names,
        'num_classes': network.model.num_classes,  # 0 without a head
    }
    texts = {'input': layout, 'network': trained.config.model, 'version': version('se_flax')}
    texts['interpolation'] = view.interpolation
    return texts | {name: json.dumps(value) for name, value in values.items()}


def _pixels(view: Any) -> str:
    colors = {1: 'gray', 3: 'RGB'}.get(view.channels, f'{view.channels} channels')
    return f'{colors}, {common.resized(view)}'


FORMATS = {
    'stablehlo': (_stablehlo, ('batch_size', 'platforms')),
    'onnx': (_onnx, ('input', 'opset')),
}
