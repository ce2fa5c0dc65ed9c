"""Saves a benchmark's results in `benchmarks/results`: machine, versions, figures, table."""

import configparser
import json
import os
import pathlib
import platform
import re
from importlib.metadata import PackageNotFoundError, version

from se_flax.storage import atomic_write

RESULTS = pathlib.Path(__file__).parent / 'results'


def processor() -> str:
    """Returns the processor and the number of cores available to this process."""
    info = pathlib.Path('/proc/cpuinfo')
    names = re.findall(r'model name\s*: (.*)', info.read_text()) if info.exists() else []
    return f'{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores'


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
        config.read(pathlib.Path(__file__).parents[1] / 'setup.cfg')
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
