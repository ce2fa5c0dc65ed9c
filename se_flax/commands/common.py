"""What several commands share."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from se_flax.storage import local_path

DTYPE = "float32 or bfloat16; default: the run's own, float32 for weights"
FOLD = 'merge BatchNorm into the convolutions; equal up to rounding'
DATA_DIR = "of TFDS, or gs://; default: the run's own, $TFDS_DATA_DIR or ~/tensorflow_datasets"


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    text: str,
    **settings: Any,
) -> argparse.ArgumentParser:
    """Adds the parser of a command to `add_subparsers()`; `run` returns the exit code."""
    settings |= {'help': text, 'description': text, 'allow_abbrev': False}
    parser = commands.add_parser(name, **settings)
    parser.set_defaults(run=run)
    return parser


def add_group(commands: Any, name: str, text: str) -> Any:
    """Adds a command that has commands of its own, such as `data check`; returns these."""
    parser = commands.add_parser(name, help=text, description=text)
    return parser.add_subparsers(required=True, metavar='COMMAND')


def names(text: str) -> tuple[str, ...]:
    """Splits `NAME,NAME`."""
    return tuple(filter(None, text.split(',')))


def add_network(options: Any, onnx: bool = False, **settings: Any) -> None:
    """Adds `--workdir`, `--weights`, perhaps `--onnx`; `args.network` is for `open_network`."""
    option = partial(options.add_argument, dest='network', **settings)
    option('--workdir', type=lambda folder: ('open_run', folder), metavar='DIR', help='of a run')
    option(
        '--weights',
        type=lambda file: ('open_weights', local_path(file)),
        metavar='FILE.safetensors',
    )
    if onnx:
        option('--onnx', type=lambda file: ('open_onnx', local_path(file)), metavar='FILE.onnx')


def open_network(network: tuple[str, Any], dtype: str | None = None, folded: bool = False) -> Any:
    """Opens a run or a file as a `Trained`, without BatchNorm if `folded`."""
    from se_flax import inference

    trained = getattr(inference, network[0])(network[1], dtype)
    return inference.fold(trained) if folded else trained


def resized(view: Any) -> str:
    """Describes the resize of an `EvalTransform` or a `Preprocessing`."""
    return f'resized to {view.resize} ({view.interpolation})' if view.resize else 'not resized'
