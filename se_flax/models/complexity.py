"""Parameters and multiply-adds of a network, counted without running it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core


class Counts(NamedTuple):
    """Trainable parameters (without running statistics) and multiply-adds per image."""

    params: int
    macs: int


def count(model: nn.Module, input_size: int) -> Counts:
    """Counts parameters, and the multiply-adds of evaluating one square image.

    Multiply-adds are those of convolutions and matrix products, like the paper's "FLOPs".

    >>> from se_flax.nn import Conv
    >>> count(Conv(8, kernel_size=3, strides=2), 32)
    Counts(params=216, macs=55296)
    """
    channels = getattr(model, 'in_channels', 3)
    image = jax.ShapeDtypeStruct((1, input_size, input_size, channels), jnp.float32)
    # One trace serves both, as `init` evaluates the network.
    jaxpr, variables = jax.make_jaxpr(model.init, return_shape=True)(jax.random.key(0), image)
    params = sum(math.prod(p.shape) for p in jax.tree.leaves(variables['params']))
    return Counts(params, _macs(jaxpr))


def _macs(closed: core.ClosedJaxpr) -> int:
    total = 0
    for eqn in closed.jaxpr.eqns:
        inner = jax.tree.leaves(list(eqn.params.values()))
        if platforms := eqn.params.get('branches_platforms'):  # of `lax.platform_dependent`
            inner = [eqn.params['branches'][platforms.index(None)]]  # None is the default
        # `jax.checkpoint` has an open one.
        inner = [core.ClosedJaxpr(x, ()) if isinstance(x, core.Jaxpr) else x for x in inner]
        total += sum(_macs(jaxpr) for jaxpr in inner if isinstance(jaxpr, core.ClosedJaxpr))
        if eqn.primitive.name == 'conv_general_dilated':
            kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
            features = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
            total += math.prod(out) * math.prod(kernel) // features
        elif eqn.primitive.name == 'dot_general':
            (contracted, _), _ = eqn.params['dimension_numbers']
            lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
            total += math.prod(out) * math.prod(lhs[axis] for axis in contracted)
    return total
