"""What a run can be told: the fields, the command line that sets them, the checks on them."""

import argparse
import ast
import inspect
import numbers
import pathlib
import runpy
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from se_flax.data import SAMPLINGS
from se_flax.data.decode import MAX_PIXELS
from se_flax.data.transforms import CROPS, INTERPOLATIONS
from se_flax.errors import Problems, UserError, check_known, check_multiple
from se_flax.models import Network, create_model, list_models
from se_flax.storage import AnyPath, as_path
from se_flax.training.optimizer import SCHEDULES

# May differ between two starts of the same run: they change where and how fast, not what.
MACHINE_FIELDS = (
    *('data_dir', 'num_threads', 'num_workers', 'compilation_cache'),
    *('shard_optimizer', 'heartbeat_seconds', 'watchdog_seconds', 'allow_changed_data'),
)
FLAGS = (
    *('--config', '--workdir', '--config.FIELD=VALUE'),
    *('--distributed', '--coordinator', '--num-processes', '--process-id'),
)
INTERVALS = ('log', 'eval', 'checkpoint')
_STEPS = tuple(f'{what}_every_steps' for what in INTERVALS)
_EPOCHS = tuple(f'{what}_every_epochs' for what in INTERVALS)
# None in a recipe stands for what the weights file of `init_from` says.
OF_WEIGHTS = (
    *('model', 'model_fields', 'in_channels', 'image_size', 'eval_resize', 'interpolation'),
    *('mean', 'std', 'fill'),
)
_OPTIONAL = ('num_steps', *_STEPS, *_EPOCHS)  # may be None, too
DTYPES = ('float32', 'bfloat16', 'float64')
_A_CHANNEL = ('mean', 'std', 'fill')  # hold a number for each
_PAIRS = ('crop_area', 'crop_aspect')
_POSITIVE = (
    *('batch_size', 'eval_batch_size', 'image_size', 'max_pixels', 'num_epochs'),
    'learning_rate',
)
_AT_LEAST_1 = ('in_channels', 'heartbeat_seconds', 'accumulate', 'drop_patience', 'num_steps')
_NOT_NEGATIVE = (
    *('bn_group_size', 'weight_decay', 'drop_factor', 'eval_resize', 'max_corrupt', 'num_threads'),
    *('num_workers', 'watchdog_seconds', 'base_batch_size', 'warmup_factor', 'freeze_bn_epochs'),
    'max_drops',
)
_SHARES = ('eval_split', 'momentum', 'label_smoothing', 'warmup', 'ema')
_LIMITS = {
    **dict.fromkeys((*_POSITIVE, *_EPOCHS), {'above': 0}),
    **dict.fromkeys((*_AT_LEAST_1, *_STEPS), {'least': 1}),
    **dict.fromkeys(_NOT_NEGATIVE, {'least': 0}),
    **dict.fromkeys(_SHARES, {'least': 0, 'below': 1}),
    'seed': {'least': 0, 'below': 2**32},  # jax keeps no more bits of it
    'keep_checkpoints': {'least': 2},  # one may be damaged
}
_OPEN = 'model_fields'  # holds any field of the network's class


def base_config() -> ml_collections.ConfigDict:
    """Returns every field of a run; a config file sets those that make its recipe."""
    c = ml_collections.ConfigDict()
    ref = config_dict.FieldReference  # keeps its type where it is None
    c.seed = 0  # of parameters, order, augmentation and what the network draws

    c.model = ref('se_resnet50')  # one of `se-flax models`
    c.model_fields = ml_collections.ConfigDict()  # of the network's class; `se.reduction` of SE
    c.init_from = ''  # weights file (`se-flax convert`) to fine-tune; '' draws them by the seed
    c.keep_head = False  # of init_from, also where its classes have other names, or none
    c.adapt_channels = False  # sums or repeats the first kernel of init_from to fit in_channels
    c.bn_group_size = 32  # images that share BatchNorm statistics; 0 is the global batch
    c.dtype = 'float32'  # of the maps; 'bfloat16' on accelerators, 'float64' for tests

    c.data = ''  # one of `se-flax data check`, or folder:PATH
    c.eval_split = 0.0  # share of a folder without `val` that is drawn for evaluation
    c.data_dir = ''  # of tfds; '' is its default, ~/tensorflow_datasets
    c.allow_changed_data = False  # goes on where examples were added, removed or replaced
    c.image_size = ref(224)  # pixels, both sides
    c.in_channels = ref(3)  # of the images; 1 reads them as gray, others are those of the files
    c.exif_orientation = False  # turns photos as cameras and phones note; public recipes do not
    c.max_pixels = MAX_PIXELS  # height x width of a file; a larger one counts as unreadable
    c.mean = ref((123.675, 116.28, 103.53))  # of a channel, 0 to 255
    c.std = ref((1.0, 1.0, 1.0))
    c.crop = 'inception'  # 'inception', 'pad' (shift by up to `pad` pixels) or 'none'
    c.crop_area = (0.08, 1.0)  # share of the picture, for 'inception'
    c.crop_aspect = (3 / 4, 4 / 3)  # width / height, for 'inception'
    c.pad = 4  # pixels, for 'pad'
    c.fill = ref((0, 0, 0))  # colour beyond the border and of the cutout
    c.flip = True  # left to right, every other time
    c.rotation = 0.0  # up to so many degrees, each way
    c.jitter = 0.0  # added to each channel, up to so much each way, of 255
    c.cutout = 0  # side of the square, pixels; 0 is none
    c.eval_resize = ref(256)  # shorter edge before the centre crop, pixels; 0 leaves it as it is
    c.interpolation = ref('bilinear')
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
    c.log_every_steps = ref(100)
    c.log_every_epochs = config_dict.placeholder(float)
    c.eval_every_steps = config_dict.placeholder(int)
    c.eval_every_epochs = ref(1.0)
    c.checkpoint_every_steps = config_dict.placeholder(int)
    c.checkpoint_every_epochs = ref(1.0)
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
        UserError: for an unknown argument, and for all that is wrong with the config.
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
    config = make_config(args.config, parse_assignments(rest, FLAGS))
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


def make_config(spec: str, assignments: Sequence[tuple[str, str]]) -> ml_collections.ConfigDict:
    """Returns the config of `FILE[:ARGUMENT]` with (field, text) assigned.

    Raises UserError that names all that is wrong, but for what depends on weights, data and the
    devices, which are not asked for.
    """
    config, problems = load_config(spec), Problems()
    for name, text in assignments:
        problems.check([name], assign, config, name, text)
    check_fields(config, problems)
    check_values(config, None, problems)
    problems.tell()
    return config


def load_config(spec: str) -> ml_collections.ConfigDict:
    """Returns `get_config()` of a file, or `get_config(ARGUMENT)` for FILE:ARGUMENT."""
    file, _, argument = spec.partition(':')
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        siblings = [str(p) for p in sorted((path.parent if path.suffix else path).glob('*.py'))]
        check_known('config file', file, siblings or ['configs/quickstart.py'])
    try:
        get_config = runpy.run_path(str(path)).get('get_config')
        if not callable(get_config):
            raise UserError(f'{file} has no function get_config()')
        if argument and not inspect.signature(get_config).parameters:
            raise UserError(f'{file} takes no argument; drop ":{argument}"')
        config = get_config(argument) if argument else get_config()
    except UserError:
        raise
    except Exception as error:  # whatever a file of the user's raises
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        if isinstance(error, SyntaxError):
            lines, error = [error.lineno], SyntaxError(error.msg)
        place = f'{file}:{lines[-1]}' if lines else file
        text = str(error).replace('\\n', ' ').replace("\\'", "'")  # ConfigDict's have a repr
        text = ' '.join(text.split())[:300]
        raise UserError(f'{place}: {type(error).__name__}: {text}') from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f'get_config() of {file} returns {_NO_CONFIG.format(type(config).__name__)}'
        )
    return config


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
        if config[_OPEN] is None:
            config[_OPEN] = ml_collections.ConfigDict()
        try:
            config[_OPEN].update(value)
        except TypeError:
            raise UserError(f'config field {name} has another type, got {text!r}') from None
        return
    base = base_config()
    check_known('config field', name, [*base, f'{_OPEN}.FIELD'])
    kind = base.get_type(field)
    try:
        optional = field in (*_OPTIONAL, *OF_WEIGHTS)
        config[field] = None if text == 'None' and optional else _convert(text, kind)
    except (ValueError, TypeError, KeyError, SyntaxError):
        raise UserError(f'config field {name} has type {kind.__name__}, got {text!r}') from None


def check_config(config: ml_collections.ConfigDict, num_devices: int | None = None) -> None:
    """Raises UserError that names all that no run can have; each with the nearest valid choice.

    Without `num_devices` what depends on it is not checked.
    """
    problems = Problems()
    check_fields(config, problems)
    check_values(config, num_devices, problems)
    problems.tell()


def check_fields(config: ml_collections.ConfigDict, problems: Problems) -> None:
    """Checks that a config has the fields of `base_config()`, and values of their types.

    Raises UserError, at once, for what is no config.
    """
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f'this is {_NO_CONFIG.format(type(config).__name__)}')
    base = base_config()
    for name in config:
        problems.check([name], check_known, 'config field', name, base)
    if missing := [name for name in base if name not in config]:
        text = f'no config field {", ".join(missing)}; a config starts from base_config()'
        problems.add(missing, UserError(text))
    for name in base:
        problems.check([name], _check_type, config, name, base.get_type(name))
    open_ = [name for name in OF_WEIGHTS if name not in problems.wrong and config[name] is None]
    if open_ and config.get('init_from') == '':
        text = f'{", ".join(open_)}: told by a weights file, so it needs --config.init_from=FILE'
        problems.add(open_, UserError(text))


def check_values(
    config: ml_collections.ConfigDict, num_devices: int | None, problems: Problems
) -> None:
    """Checks the values of those fields that are not wrong already."""
    check, c = problems.check, config
    # What only the weights know has nothing to check yet.
    problems.wrong.update(name for name in OF_WEIGHTS if config.get(name) is None)
    for name, known in (
        ('model', list_models()),
        ('schedule', SCHEDULES),
        ('dtype', DTYPES),
        ('sampling', SAMPLINGS),
        ('crop', CROPS),
        ('interpolation', INTERPOLATIONS),
    ):
        check([name], check_known, name, c.get(name), known)
    if problems.wrong.isdisjoint(('model', _OPEN)):
        for field, value in c[_OPEN].to_dict().items():
            check([f'{_OPEN}.{field}'], make_network, c.model, **{field: value})
        if any(name.startswith(f'{_OPEN}.') for name in problems.wrong):
            problems.wrong.add(_OPEN)
    for name, limits in _LIMITS.items():
        if c.get(name) is not None:
            check([name], _check_range, name, c[name], **limits)
    for value in () if 'std' in problems.wrong else c.std:
        check(['std'], _check_range, 'std', value, above=0)
    for name in _PAIRS:
        check([name], _check_length, name, c.get(name), 2)
    for name in _A_CHANNEL:
        if 'in_channels' not in problems.wrong:
            check([name], _check_length, name, c.get(name), c.in_channels)
    if num_devices:
        for name in ('batch_size', 'eval_batch_size'):
            check([name], check_multiple, name, c.get(name), 'the number of devices', num_devices)
    group = 'batch_size', 'bn_group_size'
    if problems.wrong.isdisjoint(group) and c.bn_group_size:
        check(group, check_multiple, group[0], c.batch_size, group[1], c.bn_group_size)
    if num_devices:
        check([*group, 'accumulate'], _check_accumulate, c, num_devices)


def make_network(name: str, num_classes: int | None = None, **fields: Any) -> Network:
    """Does as `create_model`; UserError for all values that no network can have."""
    try:
        return create_model(name, num_classes, **fields)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        reason = str(error).partition('\n')[0]
        raise UserError(f'{name} cannot have model_fields {fields}: {reason}') from error


def _check_type(config: ml_collections.ConfigDict, name: str, of: type) -> None:
    value, kind = config[name], of
    if value is None:
        if name in (*_OPTIONAL, *OF_WEIGHTS):
            return
        raise UserError(f'{name}=None: it needs a value; only {", ".join(_OPTIONAL)} may be None')
    values = [value]
    if kind is tuple and isinstance(value, tuple | list):
        values, kind = value, float
    allowed = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    if not all(isinstance(v, allowed) and isinstance(v, bool) == (kind is bool) for v in values):
        raise UserError(f'config field {name} has type {of.__name__}, got {value!r}')


def _check_length(name: str, values: Sequence[float], length: int) -> None:
    if len(values) != length:
        count = f'{length} number{"s" if length > 1 else ""}'
        why = f', as in_channels={length}' if name in _A_CHANNEL and length != 3 else ''
        raise UserError(f'{name}={values} must have {count}{why}')


def _check_accumulate(config: ml_collections.ConfigDict, num_devices: int) -> None:
    if config.accumulate == 1:
        return
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


_NO_CONFIG = 'no config but {}; a config starts from base_config()'
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
