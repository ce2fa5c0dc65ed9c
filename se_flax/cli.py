"""The console script `se-flax`."""

import argparse
import logging
import pathlib
import sys
from collections.abc import Sequence

from se_flax.errors import UserError, check_known
from se_flax.models import list_models, model_info

# Packages and the extras that bring them; `train` brings the others.
EXTRAS = {
    'safetensors': 'weights',
    'google': 'weights',
    'huggingface_hub': 'weights',
    'torch': 'torch',
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake of the user, told in a line."""
    logging.basicConfig(format='%(levelname)s: %(message)s')
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except ImportError as error:
        # `models` and `info` need no extra.
        package = (error.name or '').partition('.')[0]
        if package == 'se_flax':
            raise
        extra = EXTRAS.get(package, 'train')
        print(f"error: this needs {error.name}; pip install 'se_flax[{extra}]'", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='se-flax', description='Squeeze-and-Excitation networks.')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def command(of, name, run, text):
        sub = of.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    models = command(commands, 'models', _models, 'list the networks')
    models.add_argument('pattern', nargs='?', default='*', metavar='PATTERN', help='such as "se_*"')
    models.add_argument('--paper', action='store_true', help='only those the paper has numbers for')
    models.add_argument('--markdown', action='store_true', help='as a Markdown table')
    info = command(commands, 'info', _info, 'say what is known of a network')
    info.add_argument('name', metavar='NAME')

    data = commands.add_parser('data', help='look for data sets, prepare them')
    verbs = data.add_subparsers(required=True, metavar='COMMAND')
    for name, run, text in (
        ('check', _data_check, 'say whether a data set is there, and how to prepare it'),
        ('prepare', _data_prepare, 'prepare a data set'),
    ):
        sub = command(verbs, name, run, text)
        sub.add_argument('name', metavar='NAME')
        sub.add_argument('--data-dir', help="default: tfds's, ~/tensorflow_datasets")
        if name == 'prepare':
            _add_preparing(sub)

    evaluate = command(commands, 'evaluate', _evaluate, 'loss and accuracy of a trained network')
    _add_network(evaluate)
    evaluate.add_argument('--data', help="default: the run's own; needed with --weights")
    evaluate.add_argument('--data-dir', help="default: the run's own, or tfds's")
    predict = command(commands, 'predict', _predict, 'the most probable classes of images')
    _add_network(predict)
    predict.add_argument('images', nargs='+', type=pathlib.Path, metavar='IMAGE')

    convert = command(
        commands, 'convert', _convert, 'make a weights file of public weights or a run'
    )
    convert.add_argument(
        'source',
        metavar='SOURCE',
        help='.pth, .pt, .safetensors or .caffemodel, hub:ID, or the workdir of a run',
    )
    convert.add_argument('--model', metavar='NAME', help='one of `se-flax models`')
    convert.add_argument('--out', metavar='FILE.safetensors', required=True)
    return parser


def _add_preparing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--from',
        dest='folder',
        metavar='DIR',
        help="that holds imagenet2012's two tars, or fashion_mnist's four files",
    )
    parser.add_argument(
        '--max-side',
        type=int,
        metavar='S',
        help='imagenet2012: shrink training images until the shorter side has S pixels, '
        'if it has more',
    )
    parser.add_argument(
        '--quality',
        type=int,
        metavar='Q',
        help='imagenet2012: encode training images again as JPEG of this quality, 1 to 100 '
        '(with --max-side 90, else their bytes are kept)',
    )
    parser.add_argument(
        '--allow-other-counts',
        action='store_true',
        help='imagenet2012: take tars that hold a part of it',
    )


def _add_network(parser: argparse.ArgumentParser) -> None:
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument('--workdir', type=pathlib.Path, help='of a run')
    network.add_argument('--weights', type=pathlib.Path, metavar='FILE.safetensors')


def _table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligns columns: the first `left` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _models(args: argparse.Namespace) -> None:
    names = list_models(args.pattern)
    if not names:
        check_known('model', args.pattern, list_models())
    rows = [('name', 'parameters', 'multiply-adds', 'in the paper', 'input', 'error in the paper')]
    for info in map(model_info, names):
        if args.paper and not info.paper:
            continue
        size = f'{info.input_size}x{info.input_size}'
        published = _macs(info.paper.macs) if info.paper and info.paper.macs else ''
        cells = (f'{info.params:,}', _macs(info.macs), published, size, _paper(info.paper))
        rows.append((info.name, *cells))
    print(_markdown(rows) if args.markdown else _table(rows))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    header, *body = (f'| {" | ".join(row)} |' for row in rows)
    return '\n'.join([header, f'|---|{"---:|" * (len(rows[0]) - 1)}', *body])


def _macs(macs: float) -> str:
    return f'{macs / 1e9:.2f} G' if macs >= 1e9 else f'{macs / 1e6:.1f} M'


def _paper(paper) -> str:
    """Top-1 and, where it is given, top-5 error, and the table they are from."""
    if paper is None:
        return 'not in the paper'
    top5 = '' if paper.top5_error is None else f' / {paper.top5_error:.2f}'
    return f'{paper.top1_error:.2f}{top5} %  {paper.table}'


def _info(args: argparse.Namespace) -> None:
    info = model_info(args.name)
    rows = [
        ('name', info.name),
        ('parameters', f'{info.params:,}'),
        ('multiply-adds', f'{_macs(info.macs)} ({info.macs:,}) an image'),
        ('input', f'{info.input_size} x {info.input_size} x 3'),
        ('classes', f'{info.num_classes:,}'),
        ('top-1 / top-5 error', _paper(info.paper)),
    ]
    print(_table(rows, left=2))


def _data_check(args: argparse.Namespace) -> None:
    from se_flax.data import check

    print(check(args.name, args.data_dir))


def _data_prepare(args: argparse.Namespace) -> None:
    from se_flax.data import prepare

    print(
        prepare(
            args.name,
            args.data_dir,
            args.folder,
            max_side=args.max_side,
            quality=args.quality,
            allow_other_counts=args.allow_other_counts,
        )
    )


def _evaluate(args: argparse.Namespace) -> None:
    from se_flax.training.use import evaluate_run, evaluate_weights

    if args.workdir:
        result = evaluate_run(args.workdir, args.data, args.data_dir)
    elif args.data:
        result = evaluate_weights(args.weights, args.data, args.data_dir)
    else:
        raise UserError('a weights file has no data set of its own: --data NAME')
    step = f'step {result["step"]}: ' if 'step' in result else ''
    print(
        f'{step}loss {result["loss"]:.4f}, top-1 {100 * result["top1"]:.2f} %, '
        f'top-5 {100 * result["top5"]:.2f} % of {result["examples"]:,} images of {result["data"]}'
    )


def _predict(args: argparse.Namespace) -> None:
    from se_flax.training.use import predict, predict_weights

    if args.workdir:
        guessed = predict(args.workdir, args.images)
    else:
        guessed = predict_weights(args.weights, args.images)
    for image, guesses in zip(args.images, guessed, strict=True):
        print(image)
        print(_table([(f'  {name}', f'{100 * p:.2f} %') for name, p in guesses]))


def _convert(args: argparse.Namespace) -> None:
    from se_flax.weights import convert, read_info

    if pathlib.Path(args.source).is_dir():
        from se_flax.training.use import save_run_weights

        save_run_weights(pathlib.Path(args.source), pathlib.Path(args.out))
    else:
        convert(args.source, args.model, args.out)
    info = read_info(args.out)
    images = info.preprocessing
    print(
        f'{args.out}: {info.model} from {info.lineage}, {info.num_classes:,} classes; images of '
        f'{images.image_size} pixels, resized to {images.resize} ({images.interpolation})'
    )


if __name__ == '__main__':
    sys.exit(main())
