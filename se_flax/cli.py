"""The console script `se-flax`."""

import argparse
import logging
import pathlib
import sys
from collections.abc import Sequence

from se_flax.errors import UserError, check_known
from se_flax.models import list_models, model_info


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
        # Only the `train` extra is optional: `models` and `info` need nothing else.
        if (error.name or '').partition('.')[0] == 'se_flax':
            raise
        print(f"error: this needs {error.name}; pip install 'se_flax[train]'", file=sys.stderr)
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

    evaluate = command(commands, 'evaluate', _evaluate, 'loss and accuracy of a trained network')
    evaluate.add_argument('--workdir', type=pathlib.Path, required=True)
    evaluate.add_argument('--data', help="default: the run's own")
    evaluate.add_argument('--data-dir', help="default: the run's own")
    predict = command(commands, 'predict', _predict, 'the most probable classes of images')
    predict.add_argument('--workdir', type=pathlib.Path, required=True)
    predict.add_argument('images', nargs='+', type=pathlib.Path, metavar='IMAGE')
    return parser


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
    rows = [('name', 'parameters', 'multiply-adds', 'input', 'top-1 / top-5 error (paper)')]
    for info in map(model_info, names):
        size = f'{info.input_size}x{info.input_size}'
        rows.append((info.name, f'{info.params:,}', _macs(info.macs), size, _paper(info.paper)))
    print(_table(rows))


def _macs(macs: int) -> str:
    return f'{macs / 1e9:.2f} G' if macs >= 1e9 else f'{macs / 1e6:.1f} M'


def _paper(paper) -> str:
    if paper is None:
        return 'not in the paper'
    return f'{paper.top1_error:.2f} / {paper.top5_error:.2f} %  {paper.table}'


def _info(args: argparse.Namespace) -> None:
    info = model_info(args.name)
    rows = [
        ('name', info.name),
        ('parameters', f'{info.params:,}'),
        ('multiply-adds', f'{_macs(info.macs)} ({info.macs:,}) an image'),
        ('input', f'{info.input_size} x {info.input_size} x 3'),
        ('classes', f'{info.num_classes:,}'),
        ('top-1 / top-5 error', f'{_paper(info.paper)}'),
    ]
    print(_table(rows, left=2))


def _data_check(args: argparse.Namespace) -> None:
    from se_flax.data import check

    print(check(args.name, args.data_dir))


def _data_prepare(args: argparse.Namespace) -> None:
    from se_flax.data import prepare

    print(prepare(args.name, args.data_dir))


def _evaluate(args: argparse.Namespace) -> None:
    from se_flax.training.use import evaluate_run

    result = evaluate_run(args.workdir, args.data, args.data_dir)
    print(
        f'step {result["step"]}: loss {result["loss"]:.4f}, top-1 {100 * result["top1"]:.2f} %, '
        f'top-5 {100 * result["top5"]:.2f} % of {result["examples"]:,} images of {result["data"]}'
    )


def _predict(args: argparse.Namespace) -> None:
    from se_flax.training.use import predict

    for image, guesses in zip(args.images, predict(args.workdir, args.images), strict=True):
        print(image)
        print(_table([(f'  {name}', f'{100 * p:.2f} %') for name, p in guesses]))


if __name__ == '__main__':
    sys.exit(main())
