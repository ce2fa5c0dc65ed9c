"""Saves a benchmark's results in `benchmarks/results`: machine, versions, figures, table."""

import configparser
import json
import os
import pathlib
import platform
import re
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from se_flax.storage import atomic_write

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'


def cpuinfo() -> dict[str, str]:
    """Returns Linux's description of the first processor, nothing elsewhere."""
    file = pathlib.Path('/proc/cpuinfo')
    text = file.read_text().partition('\n\n')[0] if file.exists() else ''
    return dict(re.findall(r'^(\S.*?)\s*: (.*)$', text, re.M))


def processor() -> str:
    """Returns the processor and the number of cores available to this process."""
    name = cpuinfo().get('model name', platform.machine())
    return f'{name}, {len(os.sched_getaffinity(0))} cores'


def spread(values: Sequence[float], form: str) -> str:
    """Returns the median and the range as text, '-' of no values."""
    if not values:
        return '-'
    low, middle, high = min(values), statistics.median(values), max(values)
    return f'{middle:{form}} ({low:{form}}-{high:{form}})'


def versions(*packages: str) -> str:
    """Returns the names and versions of packages."""
    return ', '.join(f'{name} {_version(name)}' for name in packages)


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        if name != 'se_flax':
            raise
        config = configparser.ConfigParser()
        config.read(ROOT / 'setup.cfg')
        return f'{config["metadata"]["version"]} (not installed)'


def read_rows(name: str) -> list[dict]:
    """Returns the rows of `NAME.json`, or none if it does not exist."""
    path = RESULTS / f'{name}.json'
    return json.loads(path.read_text())['rows'] if path.exists() else []


def save(name: str, head: str, table: str, rows: list[dict], **figures) -> None:
    """Writes `NAME.json`, and `NAME.md` with the header and the table, each atomically."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({'head': head, **figures, 'rows': rows}, indent=1)
    for kind, content in (('json', text), ('md', f'{head}\n\n{table}')):
        atomic_write(RESULTS / f'{name}.{kind}', f'{content}\n'.encode())
