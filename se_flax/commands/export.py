"""`se-flax export` writes a network as StableHLO, to run it without se_flax."""

import argparse
from typing import Any

from se_flax.commands import common
from se_flax.storage import check_writable


def add_to(commands: Any) -> None:
    text = 'write a network as StableHLO, to run it without se_flax'
    parser = common.add_command(commands, 'export', _run, text)
    common.add_network(parser.add_mutually_exclusive_group(required=True))
    option = parser.add_argument
    option('--fold', action='store_true', help=common.FOLD)
    option('--dtype', help=common.DTYPE)
    option('--batch-size', type=int, metavar='B', help='images per batch; default: any number')
    platforms = ('cpu', 'cuda', 'tpu')
    text = f'default: {",".join(platforms)}'
    option('--platforms', type=common.names, default=platforms, metavar='NAME,NAME', help=text)
    option('--out', type=common.path, metavar='FILE', required=True)


def _run(args: argparse.Namespace) -> None:
    from se_flax.export import export_network, save_exported

    check_writable(args.out)
    trained = common.open_network(args.network, args.dtype, args.fold)
    network, view = trained.network, trained.network.view
    exported = export_network(
        network.model,
        network.variables,
        view.image_size,
        mean=network.mean,
        std=network.std,
        batch_size=args.batch_size,
        platforms=args.platforms,
    )
    save_exported(args.out, exported)
    images, logits = exported.in_avals[0].str_short(), exported.out_avals[0].str_short()
    colors = {1: 'gray', 3: 'RGB'}.get(view.channels, f'{view.channels} channels')
    print(
        f'{args.out}: {trained.name} for {", ".join(exported.platforms)}; images {images}, '
        f'{colors}, {common.resized(view)}; logits {logits}'
    )
