"""The training loop: in which order things happen, independent of models, files and data sets."""

from typing import Any, Protocol

import jax

from se_flax.training.state import TrainState


class Preempted(Exception):
    """The run was asked to stop and has saved the step in `args[0]`."""


class Run(Protocol):
    """What the loop calls; `i` counts the steps done; `report` raises if step i is not finite."""

    num_steps: int

    def due(self, what: str, i: int, /) -> bool: ...  # 'eval' or 'checkpoint'
    def stop_requested(self, i: int, /) -> bool: ...
    def step(self, state: TrainState, batch: Any, /) -> tuple[TrainState, Any]: ...
    def next_batch(self, i: int) -> Any: ...
    def report(self, i: int, metrics: Any) -> None: ...
    def evaluate(self, i: int, state: TrainState) -> TrainState: ...
    def save(self, i: int, state: TrainState) -> None: ...


def train(run: Run, state: TrainState, start: int) -> TrainState:
    """Trains from step `start` to `run.num_steps` and returns the last state.

    Always evaluates and saves the last step. Raises Preempted once saved if `stop_requested`.
    """
    pending = None  # number and metrics of the newest step, still on the device
    with jax.transfer_guard('disallow'):
        for i in range(start, run.num_steps + 1):
            final, restored = i == run.num_steps, i == start
            stopping = run.stop_requested(i) and not final
            evaluating = not restored and (final or run.due('eval', i))
            saving = not restored and (final or stopping or run.due('checkpoint', i))
            if pending and (evaluating or saving):
                # Raises if the step is not finite, before its state can become a checkpoint.
                run.report(*pending)
                pending = None
            if evaluating:
                # Before the save: a checkpoint stores the score of its own weights.
                state = run.evaluate(i, state)
            if saving:
                # Before the draw: "resume at i" is then the whole state of the data pipeline.
                run.save(i, state)
            if stopping:
                raise Preempted(i)
            if final:
                return state
            state, metrics = run.step(state, run.next_batch(i))
            if pending:
                # One step late: the host waits while the device already computes step i + 1.
                run.report(*pending)
            pending = i + 1, metrics
    return state
