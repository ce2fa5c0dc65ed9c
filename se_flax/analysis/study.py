"""What each study compares, with the paper's results (ImageNet, one crop of 224 pixels)."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from se_flax.errors import UserError
from se_flax.models import model_info, twins

NETWORKS = 'Networks with and without SE (Tables 2 to 5)'
PLAIN, SE = 'without SE', 'with SE'
# Fields of networks with SE; on another network, `se` would add blocks.
SE_FIELDS = ('se', 'placement', 'se_stages')


class Cell(NamedTuple):
    """One kind of run, as a change to the config that a study starts from."""

    name: str
    fields: tuple[tuple[str, str], ...] = ()  # (dotted field, value as on the command line)
    model: str | None = None  # a name, or the config's: PLAIN, SE (which it must have) or as it is
    paper: tuple[float, float | None] | None = None  # top-1 and top-5 error in %
    baseline: str = ''  # the cell to compare with; a baseline has its own name
    equal: str | None = None  # 'params' or 'macs' that PLAIN has in common with SE, by its width


class Study(NamedTuple):
    """Cells to compare, in the order of the tables."""

    title: str
    cells: tuple[Cell, ...]


def _study(title: str, field: str, baseline: str, cells: Mapping[str, tuple]) -> Study:
    """Makes a study of one field from (value, top-1 error, top-5 error) of each cell's name."""
    made = []
    for name, (value, *errors) in cells.items():
        fields = () if value in (PLAIN, SE) else ((f'model_fields.{field}', value),)
        made.append(Cell(name, fields, PLAIN if value == PLAIN else SE, tuple(errors), baseline))
    return Study(title, tuple(made))


_ORIGINAL = (PLAIN, 23.30, 6.55)
_SE = (22.28, 6.03)  # r = 16, mean, sigmoid, all stages
_PIECES: dict[str, tuple[tuple[str, str], ...]] = {
    'as it is': (),
    'AdamW': (('optimizer', 'adamw'), ('learning_rate', '0.003'), ('weight_decay', '0.02')),
    'LAMB': (('optimizer', 'lamb'), ('learning_rate', '0.01'), ('weight_decay', '0.02')),
    'RMSProp': (('optimizer', 'rmsprop'), ('learning_rate', '0.003'), ('epsilon', '0.001')),
    'clipped gradient': (('clip_norm', '1'),),
    'binary cross-entropy': (('loss', 'bce'),),
    'label smoothing': (('label_smoothing', '0.1'),),
    'stochastic depth': (('model_fields.drop_path', '0.1'),),
    'averaged weights': (('ema', '0.998'), ('ema_warmup', 'true')),
    'mixup': (('mixup', '0.2'),),
    'CutMix': (('cutmix', '1'),),
    'RandAugment': (('ra_operations', '2'), ('ra_magnitude', '7')),
    'color jitter': (('color_jitter', '0.4,0.4,0.4'),),
    'random erasing': (('erasing', '0.25'),),
    'three repeats': (('repeats', '3'),),
}
STUDIES = {
    'reduction': _study('Reduction ratio (Table 10)', 'se.reduction', '16', {
        'original': _ORIGINAL, '2': ('2', 22.29, 6.00), '4': ('4', 22.25, 6.09),
        '8': ('8', 22.26, 5.99), '16': ('16', *_SE), '32': ('32', 22.72, 6.20),
    }),
    'squeeze': _study('Squeeze operator (Table 11)', 'se.squeeze', 'average', {
        'average': ('mean', *_SE), 'max': ('max', 22.57, 6.09),
    }),
    'excitation': _study('Excitation operator (Table 12)', 'se.excite', 'sigmoid', {
        'sigmoid': ('sigmoid', *_SE), 'tanh': ('tanh', 23.00, 6.38), 'ReLU': ('relu', 23.47, 6.98),
    }),
    'stages': _study('Stages that have SE (Table 13)', 'se_stages', 'original', {
        'original': _ORIGINAL, 'stage 2': ('(2,)', 23.03, 6.48), 'stage 3': ('(3,)', 23.04, 6.32),
        'stage 4': ('(4,)', 22.68, 6.22), 'all': (SE, *_SE),
    }),
    'placement': _study('Where SE sits (Tables 14 and 15)', 'placement', 'standard', {
        'original': _ORIGINAL, 'standard': ('standard', *_SE), 'pre': ('pre', 22.23, 6.00),
        'post': ('post', 22.78, 6.35), 'identity': ('identity', 22.20, 6.15),
        '3x3': ('inside_3x3', 22.48, 6.02),
    }),
    'nosqueeze': _study('Without the squeeze (Table 16)', 'se.squeeze', 'SE', {
        'original': _ORIGINAL, 'no squeeze': ('None', 22.93, 6.39), 'SE': ('mean', *_SE),
    }),
    'bias': _study('Initial bias of the gates (not in the paper)', 'se.excite_bias', 'original', {
        'original': _ORIGINAL, 'bias 0': ('0.0', *_SE), 'bias 2': ('2.0',), 'bias 4': ('4.0',),
    }),
    'cost': Study('SE and wider networks of equal cost', (
        Cell('SE', model=SE, paper=_SE, baseline='SE'),
        Cell('original', model=PLAIN, paper=_ORIGINAL[1:], baseline='SE'),
        Cell('equal parameters', model=PLAIN, baseline='SE', equal='params'),
        Cell('equal multiply-adds', model=PLAIN, baseline='SE', equal='macs'),
    )),
    'pieces': Study('One piece of later recipes at a time (not in the paper)', tuple(
        Cell(name, fields, baseline='as it is') for name, fields in _PIECES.items()
    )),
}  # fmt: skip


def networks(names: Sequence[str], axes: Sequence[str] = ()) -> Study:
    """Returns the study of networks with and without SE (Tables 2 to 5), each pair by itself.

    With axes as in `grid`, it has a pair for each combination; fields of SE apply to the network
    with SE alone. Raises UserError for a name that is not registered, or has no twin with SE.
    """
    if not names:
        raise UserError('the study networks needs --networks, such as --networks resnet50,vgg16')
    cells = []
    for fields in _combinations(axes):
        for pair in dict.fromkeys(map(twins, names)):
            plain = tuple(field for field in fields if not _of_se(field))
            baseline = ' '.join([pair[0], *map(_text, plain)])
            for twin, own in zip(pair, (plain, fields), strict=True):
                paper = model_info(twin).paper
                errors = paper and (paper.top1_error, paper.top5_error)
                name = ' '.join([twin, *map(_text, own)])
                cells.append(Cell(name, own, twin, errors, baseline=baseline))
    return Study(NETWORKS, tuple(dict.fromkeys(cells)))  # one without SE for all values of SE


def grid(axes: Sequence[str]) -> Study:
    """Returns the study of all combinations of some fields' values, the first the baseline.

    An axis is `FIELD=VALUE,VALUE`; a comma in brackets belongs to its value.

    >>> [cell.name for cell in grid(['model_fields.se_stages=(2,3),(4,)', 'ema=0.9']).cells]
    ['se_stages=(2,3) ema=0.9', 'se_stages=(4,) ema=0.9']
    """
    if not axes:
        raise UserError('the study grid needs --vary, such as --vary model_fields.se.reduction=4,8')
    combinations = _combinations(axes)
    names = [' '.join(map(_text, fields)) for fields in combinations]
    cells = zip(names, combinations, strict=True)
    return Study('Grid', tuple(Cell(*cell, baseline=names[0]) for cell in cells))


def _combinations(axes: Sequence[str]) -> list[tuple[tuple[str, str], ...]]:
    values_of: dict[str, list[str]] = {}
    for axis in axes:
        field, _, values = axis.partition('=')
        if not values:
            raise UserError(f'--vary {axis}: must be FIELD=VALUE,VALUE')
        field = field.removeprefix('config.')
        if field == 'seed':
            raise UserError(f'--vary {axis}: each run has a seed of its own; use --seeds')
        for other in values_of:  # the last would win, whatever the name says
            if f'{field}.'.startswith(f'{other}.') or f'{other}.'.startswith(f'{field}.'):
                raise UserError(
                    f'--vary {axis}: another --vary sets {other}; give all values in one, such as '
                    f'--vary "{other}=VALUE,VALUE"'
                )
        values_of[field] = _split(values)
    assignments = ([(field, v) for v in values] for field, values in values_of.items())
    return list(dict.fromkeys(itertools.product(*assignments)))  # a value may come twice


def _of_se(field: tuple[str, str]) -> bool:
    return field[0].split('.')[:2] in [['model_fields', name] for name in SE_FIELDS]


def _text(field: tuple[str, str]) -> str:
    name, value = field
    return f'{name.removeprefix("model_fields.")}={value}'


def _split(values: str) -> list[str]:
    """Splits at the commas outside of brackets."""
    parts, depth = [''], 0
    for letter in values:
        depth += (letter in '([{') - (letter in ')]}')
        if letter == ',' and not depth:
            parts.append('')
        else:
            parts[-1] += letter
    return parts
