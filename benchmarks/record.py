"""What a benchmark leaves in `benchmarks/results`: a head that says where, figures, a table."""

import json
import os
import pathlib
import platform
import re
from importlib.metadata import version

RESULTS = pathlib.Path(__file__).parent / 'results'


def processor() -> str:
    """Returns the processor and how many of its cores there are for us."""
    info = pathlib.Path('/proc/cpuinfo')
    names = re.findall(r'model name\s*: (.*)', info.read_text()) if info.exists() else []
    return f'{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores'


def versions(*packages: str) -> str:
    """Returns the packages with their versions."""
    return ', '.join(f'{name} {version(name)}' for name in packages)


def read_rows(name: str) -> list[dict]:
    """Returns the rows of `NAME.json`; none where it is not there."""
    path = RESULTS / f'{name}.json'
    return json.loads(path.read_text())['rows'] if path.exists() else []


def save(name: str, head: str, table: str, rows: list[dict], **figures) -> None:
    """Writes `NAME.json` and, with the head and the table, `NAME.md`."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({'head': head, **figures, 'rows': rows}, indent=1)
    (RESULTS / f'{name}.json').write_text(f'{text}\n')
    (RESULTS / f'{name}.md').write_text(f'{head}\n\n{table}\n')
