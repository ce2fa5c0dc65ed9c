"""The fields of a run, the command line that sets them, and the checks on their values."""

import argparse
import ast
import contextlib
import inspect
import math
import pathlib
import runpy
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from operator import ge, gt, le, lt
from typing import Any, NamedTuple

from ml_collections.config_dict import ConfigDict, FieldReference

from se_flax.data import SAMPLINGS
from se_flax.data.decode import MAX_PIXELS
from se_flax.data.transforms import CROPS, ERASINGS, INTERPOLATIONS
from se_flax.errors import Problems, UserError, check_known, check_multiple
from se_flax.models import Network, check_model, create_model
from se_flax.storage import AnyPath, as_path, local_path
from se_flax.training.loss import LOSSES
from se_flax.training.optimizer import OPTIMIZERS, SCHEDULES
from se_flax.training.processes import Processes, add_processes, processes_of
from se_flax.training.tracker import find


class Field(NamedTuple):
    """What is known of a config field; bounds apply to each number of a tuple."""

    default: Any
    help: str
    unit: str = ''
    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None
    choices: tuple[str, ...] | None = None
    length: int | None = None  # of a tuple
    per_channel: bool = False  # a tuple of `in_channels` numbers
    optional: bool = False  # may be None
    from_weights: bool = False  # None takes the value from the weights file of `init_from`
    machine: bool = False  # where and how fast, not what: may change when a run is resumed
    added: bool = False  # missing in older runs, which did what the default says
    type_: Any = None  # if not that of the default

    @property
    def type(self) -> Any:
        return self.type_ or type(self.default)

    @property
    def bounds(self) -> list[tuple[str, Callable[[Any, Any], bool], float]]:
        """As (words, comparison, number)."""
        least = ('above', gt, self.above), ('at least', ge, self.least)
        every = *least, ('below', lt, self.below), ('at most', le, self.most)
        return [(words, holds, number) for words, holds, number in every if number is not None]


DTYPES = ('float32', 'bfloat16', 'float64')
# What several fields have in common.
SECONDS: Any = {'unit': 'seconds', 'machine': True}
SHARE: Any = {'unit': 'share', 'least': 0, 'below': 1}
FACTORS: Any = {'unit': 'largest change of the factor', 'least': 0, 'length': 3, 'added': True}
PROBABILITY: Any = {'least': 0, 'most': 1, 'added': True}
STEPS: Any = {'unit': 'steps', 'least': 1, 'optional': True, 'type_': int}
EPOCHS: Any = {'unit': 'epochs', 'above': 0, 'optional': True, 'type_': float}
EXAMPLES: Any = {'least': 1, 'optional': True, 'added': True, 'type_': int}
CHANNELS: Any = {'per_channel': True, 'from_weights': True}
PIXELS: Any = {'unit': 'pixels', 'from_weights': True}

MODEL = {
    'seed': Field(0, 'Seed of every random choice.', least=0, below=2**32),  # all JAX keeps
    'model': Field('se_resnet50', 'Network, one of `se-flax models`.', from_weights=True),
    'model_fields': Field({}, 'Fields of the network.', from_weights=True, type_=ConfigDict),
    'init_from': Field('', 'Weights file to fine-tune; empty for random parameters.'),
    'keep_head': Field(False, "Keep init_from's head even if class names differ.", added=True),
    'adapt_channels': Field(False, "Sum or repeat init_from's first kernel to fit in_channels."),
    'bn_group_size': Field(32, 'Images that share BatchNorm statistics; 0 for the batch.', least=0),
    'dtype': Field('float32', 'Type of activations; float64 is for tests.', choices=DTYPES),
}
DATA = {
    'data': Field('', 'Data set, one of `se-flax data check` or folder:PATH.'),
    'eval_split': Field(0.0, 'Part of a folder without val to evaluate on.', **SHARE, added=True),
    'train_examples': Field(None, 'Images to train on, drawn by seed.', **EXAMPLES),
    'data_dir': Field(
        '', 'Of tfds, or gs://; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets.', machine=True
    ),
    'allow_changed_data': Field(False, 'Resume even if the examples have changed.', machine=True),
    'image_size': Field(224, 'Height and width of input.', **PIXELS, above=0),
    'in_channels': Field(3, 'Channels; 1 reads images as gray.', least=1, from_weights=True),
    'exif_orientation': Field(False, 'Rotate photos by EXIF; public recipes do not.', added=True),
    'max_pixels': Field(MAX_PIXELS, 'Largest image to read.', 'pixels', above=0, added=True),
    'mean': Field((123.675, 116.28, 103.53), 'Pixel mean per channel, 0 to 255.', **CHANNELS),
    'std': Field((1.0, 1.0, 1.0), 'Standard deviation per channel, 0 to 255.', above=0, **CHANNELS),
    'crop': Field('inception', 'Random box, shift by up to pad, or center.', choices=CROPS),
    'crop_area': Field((0.08, 1.0), 'Range of areas for crop=inception.', 'share', length=2),
    'crop_aspect': Field((3 / 4, 4 / 3), 'Range of width / height for crop=inception.', length=2),
    'pad': Field(4, 'Largest shift for crop=pad.', 'pixels', least=0),
    'fill': Field((0, 0, 0), 'Color of borders and the cutout.', least=0, most=255, **CHANNELS),
    'flip': Field(True, 'Mirror half of the images left to right.'),
    'ra_operations': Field(0, 'RandAugment operations per image; 0: none.', least=0, added=True),
    'ra_magnitude': Field(9.0, 'Mean magnitude of an operation.', least=0, most=10, added=True),
    'ra_std': Field(0.5, 'Standard deviation of magnitudes.', least=0, added=True),
    'ra_increasing': Field(True, 'Each operation does more at a higher magnitude.', added=True),
    'color_jitter': Field((0.0, 0.0, 0.0), 'Brightness, contrast, saturation.', **FACTORS),
    'rotation': Field(0.0, 'Largest rotation either way, up to 180.', 'degrees', least=0),
    'jitter': Field(0.0, 'Largest change of a channel either way, up to 255.', least=0),
    'cutout': Field(0, 'Side of the square that is cut out; 0 for none.', 'pixels', least=0),
    'erasing': Field(0.0, 'Probability that a random box is erased.', **PROBABILITY),
    'erasing_mode': Field('const', 'const: fill; pixel: noise.', choices=ERASINGS, added=True),
    'repeats': Field(1, 'Augmented views of each image in a batch.', least=1, added=True),
    'eval_resize': Field(256, 'Shorter edge before center crop; 0 keeps it.', **PIXELS, least=0),
    'interpolation': Field('bilinear', 'Resize filter.', choices=INTERPOLATIONS, from_weights=True),
    'sampling': Field('shuffle', 'class_aware draws a class first.', choices=tuple(SAMPLINGS)),
    'cache': Field(False, 'Decode every image once, into memory.'),
    'max_corrupt': Field(
        0.001, 'Unreadable images above which a run fails.', 'share', least=0, machine=True
    ),
}
OPTIMIZATION = {
    'batch_size': Field(256, 'Global batch, over all devices.', 'images', above=0),
    'accumulate': Field(1, 'Microbatches per step; each has whole BatchNorm groups.', least=1),
    'remat': Field(False, 'Recompute normalized and activated maps instead of storing them.'),
    'num_epochs': Field(100.0, 'Length of the run.', 'epochs', above=0),
    'num_steps': Field(None, 'Length of the run; takes precedence over num_epochs.', **STEPS),
    'schedule': Field('constant', 'Learning rate schedule.', choices=SCHEDULES),
    'learning_rate': Field(0.1, 'Peak of the schedule.', above=0),
    'base_batch_size': Field(0, 'Batch size from which the rate is scaled; 0: none.', least=0),
    'warmup': Field(0.0, 'Part of the run in which the rate rises from 0.', **SHARE),
    'warmup_factor': Field(0.0, 'Constant warmup rate; 0: rise.', 'share of peak', least=0),
    'drop_epochs': Field((), 'Drops of schedule=step.', 'epochs', least=0),
    'drop_factor': Field(0.1, 'Factor of the rate at each drop.', least=0),
    'drop_patience': Field(10, 'Evaluations without a lower loss before a plateau drop.', least=1),
    'max_drops': Field(3, 'Largest number of drops of schedule=plateau.', least=0),
    'optimizer': Field('sgd', 'Optimizer.', choices=OPTIMIZERS, added=True),
    'momentum': Field(0.9, 'Momentum of sgd and rmsprop.', least=0, below=1),
    'nesterov': Field(False, 'Use Nesterov momentum; sgd only.'),
    'betas': Field((0.9, 0.999), 'Decays of adamw and lamb.', length=2, **SHARE, added=True),
    'square_decay': Field(0.9, 'Decay of the mean square of rmsprop.', **SHARE, added=True),
    'epsilon': Field(1e-8, 'Of adamw, lamb (paper: 1e-6), rmsprop (1e-3).', above=0, added=True),
    'weight_decay': Field(1e-4, 'Of kernels, SE included; L2 in sgd and rmsprop.', least=0),
    'clip_norm': Field(0.0, 'Largest norm of the gradient; 0: no limit.', least=0, added=True),
    'loss': Field('softmax', 'Cross-entropy; bce: binary.', choices=tuple(LOSSES), added=True),
    'bce_threshold': Field(0.0, 'bce targets above it are 1; 0: soft.', **SHARE, added=True),
    'label_smoothing': Field(0.0, 'Part of the target that all classes share.', **SHARE),
    'mixup': Field(0.0, 'Alpha of mixup, within a BatchNorm group; 0: none.', least=0, added=True),
    'cutmix': Field(0.0, 'Alpha of CutMix, the same way; 0: none.', least=0, added=True),
    'mixup_switch_prob': Field(0.5, 'Probability of CutMix if both are on.', **PROBABILITY),
    'freeze_bn_epochs': Field(0.0, 'Epochs at the end with frozen BatchNorm.', 'epochs', least=0),
    'ema': Field(0.0, 'Decay of the averaged weights to evaluate; 0 for none.', **SHARE),
    'ema_warmup': Field(False, 'Let ema rise as (1 + step) / (10 + step).', added=True),
}
EVALUATION = {
    # Steps take precedence over epochs; None for both means only at the end.
    'log_every_steps': Field(100, 'Interval of log rows.', **STEPS),
    'log_every_epochs': Field(None, 'Interval of log rows.', **EPOCHS),
    'eval_every_steps': Field(None, 'Interval of evaluations.', **STEPS),
    'eval_every_epochs': Field(1.0, 'Interval of evaluations.', **EPOCHS),
    'checkpoint_every_steps': Field(None, 'Interval of checkpoints.', **STEPS),
    'checkpoint_every_epochs': Field(1.0, 'Interval of checkpoints.', **EPOCHS),
    'keep_checkpoints': Field(2, 'Newest checkpoints to keep.', least=2),  # one may be damaged
    'eval_batch_size': Field(256, 'Global batch of evaluation.', 'images', above=0),
}
MACHINE = {
    'num_threads': Field(0, 'Threads that load data; 0 is one per core.', least=0, machine=True),
    'num_workers': Field(0, 'Processes that load; 0: threads only.', least=0, machine=True),
    'compilation_cache': Field(
        '~/.cache/se_flax', 'Folder that keeps compiled programs; empty for none.', machine=True
    ),
    'async_checkpoints': Field(True, 'Write checkpoints in the background.', machine=True),
    'shard_optimizer': Field(False, 'Split the optimizer state over the devices.', machine=True),
    'heartbeat_seconds': Field(30, 'Silence until a process counts as lost.', **SECONDS, least=1),
    'profile_steps': Field((), 'First and last step to trace into profile/.', machine=True),
    'tracker': Field('', 'Also gets all rows: wandb, mlflow or MODULE:FUNCTION.', machine=True),
    'watchdog_seconds': Field(300.0, 'Time until hangs are logged; 0: never.', **SECONDS, least=0),
}

GROUPS = {
    'Seed and network': MODEL,
    'Data': DATA,
    'Optimization': OPTIMIZATION,
    'Logs, evaluation and checkpoints': EVALUATION,
    'Machine': MACHINE,
}
FIELDS = {name: field for group in GROUPS.values() for name, field in group.items()}
MACHINE_FIELDS = tuple(name for name, field in FIELDS.items() if field.machine)
OF_WEIGHTS = tuple(name for name, field in FIELDS.items() if field.from_weights)
ADDED = {name: field.default for name, field in FIELDS.items() if field.added}
INTERVALS = ('log', 'eval', 'checkpoint')
FLAGS = (
    *('--config', '--workdir', '--config.FIELD=VALUE'),
    *('--distributed', '--coordinator', '--num-processes', '--process-id'),
)
_NOT_A_CONFIG = 'a config is a ConfigDict that starts from base_config()'
_BOOLS = {'true': True, 'false': False, '1': True, '0': False}


def base_config() -> ConfigDict:
    """Returns a config of all fields at their defaults."""
    config = ConfigDict()
    for name, field in FIELDS.items():
        config[name] = field.default
        if field.optional or (field.from_weights and field.type is not ConfigDict):
            config[name] = FieldReference(field.default, field.type)  # None keeps the type
    return config


def describe_fields() -> str:
    """Returns a line or two for each field: default, meaning, unit and range."""
    lines = []
    for title, fields in GROUPS.items():
        lines += ['', f'{title}:']
        for name, field in fields.items():
            facts = [field.unit, *(f'{words} {number}' for words, _, number in field.bounds)]
            facts += [f'one of {", ".join(field.choices)}'] if field.choices else []
            text = f'{name}={field.default}: {field.help} ({", ".join(filter(None, facts))})'
            text = text.removesuffix(' ()')
            lines.append(textwrap.fill(text, 100, initial_indent='  ', subsequent_indent=' ' * 6))
    return '\n'.join(lines[1:])


def parse_args(argv: Sequence[str]) -> tuple[ConfigDict, AnyPath, Processes | None]:
    """Returns the locked config, the workdir, and the processes for `distributed.connect`, if any.

    `argv` is what follows `se-flax train`. A UserError lists everything wrong.
    """
    parser = argparse.ArgumentParser(
        prog='se-flax train',
        description='Trains a network. The same command resumes a run that was stopped.',
        epilog='Fields of the config, set by --config.FIELD=VALUE such as --config.batch_size=128\n'
        f'\n{describe_fields()}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    text = f'default: quickstart; a file, or a recipe: {", ".join(recipes())}'
    parser.add_argument('--config', default='quickstart', metavar='FILE[:ARGUMENT]', help=text)
    parser.add_argument('--workdir', help='default: runs/<name of the config>')
    add_processes(parser)
    args, rest = parser.parse_known_args(argv)
    config = make_config(args.config, parse_assignments(rest, FLAGS))
    file, colon, argument = args.config.partition(':')
    name = pathlib.Path(file).stem + colon.replace(':', '-') + argument
    workdir = as_path(args.workdir or f'runs/{name}')
    return config.lock(), workdir, processes_of(args)


def parse_assignments(
    words: Sequence[str], flags: Sequence[str] = ('--config.FIELD=VALUE',)
) -> list[tuple[str, str]]:
    """Returns (field, text) of each `--config.FIELD=VALUE`; errors suggest one of `flags`.

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


def make_config(spec: str, assignments: Sequence[tuple[str, str]]) -> ConfigDict:
    """Returns the config of `FILE[:ARGUMENT]` with (field, text) assigned.

    A UserError lists everything wrong, except what depends on weights, data or devices.
    """
    config, problems = load_config(spec), Problems()
    for name, text in assignments:
        problems.check([name], assign, config, name, text)
    check_config(config, None, problems)
    return config


def recipes() -> dict[str, pathlib.Path]:
    """Returns the file of each recipe that the package has, by name."""
    # A link to the `configs/` of the clone, of which an installed package has copies.
    folder = pathlib.Path(__file__).parents[1] / 'configs'
    return {path.stem: path for path in sorted(folder.glob('*.py'))}


def load_config(spec: str) -> ConfigDict:
    """Returns `get_config()` of a file, or `get_config(ARGUMENT)` for FILE:ARGUMENT.

    FILE is a path or the name of a recipe of the package, such as `imagenet:se_resnet50`.
    """
    file, _, argument = spec.partition(':')
    path = local_path(file)
    if not path.is_file():
        siblings = sorted((path.parent if path.suffix else path).glob('*.py'))
        check_known('config', file, [*recipes(), *map(str, filter(pathlib.Path.is_file, siblings))])
        path = recipes()[file]
    try:
        get_config = runpy.run_path(str(path)).get('get_config')
        if not callable(get_config):
            raise UserError(f'{file} has no function get_config()')
        if argument and not inspect.signature(get_config).parameters:
            raise UserError(f'{file} takes no argument; remove ":{argument}"')
        config = get_config(argument) if argument else get_config()
    except UserError:
        raise
    except Exception as error:  # anything that the user's file may raise
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):  # not an import's
            lines, error = [error.lineno], SyntaxError(error.msg)
        place = f'{file}:{lines[-1]}' if lines else file
        text = str(error).replace('\\n', ' ').replace("\\'", "'")  # ConfigDict raises a repr
        raise UserError(
            f'{place}: {type(error).__name__}: {textwrap.shorten(text, 300)}'
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f'get_config() of {file} returns {type(config).__name__}; {_NOT_A_CONFIG}')
    return config


def assign(config: ConfigDict, name: str, text: str) -> None:
    """Sets a dotted field from text, keeping the field's type.

    >>> c = base_config()
    >>> assign(c, 'drop_epochs', '30,60,90')
    >>> assign(c, 'model_fields.se.reduction', '8')
    >>> c.drop_epochs, c.model_fields.se.reduction
    ((30, 60, 90), 8)
    """
    field, *inner = name.split('.')
    if field == 'model_fields' and inner:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = _BOOLS.get(text.lower(), text)
        *outer, last = inner
        if config.model_fields is None:
            config.model_fields = ConfigDict()
        try:
            fields = config.model_fields
            for key in outer:
                if fields.get(key) is None:
                    fields[key] = {}
                fields = fields[key]
            if isinstance(value, dict):
                fields.update({last: value})
            else:
                fields[last] = value
        except (TypeError, AttributeError):
            raise UserError(
                f'config field {name} cannot be {text!r}: it has another type'
            ) from None
        return
    check_known('config field', name, [*FIELDS, 'model_fields.FIELD'])
    kind, optional = FIELDS[field].type, FIELDS[field].optional or FIELDS[field].from_weights
    try:
        config[field] = None if text == 'None' and optional else _convert(text, kind)
    except (ValueError, TypeError, KeyError, SyntaxError):
        raise UserError(f'config field {name} has type {kind.__name__}, got {text!r}') from None


def check_config(
    config: ConfigDict, num_devices: int | None = None, problems: Problems | None = None
) -> None:
    """Raises a UserError that lists everything wrong; what depends on devices only if given."""
    problems = problems or Problems()
    check_fields(config, problems)
    check_values(config, num_devices, problems)
    problems.raise_all()


def check_fields(config: ConfigDict, problems: Problems) -> None:
    """Checks the names and types of the fields; raises UserError if `config` is no ConfigDict."""
    if not isinstance(config, ConfigDict):
        raise UserError(f'got {type(config).__name__}; {_NOT_A_CONFIG}')
    for name in config:
        problems.check([name], check_known, 'config field', name, FIELDS)
    if missing := [name for name in FIELDS if name not in config]:
        text = f'config has no {", ".join(missing)}; it must start from base_config()'
        problems.add(missing, text)
    for name, field in FIELDS.items():
        problems.check([name], _check_type, name, field, config.get(name))
    open_ = [name for name in OF_WEIGHTS if name not in problems.wrong and config[name] is None]
    if open_ and config.get('init_from') == '':
        text = f'{", ".join(open_)}=None needs a weights file, --config.init_from=FILE'
        problems.add(open_, text)


def check_values(config: ConfigDict, num_devices: int | None, problems: Problems) -> None:
    """Checks the values of the fields that are not already known to be wrong."""
    check, c = problems.check, config
    # What the weights file has to say is not known yet.
    problems.wrong.update(name for name in OF_WEIGHTS if config.get(name) is None)
    check(['model'], check_model, c.get('model'))
    if problems.wrong.isdisjoint(('model', 'model_fields')):
        fields = c.model_fields.to_dict()
        with contextlib.suppress(UserError):  # together, as one may be possible only with another
            make_network(c.model, **fields)
            fields = {}
        for field, value in fields.items():  # which of them is wrong
            check([f'model_fields.{field}'], make_network, c.model, **{field: value})
        if any(name.startswith('model_fields.') for name in problems.wrong):
            problems.wrong.add('model_fields')
    for name, field in FIELDS.items():
        channels = None if 'in_channels' in problems.wrong else c.in_channels
        check([name], _check_value, name, field, c.get(name), channels)
    if c.get('tracker'):
        check(['tracker'], find, c.tracker)
    for name in ('batch_size', 'eval_batch_size') if num_devices else ():
        check([name], check_multiple, name, c.get(name), 'the number of devices', num_devices)
    group = 'batch_size', 'bn_group_size'
    if problems.wrong.isdisjoint(group) and c.bn_group_size:
        check(group, check_multiple, 'batch_size', c.batch_size, 'bn_group_size', c.bn_group_size)
    check(['optimizer', 'nesterov'], _check_nesterov, c)
    check(['mixup', 'cutmix', 'bn_group_size'], _check_mixing, c)
    if num_devices:
        check([*group, 'accumulate'], _check_accumulate, c, num_devices)


def make_network(name: str, /, num_classes: int | None = None, **fields: Any) -> Network:
    """Calls `create_model` under `network_errors`."""
    with network_errors(name, fields):
        return create_model(name, num_classes, **fields)


@contextlib.contextmanager
def network_errors(name: str, fields: dict[str, Any]) -> Iterator[None]:
    """Raises a UserError for whatever a network raises for invalid fields."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        reason = str(error).partition('\n')[0]
        raise UserError(f'{name} cannot have model_fields {fields}: {reason}') from error


def _check_type(name: str, field: Field, value: Any) -> None:
    if value is None:
        if field.optional or field.from_weights:
            return
        optional = ', '.join(name for name, field in FIELDS.items() if field.optional)
        raise UserError(f'{name}=None: it needs a value; only {optional} may be None')
    values, kind = [value], field.type
    if kind is tuple and isinstance(value, tuple | list):
        values, kind = value, float
    allowed = (int, float) if kind is float else kind  # JSON has none of NumPy's
    if not all(isinstance(v, allowed) and isinstance(v, bool) == (kind is bool) for v in values):
        raise UserError(f'config field {name} has type {field.type.__name__}, got {value!r}')


def _check_value(name: str, field: Field, value: Any, channels: int | None) -> None:
    if field.choices:
        check_known(name, value, field.choices)
    if value is None:
        return
    for number in value if field.type is tuple else [value]:
        for words, holds, bound in field.bounds:
            if not holds(number, bound):
                raise UserError(f'{name}={number} must be {words} {bound}')
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f'{name}={number} must be finite')
    length = channels if field.per_channel else field.length
    if length and len(value) != length:
        count = f'{length} number{"s" if length > 1 else ""}'
        why = f', as in_channels={length}' if field.per_channel and length != 3 else ''
        raise UserError(f'{name}={value} must have {count}{why}')


def _check_nesterov(config: ConfigDict) -> None:
    if config.nesterov and config.optimizer != 'sgd':
        raise UserError(
            f"nesterov=True is a field of optimizer='sgd'; set it to False for {config.optimizer!r}"
        )


def _check_mixing(config: ConfigDict) -> None:
    for name in 'mixup', 'cutmix':
        if config[name] and config.bn_group_size == 1:
            raise UserError(
                f'{name}={config[name]} mixes images of a BatchNorm group, and bn_group_size=1 has '
                'one; use 0, for the whole batch, or at least 2'
            )


def _check_accumulate(config: ConfigDict, num_devices: int) -> None:
    if config.accumulate == 1:
        return
    if not config.bn_group_size:
        raise UserError(
            f'accumulate={config.accumulate} needs a bn_group_size, such as 32: microbatches do '
            f'not have the statistics of the global batch'
        )
    part = config.batch_size // num_devices
    groups, rest = divmod(part, config.bn_group_size)
    if rest or groups % config.accumulate:
        fitting = [str(n) for n in range(1, groups + 1) if groups % n == 0 and not rest]
        raise UserError(
            f'accumulate={config.accumulate} does not split the {part} images of a device into '
            f'whole BatchNorm groups of {config.bn_group_size}; use {" or ".join(fitting or "1")}'
        )


def _convert(text: str, kind: type) -> Any:
    if kind is bool:
        return _BOOLS[text.lower()]
    if kind is tuple:
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if kind in (int, float, str):
        return kind(text)
    raise TypeError
