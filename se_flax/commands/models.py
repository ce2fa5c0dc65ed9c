"""`se-flax models` lists the networks, `se-flax info` describes one."""

import argparse
from typing import Any

from se_flax.commands.common import add_command
from se_flax.models import check_model, list_models, model_info
from se_flax.tables import aligned, markdown


def add_to(commands: Any) -> None:
    models = add_command(commands, 'models', _models, 'list the networks')
    models.add_argument('pattern', nargs='?', default='*', metavar='PATTERN', help='such as "se_*"')
    models.add_argument('--paper', action='store_true', help='only those the paper has numbers for')
    models.add_argument('--markdown', action='store_true', help='print a Markdown table')
    info = add_command(commands, 'info', _info, 'describe a network')
    info.add_argument('name', metavar='NAME')


def _models(args: argparse.Namespace) -> None:
    names = list_models(args.pattern)
    if not names:
        check_model(args.pattern)
    head = 'family', 'name', 'parameters', 'multiply-adds', 'in the paper', 'input'
    rows = [(*head, 'error in the paper')]
    for info in map(model_info, names):
        if args.paper and not info.paper:
            continue
        size = f'{info.input_size}x{info.input_size}'
        published = _macs(info.paper.macs) if info.paper and info.paper.macs else ''
        cells = (f'{info.params:,}', _macs(info.macs), published, size, _paper(info.paper))
        rows.append((info.family, info.name, *cells))
    print(markdown(rows) if args.markdown else aligned(rows, left=2))


def _info(args: argparse.Namespace) -> None:
    info = model_info(args.name)
    rows = [
        ('name', info.name),
        ('family', info.family),
        ('parameters', f'{info.params:,}'),
        ('multiply-adds', f'{_macs(info.macs)} ({info.macs:,}) an image'),
        ('input', f'{info.input_size} x {info.input_size} x 3'),
        ('classes', f'{info.num_classes:,}'),
        ('top-1 / top-5 error', _paper(info.paper)),
    ]
    print(aligned(rows, left=2))


def _macs(macs: float) -> str:
    return f'{macs / 1e9:.2f} G' if macs >= 1e9 else f'{macs / 1e6:.1f} M'


def _paper(paper: Any) -> str:
    if paper is None:
        return 'not in the paper'
    top5 = '' if paper.top5_error is None else f' / {paper.top5_error:.2f}'
    return f'{paper.top1_error:.2f}{top5} %  {paper.table}'
