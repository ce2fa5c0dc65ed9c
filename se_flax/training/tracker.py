"""The rows of a run passed on to an experiment tracker, which can neither end nor stop the run."""

import contextlib
import importlib
import importlib.util
import logging
import os
import pathlib
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from se_flax.errors import UserError, check_known
from se_flax.storage import AnyPath, is_remote

log = logging.getLogger(__name__)
LONGEST_END = 30  # seconds that a run waits for its tracker at the end

Row: TypeAlias = Mapping[str, Any]
Write: TypeAlias = Callable[[Row], object]
# Called once with the fields of the config and the workdir.
Open: TypeAlias = Callable[[dict[str, Any], str], contextlib.AbstractContextManager[Write]]


@contextlib.contextmanager
def _wandb(config: dict[str, Any], workdir: str) -> Iterator[Write]:
    import wandb

    # In a bucket each process is a run of its own.
    known = [path.stem for path in pathlib.Path(workdir).glob('wandb/*run-*/run-*.wandb')]
    same = {'id': known[0].removeprefix('run-'), 'resume': 'allow'} if known else {}
    folder = None if is_remote(workdir) else workdir
    with wandb.init(config=config, dir=folder, name=workdir, **same) as run:
        yield lambda row: run.log(_named(row), step=row['step'])


@contextlib.contextmanager
def _mlflow(config: dict[str, Any], workdir: str) -> Iterator[Write]:
    import mlflow

    same = {'filter_string': f'tags.workdir = "{workdir}"', 'output_format': 'list'}
    known = [run.info.run_id for run in mlflow.search_runs(**same, max_results=1)]
    options = {'run_id': known[0]} if known else {'run_name': workdir, 'tags': {'workdir': workdir}}
    with mlflow.start_run(**options):
        if not known:
            mlflow.log_params(config)
        yield lambda row: mlflow.log_metrics(_named(row), step=row['step'])


TRACKERS: dict[str, Open] = {'wandb': _wandb, 'mlflow': _mlflow}


def find(name: str) -> Open:
    """Returns the tracker of TRACKERS or `module:function`; raises UserError if there is none."""
    module, colon, function = name.partition(':')
    if not colon:
        check_known('tracker', name, [*TRACKERS, 'MODULE:FUNCTION'])
        if not importlib.util.find_spec(name):
            raise UserError(f'tracker={name} needs its package; pip install {name}')
        return TRACKERS[name]
    if '' not in sys.path:
        sys.path.append('')  # a console script does not look in the current folder
    try:
        found = vars(importlib.import_module(module))
    except Exception as error:  # anything that the user's module may raise
        raise UserError(f'tracker={name}: {type(error).__name__}: {error}') from error
    known = [name for name, value in found.items() if callable(value)]
    check_known(f'function of {module}', function, known)
    return found[function]


class Tracker(contextlib.AbstractContextManager):
    """Passes rows on in a thread; a tracker that fails or hangs is a warning.

    `name` is as in `find`; for '' nothing is passed on.
    """

    def __init__(self, name: str, config: dict[str, Any], workdir: AnyPath):
        self._name = name
        self._rows: queue.Queue[Row | None] = queue.Queue(maxsize=10_000)
        place = os.fspath(workdir) if is_remote(workdir) else os.path.abspath(workdir)
        self._thread = threading.Thread(target=self._pass_on, args=(config, place), daemon=True)
        if name:
            self._thread.start()

    def write(self, row: Row | None) -> None:
        """Passes on a row of metrics; None is the end."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):  # it hangs; reported at the end
                self._rows.put_nowait(row)

    def __exit__(self, *exc_info):
        self.write(None)
        if self._name:
            self._thread.join(LONGEST_END)
        if self._thread.is_alive():
            log.warning('tracker %s has not taken all rows; not waiting for it', self._name)

    def _pass_on(self, config: dict[str, Any], workdir: str) -> None:
        try:
            with find(self._name)(config, workdir) as write:
                for row in iter(self._rows.get, None):
                    write(row)
        except BaseException as error:  # SystemExit included
            text = f'{type(error).__name__}: {error}'
            log.warning('tracker %s failed (%s); the run continues without it', self._name, text)


def _named(row: Row) -> dict[str, float]:
    split = row['split']
    return {f'{split}/{name}': row[name] for name in row if name not in ('step', 'split')}
