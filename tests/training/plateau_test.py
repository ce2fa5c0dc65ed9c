"""The rate that drops where the loss has stopped to: alone, through the loop and a checkpoint."""

import contextlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from se_flax.parallel import data_mesh, shard_batch
from se_flax.training.checkpoint import Checkpointer
from se_flax.training.loop import Preempted, train
from se_flax.training.optimizer import (
    OPTIMIZERS,
    make_optimizer,
    observe,
    plateau_scale,
    scale_by_plateau,
)
from se_flax.training.state import make_init
from se_flax.training.step import jit_train_step, make_train_step

pytestmark = pytest.mark.quick

RULE = {'patience': 2, 'factor': 0.5, 'max_drops': 2}


@pytest.mark.parametrize(
    ('losses', 'scales'),
    [
        ([5, 4, 3, 2], [1, 1, 1, 1]),
        ([5, 6, 7], [1, 1, 0.5]),  # two evaluations without a lower loss
        ([5, 6, 4, 6, 6], [1, 1, 1, 1, 0.5]),  # a lower one starts the count anew
        ([5, 5, 5], [1, 1, 0.5]),  # the same is not lower
        ([5, 6, 7, 6, 6], [1, 1, 0.5, 0.5, 0.25]),  # a drop starts it anew; the best stays 5
        ([5, 6, 7, 4, 6, 6], [1, 1, 0.5, 0.5, 0.5, 0.25]),
        ([5] * 9, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]),  # two drops and no more
    ],
)
def test_when_the_rate_drops(losses, scales):
    state = optax.chain(optax.identity(), scale_by_plateau()).init({})
    seen = []
    for loss in losses:
        state = observe(state, float(loss), **RULE)
        seen.append(float(plateau_scale(state)))
    assert seen == scales


def test_an_optimizer_without_a_plateau_stays_as_it_is():
    tx = make_optimizer(lambda step: 0.1, momentum=0.9, nesterov=False, weight_decay=0.1)
    state = tx.init({'kernel': jnp.ones(3)})
    after = observe(state, 1.0, **RULE)
    assert all(a is b for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True))
    assert plateau_scale(state) == 1.0


class Linear(nn.Module):
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, *, train=False):
        self.variable('batch_stats', 'unused', jnp.zeros, ())
        return nn.Dense(3)(x.reshape(len(x), -1))


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_a_resumed_run_drops_where_the_undisturbed_one_does(optimizer, tmp_path):
    """Stopped after each step in turn, the rates and the last state are the same to the bit."""
    mesh, rate = data_mesh(), lambda step: 0.1
    tx = make_optimizer(rate, optimizer=optimizer, clip_norm=1.0, plateau=True)
    init = make_init(Linear(), tx, 2, mesh)
    pixels = {'mean': (0.0,) * 3, 'std': (255.0,) * 3}
    step = jit_train_step(make_train_step(Linear(), tx, rate, **pixels), mesh)
    losses = [5, 6, 7, 4, 5, 6, 5, 6]  # after steps 1, 2, ...

    def go_on(directory, stop_at=None):
        checkpoints = Checkpointer(directory)
        restored = checkpoints.restore(init(jax.random.key(0)))
        state = restored[0] if restored else init(jax.random.key(0))
        rates = {}

        def evaluate(i, state):
            with jax.transfer_guard('allow'):
                seen = observe(state.opt_state, float(losses[i - 1]), **RULE)
            return state.replace(opt_state=seen)

        def next_batch(i):
            rng = np.random.default_rng(i)
            image = rng.integers(256, size=(8, 2, 2, 3), dtype=np.uint8)
            return shard_batch(mesh, {'image': image, 'label': np.arange(8, dtype=np.int32) % 3})

        run = SimpleNamespace(
            num_steps=len(losses),
            due=lambda what, i: what == 'eval',
            evaluate=evaluate,
            save=lambda i, state: checkpoints.save(i, state, {}),
            next_batch=next_batch,
            step=step,
            report=lambda i, metrics: rates.update({i: metrics['learning_rate'].item()}),
            stop_requested=lambda i: i == stop_at,
        )
        with contextlib.suppress(Preempted):
            state = train(run, state, int(state.step))
        return rates, state

    rates, state = go_on(tmp_path / 'whole')
    assert [round(rates[i], 6) for i in range(1, 9)] == [0.1] * 3 + [0.05] * 3 + [0.025] * 2
    for stop_at in (2, 3, 5):
        before, _ = go_on(tmp_path / str(stop_at), stop_at)
        after, resumed = go_on(tmp_path / str(stop_at))
        assert before | after == rates
        for got, want in zip(jax.tree.leaves(resumed), jax.tree.leaves(state), strict=True):
            assert np.asarray(got).tobytes() == np.asarray(want).tobytes()
