"""Learning rates as functions of the step, and the optimizers of the recipes."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from se_flax.errors import UserError, check_known

SCHEDULES = ('constant', 'step', 'cosine', 'linear', 'plateau')
OPTIMIZERS = ('sgd', 'adamw', 'lamb', 'rmsprop')


def make_schedule(
    schedule: str,
    learning_rate: float,
    num_steps: int,
    *,
    warmup_steps: int = 0,
    warmup_factor: float = 0.0,
    drop_steps: Sequence[int] = (),
    drop_factor: float = 0.1,
) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps done.

    In the warmup it rises linearly from 0, or is constant with a `warmup_factor`. Then it is
    'constant', is multiplied by `drop_factor` at each of `drop_steps` ('step', section 5.1), or
    falls to 0 at `num_steps` ('cosine', 'linear'). 'plateau' is constant here, and scaled by
    `make_optimizer`.

    >>> rate = make_schedule('step', 0.6, 100, drop_steps=(30, 60, 90))
    >>> [round(float(rate(step)), 4) for step in (29, 30, 60, 99)]
    [0.6, 0.06, 0.006, 0.0006]
    """
    check_known('schedule', schedule, SCHEDULES)
    if not 0 <= warmup_steps < num_steps:
        raise UserError(f'warmup of {warmup_steps} steps must be shorter than {num_steps} steps')
    main, rest = optax.constant_schedule(learning_rate), num_steps - warmup_steps
    if schedule == 'cosine':
        main = optax.cosine_decay_schedule(learning_rate, rest)
    elif schedule == 'linear':
        main = optax.linear_schedule(learning_rate, 0.0, rest)
    elif schedule == 'step':
        counts = Counter(drop_steps)  # two drops may round to one step
        drops = {step - warmup_steps: drop_factor**n for step, n in counts.items()}
        main = optax.piecewise_constant_schedule(learning_rate, drops)
    if not warmup_steps:
        return main
    start = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    if warmup_factor:
        start = optax.constant_schedule(warmup_factor * learning_rate)
    return optax.join_schedules([start, main], [warmup_steps])


def decays(params: Any) -> Any:
    """Returns a mask of what weight decay acts on: kernels, SE's included; no bias, no scale."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def make_optimizer(
    schedule: optax.Schedule,
    *,
    optimizer: str = 'sgd',
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: Sequence[float] = (0.9, 0.999),
    square_decay: float = 0.9,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    plateau: bool = False,
) -> optax.GradientTransformation:
    """Returns one of OPTIMIZERS, with weight decay on kernels only.

    'sgd' is Torch's, with the decay in the gradient: `g = grad + weight_decay w`,
    `v = momentum v + g`, `w = w - schedule(step) v`. Caffe has the rate inside `v`, which differs
    for some steps after a change of the rate. 'rmsprop' is TensorFlow's: the decay is in the
    gradient too, the average of squares starts at 1, epsilon is inside the root, and the momentum
    is that of updates already scaled by the rate. 'adamw' (arXiv 1711.05101) and 'lamb'
    (1904.00962) add the decay to Adam's direction; 'lamb' adapts the rate of kernels alone.

    Args:
        momentum: of 'sgd' and 'rmsprop'; `nesterov` is for 'sgd' only.
        betas: of 'adamw' and 'lamb'.
        square_decay: weight of the old average of squared gradients in 'rmsprop'.
        epsilon: of all but 'sgd'.
        clip_norm: largest norm of the whole gradient, which is scaled down to it; 0 for none.
        plateau: whether `observe` lowers the rate.
    """
    check_known('optimizer', optimizer, OPTIMIZERS)
    dropped = [scale_by_plateau()] if plateau else []
    decay = optax.add_decayed_weights(weight_decay, mask=decays)
    adam = optax.scale_by_adam(*betas, epsilon)
    squares = optax.scale_by_rms(square_decay, epsilon, initial_scale=1.0)
    trust = optax.masked(optax.scale_by_trust_ratio(), decays)
    rate = optax.scale_by_learning_rate(schedule)
    steps = {
        'sgd': [decay, optax.sgd(schedule, momentum, nesterov), *dropped],
        'adamw': [adam, decay, rate, *dropped],
        'lamb': [adam, decay, trust, rate, *dropped],
        'rmsprop': [decay, squares, rate, *dropped, optax.trace(momentum)],
    }
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return optax.chain(*clip, *steps[optimizer])


class Plateau(NamedTuple):
    """Scalars of the optimizer's state, so that they are in checkpoints."""

    scale: jax.Array  # factor of the rate
    best: jax.Array  # lowest loss so far
    waited: jax.Array  # evaluations since then
    drops: jax.Array  # so far


def scale_by_plateau() -> optax.GradientTransformation:
    """Scales updates by the factor that `observe` has reached."""

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        # Not infinity: a state that is not finite is never saved.
        return Plateau(jnp.ones(()), jnp.full((), jnp.finfo(jnp.float32).max), zero, zero)

    def update(updates, state, params=None):
        return jax.tree.map(lambda update: state.scale * update, updates), state

    return optax.GradientTransformation(init, update)


def plateau_scale(opt_state: optax.OptState) -> jax.Array | float:
    """Returns the current factor of the rate; 1 for an optimizer without a plateau."""
    plateau = optax.tree_utils.tree_get(opt_state, 'Plateau')
    return 1.0 if plateau is None else plateau.scale


def observe(
    opt_state: optax.OptState, loss: float, *, patience: int, factor: float, max_drops: int
) -> optax.OptState:
    """Returns the optimizer's state after an evaluation; the same without a plateau.

    After `patience` evaluations without a new lowest loss the rate is multiplied by `factor`, at
    most `max_drops` times (section 6 of the paper).

    >>> state = optax.chain(optax.identity(), scale_by_plateau()).init({})
    >>> for loss in (2.0, 1.0, 1.5, 1.0):
    ...     state = observe(state, loss, patience=2, factor=0.1, max_drops=3)
    >>> round(float(plateau_scale(state)), 6)
    0.1
    """
    plateau = optax.tree_utils.tree_get(opt_state, 'Plateau')
    if plateau is None:
        return opt_state
    after = _after(plateau, loss=loss, patience=patience, factor=factor, max_drops=max_drops)
    return optax.tree_utils.tree_set(opt_state, Plateau=after)


@partial(jax.jit, static_argnames=('patience', 'factor', 'max_drops'))
def _after(plateau, *, loss, patience, factor, max_drops):
    better = loss < plateau.best
    waited = jnp.where(better, 0, plateau.waited + 1)
    dropped = (waited >= patience) & (plateau.drops < max_drops)
    return Plateau(
        scale=jnp.where(dropped, factor, 1.0) * plateau.scale,
        best=jnp.where(better, loss, plateau.best),
        waited=jnp.where(dropped, 0, waited),
        drops=plateau.drops + dropped,
    )
