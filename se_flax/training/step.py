"""One step of data-parallel training, a pure function of state and batch."""

import collections
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from se_flax.evaluation import in_top, normalize
from se_flax.parallel import DATA, replicated, split
from se_flax.training.plateau import plateau_scale
from se_flax.training.state import TrainState

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    label_smoothing: float = 0.0,
    seed: int = 0,
    average: float = 0.0,
    frozen_from: int | None = None,
    accumulate: int = 1,
    remat: bool = False,
    shard_optimizer: bool = False,
    mesh: Mesh | None = None,
) -> TrainStep:
    """Returns `(state, batch) -> (state, metrics)`; `jit_train_step` compiles it over a mesh.

    The batch holds `image` `[B, H, W, C]` uint8 and `label` `[B]` int32. The metrics are scalars:
    `loss`, `top1` and `top5` (means over the global batch, before the update), `learning_rate`,
    and `finite`: whether the loss, the gradient and the whole new state are. What a network draws
    (dropout, Shake-Shake's mixtures) is a function of `seed` and the number of the step, and where
    gradients are accumulated of the device and the microbatch as well.

    Args:
        model: network that is trained.
        tx: the optimiser.
        schedule: its learning rate, for the metrics.
        mean, std: a number a channel, of pixels from 0 to 255.
        label_smoothing: share of the target that all classes get.
        seed: of what the network draws.
        average: share of an AveragedState's average that a step keeps; 0 for a TrainState.
        frozen_from: number of the first step that leaves BatchNorm's parameters and running
            statistics as they are and normalises by the latter; None for no such step.
        accumulate: microbatches, one after another, into which each device splits its part of the
            batch. They hold whole BatchNorm groups, so the step is the large batch's to rounding.
        remat: keeps what convolutions and matrix products give for the backward pass, and computes
            the rest, normalised and activated maps, a second time.
        shard_optimizer: the state's optimiser lies in parts on the devices, so no gradient becomes
            a row on GPUs: its parts are others, and XLA would send them around.
        mesh: what the batch lies on, to accumulate.
    """

    def train_step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        network = model
        if frozen_from is not None:
            frozen = state.step >= frozen_from
            # One network with a choice, not a branch each: that would compile twice as long.
            network = model.clone(bn_frozen=frozen)
        gradients = _gradients(network, mean, std, label_smoothing, remat)
        if accumulate > 1:
            gradients = _accumulated(gradients, accumulate, mesh)
        grads, batch_stats, metrics = gradients(state.params, state.batch_stats, batch, key)
        if not shard_optimizer:
            grads = jax.lax.platform_dependent(grads, cuda=_in_rows, default=lambda grads: grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if frozen_from is not None:
            # Chosen, not added as zero or averaged over microbatches: not a bit changes.
            keep = partial(jnp.where, frozen)
            batch_stats = jax.tree.map(keep, state.batch_stats, batch_stats)
            params = jax.tree.map(
                lambda norm, old, new: keep(old, new) if norm else new,
                _of_norms(params, batch_stats),
                state.params,
                params,
            )
        new = state.replace(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
        )
        if average:
            variables = {'params': params, 'batch_stats': batch_stats}
            moved = optax.incremental_update(variables, state.average, step_size=1 - average)
            new = new.replace(average=moved)
        rate = schedule(state.step) * plateau_scale(state.opt_state)
        metrics |= {
            'learning_rate': jnp.asarray(rate, jnp.float32),
            # The loss alone is not enough: a ReLU fused into a reduction can drop a NaN on its
            # way forward, while the gradient has it; and a finite loss can leave an infinite state.
            'finite': _all_finite((metrics['loss'], grads, new)),
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


def _gradients(
    model: nn.Module, mean, std, label_smoothing: float, remat: bool
) -> Callable[..., Any]:
    """Returns `(params, batch_stats, batch, key) -> (gradients, new batch_stats, metrics)`."""

    apply = partial(model.apply, train=True, mutable=['batch_stats'])
    if remat:
        apply = jax.checkpoint(apply, policy=_is_product)

    def gradients(params, batch_stats, batch, key):
        images = normalize(batch['image'], mean, std, model.dtype)
        labels = batch['label']
        rngs = dict(zip(('dropout', 'shake'), jax.random.split(key), strict=True))

        def loss_fn(params):
            variables = {'params': params, 'batch_stats': batch_stats}
            logits, updates = apply(variables, images, rngs=rngs)
            targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
            targets = optax.smooth_labels(targets, label_smoothing)
            loss = optax.softmax_cross_entropy(logits, targets).mean()
            return loss, (logits, updates['batch_stats'])

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (logits, new_stats)), grads = grad_fn(params)
        metrics = {
            'loss': loss,
            'top1': in_top(1, logits, labels).mean(),
            'top5': in_top(5, logits, labels).mean(),
        }
        return grads, new_stats, metrics

    return gradients


def _is_product(primitive, *args, **params) -> bool:
    """Tells what `remat` keeps; a `cond` is a convolution in the form that the platform likes."""
    return primitive.name in ('conv_general_dilated', 'dot_general', 'cond')


def _accumulated(gradients: Callable[..., Any], times: int, mesh: Mesh) -> Callable[..., Any]:
    """Returns `gradients` as the mean over `times` microbatches of each device's part of a batch.

    All start from the same running statistics, so the mean of what they make of them is one update
    by the mean over all groups. The devices meet once, at the end.
    """

    def of_device(params, batch_stats, batch, key):
        key = jax.random.fold_in(key, jax.lax.axis_index(DATA))
        parts = jax.tree.map(lambda x: x.reshape(times, -1, *x.shape[1:]), batch)

        def one(number):
            part = jax.tree.map(lambda x: x[number], parts)
            return gradients(params, batch_stats, part, jax.random.fold_in(key, number))

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, 0))
        total = jax.lax.fori_loop(
            0, times, lambda i, total: jax.tree.map(jnp.add, total, one(i)), zeros
        )
        return jax.lax.pmean(jax.tree.map(lambda x: x / times, total), DATA)

    whole, parted = PartitionSpec(), PartitionSpec(DATA)
    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(whole, whole, parted, whole),
        out_specs=whole,
        check_vma=False,  # else each microbatch's gradients would be summed over the devices
    )


def _of_norms(params: Any, batch_stats: Any) -> Any:
    """Marks the parameters of modules that have running statistics."""
    norms = {path[:-1] for path, _ in jax.tree_util.tree_leaves_with_path(batch_stats)}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[:-1] in norms, params)


def _in_rows(grads: Any) -> Any:
    """Returns the gradients behind a barrier, where they were rows, and all vectors one row.

    So XLA for GPUs updates many vectors in one kernel, as they have an operand in common, and a
    convolution's kernel in one: a row has no layout that the update would take over from cuDNN. And
    what reads the old parameters does so before they are overwritten, without copies.
    """
    leaves, structure = jax.tree.flatten(grads)
    vectors, separate = ravel_pytree([leaf for leaf in leaves if leaf.ndim < 2])
    rows = [leaf.ravel() for leaf in leaves if leaf.ndim > 1]
    vectors, rows = jax.lax.optimization_barrier((vectors, rows))
    vectors, rows = iter(separate(vectors)), iter(rows)
    return jax.tree.unflatten(
        structure, [next(rows).reshape(x.shape) if x.ndim > 1 else next(vectors) for x in leaves]
    )


def _all_finite(tree: Any) -> jax.Array:
    """Tells whether all values are, in few passes over little.

    Those of a parameter's name (its gradient, its momentum) are looked at together, where the
    update has them at hand, and what is left are rows, which are one array.
    """
    named = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = tuple(key for key in path if isinstance(key, jax.tree_util.DictKey))
        named[name, leaf.shape].append(jnp.isfinite(leaf))
    finite = [reduce(jnp.logical_and, alike) for alike in named.values()]
    rows = [(x.all(-1) if x.ndim > 1 else x).ravel() for x in finite]
    return jax.lax.optimization_barrier(jnp.concatenate(rows)).all()  # else XLA reduces each
