"""Learning rates as functions of the step, and SGD as the paper uses it."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from se_flax.errors import UserError, check_known

SCHEDULES = ('constant', 'step', 'cosine', 'linear', 'plateau')


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
        drops = {step - warmup_steps: drop_factor for step in drop_steps}
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
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    plateau: bool = False,
) -> optax.GradientTransformation:
    """Returns SGD whose weight decay is added to the gradient before the momentum, as in Caffe.

    `g = grad + weight_decay w` for kernels, `v = momentum v + g`, `w = w - schedule(step) v`. With
    `plateau`, `observe` lowers the rate.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
        *([scale_by_plateau()] if plateau else []),
    )


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
