"""The optimiser's state in parts: the same losses, less memory a device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from se_flax.parallel import data_mesh, shard_batch, spread
from se_flax.training.optimizer import OPTIMIZERS, make_optimizer
from se_flax.training.state import make_init
from se_flax.training.step import jit_train_step, make_train_step

from .step_test import Tiny


@pytest.mark.parametrize(
    ('shape', 'axes'),
    [
        ((3, 3, 16, 64), (None, None, None, 'data')),
        ((3, 3, 64, 16), (None, None, 'data')),
        ((24, 8), ('data',)),
        ((3, 3, 3, 10), ()),  # eight devices divide none
        ((), ()),
        ((0,), ()),
    ],
)
def test_the_longest_axis_that_can_is_split(shape, axes):
    assert spread(data_mesh(), shape).spec == PartitionSpec(*axes)


def bytes_on(device, tree):
    shards = [s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards]
    return sum(s.data.nbytes for s in shards if s.device == device)


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_same_losses_with_an_eighth_of_the_optimizers_state(optimizer):
    mesh = data_mesh()
    model = Tiny(dtype=jnp.float64, bn_group_size=2)
    schedule = lambda step: 0.05  # noqa: E731
    options = {'clip_norm': 1.0, 'epsilon': 1e-3} if optimizer != 'sgd' else {}
    tx = make_optimizer(schedule, optimizer=optimizer, weight_decay=1e-4, **options)
    step = make_train_step(model, tx, schedule, mean=(99.0,) * 3, std=(60.0,) * 3)
    rng = np.random.default_rng(0)
    batches = [
        {
            'image': rng.integers(256, size=(16, 16, 16, 3), dtype=np.uint8),
            'label': rng.integers(10, size=16, dtype=np.int32),
        }
        for _ in range(2)
    ]
    losses, held = [], []
    with jax.enable_x64(True):
        for shard_optimizer in (False, True):
            init = make_init(model, tx, 16, mesh, shard_optimizer=shard_optimizer)
            state = init(jax.random.key(0, impl='rbg'))  # compiles faster
            run = jit_train_step(step, mesh, state)
            losses.append([])
            for batch in batches:
                state, metrics = run(state, shard_batch(mesh, batch))
                losses[-1].append(metrics['loss'].item())
            held.append(bytes_on(mesh.devices[0], state.opt_state))
            params = jax.tree.leaves(state.params)
            assert all(leaf.sharding.is_fully_replicated for leaf in params)
            assert params[0].dtype == jnp.float64
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)
    assert held[1] < 0.2 * held[0]  # what eight devices do not divide is whole
