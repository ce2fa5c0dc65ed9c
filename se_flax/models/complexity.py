"""Parameters and multiply-adds of a network, counted without running it."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core


def count_params(model: nn.Module, input_size: int) -> int:
    """Returns the number of trainable parameters (BatchNorm's running statistics are not)."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(_shapes(model, input_size)['params']))


def count_macs(model: nn.Module, input_size: int) -> int:
    """Returns the multiply-adds of convolutions and matrix products for one image.

    Counted once each, as the paper's "FLOPs" are; walks the jaxpr, so it counts what is executed.
    A convolution counts as XLA's own, whatever a platform puts in its place.

    >>> from se_flax.nn import Conv
    >>> class Net(nn.Module):
    ...     def setup(self):
    ...         self.conv = Conv(8, kernel_size=3, strides=2)
    ...     def __call__(self, x):
    ...         return self.conv(x)
    >>> count_macs(Net(), 32) == 16 * 16 * 8 * 3 * 3 * 3
    True
    """
    return _jaxpr_macs(jax.make_jaxpr(model.apply)(_shapes(model, input_size), _image(input_size)))


def _image(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def _shapes(model: nn.Module, input_size: int):
    return jax.eval_shape(model.init, jax.random.key(0), _image(input_size))


def _jaxpr_macs(closed: core.ClosedJaxpr) -> int:
    total = 0
    for eqn in closed.jaxpr.eqns:
        total += sum(_jaxpr_macs(sub) for sub in _closed_jaxprs(eqn.params))
        if eqn.primitive.name == 'conv_general_dilated':
            kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
            features = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
            total += math.prod(out) * math.prod(kernel) // features
        elif eqn.primitive.name == 'dot_general':
            (contracted, _), _ = eqn.params['dimension_numbers']
            lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
            total += math.prod(out) * math.prod(lhs[axis] for axis in contracted)
    return total


def _closed_jaxprs(params):
    if platforms := params.get('branches_platforms'):  # of `lax.platform_dependent`
        return [params['branches'][platforms.index(None)]]  # None is the default
    leaves = jax.tree.leaves(list(params.values()), is_leaf=_is_closed)
    return [leaf for leaf in leaves if _is_closed(leaf)]


def _is_closed(leaf) -> bool:
    return isinstance(leaf, core.ClosedJaxpr)
