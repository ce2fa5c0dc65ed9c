"""Many processes that train one network: how they meet, agree and learn that one was lost."""

import ctypes
import os
import signal
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from se_flax.errors import UserError, check_at_least

Result = TypeVar('Result')
PEER_LOST = 69  # EX_UNAVAILABLE of sysexits.h
LOST = (
    'another process of this run is gone, or the JAX runtime failed here (see above); '
    'the same command in every process goes on from the last checkpoint'
)


def connect(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    heartbeat_seconds: int,
) -> None:
    """Joins the processes of a run; to be called before anything else of jax.

    Args:
        coordinator: `HOST:PORT` of process 0, or the variable JAX_COORDINATOR_ADDRESS; where there
            is neither, Cloud TPU, SLURM, Open MPI and Kubernetes tell all three.
        num_processes: of the whole run, or JAX_NUM_PROCESSES.
        process_id: 0 to `num_processes - 1`, or JAX_PROCESS_ID.
        heartbeat_seconds: of silence after which a process counts as lost.

    Raises:
        UserError: where one is missing or wrong, or the processes do not meet.
    """
    coordinator = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
    num_processes = _number('--num-processes', num_processes, 'JAX_NUM_PROCESSES')
    process_id = _number('--process-id', process_id, 'JAX_PROCESS_ID')
    if coordinator:
        host, _, port = coordinator.rpartition(':')
        if not host or not port.isdecimal():
            raise UserError(f'--coordinator={coordinator} must be HOST:PORT of process 0')
    if num_processes is not None and process_id is not None and not process_id < num_processes:
        raise UserError(
            f'--process-id={process_id} must be below --num-processes={num_processes}; '
            f'take 0 to {num_processes - 1}'
        )
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'the processes of this run did not meet: {reason} Give --coordinator=HOST:PORT '
            f'--num-processes=N --process-id=I, or start it by SLURM, Open MPI or on a TPU pod'
        ) from error
    _tell_on_abort()


def _number(flag: str, value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if value is None and text is not None:
        if not text.isdecimal():
            raise UserError(f'{variable}={text} must be a whole number')
        value = int(text)
    if value is not None:
        check_at_least(flag, value, 0)
    return value


def all_or_none(act: Callable[[], Result]) -> Result:
    """Acts in every process; where one raises UserError, all do."""
    failure = None
    try:
        result = act()
    except UserError as error:
        failure = error
    failed = multihost_utils.process_allgather(np.int32(failure is not None)).reshape(-1)
    if failure:
        raise failure
    if failed.any():
        raise UserError(f'process {failed.argmax()} could not go on, its output says why')
    return result


def on_first(act: Callable[[], Result]) -> Result | None:
    """Acts in process 0 alone; the others wait, and where it raises UserError all do.

    Returns what `act` does, None in the others.
    """
    return all_or_none(act if jax.process_index() == 0 else lambda: None)


def tell_all(number: int) -> int:
    """Returns process 0's number in every process; none goes on before all are here."""
    return int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def lost_a_peer(error: BaseException) -> bool:
    """Tells whether an error of the runtime means that another process is gone."""
    if not (jax.distributed.is_initialized() and isinstance(error, jax.errors.JaxRuntimeError)):
        return False
    # These two are this process's own matter: a device's memory, a mistake in the program.
    return not str(error).startswith(('RESOURCE_EXHAUSTED', 'INVALID_ARGUMENT'))


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number):
    os.write(2, f'error: {LOST}\n'.encode())
    os._exit(PEER_LOST)


def _tell_on_abort() -> None:
    """Makes an abort of jax's runtime, its answer to a lost process, a sentence and a code."""
    # Not `signal.signal`: Python would run its handler after the abort, which has no after.
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(int(signal.SIGABRT), _on_abort)
