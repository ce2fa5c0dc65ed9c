"""The training loop: the order of things, and nothing of models, files or data sets."""

from collections.abc import Callable
from typing import Any

import jax

from se_flax.training.state import TrainState


class Preempted(Exception):
    """The run was asked to stop and has saved the step in `args[0]`."""


def train(
    state: TrainState,
    *,
    start: int,
    num_steps: int,
    due: Callable[[str, int], bool],
    evaluate: Callable[[int, TrainState], TrainState],
    save: Callable[[int, TrainState], None],
    batch: Callable[[int], Any],
    step: Callable[..., tuple[TrainState, Any]],
    report: Callable[[int, Any], None],
    stop_requested: Callable[[int], bool],
) -> TrainState:
    """Trains from step `start` to `num_steps`; returns the last state.

    The order within a turn is fixed: report what is pending, evaluate, save, draw, step.
    `report(i, metrics)` raises where step i is not finite; `due('eval', i)` and
    `due('checkpoint', i)` say what follows step i, and the last step has both. A state that came
    from a checkpoint has had both already. `evaluate` returns the state with what it has learnt.

    Raises:
        Preempted: after the save that `stop_requested` asked for.
    """
    pending = None  # number and metrics of the newest step, still on the device
    with jax.transfer_guard('disallow'):
        for i in range(start, num_steps + 1):
            final, fresh = i == num_steps, i > start
            stopping = stop_requested(i) and not final
            evaluating = fresh and (final or due('eval', i))
            saving = fresh and (final or stopping or due('checkpoint', i))
            if pending and (evaluating or saving):
                # Raises on a non-finite step, before that state can become a checkpoint.
                report(*pending)
                pending = None
            if evaluating:
                # Before the save: a checkpoint carries the score of its own weights.
                state = evaluate(i, state)
            if saving:
                # Before the draw: "resume at i" is all there is to know about the data.
                save(i, state)
            if stopping:
                raise Preempted(i)
            if final:
                return state
            state, metrics = step(state, batch(i))
            if pending:
                # One step late: the host waits while the device already works on step i.
                report(*pending)
            pending = i + 1, metrics
    return state
