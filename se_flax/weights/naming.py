"""How a code base names the modules of a network, and what else is particular to its networks."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flax import linen as nn

from se_flax.models.preact_resnet import PreActBottleneck, PreActResNet
from se_flax.models.resnet import BasicBlock, ResNet
from se_flax.weights.info import BILINEAR, Preprocessing

CONV_NORM = ('conv', 'norm')
# A pattern for a module's name in a state dict (the key without `.weight` and the like) and the
# path here: as text, or made from the pattern's groups, of which numbers are given as integers,
# `bn` as 'norm' and an absent one as 0. Where two rows fit, that one counts whose path is there.
Row = tuple[str, str | Callable[..., str]]
PCV_STEM: Row = (
    r'features\.init_block\.(?:conv\.)?(conv|bn)',
    lambda kind: f'{kind}_stem',
)


class Naming(NamedTuple):
    """How a code base names the modules of one family here.

    Attributes:
        lineage: the code base.
        network: the family's class.
        rows: from its names to paths here.
        preprocessing: that its weights expect where nothing else is said.
        traits: what its networks are like where the parameters do not show it, see `traits_of`.
    """

    lineage: str
    network: type[nn.Module]
    rows: Sequence[Row]
    preprocessing: Preprocessing = BILINEAR
    traits: Mapping[str, Any] = {}

    def paths(self, module: str) -> Iterator[str]:
        """Yields the paths that a module of that name may have here."""
        for pattern, path in self.rows:
            if match := re.fullmatch(pattern, module, re.ASCII):
                yield path if isinstance(path, str) else path(*map(_group, match.groups()))


def _group(text: str | None) -> str | int:
    if text is None:
        return 0
    return int(text) if text.isdigit() else text.replace('bn', 'norm')


def traits_of(model: nn.Module) -> dict[str, Any]:
    """Returns the choices that tell code bases apart and leave no mark on the parameters."""
    if isinstance(model, ResNet):
        traits = {} if model.stem == 'cifar' else {'pool': model.pool}
        block = getattr(model.block, 'func', model.block)
        if block is BasicBlock:
            if model.se:
                traits['extra_relu'] = getattr(model.block, 'keywords', {}).get('extra_relu', False)
        elif model.groups == 1:  # with groups, everybody has the stride in the 3x3
            traits['stride_in'] = model.stride_in
        return traits
    if isinstance(model, PreActResNet) and model.block is PreActBottleneck:
        return {'stride_in': '1x1'}
    return {}


def norm_of(conv: str) -> str:
    """Returns the path of the BatchNorm behind a convolution.

    >>> norm_of('stage2_block1/conv_proj')
    'stage2_block1/norm_proj'
    """
    parent, slash, name = conv.rpartition('/')
    return f'{parent}{slash}{name.replace("conv", "norm", 1)}'
