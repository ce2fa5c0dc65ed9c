"""`se-flax data check` looks for data sets, `se-flax data prepare` prepares one."""

import argparse
from typing import Any

from se_flax.commands.common import add_command, add_group
from se_flax.tables import aligned


def add_to(commands: Any) -> None:
    verbs = add_group(commands, 'data', 'find and prepare data sets')
    text = 'show whether a data set is there, or how to prepare it'
    check = add_command(verbs, 'check', _check, text)
    check.add_argument('name', metavar='NAME', nargs='?', help='default: all known')
    prepare = add_command(verbs, 'prepare', _prepare, 'prepare a data set')
    prepare.add_argument('name', metavar='NAME')
    text = 'of TFDS, or gs://; default: $TFDS_DATA_DIR or ~/tensorflow_datasets'
    for parser in (check, prepare):
        parser.add_argument('--data-dir', help=text)
    text = 'contains the two tars of imagenet2012, or the four files of fashion_mnist'
    prepare.add_argument('--from', dest='folder', metavar='DIR', help=text)
    of_imagenet = prepare.add_argument_group('imagenet2012').add_argument
    text = 'shrink larger training images to S pixels on the shorter side'
    of_imagenet('--max-side', type=int, metavar='S', help=text)
    text = 'JPEG quality, 1 to 100, of training images; default: 90 with --max-side, else unchanged'
    of_imagenet('--quality', type=int, metavar='Q', help=text)
    text = 'accept tars with another number of images'
    of_imagenet('--allow-other-counts', action='store_true', help=text)


def _check(args: argparse.Namespace) -> None:
    from se_flax.data import check, list_known

    if args.name:
        print(check(args.name, args.data_dir))
    else:
        print(aligned(list_known(args.data_dir), left=2))


def _prepare(args: argparse.Namespace) -> None:
    from se_flax.data import prepare

    names = ('max_side', 'quality', 'allow_other_counts')
    options = {name: getattr(args, name) for name in names}
    print(prepare(args.name, args.data_dir, args.folder, **options))
