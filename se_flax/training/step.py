"""One step of data-parallel training, a pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from se_flax.evaluation import in_top, normalize
from se_flax.parallel import replicated, split
from se_flax.training.state import TrainState

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    mean,
    std,
    label_smoothing: float = 0.0,
    seed: int = 0,
) -> TrainStep:
    """Returns `(state, batch) -> (state, metrics)`; `jit_train_step` compiles it over a mesh.

    The batch holds `image` `[B, H, W, 3]` uint8 and `label` `[B]` int32. The metrics are scalars:
    `loss`, `top1` and `top5` (means over the global batch, before the update), `learning_rate`,
    and `finite`: whether the loss, the gradient and the whole new state are. What a network draws
    (dropout, Shake-Shake's mixtures) is a function of `seed` and the number of the step.
    """

    def train_step(state, batch):
        images = normalize(batch['image'], mean, std, model.dtype)
        labels = batch['label']
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        rngs = dict(zip(('dropout', 'shake'), jax.random.split(key), strict=True))

        def loss_fn(params):
            logits, updates = model.apply(
                {'params': params, 'batch_stats': state.batch_stats},
                images,
                train=True,
                mutable=['batch_stats'],
                rngs=rngs,
            )
            targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
            targets = optax.smooth_labels(targets, label_smoothing)
            loss = optax.softmax_cross_entropy(logits, targets).mean()
            return loss, (logits, updates['batch_stats'])

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (logits, batch_stats)), grads = grad_fn(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, batch_stats, opt_state)
        metrics = {
            'loss': loss,
            'top1': in_top(1, logits, labels).mean(),
            'top5': in_top(5, logits, labels).mean(),
            'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
            # The loss alone is not enough: a ReLU fused into a reduction can drop a NaN on its
            # way forward, while the gradient has it; and a finite loss can leave an infinite state.
            'finite': _all_finite((loss, grads, new)),
        }
        return new, metrics

    return train_step


def jit_train_step(train_step: TrainStep, mesh: Mesh, state: Any = None) -> TrainStep:
    """Compiles a step over the mesh: batch split, state donated.

    `state` is a TrainState, abstract or not, whose shardings are kept; None replicates all.
    """
    kept = replicated(mesh) if state is None else jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        train_step,
        in_shardings=(kept, split(mesh)),
        out_shardings=(kept, replicated(mesh)),
        donate_argnums=0,
    )


def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
