"""Saves a benchmark's results in `benchmarks/results`: machine, versions, figures, table."""

import configparser
import json
import os
import pathlib
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from se_flax.storage import write_text

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
    """Writes `NAME.json`, and `NAME.md` with the header and the table."""
    _write(name, {'head': head, **figures, 'rows': rows}, f'{head}\n\n{table}')


def update(
    name: str,
    head: str,
    rows: list[dict],
    key: Sequence[str],
    markdown: Callable[[list[dict]], str],
) -> None:
    """Replaces the rows of `NAME.json` that have the same `key`, and writes `NAME.md`.

    Each row keeps the header of its own run; `NAME.md` has a table for each header.
    """
    new = [[row[field] for field in key] for row in rows]
    kept = [row for row in read_rows(name) if [row[field] for field in key] not in new]
    rows = kept + [row | {'head': head} for row in rows]
    heads = dict.fromkeys(row['head'] for row in rows)
    tables = [f'{head}\n\n{markdown([r for r in rows if r["head"] == head])}' for head in heads]
    _write(name, {'rows': rows}, '\n\n'.join(tables))


def _write(name, content, text):
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f'{name}.json', f'{json.dumps(content, indent=1)}\n')
    write_text(RESULTS / f'{name}.md', f'{text}\n')
