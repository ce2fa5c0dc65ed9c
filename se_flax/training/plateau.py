"""A learning rate that drops when the validation loss stops decreasing (section 6 of the paper).

It is part of the optimizer's state, so a resumed run drops where the uninterrupted run does.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Plateau(NamedTuple):
    """Factor of the rate, best loss so far, evaluations since then, drops so far: scalars."""

    scale: jax.Array
    best: jax.Array
    waited: jax.Array
    drops: jax.Array


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
    """Returns the optimizer's state after an evaluation; without a plateau, the same state.

    After `patience` evaluations without a new lowest loss the rate is multiplied by `factor`, at
    most `max_drops` times.

    >>> import optax
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
