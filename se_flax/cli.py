"""The console script `se-flax`."""

import argparse
import contextlib
import logging
import pathlib
import sys
from collections.abc import Sequence
from functools import partial

from se_flax.analysis.commands import add_commands
from se_flax.errors import UserError, extra_to_install
from se_flax.models import check_model, list_models, model_info
from se_flax.storage import as_path, check_writable
from se_flax.tables import aligned, markdown
from se_flax.terminal import after_broken_pipe, escape_unprintable, expand_home


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake of the user, told in a line.

    130 is that of Ctrl-C, 141 that of output that nobody reads; `ablate` also has 1 for a run that
    failed and 75 for a stop that was asked for.
    """
    escape_unprintable()
    logging.basicConfig(format='%(levelname)s: %(message)s')
    parser = _parser()
    args, rest = parser.parse_known_args(expand_home(sys.argv[1:] if argv is None else argv))
    args.rest = rest
    if args.rest and 'study' not in args:  # only a study takes --config.FIELD=VALUE
        parser.error(f'unrecognized arguments: {" ".join(args.rest)}')
    try:
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return after_broken_pipe()
    except (UserError, OSError) as error:  # OSError: a full disk, a folder that is not ours
        print(f'error: {error}', file=sys.stderr)
        return 2
    except RuntimeError as error:
        from se_flax.training.memory import IN_TRAINING, IN_USE, explain

        line = explain(error, IN_TRAINING if 'study' in args else IN_USE)
        if line is None:
            raise
        print(f'error: {line}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except ImportError as error:
        # `models` and `info` need no extra.
        if not (hint := extra_to_install(error)):
            raise
        print(f'error: {hint}', file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='se-flax', description='Squeeze-and-Excitation networks.')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def command(of, name, run, text):
        sub = of.add_parser(name, help=text, description=text, allow_abbrev=False)
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
        optional = {} if name == 'prepare' else {'nargs': '?', 'help': 'default: all known'}
        sub.add_argument('name', metavar='NAME', **optional)
        sub.add_argument('--data-dir', help="default: tfds's, ~/tensorflow_datasets")
        if name == 'prepare':
            _add_preparing(sub)

    _add_evaluating(command(commands, 'evaluate', _evaluate, 'error rates of trained networks'))
    predict = command(commands, 'predict', _predict, 'the most probable classes of images')
    _add_network(predict)
    predict.add_argument('images', nargs='+', metavar='IMAGE', help='files, and folders of them')
    predict.add_argument('--batch-size', type=int, metavar='B', help='images at once; default: 32')
    predict.add_argument(
        '--csv', type=pathlib.Path, metavar='FILE', help='.csv or .jsonl, in place of the screen'
    )

    convert = command(
        commands, 'convert', _convert, 'make a weights file of public weights or a run'
    )
    convert.add_argument(
        'source',
        metavar='SOURCE',
        help='a file of PyTorch, safetensors (or the index of its shards) or Caffe, hub:ID, or '
        'the workdir of a run',
    )
    convert.add_argument('--model', metavar='NAME', help='one of `se-flax models`')
    convert.add_argument(
        '--key', metavar='NAME', help='of the state dict, where a file holds several'
    )
    convert.add_argument(
        '--head', default='keep', help="'drop' leaves the classifier's head out; default: keep"
    )
    convert.add_argument(
        '--in-channels', type=int, metavar='N', help='adapts the first kernel to such images'
    )
    convert.add_argument('--out', metavar='FILE.safetensors', required=True)

    export = command(
        commands, 'export', _export, 'write a network as StableHLO, to run it without se_flax'
    )
    _add_network(export)
    export.add_argument('--dtype', help="float32 or bfloat16; default: the run's own, float32")
    export.add_argument(
        '--batch-size', type=int, metavar='B', help='images at once; default: left open'
    )
    export.add_argument(
        '--platforms', type=_names, default=(), metavar='NAME,NAME', help='default: cpu,cuda,tpu'
    )
    export.add_argument('--out', type=pathlib.Path, metavar='FILE', required=True)
    add_commands(commands, command)
    return parser


def _add_network(parser: argparse.ArgumentParser) -> None:
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument('--workdir', metavar='DIR', help='of a run')
    network.add_argument('--weights', type=pathlib.Path, metavar='FILE.safetensors')
    _add_folding(parser)


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


def _add_evaluating(parser: argparse.ArgumentParser) -> None:
    networks = parser.add_argument_group('networks', 'several are an ensemble: their mean')
    for option, metavar in (('--workdir', 'DIR'), ('--weights', 'FILE.safetensors')):
        networks.add_argument(
            option,
            dest='networks',
            action='append',
            default=[],
            type=partial(_pair, option),
            metavar=metavar,
            help='of a run' if option == '--workdir' else 'of `se-flax convert`',
        )
    networks.add_argument('--dtype', help="float32 or bfloat16; default: the run's own, float32")

    _add_folding(networks)

    images = parser.add_argument_group('images')
    images.add_argument('--data', help="default: the run's own; needed with --weights")
    images.add_argument('--data-dir', help="default: the run's own, or tfds's")
    images.add_argument('--batch-size', type=int, metavar='B', help='images at once')

    views = parser.add_argument_group(
        'protocol', 'several sizes or resizes, such as 256,288,320, are scales: their mean'
    )
    views.add_argument(
        '--size', type=_sizes, default=(), metavar='S', help="pixels; default: the network's own"
    )
    views.add_argument(
        '--resize',
        type=_sizes,
        default=(),
        metavar='R',
        help="of the shorter edge, 0 leaves it as it is; default: the network's own",
    )
    views.add_argument(
        '--crops',
        type=int,
        default=1,
        metavar='N',
        help='1: the centre (default), 2: and its mirror image, 10: corners, centre, mirror '
        'images, 12: and the whole image',
    )
    views.add_argument(
        '--average',
        default='probabilities',
        metavar='WHAT',
        help='probabilities (default) or logits, over crops, scales and networks',
    )

    output = parser.add_argument_group('output')
    output.add_argument('--per-class', action='store_true', help='a table, the worst first')
    output.add_argument(
        '--predictions',
        type=pathlib.Path,
        metavar='FILE',
        help='.csv or .jsonl: the five most probable classes of each image',
    )


def _add_folding(parser) -> None:
    parser.add_argument(
        '--fold', action='store_true', help='BatchNorm into the convolutions; the same but rounding'
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(',')))


def _pair(option: str, path: str) -> tuple[str, str]:
    return option, path


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no list of pixels such as 256,288') from None


def _models(args: argparse.Namespace) -> None:
    names = list_models(args.pattern)
    if not names:
        check_model(args.pattern)
    rows = [('name', 'parameters', 'multiply-adds', 'in the paper', 'input', 'error in the paper')]
    for info in map(model_info, names):
        if args.paper and not info.paper:
            continue
        size = f'{info.input_size}x{info.input_size}'
        published = _macs(info.paper.macs) if info.paper and info.paper.macs else ''
        cells = (f'{info.params:,}', _macs(info.macs), published, size, _paper(info.paper))
        rows.append((info.name, *cells))
    print(markdown(rows) if args.markdown else aligned(rows))


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
    print(aligned(rows, left=2))


def _data_check(args: argparse.Namespace) -> None:
    from se_flax.data import check, list_known

    if args.name:
        print(check(args.name, args.data_dir))
    else:
        print(aligned(list_known(args.data_dir), left=2))


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
    from se_flax.evaluation.predictions import Predictions
    from se_flax.evaluation.progress import Progress
    from se_flax.evaluation.protocols import Protocol
    from se_flax.inference import evaluate_networks, fold, open_run, open_weights

    if not args.networks:
        raise UserError('nothing to evaluate: --workdir DIR or --weights FILE.safetensors')
    protocol = Protocol(args.size, args.resize, args.crops, args.average)
    predictions = Predictions(args.predictions) if args.predictions else None
    with Progress() as progress:
        open_network = {'--workdir': open_run, '--weights': open_weights}
        networks = [open_network[option](path, args.dtype) for option, path in args.networks]
        networks = [fold(network) for network in networks] if args.fold else networks
        result = evaluate_networks(
            networks,
            args.data,
            args.data_dir,
            protocol,
            batch_size=args.batch_size,
            predictions=predictions,
            seen=progress.show,
        )
    if args.per_class:
        print(_class_table(result), end='\n\n')
    for network in networks:
        step = '' if network.step is None else f', step {network.step:,}'
        print(f'{network.name}{step}: {protocol.describe(network.network.view)}')
    views = sum(protocol.crops * len(protocol.scales(n.network.view)) for n in networks)
    if views > 1:
        print(f'{views} views an image, their {protocol.average} averaged')
    print(_errors(result))
    if predictions:
        predictions.write()
        print(f'predictions: {args.predictions}')


def _errors(result) -> str:
    """The error rates, each with its interval, of an evaluation."""
    from se_flax.evaluation import wilson

    total = result.summary()
    examples = total['examples']
    rows = [('', 'error', '95 % interval', 'accuracy')]
    for name, key in (('top-1', 'top1'), ('top-5', 'top5')):
        wrong = 1 - total[key]
        low, high = wilson(round(wrong * examples), examples)
        interval = f'{_percent(low)} to {_percent(high)} %'
        rows.append((name, f'{_percent(wrong)} %', interval, f'{_percent(total[key])} %'))
    return f'{examples:,} images of {result.data}, loss {total["loss"]:.4f}\n{aligned(rows)}'


def _class_table(result) -> str:
    """The error rates of each class that has images, the worst first."""
    rows = []
    for name, (examples, *right) in zip(result.class_names, result.counts, strict=True):
        if examples:
            rows.append((name, examples, *(1 - r / examples for r in right)))
    rows.sort(key=lambda row: (-row[2], -row[3], row[0]))
    texts = [(name, f'{n:,}', *(f'{_percent(e)} %' for e in errors)) for name, n, *errors in rows]
    return aligned([('class', 'images', 'top-1 error', 'top-5 error'), *texts])


def _percent(share: float) -> str:
    return f'{100 * share:.2f}'


def _open_network(args: argparse.Namespace, dtype: str | None = None):
    """Opens the one network that `_add_network`'s options name."""
    from se_flax.inference import fold, open_run, open_weights

    trained = open_run(args.workdir, dtype) if args.workdir else open_weights(args.weights, dtype)
    return fold(trained) if args.fold else trained


def _predict(args: argparse.Namespace) -> None:
    from se_flax.evaluation.predictions import Predictions
    from se_flax.evaluation.progress import Progress
    from se_flax.inference import predict

    predictions = Predictions(args.csv, labelled=False) if args.csv else None
    trained = _open_network(args)
    total = unread = 0
    with Progress() if args.csv else contextlib.nullcontext() as progress:
        answers = predict(
            trained,
            args.images,
            batch_size=args.batch_size,
            predictions=predictions,
            **({'seen': progress.show} if progress else {}),
        )
        for image, guesses in answers:
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


def _export(args: argparse.Namespace) -> None:
    from se_flax.export import export_network, save_exported

    check_writable(args.out)
    trained = _open_network(args, args.dtype)
    network = trained.network
    view = network.view
    exported = export_network(
        network.model,
        network.variables,
        view.image_size,
        mean=network.mean,
        std=network.std,
        batch_size=args.batch_size,
        **({'platforms': args.platforms} if args.platforms else {}),
    )
    save_exported(args.out, exported)
    images, logits = exported.in_avals[0], exported.out_avals[0]
    colours = {1: 'gray', 3: 'RGB'}.get(view.channels, f'{view.channels} channels')
    print(
        f'{args.out}: {trained.name} for {", ".join(exported.platforms)}; '
        f'images {images.str_short()}, {colours}, {_resized(view)}; '
        f'logits {logits.str_short()}'
    )


def _convert(args: argparse.Namespace) -> None:
    from se_flax.weights import convert, read_info

    adapted = {'head': args.head, 'in_channels': args.in_channels}
    if as_path(args.source).is_dir():
        from se_flax.inference import save_run_weights

        if args.key is not None:
            raise UserError('a run holds one network; leave --key out')
        save_run_weights(args.source, pathlib.Path(args.out), **adapted)
    else:
        convert(args.source, args.model, args.out, key=args.key, **adapted)
    info = read_info(args.out)
    images = info.preprocessing
    head = f'{info.num_classes:,} classes' if info.num_classes else 'no head'
    print(
        f'{args.out}: {info.model} from {info.lineage}, {head}; images of '
        f'{images.image_size} pixels, {_resized(images)}'
    )


def _resized(view) -> str:
    if not view.resize:
        return 'not resized'
    return f'resized to {view.resize} ({view.interpolation})'


if __name__ == '__main__':
    sys.exit(main())
