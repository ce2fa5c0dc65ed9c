"""What a run can be told: the fields, the command line that sets them, the checks on them."""

import argparse
import ast
import inspect
import pathlib
import runpy
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from se_flax.data import SAMPLINGS
from se_flax.data.decode import MAX_PIXELS
from se_flax.errors import UserError, check_known, check_multiple
from se_flax.storage import AnyPath, as_path
from se_flax.training.optimizer import SCHEDULES

# May differ between two starts of the same run: they change where and how fast, not what.
MACHINE_FIELDS = (
    *('data_dir', 'num_threads', 'num_workers', 'compilation_cache'),
    *('shard_optimizer', 'heartbeat_seconds', 'watchdog_seconds'),
)
FLAGS = (
    *('--config', '--workdir', '--config.FIELD=VALUE'),
    *('--distributed', '--coordinator', '--num-processes', '--process-id'),
)
INTERVALS = ('log', 'eval', 'checkpoint')
_STEPS = tuple(f'{what}_every_steps' for what in INTERVALS)
_EPOCHS = tuple(f'{what}_every_epochs' for what in INTERVALS)
_OPTIONAL = ('num_steps', *_STEPS, *_EPOCHS)  # may be None
DTYPES = ('float32', 'bfloat16', 'float64')
_A_CHANNEL = ('mean', 'std', 'fill')  # hold a number for each
_PAIRS = ('crop_area', 'crop_aspect')
_NOT_NEGATIVE = (
    *('seed', 'bn_group_size', 'weight_decay', 'momentum', 'label_smoothing'),
    *('warmup', 'drop_factor', 'eval_resize', 'max_corrupt', 'num_threads', 'num_workers'),
    *('watchdog_seconds', 'base_batch_size', 'warmup_factor', 'ema', 'freeze_bn_epochs'),
    'max_drops',
)
_POSITIVE = (
    *('batch_size', 'eval_batch_size', 'image_size', 'max_pixels', 'num_epochs'),
    'learning_rate',
)
_OPEN = 'model_fields'  # holds any field of the network's class


def base_config() -> ml_collections.ConfigDict:
    """Returns every field of a run; a config file sets those that make its recipe."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # of parameters, order, augmentation and what the network draws

    c.model = 'se_resnet50'  # one of `se-flax models`
    c.model_fields = ml_collections.ConfigDict()  # of the network's class; `se.reduction` of SE
    c.init_from = ''  # weights file (`se-flax convert`) to fine-tune; '' draws them by the seed
    c.adapt_channels = False  # sums or repeats the first kernel of init_from to fit in_channels
    c.bn_group_size = 32  # images that share BatchNorm statistics; 0 is the global batch
    c.dtype = 'float32'  # of the maps; 'bfloat16' on accelerators, 'float64' for tests

    c.data = ''  # one of `se-flax data check`, or folder:PATH
    c.data_dir = ''  # of tfds; '' is its default, ~/tensorflow_datasets
    c.image_size = 224  # pixels, both sides
    c.in_channels = 3  # of the images; 1 reads them as gray, other numbers are those of the files
    c.exif_orientation = False  # turns photos as cameras and phones note; public recipes do not
    c.max_pixels = MAX_PIXELS  # height x width of a file; a larger one counts as unreadable
    c.mean = (123.675, 116.28, 103.53)  # of a channel, 0 to 255
    c.std = (1.0, 1.0, 1.0)
    c.crop = 'inception'  # 'inception', 'pad' (shift by up to `pad` pixels) or 'none'
    c.crop_area = (0.08, 1.0)  # share of the picture, for 'inception'
    c.crop_aspect = (3 / 4, 4 / 3)  # width / height, for 'inception'
    c.pad = 4  # pixels, for 'pad'
    c.fill = (0, 0, 0)  # colour beyond the border and of the cutout
    c.flip = True  # left to right, every other time
    c.rotation = 0.0  # up to so many degrees, each way
    c.jitter = 0.0  # added to each channel, up to so much each way, of 255
    c.cutout = 0  # side of the square, pixels; 0 is none
    c.eval_resize = 256  # shorter edge before the centre crop, pixels; 0 leaves it as it is
    c.interpolation = 'bilinear'
    c.sampling = 'shuffle'  # or 'class_aware': each time a class, then an image of it
    c.cache = False  # decode all once into memory
    c.max_corrupt = 0.001  # share of unreadable images that is replaced and named, not fatal

    c.batch_size = 256  # global, of all devices
    c.accumulate = 1  # microbatches a device takes one after another, of whole BatchNorm groups
    c.remat = False  # computes normalised and activated maps twice instead of keeping them
    c.num_epochs = 100.0
    c.num_steps = config_dict.placeholder(int)  # wins over num_epochs
    c.schedule = 'constant'  # 'constant', 'step', 'cosine', 'linear' or 'plateau'
    c.learning_rate = 0.1  # the peak
    c.base_batch_size = 0  # that learning_rate is for: batch_size scales it; 0 for "for any"
    c.warmup = 0.0  # share of the run in which the rate rises from 0
    c.warmup_factor = 0.0  # share of the peak that is held there instead; 0 is the rise
    c.drop_epochs = ()  # for 'step': where the rate is multiplied by drop_factor
    c.drop_factor = 0.1
    c.drop_patience = 10  # for 'plateau': evaluations without a lower loss before a drop
    c.max_drops = 3  # for 'plateau'
    c.momentum = 0.9
    c.nesterov = False
    c.weight_decay = 1e-4  # kernels only, SE's included
    c.label_smoothing = 0.0
    c.freeze_bn_epochs = 0.0  # at the end, with BatchNorm's parameters and statistics as they are
    c.ema = 0.0  # share a step keeps of the moving average that is evaluated; 0 is none (0.9999)

    # Steps win over epochs; without either it is done at the end alone.
    c.log_every_steps = config_dict.FieldReference(100)
    c.log_every_epochs = config_dict.placeholder(float)
    c.eval_every_steps = config_dict.placeholder(int)
    c.eval_every_epochs = config_dict.FieldReference(1.0)
    c.checkpoint_every_steps = config_dict.placeholder(int)
    c.checkpoint_every_epochs = config_dict.FieldReference(1.0)
    c.keep_checkpoints = 2
    c.eval_batch_size = 256
    c.num_threads = 0  # that load data; 0 is one a core
    c.num_workers = 0  # processes that load data; 0 is none, right up to tens of cores
    c.compilation_cache = '~/.cache/se_flax'  # of XLA; '' switches it off
    c.shard_optimizer = False  # each device holds its part of the momentum, not a copy
    c.heartbeat_seconds = 30  # of silence after which another process counts as lost
    c.watchdog_seconds = 300.0  # after which a line says what the run is still at; 0 for never
    return c


class Processes(NamedTuple):
    """What `distributed.connect` takes; None where the environment tells it."""

    coordinator: str | None
    num_processes: int | None
    process_id: int | None


class Arguments(NamedTuple):
    """What the command line says; `processes` is None for a run of this process alone."""

    config: ml_collections.ConfigDict
    workdir: AnyPath
    processes: Processes | None


def parse_args(argv: Sequence[str], default: str) -> Arguments:
    """Reads `--config FILE[:ARGUMENT]`, `--workdir DIR` and `--config.FIELD=VALUE`, in any order.

    ml_collections' own flags want `--config` first, read `sys.argv`, and answer a misspelt field
    with a traceback; its ConfigDict keeps the types.

    Args:
        argv: without the program's name.
        default: the config file where none is given.

    Returns:
        The config, locked, the workdir (default: runs/<name of the config>), and how this process
        finds the others of its run.

    Raises:
        UserError: for an unknown argument or field, and a value of another type.
    """
    parser = argparse.ArgumentParser(
        prog='train_main.py',
        description='Trains a network; the same command again goes on where it stopped.',
        epilog='--config.FIELD=VALUE sets a field of the config, such as --config.batch_size=128.',
        allow_abbrev=False,
    )
    parser.add_argument('--config', default=default, metavar='FILE[:ARGUMENT]')
    parser.add_argument('--workdir', help='default: runs/<name of the config>')
    many = parser.add_argument_group('a run of many processes, each started with this command')
    many.add_argument(
        '--distributed',
        action='store_true',
        help='Cloud TPU, SLURM, Open MPI or the variables JAX_COORDINATOR_ADDRESS, '
        'JAX_NUM_PROCESSES and JAX_PROCESS_ID tell the rest',
    )
    many.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0, at a free port')
    many.add_argument('--num-processes', type=int, metavar='N')
    many.add_argument('--process-id', type=int, metavar='I', help='0 to N - 1')
    args, rest = parser.parse_known_args(argv)
    config = load_config(args.config)
    for name, value in parse_assignments(rest, FLAGS):
        assign(config, name, value)
    file, colon, argument = args.config.partition(':')
    name = pathlib.Path(file).stem + colon.replace(':', '-') + argument
    processes = Processes(args.coordinator, args.num_processes, args.process_id)
    return Arguments(
        config.lock(),
        as_path(args.workdir or f'runs/{name}'),
        processes if args.distributed or processes != (None, None, None) else None,
    )


def parse_assignments(
    words: Sequence[str], flags: Sequence[str] = ('--config.FIELD=VALUE',)
) -> list[tuple[str, str]]:
    """Returns (field, text) of each `--config.FIELD=VALUE`; `flags` are what is known beside it.

    >>> parse_assignments(['--config.seed=1', '--config.model', 'se_resnet50'])
    [('seed', '1'), ('model', 'se_resnet50')]
    """
    words, found = list(words), []
    while words:
        name, equals, value = words.pop(0).partition('=')
        if not name.startswith('--config.'):
            check_known('argument', name, flags)
        if not equals:
            if not words:
                raise UserError(f'{name} needs a value: {name}=VALUE')
            value = words.pop(0)
        found.append((name.removeprefix('--config.'), value))
    return found


def load_config(spec: str) -> ml_collections.ConfigDict:
    """Returns `get_config()` of a file, or `get_config(ARGUMENT)` for FILE:ARGUMENT."""
    file, _, argument = spec.partition(':')
    path = pathlib.Path(file)
    if not path.is_file():
        siblings = [str(p) for p in sorted((path.parent if path.suffix else path).glob('*.py'))]
        check_known('config file', file, siblings or ['configs/quickstart.py'])
    get_config = runpy.run_path(str(path)).get('get_config')
    if get_config is None:
        raise UserError(f'{file} has no function get_config()')
    if argument and not inspect.signature(get_config).parameters:
        raise UserError(f'{file} takes no argument; drop ":{argument}"')
    return get_config(argument) if argument else get_config()


def assign(config: ml_collections.ConfigDict, name: str, text: str) -> None:
    """Sets a dotted field from text, keeping the field's type.

    >>> c = base_config()
    >>> assign(c, 'drop_epochs', '30,60,90')
    >>> assign(c, 'model_fields.se.reduction', '8')
    >>> c.drop_epochs, c.model_fields.se.reduction
    ((30, 60, 90), 8)
    """
    field, *inner = name.split('.')
    if field == _OPEN and inner:
        value = _literal(text)
        for key in reversed(inner):
            value = {key: value}
        try:
            config[_OPEN].update(value)
        except TypeError:
            raise UserError(f'config field {name} has another type, got {text!r}') from None
        return
    check_known('config field', name, list(config) + [f'{_OPEN}.FIELD'])
    kind = config.get_type(field)
    try:
        config[field] = None if text == 'None' and field in _OPTIONAL else _convert(text, kind)
    except (ValueError, TypeError, KeyError, SyntaxError):
        raise UserError(f'config field {name} has type {kind.__name__}, got {text!r}') from None


def check_config(config: ml_collections.ConfigDict, num_devices: int) -> None:
    """Raises UserError for values that no run can have; names the rule and the nearest choice."""
    for name in config:
        if config[name] is None and name not in _OPTIONAL:
            raise UserError(
                f'{name}=None: it needs a value; only {", ".join(_OPTIONAL)} may be None'
            )
    check_known('schedule', config.schedule, SCHEDULES)
    check_known('dtype', config.dtype, DTYPES)
    check_known('sampling', config.sampling, SAMPLINGS)
    _check_range('in_channels', config.in_channels, least=1)
    lengths = dict.fromkeys(_A_CHANNEL, config.in_channels) | dict.fromkeys(_PAIRS, 2)
    for name, length in lengths.items():
        if len(config[name]) != length:
            numbers = f'{length} number{"s" if length > 1 else ""}'
            why = f', as in_channels={length}' if name in _A_CHANNEL and length != 3 else ''
            raise UserError(f'{name}={config[name]} must have {numbers}{why}')
    for name in _POSITIVE:
        _check_range(name, config[name], above=0)
    for name in _NOT_NEGATIVE:
        _check_range(name, config[name], least=0)
    _check_range('heartbeat_seconds', config.heartbeat_seconds, least=1)
    for value in config.std:
        _check_range('std', value, above=0)
    for name in ('momentum', 'label_smoothing', 'warmup', 'ema'):
        _check_range(name, config[name], below=1)
    for name in ('accumulate', 'drop_patience'):
        _check_range(name, config[name], least=1)
    _check_range('seed', config.seed, below=2**32)  # jax keeps no more bits of it
    _check_range('keep_checkpoints', config.keep_checkpoints, least=2)  # one may be damaged
    for name in ('num_steps', *_STEPS):
        if config[name] is not None:
            _check_range(name, config[name], least=1)
    for name in _EPOCHS:
        if config[name] is not None:
            _check_range(name, config[name], above=0)
    check_multiple('batch_size', config.batch_size, 'the number of devices', num_devices)
    check_multiple('eval_batch_size', config.eval_batch_size, 'the number of devices', num_devices)
    if config.bn_group_size:
        check_multiple('batch_size', config.batch_size, 'bn_group_size', config.bn_group_size)
    if config.accumulate > 1:
        _check_accumulate(config, num_devices)


def _check_accumulate(config: ml_collections.ConfigDict, num_devices: int) -> None:
    if not config.bn_group_size:
        raise UserError(
            f'accumulate={config.accumulate} needs a bn_group_size, such as 32: statistics of '
            f'the global batch cannot be had from its parts'
        )
    part = config.batch_size // num_devices
    groups, rest = divmod(part, config.bn_group_size)
    if rest or groups % config.accumulate:
        fitting = [str(n) for n in range(1, groups + 1) if groups % n == 0 and not rest]
        raise UserError(
            f'accumulate={config.accumulate} does not split the {part} images of a device into '
            f'whole BatchNorm groups of {config.bn_group_size}; take {" or ".join(fitting or "1")}'
        )


def _check_range(name: str, value: float, *, above=None, least=None, below=None) -> None:
    if above is not None and not value > above:
        raise UserError(f'{name}={value} must be above {above}')
    if least is not None and not value >= least:
        raise UserError(f'{name}={value} must be at least {least}')
    if below is not None and not value < below:
        raise UserError(f'{name}={value} must be below {below}')


_BOOLS = {'true': True, 'false': False}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return _BOOLS.get(text.lower(), text)


def _convert(text: str, kind: type) -> Any:
    if kind is bool:
        return {**_BOOLS, '1': True, '0': False}[text.lower()]
    if kind is tuple:
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if kind in (int, float, str):
        return kind(text)
    raise TypeError
