"""All that training changes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from se_flax.parallel import replicated, spread


class TrainState(struct.PyTreeNode):
    """Steps done, parameters, BatchNorm's running statistics and the optimizer's state."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """Those to evaluate and export, as `model.apply` takes them."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    def starting_from(self, variables: dict[str, Any]) -> 'TrainState':
        """Replaces params and batch_stats."""
        return self.replace(**variables)


class AveragedState(TrainState):
    """A state with a moving average of its variables, which is what is evaluated."""

    average: dict[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        return self.average

    def starting_from(self, variables: dict[str, Any]) -> 'AveragedState':
        # The average starts as a copy, as one buffer cannot be donated twice.
        return self.replace(**variables, average=jax.tree.map(jnp.copy, variables))


def make_init(
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_size: int,
    mesh: Mesh,
    *,
    shard_optimizer: bool = False,
    average: bool = False,
) -> Callable[[jax.Array], TrainState]:
    """Returns the jitted `key -> TrainState`, an AveragedState with `average`, at step 0.

    It is replicated; with `shard_optimizer` the optimizer's arrays are split over the devices.
    """
    channels = getattr(model, 'in_channels', 3)  # a module need not be a Network

    def init(key):
        image = jnp.zeros((1, image_size, image_size, channels), model.dtype)
        variables = model.init(key, image)
        params, batch_stats = variables['params'], variables['batch_stats']
        state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params))
        return AveragedState(**vars(state), average=variables) if average else state

    if not shard_optimizer:
        return jax.jit(init, out_shardings=replicated(mesh))
    state = jax.eval_shape(init, jax.random.key(0))
    parts = jax.tree.map(lambda leaf: spread(mesh, leaf.shape), state.opt_state)
    whole = jax.tree.map(lambda leaf: replicated(mesh), state)
    return jax.jit(init, out_shardings=whole.replace(opt_state=parts))
