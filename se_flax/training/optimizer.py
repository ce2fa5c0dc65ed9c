"""Learning rates as functions of the step, and SGD as the paper uses it."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from se_flax.errors import UserError, check_known
from se_flax.training.plateau import scale_by_plateau

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

    Args:
        schedule: 'constant'; 'step', multiplied by `drop_factor` at each of `drop_steps` (section
            5.1); 'cosine' or 'linear', from the end of the warm-up to 0 at `num_steps`; 'plateau',
            constant here, `make_optimizer` scales it.
        learning_rate: the peak.
        warmup_steps: steps of linear increase from 0; step `warmup_steps` has the peak.
        warmup_factor: fraction of the peak that the warm-up holds instead, unless 0.
        drop_steps: counted from the start of the run.

    >>> rate = make_schedule('step', 0.6, 100, drop_steps=(30, 60, 90))
    >>> [round(float(rate(step)), 4) for step in (29, 30, 60, 99)]
    [0.6, 0.06, 0.006, 0.0006]
    """
    check_known('schedule', schedule, SCHEDULES)
    if not 0 <= warmup_steps < num_steps:
        raise UserError(f'warm-up of {warmup_steps} steps must be shorter than {num_steps} steps')
    rest = num_steps - warmup_steps
    if schedule == 'cosine':
        main = optax.cosine_decay_schedule(learning_rate, rest)
    elif schedule == 'linear':
        main = optax.linear_schedule(learning_rate, 0.0, rest)
    elif schedule == 'step':
        drops = {step - warmup_steps: drop_factor for step in drop_steps}
        main = optax.piecewise_constant_schedule(learning_rate, drops)
    else:
        main = optax.constant_schedule(learning_rate)
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

    `g = grad + weight_decay w` for kernels, `v = momentum v + g`, `w = w - schedule(step) v`.
    With `plateau`, `plateau.observe` lowers the rate.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
        *([scale_by_plateau()] if plateau else []),
    )
