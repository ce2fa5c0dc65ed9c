"""One step of data-parallel training, a pure function of state and batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from se_flax.evaluation import in_top, normalize
from se_flax.parallel import DATA, replicated, split
from se_flax.training import xla
from se_flax.training.loss import mean_loss
from se_flax.training.mixing import Mixing, mix
from se_flax.training.optimizer import plateau_scale
from se_flax.training.state import TrainState

MIXING = 2**31  # folded into a step's key; devices and microbatches have smaller numbers
TrainStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    label_smoothing: float = 0.0,
    loss: str = 'softmax',
    bce_threshold: float = 0.0,
    mixing: Mixing | None = None,
    seed: int = 0,
    average: float = 0.0,
    average_warmup: bool = False,
    frozen_from: int | None = None,
    accumulate: int = 1,
    remat: bool = False,
    shard_optimizer: bool = False,
    mesh: Mesh | None = None,
) -> TrainStep:
    """Returns `(state, batch) -> (state, metrics)`; `jit_train_step` compiles it over a mesh.

    The batch holds `image` `[B, H, W, C]` uint8 and `label` `[B]` int32. The metrics are scalars:
    `loss`, `top1` and `top5` (means over the global batch, before the update), `learning_rate`,
    and `finite`: whether the loss, the gradient and the whole new state are. The label of a mixed
    image is the one with the larger share.

    Args:
        schedule: the learning rate of `tx`, for the metrics.
        mean, std: one number per channel, of pixels from 0 to 255.
        loss, bce_threshold: see `mean_loss`.
        mixing: mixes images and labels; its groups are the network's BatchNorm groups.
        seed: of dropout, Shake-Shake and mixtures, folded with the step.
        average: decay of an AveragedState's average; 0 for a TrainState.
        average_warmup: lets the decay rise to `average` as `(1 + step) / (10 + step)`.
        frozen_from: first step with BatchNorm's parameters and running statistics frozen.
        accumulate: microbatches per device, of whole BatchNorm groups; needs the batch's `mesh`.
        remat: stores only the outputs of convolutions and matrix products for the backward pass.
        shard_optimizer: the optimizer's arrays are split over the devices, see `make_init`.
    """

    loss_of = partial(mean_loss, loss=loss, bce_threshold=bce_threshold)

    def train_step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if mixing:
            drawn = mixing.draw(jax.random.fold_in(key, MIXING), batch['image'].shape)
            if mesh:  # else each device would draw a part, and wait for the others in each try
                drawn = jax.lax.with_sharding_constraint(drawn, replicated(mesh))
            batch = batch | {'mixture': drawn}
        network, frozen = model, None
        if frozen_from is not None:
            frozen = state.step >= frozen_from
            # One network with a traced switch: a branch for each would compile twice as long.
            network = model.clone(bn_frozen=frozen)
        gradients = partial(_gradients, network, (mean, std), label_smoothing, loss_of, remat)
        if accumulate > 1:
            gradients = _accumulated(gradients, accumulate, mesh)
        grads, batch_stats, metrics = gradients(state.params, state.batch_stats, batch, key)
        if not shard_optimizer:  # rows are split in other places, XLA would send them around
            grads = xla.in_rows(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if frozen is not None:
            params, batch_stats = _with_frozen_norms(frozen, state, params, batch_stats)
        new = state.replace(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
        )
        if average:
            variables = {'params': params, 'batch_stats': batch_stats}
            # In float32, or a float64 step would widen a float32 average.
            step = state.step.astype(jnp.float32)
            decay = jnp.minimum(average, (1 + step) / (10 + step)) if average_warmup else average
            moved = optax.incremental_update(variables, state.average, step_size=1 - decay)
            new = new.replace(average=moved)
        rate = schedule(state.step) * plateau_scale(state.opt_state)
        metrics |= {
            'learning_rate': jnp.asarray(rate, jnp.float32),
            # The loss alone is not enough: a ReLU fused into a reduction can drop a NaN in the
            # forward pass that the gradient has, and a finite loss can give an infinite state.
            'finite': xla.all_finite((metrics['loss'], grads, new)),
        }
        return new, metrics

    return train_step


def jit_train_step(train_step: TrainStep, mesh: Mesh, state: Any = None) -> TrainStep:
    """Jits a step over the mesh: batch split, state donated, sharded as `state` or replicated."""
    kept = replicated(mesh) if state is None else jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        train_step,
        in_shardings=(kept, split(mesh)),
        out_shardings=(kept, replicated(mesh)),
        donate_argnums=0,
    )


def _gradients(model, pixels, label_smoothing, loss_of, remat, params, batch_stats, batch, key):
    apply = partial(model.apply, train=True, mutable=['batch_stats'])
    if remat:
        apply = jax.checkpoint(apply, policy=_is_product)
    images, labels, mixture = batch['image'], batch['label'], batch.get('mixture')
    if mixture:
        images, others, share = mix(images, labels, mixture)
    images = normalize(images, *pixels, model.dtype)
    rngs = dict(zip(('dropout', 'shake'), jax.random.split(key), strict=True))

    def loss_fn(params):
        variables = {'params': params, 'batch_stats': batch_stats}
        logits, updates = apply(variables, images, rngs=rngs)
        one_hot = partial(jax.nn.one_hot, num_classes=logits.shape[-1], dtype=logits.dtype)
        targets = one_hot(labels)
        if mixture:
            targets = optax.incremental_update(targets, one_hot(others), share[:, None])
        targets = optax.smooth_labels(targets, label_smoothing)
        return loss_of(logits, targets), (logits, updates['batch_stats'])

    (loss, (logits, new_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    if mixture:
        labels = jnp.where(share < 0.5, others, labels)
    top1, top5 = (in_top(k, logits, labels).mean() for k in (1, 5))
    return grads, new_stats, {'loss': loss, 'top1': top1, 'top5': top5}


def _is_product(primitive, *args, **params) -> bool:
    # A `cond` is a convolution in the form that suits the platform.
    return primitive.name in ('conv_general_dilated', 'dot_general', 'cond')


def _accumulated(gradients: Callable[..., Any], times: int, mesh: Mesh) -> Callable[..., Any]:
    """Returns `gradients` as the mean over `times` microbatches of each device's part of a batch.

    All start from the same running statistics, so the mean of the new ones is one update by the
    mean over all groups. The devices communicate once, at the end.
    """

    def of_device(params, batch_stats, batch, key):
        key = jax.random.fold_in(key, jax.lax.axis_index(DATA))
        parts = jax.tree.map(lambda x: x.reshape(times, -1, *x.shape[1:]), batch)

        def one(number):
            part = jax.tree.map(lambda x: x[number], parts)
            return gradients(params, batch_stats, part, jax.random.fold_in(key, number))

        def add(number, total):
            return jax.tree.map(jnp.add, total, one(number))

        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, 0))
        total = jax.lax.fori_loop(0, times, add, zeros)
        return jax.lax.pmean(jax.tree.map(lambda x: x / times, total), DATA)

    whole, parted = PartitionSpec(), PartitionSpec(DATA)
    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(whole, whole, parted, whole),
        out_specs=whole,
        check_vma=False,  # otherwise each microbatch's gradients are summed over the devices
    )


def _with_frozen_norms(frozen: jax.Array, state: TrainState, params, batch_stats):
    # Selected, not updated by zero or averaged over microbatches: not a bit changes.
    keep = partial(jnp.where, frozen)
    batch_stats = jax.tree.map(keep, state.batch_stats, batch_stats)
    norms = {path[:-1] for path, _ in jax.tree_util.tree_leaves_with_path(batch_stats)}
    params = jax.tree_util.tree_map_with_path(
        lambda path, old, new: keep(old, new) if path[:-1] in norms else new, state.params, params
    )
    return params, batch_stats
