"""All that training changes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from se_flax.parallel import replicated, spread


class TrainState(struct.PyTreeNode):
    """Steps done, parameters, BatchNorm's running statistics and the optimiser's state."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {'params': self.params, 'batch_stats': self.batch_stats}


def make_init(
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_size: int,
    mesh: Mesh,
    *,
    shard_optimizer: bool = False,
):
    """Returns the jitted `key -> TrainState` at step 0, replicated over the mesh.

    With `shard_optimizer` each device holds its part of the optimiser's arrays only.
    """

    def init(key):
        image = jnp.zeros((1, image_size, image_size, 3), model.dtype)
        variables = model.init(key, image)
        params = variables['params']
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables['batch_stats'],
            opt_state=tx.init(params),
        )

    whole = shardings = replicated(mesh)
    if shard_optimizer:
        state = jax.eval_shape(init, jax.random.key(0))
        shardings = jax.tree.map(lambda leaf: whole, state)
        parts = jax.tree.map(lambda leaf: spread(mesh, leaf.shape), state.opt_state)
        shardings = shardings.replace(opt_state=parts)
    return jax.jit(init, out_shardings=shardings)
