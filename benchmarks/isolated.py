"""Measures in separate processes, so that a failure costs one row and no memory."""

import multiprocessing
import re
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

SMALLEST = 16  # smallest batch after halving
_SPAWN = multiprocessing.get_context('spawn')
_OUT_OF_MEMORY = re.compile('out of memory|RESOURCE_EXHAUSTED|ALLOC_FAILED', re.IGNORECASE)


def in_new_process(function, *args):
    """Returns what the function returns there; raises what it raises."""
    with ProcessPoolExecutor(1, _SPAWN) as pool:
        return pool.submit(function, *args).result()


def summary(error):
    """Returns an error as a short line."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]


def can_halve(error, batch):
    """Returns whether memory was too small and half the batch may fit."""
    return batch // 2 >= SMALLEST and _OUT_OF_MEMORY.search(str(error)) is not None


def measured(job, parts, batch, deadline):
    """Yields a row for each part: what `job(parts, batch)` yields for it, or its `error`.

    The job runs in a new process. After an error or an abort, another process continues with the
    next part; if memory was too small, with the same part and half the batch. Each row has the
    part's own entries and its `batch`. Everything stops at the deadline (`time.monotonic`).
    """
    parts = list(parts)
    while parts and time.monotonic() < deadline:
        receiver, sender = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(target=_send, args=(sender, job, parts, batch))
        process.start()
        sender.close()
        figures = {}
        try:
            while parts and 'error' not in figures:
                figures = _receive(receiver, process, deadline)
                if 'halve' in figures:
                    print(f'{figures["error"]}; the batch is {batch // 2} now', flush=True)
                    batch //= 2
                else:
                    yield parts.pop(0) | {'batch': batch} | figures
        finally:
            process.kill()
            process.join()


def _send(sender, job, parts, batch):
    try:
        for figures in job(parts, batch):
            sender.send(figures)
    except Exception as error:
        traceback.print_exc()
        halve = {'halve': True} if can_halve(error, batch) else {}
        sender.send({'error': summary(error)} | halve)


def _receive(receiver, process, deadline):
    if not receiver.poll(max(0, deadline - time.monotonic())):
        return {'error': 'out of time'}
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return {'error': f'its process ended with exit code {process.exitcode}'}
