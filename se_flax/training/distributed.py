"""Training by several processes: how they connect, agree and notice that one was lost."""

import ctypes
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from se_flax.errors import UserError, check_at_least
from se_flax.training.processes import Processes

log = logging.getLogger(__name__)
Result = TypeVar('Result')
PEER_LOST = 142  # next to `preemption.EXIT_CODE`, in the range that schedulers restart
PATIENCE = 15  # seconds to connect without a warning
LOST = (
    'another process of this run is gone, or the JAX runtime failed here (see above); '
    'to resume from the last checkpoint, run the same command in every process'
)


def connect(processes: Processes, *, heartbeat_seconds: int) -> None:
    """Connects the processes of a run; must be called before any other use of JAX.

    Defaults are JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, then those of Cloud
    TPU, SLURM, Open MPI or Kubernetes. A process counts as lost after `heartbeat_seconds` of
    silence. Only process 0 keeps its standard output.
    """
    coordinator, num_processes, process_id = processes
    coordinator = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
    num_processes = _number('--num-processes', num_processes, 'JAX_NUM_PROCESSES', least=1)
    process_id = _number('--process-id', process_id, 'JAX_PROCESS_ID', least=0)
    if coordinator:
        host, _, port = coordinator.rpartition(':')
        if not host or not port.isdecimal():
            raise UserError(f'--coordinator={coordinator} must be HOST:PORT of process 0')
    if num_processes is not None and process_id is not None and not process_id < num_processes:
        raise UserError(
            f'--process-id={process_id} must be below --num-processes={num_processes}; '
            f'use 0 to {num_processes - 1}'
        )
    names = 'heartbeat_timeout_seconds', 'shutdown_timeout_seconds'
    timeouts: Any = dict.fromkeys(names, heartbeat_seconds)
    waiting = threading.Timer(PATIENCE, _report_waiting)
    waiting.start()
    _report_aborts()  # JAX also aborts if the others do not come in time
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, **timeouts)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'the processes of this run did not connect: {reason} Set --coordinator=HOST:PORT '
            f'--num-processes=N --process-id=I, or start it with SLURM, Open MPI or on a TPU pod'
        ) from error
    finally:
        waiting.cancel()
    if jax.process_index() > 0:  # a log of many processes would repeat every line
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _report_waiting() -> None:
    # JAX waits for minutes without a word.
    address = getattr(global_state, 'coordinator_address', None) or 'an unknown address'
    host, _, port = address.rpartition(':')
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
        found = 'it answers, so other processes are missing'
    except (OSError, ValueError) as error:
        found = f'{error}; check the name, the port and the firewall'
    log.warning('not connected after %s s to process 0 at %s: %s', PATIENCE, address, found)


def _number(flag: str, value: int | None, variable: str, least: int) -> int | None:
    text = os.environ.get(variable)
    if value is None and text is not None:
        if not text.isdecimal():
            raise UserError(f'{variable}={text} must be a whole number')
        value = int(text)
    if value is not None:
        check_at_least(flag, value, least)
    return value


def all_or_none(act: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Calls `act` in every process; if it raises UserError in one, all raise."""
    failure = None
    try:
        result = act(*args, **kwargs)
    except UserError as error:
        failure = error
    failed = all_gather(failure is not None)
    if failure:
        raise failure
    if any(failed):
        raise UserError(f'process {failed.index(True)} failed; see its output')
    return result


def on_first(act: Callable[..., Result], *args: Any) -> Result | None:
    """Calls `act` in process 0; None in the others. If it raises UserError, all raise."""
    return all_or_none(act, *args) if jax.process_index() == 0 else all_or_none(lambda: None)


def all_gather(number: int) -> list[int]:
    """Returns each process's number in every process, once all have called this."""
    return multihost_utils.process_allgather(np.int32(number)).reshape(-1).tolist()


def broadcast(number: int) -> int:
    """Returns process 0's number in every process, once all have called this."""
    return int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def lost_a_peer(error: BaseException) -> bool:
    """Returns whether an error of the runtime means that another process is gone."""
    if not (jax.distributed.is_initialized() and isinstance(error, jax.errors.JaxRuntimeError)):
        return False
    # These two come from this process alone: its device's memory, a bug in the program.
    return not str(error).startswith(('RESOURCE_EXHAUSTED', 'INVALID_ARGUMENT'))


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number):
    os.write(2, f'error: {LOST}\n'.encode())
    os._exit(PEER_LOST)


def _report_aborts() -> None:
    # JAX's runtime aborts when a process is lost; this makes it a line and an exit code. Python
    # would run a handler of `signal.signal` only after the abort, that is never.
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(int(signal.SIGABRT), _on_abort)
