"""Convolution with explicit padding."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from se_flax.errors import check_multiple

he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')  # Caffe's "msra"


class Conv(nn.Module):
    """2-D convolution whose padding is a number of pixels on every side.

    Never `SAME`: for stride 2 on an even map that pads one side only, and the published networks
    pad both. Takes `[B, H, W, C]`, returns `[B, H', W', features]` of `dtype` with
    `H' = (H + 2 padding - kh) // strides + 1`. The kernel, `[kh, kw, C / groups, features]` and
    float32 or wider, starts from He's normal distribution (arXiv 1502.01852, fan in).

    Raises UserError where `groups` does not divide the channels in or out.

    Attributes:
        features: channels out.
        kernel_size: of a square kernel, or (height, width).
        strides: step in both directions.
        padding: pixels of zeros on each side; None means half the kernel, rounded down.
        groups: channel groups that do not see each other.
        use_bias: the networks here have none before a BatchNorm.
        dtype: of the computation and the result.

    >>> import jax, jax.numpy as jnp
    >>> conv = Conv(8, kernel_size=7, strides=2)
    >>> y, variables = conv.init_with_output(jax.random.key(0), jnp.ones((1, 224, 224, 3)))
    >>> y.shape, variables['params']['kernel'].shape
    ((1, 112, 112, 8), (7, 7, 3, 8))
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    strides: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels, k = x.shape[-1], self.kernel_size
        k = (k, k) if isinstance(k, int) else tuple(k)
        check_multiple('channels in', channels, 'groups', self.groups)
        check_multiple('channels out', self.features, 'groups', self.groups)
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        shape = (*k, channels // self.groups, self.features)
        kernel = self.param('kernel', he_normal, shape, param_dtype)
        pads = [n // 2 if self.padding is None else self.padding for n in k]
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.strides, self.strides),
            padding=[(pad, pad) for pad in pads],
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=self.groups,
        )
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (self.features,), param_dtype)
            y += bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y
