"""EfficientNet (arXiv 1905.11946) and EfficientNetV2 (arXiv 2104.00298)."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from se_flax.models.inverted_residual import InvertedResidualNetwork, Stage
from se_flax.models.registry import register, register_pair
from se_flax.nn import ACTIVATION, SqueezeExcite

B0 = (  # Table 1
    Stage(16, (1,)),
    Stage(24, (6,), 3, 2),
    Stage(40, (6,), 5, 2),
    Stage(80, (6,), 3, 2),
    Stage(112, (6,), 5),
    Stage(192, (6,), 5, 2),
    Stage(320),
)


class EfficientNet(InvertedResidualNetwork):
    """EfficientNet, B0 by default. SE's reduction divides the channels of a block's input.

    Attributes:
        last: channels of the last convolution, before the multiplier.
    """

    layout: Sequence[Stage] = B0
    stage_sizes: Sequence[int] = (1, 2, 2, 3, 3, 4, 1)
    last: int = 1280
    dropout: float = 0.2

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        # Part of the pooled features, but not of the maps: detectors take the narrow one before.
        x = self.layers(train).conv_norm('_last', x, self.scaled(self.last))
        return super().classify(ACTIVATION[self.activation](x), train)


def _v2(
    input_size: int, features: Sequence[int], sizes: Sequence[int], dropout: float = 0.2
) -> dict[str, Any]:
    """Table 4, whose three sizes differ in channels and in blocks."""
    layout = [Stage(features[0], (1,), fused=True)]
    layout += [Stage(n, (4,), 3, 2, fused=True) for n in features[1:3]]
    layout += [Stage(features[3], (4,), 3, 2), Stage(features[4]), Stage(features[5], (6,), 3, 2)]
    layout += [Stage(n) for n in features[6:]]
    fields = {'layout': tuple(layout), 'stage_sizes': sizes, 'se_stages': (5, 6, 7, 8)}
    return fields | {'stem': features[0], 'dropout': dropout, 'input_size': input_size}


def _b(input_size: int, width: float, depth: float, dropout: float) -> dict[str, Any]:
    """Section 4 of the first paper: widths and depths by a factor."""
    sizes = tuple(math.ceil(depth * n) for n in EfficientNet.stage_sizes)
    fields = {'width_multiplier': width, 'stage_sizes': sizes}
    return fields | {'dropout': dropout, 'input_size': input_size}


_SIZES = {
    'b0': _b(224, 1.0, 1.0, 0.2),
    'b1': _b(240, 1.0, 1.1, 0.2),
    'b2': _b(260, 1.1, 1.2, 0.3),
    'b3': _b(300, 1.2, 1.4, 0.3),
    'b4': _b(380, 1.4, 1.8, 0.4),
    'b5': _b(456, 1.6, 2.2, 0.4),
    'b6': _b(528, 1.8, 2.6, 0.5),
    'b7': _b(600, 2.0, 3.1, 0.5),
    'v2_s': _v2(384, (24, 48, 64, 128, 160, 256), (2, 4, 4, 6, 9, 15)),
    'v2_m': _v2(480, (24, 48, 80, 160, 176, 304, 512), (3, 5, 5, 7, 14, 18, 5), 0.3),
    'v2_l': _v2(480, (32, 64, 96, 192, 224, 384, 640), (4, 7, 7, 10, 19, 25, 7), 0.4),
}
_se = partial(SqueezeExcite, reduction=4, activation='silu')
_pair = partial(register_pair, module=EfficientNet, se=_se)
_one = partial(register, module=EfficientNet, se=_se)
for _size, _fields in _SIZES.items():  # torchvision's; timm's B0 to B4 are the same
    _epsilon = 1e-5 if _size in ('b0', 'b1', 'b2', 'b3', 'b4') else 1e-3
    _name = f'efficientnet_{_size}'
    _pair(f'{_name}_no_se', _name, epsilon=_epsilon, **_fields)
for _size in ('b5', 'v2_s', 'v2_m', 'v2_l'):  # timm's own
    _one(f'timm_efficientnet_{_size}'.replace('_v2', 'v2'), epsilon=1e-5, **_SIZES[_size])
for _size, _fields in _SIZES.items():  # TensorFlow's, by timm's names
    _one(f'timm_tf_efficientnet_{_size}'.replace('_v2', 'v2'), same_padding=True, **_fields)
