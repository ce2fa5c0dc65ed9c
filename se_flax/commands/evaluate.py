"""`se-flax evaluate` prints the error rates of a network or an ensemble."""

import argparse
import contextlib
import signal
from typing import Any

from se_flax.commands import common
from se_flax.errors import UserError
from se_flax.storage import local_path
from se_flax.tables import aligned
from se_flax.training.processes import add_processes, processes_of


def add_to(commands: Any) -> None:
    text = 'measure the error rates of trained networks'
    parser = common.add_command(commands, 'evaluate', _run, text)
    networks = parser.add_argument_group('networks', 'the outputs of several are averaged')
    common.add_network(networks, onnx=True, action='append', default=[])
    networks.add_argument('--dtype', help=common.DTYPE)
    networks.add_argument('--fold', action='store_true', help=common.FOLD)

    option = parser.add_argument_group('images').add_argument
    option('--data', help="default: the run's own; required without --workdir")
    option('--data-dir', help=common.DATA_DIR)
    text = "images per batch; default: the run's own, or 64 per device"
    option('--batch-size', type=int, metavar='B', help=text)

    text = 'several sizes or resizes, such as 256,288,320, are scales to average over'
    option = parser.add_argument_group('protocol', text).add_argument
    text = "pixels; default: the network's own"
    option('--size', type=_sizes, default=(), metavar='S', help=text)
    text = "pixels of the shorter edge, 0 for no resize; default: the network's own"
    option('--resize', type=_sizes, default=(), metavar='R', help=text)
    text = '1: center (default); 2: with mirror image; 10: with corners; 12: with the whole image'
    option('--crops', type=int, default=1, metavar='N', help=text)
    text = 'probabilities (default) or logits, over crops, scales and networks'
    option('--average', default='probabilities', metavar='WHAT', help=text)

    option = parser.add_argument_group('output').add_argument
    option('--per-class', action='store_true', help='print a table of classes, the worst first')
    text = 'write the five most probable classes of each image to a .csv or .jsonl'
    option('--predictions', type=local_path, metavar='FILE', help=text)
    add_processes(parser)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(','))
    except ValueError:
        message = f'{text!r} is not a list of pixels such as 256,288'
        raise argparse.ArgumentTypeError(message) from None


def _run(args: argparse.Namespace) -> None:
    import jax

    from se_flax.evaluation.predictions import Predictions
    from se_flax.evaluation.protocols import Protocol
    from se_flax.inference import evaluate_networks
    from se_flax.progress import Progress
    from se_flax.training.config import base_config
    from se_flax.training.distributed import connect, on_first

    if not args.network:
        raise UserError('nothing to evaluate; give --workdir DIR or --weights FILE.safetensors')
    protocol = Protocol(args.size, args.resize, args.crops, args.average)
    if processes := processes_of(args):
        connect(processes, heartbeat_seconds=base_config().heartbeat_seconds)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX would only note it
    predictions = on_first(Predictions, args.predictions) if args.predictions else None
    with Progress() if jax.process_index() == 0 else contextlib.nullcontext() as progress:
        networks = [common.open_network(network, args.dtype, args.fold) for network in args.network]
        result = evaluate_networks(
            networks,
            args.data,
            args.data_dir,
            protocol,
            batch_size=args.batch_size,
            predictions=predictions,
            seen=progress and progress.show,
        )
    if args.per_class:
        print(_class_table(result), end='\n\n')
    for network in networks:
        step = '' if network.step is None else f', step {network.step:,}'
        print(f'{network.name}{step}: {protocol.describe(network.network.view)}')
    views = sum(protocol.crops * len(protocol.scales(n.network.view)) for n in networks)
    if views > 1:
        print(f'{views} views per image, {protocol.average} averaged')
    print(_errors(result))
    if predictions:
        predictions.write()
        print(f'predictions: {args.predictions}')


def _errors(result: Any) -> str:
    from se_flax.evaluation import wilson

    total = result.summary()
    examples = total['examples']
    rows = [('', 'error', '95 % interval', 'accuracy')]
    for name, accuracy in (('top-1', total['top1']), ('top-5', total['top5'])):
        low, high = wilson(round((1 - accuracy) * examples), examples)
        interval = f'{_percent(low)} to {_percent(high)} %'
        rows.append((name, f'{_percent(1 - accuracy)} %', interval, f'{_percent(accuracy)} %'))
    return f'{examples:,} images of {result.data}, loss {total["loss"]:.4f}\n{aligned(rows)}'


def _class_table(result: Any) -> str:
    counts = zip(result.class_names, result.counts, strict=True)
    rows = [(name, n, 1 - top1 / n, 1 - top5 / n) for name, (n, top1, top5) in counts if n]
    rows.sort(key=lambda row: (-row[2], -row[3], row[0]))
    texts = [(name, f'{n:,}', *(f'{_percent(e)} %' for e in errors)) for name, n, *errors in rows]
    return aligned([('class', 'images', 'top-1 error', 'top-5 error'), *texts])


def _percent(share: float) -> str:
    return f'{100 * share:.2f}'
