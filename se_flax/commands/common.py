"""What several commands share."""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

DTYPE = "float32 or bfloat16; default: the run's own, float32 for weights"
DATA_DIR = "of TFDS; default: the run's own, or ~/tensorflow_datasets"


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    """Adds the parser of a command to `add_subparsers()`; `run` returns the exit code."""
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def add_group(commands: Any, name: str, text: str) -> Any:
    """Adds a command that has commands of its own, such as `data check`; returns these."""
    parser = commands.add_parser(name, help=text, description=text)
    return parser.add_subparsers(required=True, metavar='COMMAND')


def path(text: str) -> pathlib.Path:
    """Expands `~`, which shells leave as it is in `--option=~/path`."""
    return pathlib.Path(text).expanduser()


def names(text: str) -> tuple[str, ...]:
    """Splits `NAME,NAME`."""
    return tuple(filter(None, text.split(',')))


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `open_network`."""
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument('--workdir', metavar='DIR', help='of a run')
    network.add_argument('--weights', type=path, metavar='FILE.safetensors')


def add_fold(parser: Any) -> None:
    """Adds `--fold` to a parser or a group of options."""
    text = 'merge BatchNorm into the convolutions; equal up to rounding'
    parser.add_argument('--fold', action='store_true', help=text)


def open_network(args: argparse.Namespace, dtype: str | None = None) -> Any:
    """Opens the network of `add_network` as a `Trained`."""
    chosen = ('run', args.workdir) if args.workdir else ('weights', args.weights)
    return open_trained(*chosen, dtype, getattr(args, 'fold', False))


def open_trained(kind: str, file: Any, dtype: str | None, folded: bool) -> Any:
    """Opens a 'run' or a 'weights' file as a `Trained`, without BatchNorm if `folded`."""
    from se_flax.inference import fold, open_run, open_weights

    trained = {'run': open_run, 'weights': open_weights}[kind](file, dtype)
    return fold(trained) if folded else trained


def resized(view: Any) -> str:
    """Describes the resize of an `EvalTransform` or a `Preprocessing`."""
    return f'resized to {view.resize} ({view.interpolation})' if view.resize else 'not resized'
