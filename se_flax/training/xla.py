"""Forms of a step's arithmetic that XLA compiles to fewer passes over memory; no number changes.

`docs/explanations/speed.md` has the bytes that they save.
"""

import collections
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree


def in_rows(grads: Any) -> Any:
    """Returns gradients that a GPU updates in few kernels; elsewhere they stay as they are.

    All vectors are one row, whose shared operand lets XLA update many in one kernel. Each other
    array is a row of its own, so that its update does not take over cuDNN's layout. The barrier
    orders what reads the old parameters before their update, which then needs no copies.
    """
    return jax.lax.platform_dependent(grads, cuda=_in_rows, default=lambda grads: grads)


def _in_rows(grads):
    leaves, structure = jax.tree.flatten(grads)
    vectors, separate = ravel_pytree([leaf for leaf in leaves if leaf.ndim < 2])
    rows = [leaf.ravel() for leaf in leaves if leaf.ndim > 1]
    vectors, rows = jax.lax.optimization_barrier((vectors, rows))
    vectors, rows = iter(separate(vectors)), iter(rows)
    return jax.tree.unflatten(
        structure, [next(rows).reshape(x.shape) if x.ndim > 1 else next(vectors) for x in leaves]
    )


def all_finite(tree: Any) -> jax.Array:
    """Returns whether all values are finite, a scalar.

    The arrays of one parameter (gradient, momentum, value) are tested together, where its update
    reads them anyway; the barrier keeps the rest one reduction.
    """
    named = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = tuple(key for key in path if isinstance(key, jax.tree_util.DictKey))
        named[name, leaf.shape].append(jnp.isfinite(leaf))
    finite = [reduce(jnp.logical_and, alike) for alike in named.values()]
    rows = [(x.all(-1) if x.ndim > 1 else x).ravel() for x in finite]
    return jax.lax.optimization_barrier(jnp.concatenate(rows)).all()
