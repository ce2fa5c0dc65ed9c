"""BatchNorm, folded into the convolutions of a trained network."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from se_flax.models.network import Network
from se_flax.models.variables import check_variables, variable_shapes


def fold_batch_norm(model: Network, variables: Mapping[str, Any]) -> tuple[Network, dict[str, Any]]:
    """Returns the same network for inference, without BatchNorm, and its variables.

    BatchNorm's factor goes into the kernel of the convolution before it, or stays a factor if there
    is none (pre-activation). Logits are equal up to rounding (1e-5). A network that is folded
    already stays as it is. Raises UserError for variables of another network.

    >>> import jax
    >>> from se_flax import create_model
    >>> model = create_model('se_resnet20_cifar')
    >>> images = jnp.ones((1, 32, 32, 3))
    >>> folded, variables = fold_batch_norm(model, model.init(jax.random.key(0), images))
    >>> list(variables), folded.apply(variables, images).shape
    (['params'], (1, 10))
    """
    if model.folded:
        return model, dict(variables)
    check_variables(model, variables, type(model).__name__)
    folded = model.clone(folded=True)
    params, stats = (flatten_dict(variables[kind]) for kind in ('params', 'batch_stats'))
    paths = [tuple(path.split('/')[1:]) for path in variable_shapes(folded)]
    result = {path: params[path] for path in paths}
    for *norm, kind in stats:
        if kind == 'var':
            factor = params[*norm, 'scale'] / jnp.sqrt(stats[*norm, 'var'] + model.epsilon)
            result[*norm, 'bias'] = params[*norm, 'bias'] - stats[*norm, 'mean'] * factor
            if (*norm, 'scale') in result:
                result[*norm, 'scale'] = factor
            else:
                kernel = *norm[:-1], norm[-1].replace('norm', 'conv', 1), 'kernel'
                result[kernel] = params[kernel] * factor.reshape(1, 1, 1, -1)
    return folded, {'params': unflatten_dict(result)}
