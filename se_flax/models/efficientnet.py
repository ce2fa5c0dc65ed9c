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


def _v2(*features: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Table 4, whose three sizes differ in channels and in blocks."""
    layout = [Stage(features[0], (1,), fused=True)]
    layout += [Stage(n, (4,), 3, 2, fused=True) for n in features[1:3]]
    layout += [Stage(features[3], (4,), 3, 2), Stage(features[4]), Stage(features[5], (6,), 3, 2)]
    layout += [Stage(n) for n in features[6:]]
    return {'layout': tuple(layout), 'stage_sizes': sizes, 'se_stages': (5, 6, 7, 8)}


def _b(width: float, depth: float, dropout: float) -> dict[str, Any]:
    """Section 4 of the first paper: widths and depths by a factor."""
    sizes = tuple(math.ceil(depth * n) for n in EfficientNet.stage_sizes)
    return {'width_multiplier': width, 'stage_sizes': sizes, 'dropout': dropout}


_b0, _b1, _b2 = _b(1.0, 1.0, 0.2), _b(1.0, 1.1, 0.2), _b(1.1, 1.2, 0.3)
_b3, _b4, _b5 = _b(1.2, 1.4, 0.3), _b(1.4, 1.8, 0.4), _b(1.6, 2.2, 0.4)
_b6, _b7 = _b(1.8, 2.6, 0.5), _b(2.0, 3.1, 0.5)
_s = _v2(24, 48, 64, 128, 160, 256, sizes=(2, 4, 4, 6, 9, 15)) | {'stem': 24}
_m = _v2(24, 48, 80, 160, 176, 304, 512, sizes=(3, 5, 5, 7, 14, 18, 5)) | {'stem': 24}
_l = _v2(32, 64, 96, 192, 224, 384, 640, sizes=(4, 7, 7, 10, 19, 25, 7))
_m, _l = _m | {'dropout': 0.3}, _l | {'dropout': 0.4}

# torchvision's; timm's B0 to B4 are the same.
_se = partial(SqueezeExcite, reduction=4, activation='silu')
_pair = partial(register_pair, module=EfficientNet, se=_se)
_pair('efficientnet_b0_no_se', 'efficientnet_b0', epsilon=1e-5, **_b0)
_pair('efficientnet_b1_no_se', 'efficientnet_b1', epsilon=1e-5, input_size=240, **_b1)
_pair('efficientnet_b2_no_se', 'efficientnet_b2', epsilon=1e-5, input_size=260, **_b2)
_pair('efficientnet_b3_no_se', 'efficientnet_b3', epsilon=1e-5, input_size=300, **_b3)
_pair('efficientnet_b4_no_se', 'efficientnet_b4', epsilon=1e-5, input_size=380, **_b4)
_pair('efficientnet_b5_no_se', 'efficientnet_b5', input_size=456, **_b5)
_pair('efficientnet_b6_no_se', 'efficientnet_b6', input_size=528, **_b6)
_pair('efficientnet_b7_no_se', 'efficientnet_b7', input_size=600, **_b7)
_pair('efficientnet_v2_s_no_se', 'efficientnet_v2_s', input_size=384, **_s)
_pair('efficientnet_v2_m_no_se', 'efficientnet_v2_m', input_size=480, **_m)
_pair('efficientnet_v2_l_no_se', 'efficientnet_v2_l', input_size=480, **_l)

_timm = partial(register, module=EfficientNet, se=_se, epsilon=1e-5)
_timm('timm_efficientnet_b5', input_size=456, **_b5)
_timm('timm_efficientnetv2_s', input_size=384, **_s)
_timm('timm_efficientnetv2_m', input_size=480, **_m)
_timm('timm_efficientnetv2_l', input_size=480, **_l)

# TensorFlow's, by timm's names.
_tf = partial(register, module=EfficientNet, se=_se, same_padding=True)
_tf('timm_tf_efficientnet_b0', **_b0)
_tf('timm_tf_efficientnet_b1', input_size=240, **_b1)
_tf('timm_tf_efficientnet_b2', input_size=260, **_b2)
_tf('timm_tf_efficientnet_b3', input_size=300, **_b3)
_tf('timm_tf_efficientnet_b4', input_size=380, **_b4)
_tf('timm_tf_efficientnet_b5', input_size=456, **_b5)
_tf('timm_tf_efficientnet_b6', input_size=528, **_b6)
_tf('timm_tf_efficientnet_b7', input_size=600, **_b7)
_tf('timm_tf_efficientnetv2_s', input_size=384, **_s)
_tf('timm_tf_efficientnetv2_m', input_size=480, **_m)
_tf('timm_tf_efficientnetv2_l', input_size=480, **_l)
