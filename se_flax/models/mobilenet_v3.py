"""MobileNetV3 (arXiv 1905.02244)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.models.inverted_residual import InvertedResidualNetwork, Stage
from se_flax.models.network import Maps
from se_flax.models.registry import register, register_pair
from se_flax.nn import ACTIVATION, SqueezeExcite
from se_flax.nn.conv import he_normal

# Tables 1 and 2, the rows of equal width being a stage.
LARGE = (
    Stage(16, (1,), relu=True),
    Stage(24, (4, 3), 3, 2, relu=True),
    Stage(40, (3,), 5, 2, relu=True),
    Stage(80, (6, 2.5, 2.3), 3, 2),
    Stage(112),
    Stage(160, (6,), 5, 2),
)
SMALL = (
    Stage(16, (1,), 3, 2, relu=True),
    Stage(24, (4.5, 3.67), 3, 2, relu=True),
    Stage(40, (4, 6), 5, 2),
    Stage(48, (3,), 5),
    Stage(96, (6,), 5, 2),
)


class MobileNetV3(InvertedResidualNetwork):
    """MobileNetV3, large by default. SE's reduction divides the channels inside a block.

    Attributes:
        hidden: width of the layer before the head, whatever the multiplier.
    """

    layout: Sequence[Stage] = LARGE
    stage_sizes: Sequence[int] = (1, 2, 3, 4, 2, 3)
    se_stages: Sequence[int] = (4, 6, 7)
    stem: int = 16
    activation: str = 'hard_swish'
    hidden: int = 1280
    dropout: float = 0.2

    reduce_input = False

    def trunk(self, x: jax.Array, train: bool) -> Maps:
        for stride, y in super().trunk(x, train):
            yield stride, y
        y = self.layers(train).conv_norm('_last', y, 6 * y.shape[-1])
        yield stride, ACTIVATION[self.activation](y)

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        wide = jnp.promote_types(self.dtype, jnp.float32)
        dense = partial(nn.Dense, dtype=wide, param_dtype=wide, kernel_init=he_normal)
        x = dense(self.hidden, name='hidden')(x.astype(wide).mean((1, 2)))
        return super().classify(ACTIVATION[self.activation](x), train)


_se = partial(SqueezeExcite, reduction=4, hidden_multiple=8, excite='hard_sigmoid')
_small: dict[str, Any] = {'layout': SMALL, 'stage_sizes': (1, 2, 3, 2, 3)}
_small |= {'se_stages': (2, 4, 5, 6), 'hidden': 1024}

# torchvision's, whose epsilon is that of the paper.
_pair = partial(register_pair, module=MobileNetV3, se=_se)
_pair('mobilenet_v3_large_no_se', 'mobilenet_v3_large')
_pair('mobilenet_v3_small_no_se', 'mobilenet_v3_small', **_small)

_timm = partial(register, module=MobileNetV3, se=_se, epsilon=1e-5)
_timm('timm_mobilenetv3_large_075', width_multiplier=0.75)
_timm('timm_mobilenetv3_large_100')
_timm('timm_mobilenetv3_small_050', width_multiplier=0.5, **_small)
_timm('timm_mobilenetv3_small_075', width_multiplier=0.75, **_small)
_timm('timm_mobilenetv3_small_100', **_small)

# TensorFlow's, by timm's names.
_tf = partial(register, module=MobileNetV3, se=_se, same_padding=True)
_minimal: dict[str, Any] = {'se': None, 'activation': 'relu', 'largest_kernel': 3}
_tf('timm_tf_mobilenetv3_large_075', width_multiplier=0.75)
_tf('timm_tf_mobilenetv3_large_100')
_tf('timm_tf_mobilenetv3_large_minimal_100', **_minimal)
_tf('timm_tf_mobilenetv3_small_075', width_multiplier=0.75, **_small)
_tf('timm_tf_mobilenetv3_small_100', **_small)
_tf('timm_tf_mobilenetv3_small_minimal_100', **_minimal, **_small)
