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
    """Steps done, parameters, BatchNorm's running statistics and the optimiser's state."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes, to be evaluated and exported."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    def starting_from(self, variables: dict[str, Any]) -> 'TrainState':
        """Returns the state with other parameters and statistics."""
        return self.replace(**variables)


class AveragedState(TrainState):
    """A state beside whose variables, statistics included, a moving average of them is kept."""

    average: dict[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        """The average."""
        return self.average

    def starting_from(self, variables: dict[str, Any]) -> 'AveragedState':
        """Returns the state with other parameters and statistics, which are their own average."""
        # Copied, as a step cannot be given the same buffer twice.
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
    """Returns the jitted `key -> TrainState` at step 0, replicated over the mesh.

    With `shard_optimizer` each device holds its part of the optimiser's arrays only; with
    `average` the state is an AveragedState.
    """

    channels = getattr(model, 'in_channels', 3)  # of any module that is no Network

    def init(key):
        image = jnp.zeros((1, image_size, image_size, channels), model.dtype)
        variables = model.init(key, image)
        return (AveragedState if average else TrainState)(
            step=jnp.zeros((), jnp.int32),
            params=variables['params'],
            batch_stats=variables['batch_stats'],
            opt_state=tx.init(variables['params']),
            **({'average': variables} if average else {}),
        )

    whole = shardings = replicated(mesh)
    if shard_optimizer:
        state = jax.eval_shape(init, jax.random.key(0))
        shardings = jax.tree.map(lambda leaf: whole, state)
        parts = jax.tree.map(lambda leaf: spread(mesh, leaf.shape), state.opt_state)
        shardings = shardings.replace(opt_state=parts)
    return jax.jit(init, out_shardings=shardings)
