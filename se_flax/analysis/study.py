"""What each study compares, and what the paper found (ImageNet, one crop of 224 pixels)."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from se_flax.errors import UserError, check_known
from se_flax.models import list_models, model_info

NETWORKS = 'Networks with and without SE (Tables 2 to 5)'
PLAIN, SE = 'without SE', 'with SE'


class Cell(NamedTuple):
    """One kind of run, by what it changes of the config that a study starts from.

    Attributes:
        name: in the tables.
        fields: (dotted field of the config, value as on the command line).
        model: a registered name; PLAIN is the config's own without SE, SE its own, which must have
            it, None its own.
        paper: top-1 and top-5 error in %, where the paper has the cell.
        baseline: name of the cell it is compared with; that of the study's baseline has its own.
    """

    name: str
    fields: tuple[tuple[str, str], ...] = ()
    model: str | None = None
    paper: tuple[float, float | None] | None = None
    baseline: str = ''


class Study(NamedTuple):
    """Cells to compare, in the order of the tables."""

    title: str
    cells: tuple[Cell, ...]


_ORIGINAL = Cell('original', model=PLAIN, paper=(23.30, 6.55))
_SE = Cell('SE', model=SE, paper=(22.28, 6.03))  # r = 16, mean, sigmoid, all stages


def _of(field: str, *cells: tuple[str, str, tuple[float, float]]) -> list[Cell]:
    return [Cell(name, ((f'model_fields.{field}', text),), SE, p) for name, text, p in cells]


def _against(baseline: str, title: str, *cells: Cell) -> Study:
    return Study(title, tuple(cell._replace(baseline=baseline) for cell in cells))


STUDIES = {
    'reduction': _against(
        '16', 'Reduction ratio (Table 10)', _ORIGINAL,
        *_of(
            'se.reduction', ('2', '2', (22.29, 6.00)), ('4', '4', (22.25, 6.09)),
            ('8', '8', (22.26, 5.99)),
        ),
        _SE._replace(name='16'),
        *_of('se.reduction', ('32', '32', (22.72, 6.20))),
    ),
    'squeeze': _against(
        'average', 'Squeeze operator (Table 11)', _SE._replace(name='average'),
        *_of('se.squeeze', ('max', 'max', (22.57, 6.09))),
    ),
    'excitation': _against(
        'sigmoid', 'Excitation operator (Table 12)', _SE._replace(name='sigmoid'),
        *_of('se.excite', ('tanh', 'tanh', (23.00, 6.38)), ('ReLU', 'relu', (23.47, 6.98))),
    ),
    'stages': _against(
        'original', 'Stages that have SE (Table 13)', _ORIGINAL,
        *_of(
            'se_stages', ('stage 2', '(2,)', (23.03, 6.48)), ('stage 3', '(3,)', (23.04, 6.32)),
            ('stage 4', '(4,)', (22.68, 6.22)),
        ),
        _SE._replace(name='all'),
    ),
    'placement': _against(
        'standard', 'Where SE sits (Tables 14 and 15)', _ORIGINAL, _SE._replace(name='standard'),
        *_of(
            'placement', ('pre', 'pre', (22.23, 6.00)), ('post', 'post', (22.78, 6.35)),
            ('identity', 'identity', (22.20, 6.15)), ('3x3', 'inside_3x3', (22.48, 6.02)),
        ),
    ),
    'nosqueeze': _against(
        'SE', 'Without the squeeze (Table 16)', _ORIGINAL,
        *_of('se.squeeze', ('no squeeze', 'None', (22.93, 6.39))), _SE,
    ),
}  # fmt: skip


def networks(names: Sequence[str]) -> Study:
    """Returns the study of networks with and without SE (Tables 2 to 5), each pair by itself.

    Raises UserError for a name that is not registered, or has no twin with SE.
    """
    if not names:
        raise UserError('networks: name them, such as --networks resnet50,vgg16')
    cells = []
    for name in dict.fromkeys(name.removeprefix('se_') for name in names):
        for twin in (name, f'se_{name}'):
            check_known('network', twin, list_models())
            paper = model_info(twin).paper
            errors = paper and (paper.top1_error, paper.top5_error)
            cells.append(Cell(twin, model=twin, paper=errors, baseline=name))
    return Study(NETWORKS, tuple(cells))


def grid(axes: Sequence[str]) -> Study:
    """Returns the study of all combinations of some fields' values, the first the baseline.

    Args:
        axes: `FIELD=VALUE,VALUE` of each field; a comma in brackets belongs to its value.

    >>> [cell.name for cell in grid(['model_fields.se_stages=(2,3),(4,)', 'ema=0.9']).cells]
    ['se_stages=(2,3) ema=0.9', 'se_stages=(4,) ema=0.9']
    """
    if not axes:
        raise UserError('grid: say what varies, such as --vary model_fields.se.reduction=4,8')
    assignments = []
    for axis in axes:
        field, equals, values = axis.partition('=')
        if not equals or not values:
            raise UserError(f'--vary {axis}: it is FIELD=VALUE,VALUE')
        assignments.append([(field.removeprefix('config.'), v) for v in _split(values)])
    cells = [
        Cell(' '.join(f'{field.removeprefix("model_fields.")}={v}' for field, v in fields), fields)
        for fields in itertools.product(*assignments)
    ]
    return _against(cells[0].name, 'Grid', *cells)


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
