"""A learning rate that drops where the validation loss no longer does (section 6 of the paper).

Its memory is a part of the optimiser's state, so a checkpoint has it and a resumed run drops where
the undisturbed one does.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Plateau(NamedTuple):
    """Share of the rate that is left, least loss so far, evaluations since, drops: scalars."""

    scale: jax.Array
    best: jax.Array
    waited: jax.Array
    drops: jax.Array


def scale_by_plateau() -> optax.GradientTransformation:
    """Scales updates by what `observe` has left of the rate."""

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        # Not infinity: a state with anything that is not finite is never saved.
        return Plateau(jnp.ones(()), jnp.full((), jnp.finfo(jnp.float32).max), zero, zero)

    def update(updates, state, params=None):
        return jax.tree.map(lambda update: state.scale * update, updates), state

    return optax.GradientTransformation(init, update)


def plateau_scale(opt_state: optax.OptState) -> jax.Array | float:
    """Returns the share of the rate that is left; 1 where the optimiser has no plateau."""
    return next((state.scale for state in _parts(opt_state) if _is_plateau(state)), 1.0)


def observe(
    opt_state: optax.OptState, loss: float, *, patience: int, factor: float, max_drops: int
) -> optax.OptState:
    """Returns the optimiser's state after an evaluation; without a plateau in it, the same.

    After `patience` evaluations without a loss below the least so far, the rate is multiplied by
    `factor`, `max_drops` times in all.

    >>> import optax
    >>> state = optax.chain(optax.identity(), scale_by_plateau()).init({})
    >>> for loss in (2.0, 1.0, 1.5, 1.0):
    ...     state = observe(state, loss, patience=2, factor=0.1, max_drops=3)
    >>> round(float(plateau_scale(state)), 6)
    0.1
    """
    after = partial(_after, loss=loss, patience=patience, factor=factor, max_drops=max_drops)
    return jax.tree.map(
        lambda state: after(state) if _is_plateau(state) else state,
        opt_state,
        is_leaf=_is_plateau,
    )


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


def _is_plateau(state: Any) -> bool:
    return isinstance(state, Plateau)


def _parts(opt_state: optax.OptState) -> list[Any]:
    return jax.tree.leaves(opt_state, is_leaf=_is_plateau)
