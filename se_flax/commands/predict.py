"""`se-flax predict` prints or writes the most probable classes of images."""

import argparse
import contextlib
from typing import Any

from se_flax.commands import common
from se_flax.errors import UserError
from se_flax.storage import local_path
from se_flax.tables import aligned


def add_to(commands: Any) -> None:
    text = 'predict the most probable classes of images'
    parser = common.add_command(commands, 'predict', _run, text)
    common.add_network(parser.add_mutually_exclusive_group(required=True), onnx=True)
    option = parser.add_argument
    option('--fold', action='store_true', help=common.FOLD)
    option('images', nargs='+', metavar='IMAGE', help='files, or folders of them')
    option('--batch-size', type=int, metavar='B', help='images per batch; default: 32 per device')
    text = 'write a .csv or .jsonl instead of printing'
    option('--csv', type=local_path, metavar='FILE', help=text)


def _run(args: argparse.Namespace) -> None:
    from se_flax.evaluation.predictions import Predictions
    from se_flax.inference import predict
    from se_flax.progress import Progress

    predictions = Predictions(args.csv, labeled=False) if args.csv else None
    trained = common.open_network(args.network, folded=args.fold)
    total = unread = 0
    with Progress() if args.csv else contextlib.nullcontext() as progress:
        options = {'batch_size': args.batch_size, 'predictions': predictions}
        options |= {'seen': progress.show} if progress else {}
        for image, guesses in predict(trained, args.images, **options):
            total += 1
            unread += guesses is None
            if guesses and not predictions:
                rows = [(f'  {name}', f'{100 * p:.2f} %') for name, p in guesses]
                print(image, aligned(rows), sep='\n', flush=True)
    if predictions:
        predictions.write()
        print(f'{args.csv}: {total - unread:,} images')
    if unread:
        raise UserError(f'{unread:,} of {total:,} images cannot be read')
