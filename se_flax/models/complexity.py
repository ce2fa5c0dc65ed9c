"""Parameters and multiply-adds of a network, counted without running it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core


class Counts(NamedTuple):
    """Trainable parameters (BatchNorm's running statistics are not), multiply-adds of an image."""

    params: int
    macs: int


def count(model: nn.Module, input_size: int) -> Counts:
    """Counts the parameters of a network and its multiply-adds for one square image.

    Those of convolutions and matrix products, once each, as the paper's "FLOPs" are, and in XLA's
    own form: they do not depend on how a platform carries a convolution out. One trace of `init`,
    which evaluates the network too, tells both.

    >>> from se_flax.nn import Conv
    >>> count(Conv(8, kernel_size=3, strides=2), 32)
    Counts(params=216, macs=55296)
    """
    channels = getattr(model, 'in_channels', 3)
    image = jax.ShapeDtypeStruct((1, input_size, input_size, channels), jnp.float32)
    jaxpr, variables = jax.make_jaxpr(model.init, return_shape=True)(jax.random.key(0), image)
    params = sum(math.prod(p.shape) for p in jax.tree.leaves(variables['params']))
    return Counts(params, _jaxpr_macs(jaxpr))


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
