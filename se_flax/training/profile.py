"""A trace of some steps of a run, for XProf and TensorBoard's profiler."""

import contextlib
import pathlib
import tempfile
from collections.abc import Sequence

import jax

from se_flax.errors import UserError
from se_flax.storage import AnyPath
from se_flax.training.clock import Clock


def check_steps(steps: Sequence[float], num_steps: int) -> None:
    """Raises UserError unless `steps` is empty or the first and the last step of a trace."""
    valid = len(steps) == 2 and all(step == int(step) for step in steps)
    if steps and not (valid and 1 <= steps[0] <= steps[1] <= num_steps):
        first, last = min(100, num_steps), min(110, num_steps)
        raise UserError(
            f'profile_steps={tuple(steps)} must be the first and the last step to trace, from 1 to '
            f'{num_steps:,}, such as {first},{last}'
        )


class Trace(contextlib.AbstractContextManager):
    """Traces steps of this process into a folder: from `steps[0]` to `steps[1]`, if not empty."""

    def __init__(self, folder: AnyPath, steps: Sequence[int], clock: Clock):
        # Processes of one machine would write the same file.
        self._folder = folder / f'process{jax.process_index()}'
        self._first, self._last = steps or (1, 0)
        self._clock = clock
        self._local: tempfile.TemporaryDirectory | None = None  # the profiler knows no buckets

    def before(self, step: int) -> None:
        """Starts with the first of the steps that this process does."""
        self.step = step
        if self._first <= step <= self._last and not self._local:
            with self._clock.spending('other', 'starting the trace'):
                self._local = tempfile.TemporaryDirectory()
                jax.profiler.start_trace(self._local.name)

    def after(self, step: int) -> None:
        """Writes the trace once the last step has ended."""
        if not self._local or step < self._last:
            return
        local, self._local = self._local, None  # an error here must not stop the profiler twice
        with self._clock.spending('other', 'writing the trace'), local as written:
            jax.profiler.stop_trace()
            for file in pathlib.Path(written).rglob('*'):
                if file.is_file():
                    path = self._folder / file.relative_to(written)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(file.read_bytes())

    def __exit__(self, *exc_info):
        self.after(self._last)
