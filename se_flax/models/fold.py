"""BatchNorm, folded into the convolutions of a trained network."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from se_flax.models.network import Network
from se_flax.nn import BatchNorm


def fold_batch_norm(model: Network, variables: Mapping[str, Any]) -> tuple[Network, dict[str, Any]]:
    """Returns the same network for inference, without BatchNorm, and its variables.

    A running mean and variance are a factor and an offset a channel,
    `scale / sqrt(var + epsilon)` and `bias - mean factor`. The factor goes into the kernel of the
    convolution before it; where there is none of its own (pre-activation), it stays a factor.
    Logits are equal but for rounding (1e-5).

    >>> import jax, jax.numpy as jnp
    >>> from se_flax import create_model
    >>> model = create_model('se_resnet20_cifar')
    >>> images = jnp.ones((1, 32, 32, 3))
    >>> folded, variables = fold_batch_norm(model, model.init(jax.random.key(0), images))
    >>> list(variables), folded.apply(variables, images).shape
    (['params'], (1, 10))
    """
    epsilons = {}

    def note(run, args, kwargs, context):
        if isinstance(context.module, BatchNorm):
            epsilons[context.module.path] = context.module.epsilon
        return run(*args, **kwargs)

    # Neither paths nor shapes depend on its size.
    image = jax.ShapeDtypeStruct((1, 224, 224, model.in_channels), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(model.apply, variables, image)
    folded = model.clone(folded=True)
    wanted = flatten_dict(jax.eval_shape(folded.init, jax.random.key(0), image)['params'])
    params, stats = (flatten_dict(variables[kind]) for kind in ('params', 'batch_stats'))
    result = {path: params[path] for path in wanted}
    for norm, epsilon in epsilons.items():
        factor = params[*norm, 'scale'] / jnp.sqrt(stats[*norm, 'var'] + epsilon)
        result[*norm, 'bias'] = params[*norm, 'bias'] - stats[*norm, 'mean'] * factor
        if (*norm, 'scale') in wanted:
            result[*norm, 'scale'] = factor
        else:
            kernel = *norm[:-1], norm[-1].replace('norm', 'conv', 1), 'kernel'
            result[kernel] = params[kernel] * factor.reshape(1, 1, 1, -1)
    return folded, {'params': unflatten_dict(result)}
