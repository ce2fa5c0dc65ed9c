"""`se-flax convert` writes a weights file from public weights or from a run."""

import argparse
from typing import Any

from se_flax.commands.common import add_command, resized
from se_flax.errors import UserError
from se_flax.storage import as_path, local_path


def add_to(commands: Any) -> None:
    text = 'write a weights file from public weights or a run'
    option = add_command(commands, 'convert', _run, text).add_argument
    text = 'hub:ID, a workdir, or a file of PyTorch, safetensors (or index of shards) or Caffe'
    option('source', metavar='SOURCE', help=text)
    option('--model', metavar='NAME', help='one of `se-flax models`')
    option('--key', metavar='NAME', help='the state dict, if a file holds several')
    option('--head', default='keep', help="'drop' omits the classifier head; default: keep")
    option('--in-channels', type=int, metavar='N', help='adapt the first kernel to N channels')
    option('--out', type=local_path, metavar='FILE.safetensors', required=True)


def _run(args: argparse.Namespace) -> None:
    from se_flax.weights import convert, read_info

    adapted = {'head': args.head, 'in_channels': args.in_channels}
    if as_path(args.source).is_dir():
        from se_flax.inference import save_run_weights

        for option in ('model', 'key'):
            if getattr(args, option) is not None:
                raise UserError(f'a run holds one network; leave --{option} out')
        save_run_weights(args.source, args.out, **adapted)
    else:
        convert(args.source, args.model, args.out, key=args.key, **adapted)
    info = read_info(args.out)
    view = info.preprocessing
    head = f'{info.num_classes:,} classes' if info.num_classes else 'no head'
    images = f'images of {view.image_size} pixels, {resized(view)}'
    print(f'{args.out}: {info.model} from {info.lineage}, {head}; {images}')
