"""The Squeeze-and-Excitation block."""

from collections.abc import Callable
from functools import partial
from typing import overload

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from se_flax.errors import UserError, check_at_least, check_known
from se_flax.nn.activation import silu
from se_flax.nn.batch_norm import Affine
from se_flax.nn.conv import he_normal
from se_flax.nn.stock import is_stock


@jax.custom_jvp
def _max(x):
    return x.max((-3, -2), keepdims=True)


@_max.defjvp
def _max_jvp(primals, tangents):
    """Takes the tangent at the first place of the maximum.

    JAX's own rule looks for places that equal the maximum. XLA may compute a map twice and round
    it differently, so that none does: the gradient is then 0 / 0.
    """
    (x,), (dx,) = primals, tangents
    height, width = x.shape[-3:-1]
    first = jnp.argmax(lax.collapse(x, x.ndim - 3, x.ndim - 1), axis=-2)[..., None, None, :]
    place = jnp.arange(height * width).reshape(height, width, 1)
    dz = jnp.where(lax.expand_dims(place, range(x.ndim - 3)) == first, dx, 0)
    return _max(x), dz.sum((-3, -2), keepdims=True)


# The choices of the block's fields; users may add their own.
SQUEEZE: dict[str | None, Callable[[jax.Array], jax.Array]] = {
    'mean': lambda x: x.mean((-3, -2), keepdims=True),
    'max': _max,
    None: lambda x: x,  # NoSqueeze (Table 16): the gates keep H and W
}
EXCITE: dict[str, Callable[[jax.Array], jax.Array]] = {
    'sigmoid': nn.sigmoid,
    'tanh': jnp.tanh,
    'relu': nn.relu,
    'hard_sigmoid': nn.hard_sigmoid,  # relu6(x + 3) / 6, of MobileNetV3
}
ACTIVATION: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': nn.relu,
    'silu': silu,
    'hard_swish': nn.hard_swish,
}


def hidden_width(channels: int, reduction: int, multiple: int) -> int:
    """Returns `channels // reduction`, or with `multiple` > 1 `channels / reduction` rounded to it.

    >>> hidden_width(608, 16, 1), hidden_width(64, 16, 8), hidden_width(256, 16, 8)
    (38, 8, 16)
    """
    if multiple == 1:
        return channels // reduction
    return round_channels(channels / reduction, multiple)


def round_channels(exact: float, multiple: int = 8) -> int:
    """Rounds to a multiple that is at least 0.9 of the exact width, as MobileNets do.

    timm's SE-ResNets round without that limit, which makes no difference at any registered width.
    """
    rounded = max(multiple, int(exact + multiple / 2) // multiple * multiple)
    return rounded if rounded >= 0.9 * exact else rounded + multiple


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the whole map.

    `y = x * excite(W2 relu(W1 squeeze(x) + b1) + b2)`, arXiv 1709.01507, equations 2 to 4.

    Takes `[..., H, W, C]` of any float dtype, returns the same shape and dtype; an `Affine` stays
    one unless `squeeze` is None. The gates, `[..., 1, 1, C]` in float32 or wider (without a squeeze
    `[..., H, W, C]` in x's dtype), are sown as `intermediates/gate`. Raises UserError for an
    unknown choice and for a reduction that leaves no hidden channel.

    Attributes:
        reduction: r; the hidden width is `C // r` (Table 10).
        squeeze: 'mean', 'max' (Table 11) or None, which gates each position (Table 16).
        excite: 'sigmoid', 'tanh' or 'relu' (Table 12), or 'hard_sigmoid' (arXiv 1905.02244).
        use_bias: b1 and b2; the released networks have them, the ablations do not.
        hidden_multiple: rounds the hidden width to a multiple; 8 in timm's networks.
        excite_bias: initial value of b2. The paper's 0 starts every sigmoid gate near 0.5; with 2
            it starts near 0.88. All but 0 need `use_bias`.
        activation: of the hidden channels; 'relu', 'silu' (EfficientNet) or 'hard_swish'.
        base_channels: what `reduction` divides, by default C. Networks whose hidden width follows
            from their block's input, such as RegNet and EfficientNet, set it.

    >>> import jax, jax.numpy as jnp
    >>> variables = SqueezeExcite().init(jax.random.key(0), jnp.ones((2, 7, 7, 64)))
    >>> jax.tree.map(jnp.shape, variables['params']['reduce'])
    {'bias': (4,), 'kernel': (64, 4)}
    """

    reduction: int = 16
    squeeze: str | None = 'mean'
    excite: str = 'sigmoid'
    use_bias: bool = True
    hidden_multiple: int = 1
    excite_bias: float = 0.0
    activation: str = 'relu'
    base_channels: int | None = None

    @overload
    def __call__(self, x: jax.Array) -> jax.Array: ...
    @overload
    def __call__(self, x: Affine) -> Affine: ...
    @nn.compact
    def __call__(self, x):
        for field in ('reduction', 'hidden_multiple'):
            check_at_least(field, getattr(self, field), 1)
        check_known('squeeze', self.squeeze, SQUEEZE)
        check_known('excite', self.excite, EXCITE)
        check_known('activation', self.activation, ACTIVATION)
        if isinstance(x, Affine) and (self.squeeze is None or is_stock()):
            x = x.map()
        lazy = isinstance(x, Affine)
        channels = x.shape[-1]
        base = self.base_channels or channels
        if self.reduction > base:
            raise UserError(
                f'reduction={self.reduction} must be between 1 and the number of channels, '
                f'{base}; use {base}'
            )
        if self.excite_bias and not self.use_bias:
            raise UserError(f'excite_bias={self.excite_bias} needs use_bias=True')
        # Gates are [B, C], so float32 is free; without a squeeze they are maps in x's dtype.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        dtype = x.dtype if self.squeeze is None else wide
        layer = {'dtype': dtype, 'param_dtype': wide, 'kernel_init': he_normal}
        dense = partial(nn.Dense, use_bias=self.use_bias, **layer)
        hidden = hidden_width(base, self.reduction, self.hidden_multiple)
        if lazy and self.squeeze == 'mean':
            z = x.mean
        else:
            z = SQUEEZE[self.squeeze]((x.map() if lazy else x).astype(dtype))
        h = ACTIVATION[self.activation](dense(hidden, name='reduce')(z))
        start = nn.initializers.constant(self.excite_bias)
        gate = EXCITE[self.excite](dense(channels, name='expand', bias_init=start)(h))
        self.sow('intermediates', 'gate', gate)
        # Cast first: the large multiply stays in x's dtype.
        return x * (gate if lazy else gate.astype(x.dtype))
