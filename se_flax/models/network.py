"""What every network has: classes, SE or none, BatchNorm groups, a dtype."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from se_flax.errors import UserError
from se_flax.nn import Affine, BatchNorm, Conv, FoldedNorm

Layer = Callable[..., nn.Module]


class Layers(NamedTuple):
    """The layers a network hands down to its blocks.

    Attributes:
        conv: makes a convolution.
        norm: makes a BatchNorm.
        norm_of_conv: makes the one right behind a convolution of its own, see `conv_norm`.
    """

    conv: Layer
    norm: Layer
    norm_of_conv: Layer

    def conv_norm(self, name, x, *args, **kwargs):
        """Applies `conv{name}` and `norm{name}`, as parameters of the module that calls."""
        x, norm = self._conv(name, x, *args, **kwargs)
        return norm(x)

    def conv_affine(self, name, x, *args, **kwargs) -> Affine:
        """Does the same, but leaves the map to be computed, so that SE can scale it before."""
        x, norm = self._conv(name, x, *args, **kwargs)
        return norm.affine(x)

    def _conv(
        self,
        name,
        x,
        features,
        kernel_size=1,
        strides=1,
        *,
        scale_init=nn.initializers.ones,
        **conv,
    ):
        x = self.conv(features, kernel_size, strides, name=f'conv{name}', **conv)(x)
        return x, self.norm_of_conv(name=f'norm{name}', scale_init=scale_init)


def recalibrate(se: Layer | None, x, name: str = 'se'):
    """Applies the SE block where there is one, as parameters of the module that calls."""
    return se(name=name)(x) if se else x


class Network(nn.Module):
    """Takes `[B, H, W, 3]` float images, returns `[B, num_classes]` logits, float32 or wider.

    Every family is one class, with and without SE. All raise UserError for other images, for images
    too small to leave a map, and for unknown switches, before anything is compiled.

    Attributes:
        num_classes: width of the head.
        se: makes the SE block, such as `partial(SqueezeExcite, reduction=8)`; None is the plain
            network.
        bn_group_size: images that share BatchNorm statistics; None is the global batch.
        bn_momentum: share of the running statistics kept at a step.
        bn_frozen: training, too, normalises by the running statistics; an array is the choice at
            run time, and what then becomes of the statistics is the caller's.
        dtype: of the maps; parameters and statistics are float32 or wider.
        folded: no BatchNorm, for inference alone; `fold_batch_norm` makes the parameters.
    """

    num_classes: int = 1000
    se: Layer | None = None
    bn_group_size: int | None = None
    bn_momentum: float = 0.9
    bn_frozen: bool | jax.Array = False
    dtype: Any = jnp.float32
    folded: bool = False

    def layers(self, train: bool, epsilon: float = 1e-5) -> Layers:
        """Returns convolution and BatchNorm as this network has them."""
        conv = partial(Conv, dtype=self.dtype)
        if self.folded:
            if train:
                raise UserError('a network with folded=True has no BatchNorm to train: train=False')
            norm = partial(FoldedNorm, dtype=self.dtype)
            return Layers(conv, norm, partial(norm, scaled=False))
        norm = partial(
            BatchNorm,
            use_running_average=self.bn_frozen if train else True,
            group_size=self.bn_group_size,
            momentum=self.bn_momentum,
            epsilon=epsilon,
            dtype=self.dtype,
        )
        return Layers(conv, norm, norm)

    def classify(self, x, train: bool, dropout: float = 0.0):
        """Turns features, `[B, C]` or the map whose mean they are, into logits."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = x.astype(wide)
        if x.ndim == 4:
            x = x.mean((1, 2))  # not a fixed 7x7 window, so that any image size works
        if dropout:
            x = nn.Dropout(dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=wide, param_dtype=wide, name='head')(x)
