"""Out of memory, in one line: what was asked for, what there is, and what takes less."""

import contextlib
import os
import pathlib
import re
from typing import Any

import jax

from se_flax.errors import UserError

IN_TRAINING = (
    'to use less, lower --config.batch_size (with base_batch_size the rate follows), or set '
    '--config.accumulate=2, --config.remat=true or --config.dtype=bfloat16'
)
IN_USE = 'to use less, lower --batch-size'
_UNITS = {'': 1, 'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}


def explain(error: BaseException, helps: str) -> str | None:
    """Returns the line for an out-of-memory error of XLA, None for another error."""
    text = str(error)
    if not isinstance(error, jax.errors.JaxRuntimeError) or 'RESOURCE_EXHAUSTED' not in text:
        return None
    # CPUs and GPUs: "allocating 123 bytes", "allocate 1.5GiB"; TPUs: "Used 25.2G of 15.5G hbm".
    found = re.search(r'(?:allocat\w+|Used|request for) ([\d.]+)\s*([KMGT]?)i?(?:B|b|\b)', text)
    needed = float(found[1]) * _UNITS[found[2]] if found else None
    return _line(needed, available(), helps)


def check_step(compiled: jax.stages.Compiled, helps: str) -> None:
    """Raises UserError if a step needs more memory than a device has, if both are known."""
    stats: Any = None
    with contextlib.suppress(jax.errors.JaxRuntimeError, NotImplementedError):
        stats = compiled.memory_analysis()
    limit = available()
    if stats is None or limit is None:
        return
    inputs, outputs = stats.argument_size_in_bytes, stats.output_size_in_bytes
    needed = inputs + outputs - stats.alias_size_in_bytes + stats.temp_size_in_bytes
    if needed > limit:
        raise UserError(_line(needed, limit, helps))


def available() -> float | None:
    """Returns the bytes of a device; CPU devices share those of the machine."""
    device = jax.local_devices()[0]
    if device.platform != 'cpu':
        return (device.memory_stats() or {}).get('bytes_limit')
    limits = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or one without a limit, 'max'
        limits.append(int(pathlib.Path('/sys/fs/cgroup/memory.max').read_text()))
    return min(limits) / jax.local_device_count()


def _line(needed: float | None, limit: float | None, helps: str) -> str:
    wanted = f': {needed / 1e9:,.1f} GB needed' if needed else ''
    there = f', a device has {limit / 1e9:,.1f} GB' if limit else ''
    return f'out of memory{wanted}{there}; {helps}'
