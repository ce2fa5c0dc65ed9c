"""The folder of a run: its config, its data, its result, and how to read them back."""

import glob
import json
import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from se_flax.data import Dataset
from se_flax.data.folder import printable
from se_flax.errors import MissingError, UserError
from se_flax.storage import AnyPath, is_remote, read_json, temporaries, without_lists, write_text
from se_flax.training import lock
from se_flax.training.config import ADDED, MACHINE_FIELDS, base_config

log = logging.getLogger(__name__)
CONFIG, DONE, CHECKPOINTS = 'config.json', 'DONE', 'checkpoints'
DATA, PARAMETERS, TIMES, PROFILE = 'data.json', 'parameters.txt', 'times.jsonl', 'profile'


def saved_config(config: ConfigDict, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the content of config.json."""
    return json.loads(config.to_json()) | {'class_names': list(class_names)}


def check(workdir: AnyPath, ours: Mapping[str, Any]) -> None:
    """Raises UserError unless a workdir is new, or its run has the same `saved_config`."""
    if not (workdir / CONFIG).exists():
        _check_folder(workdir)
        # A killed `claim` leaves only its lock and temporary files of `atomic_write`.
        left = {lock.FILE, *(path.name for path in temporaries(workdir / CONFIG))}
        if workdir.is_dir() and {path.name for path in workdir.iterdir()} - left:
            raise UserError(f'{workdir} is not empty but has no {CONFIG}; use another --workdir')
        return
    theirs = json.loads(json.dumps(ADDED)) | _read(workdir)  # with lists instead of tuples
    names = sorted((ours.keys() | theirs.keys()) - set(MACHINE_FIELDS))
    differing = [name for name in names if ours.get(name) != theirs.get(name)]
    if not differing:
        return
    each = [_difference(n, theirs.get(n), ours.get(n)) for n in differing]
    advice = 'Use another --workdir, or move that folder away'
    if {'num_epochs', 'num_steps'}.issuperset(differing):
        advice = (
            'The learning rate depends on the length of a run, so it cannot be extended. To train '
            f'longer from its weights: se-flax convert {shlex.quote(str(workdir))} --out '
            'FILE.safetensors, then this command with --config.init_from=FILE.safetensors '
            '--config.keep_head=true --workdir=NEW'
        )
    raise UserError(f'{workdir} holds a run with another config: {"; ".join(each)}. {advice}')


def _difference(name: str, was: Any, now: Any) -> str:
    if name != 'class_names' or {*was} == {*now}:
        return f'{name} was {was!r}, now {now!r}'
    # Of thousands only those that differ.
    changes = {'gone': sorted({*was} - {*now}), 'new': sorted({*now} - {*was})}
    told = [
        f'{len(names)} {what} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
        for what, names in changes.items()
        if names
    ]
    return f'{name}: {" and ".join(told)}'


def _check_folder(workdir: AnyPath) -> None:
    path = str(workdir if is_remote(workdir) else workdir.absolute())
    if glob.escape(path) != path:
        raise UserError(
            f'{path} has *, ? or [ in its name, below which Orbax does not find its checkpoints; '
            'use another --workdir'
        )
    if printable(path) != path:
        raise UserError(f'{path} is not UTF-8, which checkpoints need; use another --workdir')
    if is_remote(workdir):
        return
    parent = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise UserError(f'{parent} is a file, so {workdir} cannot be the folder of a run')
    if not os.access(parent, os.W_OK):
        raise UserError(f'{parent} is not writable; use another --workdir')


def fingerprints(**sets: Dataset) -> dict[str, dict[str, Any]]:
    """Returns the content of data.json."""
    return {n: {'examples': len(s), 'fingerprint': s.fingerprint()} for n, s in sets.items()}


def check_data(workdir: AnyPath, ours: Mapping[str, Any], *, allow_changes: bool = False) -> None:
    """Raises UserError, with `allow_changes` warns, if the data of the run have changed."""
    path = workdir / DATA
    theirs = read_json(path) if path.exists() else {}  # older runs have none
    changed = [
        f'{name} had {theirs[name]["examples"]:,} examples, now {now["examples"]:,}'
        for name, now in ours.items()
        if theirs.get(name, now) != now
    ]
    if not changed:
        return
    text = f'the data of {workdir} have changed: {"; ".join(changed)}'
    if not allow_changes:
        raise UserError(
            f'{text}. The order of all examples would change: restore the old ones, use another '
            f'--workdir, or resume anyway with --config.allow_changed_data=true'
        )
    log.warning('%s', text)


def claim(workdir: AnyPath, ours: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Writes config.json into a new workdir, and data.json."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / CONFIG).exists():
        write_text(workdir / CONFIG, json.dumps(ours, indent=2, sort_keys=True) + '\n')
    write_text(workdir / DATA, json.dumps(data, indent=2) + '\n')


def check_shared(workdir: AnyPath) -> None:
    """Raises UserError if a process does not see what the first has claimed."""
    end = time.monotonic() + 90  # NFS remembers for a minute that a file was missing
    while not (workdir / CONFIG).exists():
        if time.monotonic() > end:
            raise UserError(
                f'{workdir} is not the folder of process 0, which has a {CONFIG}; all processes '
                'need one --workdir in a shared folder or a bucket'
            )
        time.sleep(0.5)


def finish(workdir: AnyPath, result: Mapping[str, Any]) -> None:
    """Writes DONE, the last file of a run: its result."""
    write_text(workdir / DONE, json.dumps(result, sort_keys=True) + '\n')


def finished(workdir: AnyPath) -> dict[str, Any]:
    """Returns the result of a finished run, else {}."""
    done = workdir / DONE
    return read_json(done) if done.exists() else {}


def read_config(workdir: AnyPath) -> tuple[ConfigDict, tuple[str, ...]]:
    """Returns the config and the class names of a run; raises MissingError if there is none."""
    fields = without_lists(_read(workdir))
    class_names = fields.pop('class_names')
    config = base_config()
    config.update(fields)
    return config, class_names


def _read(workdir: AnyPath) -> dict[str, Any]:
    path = workdir / CONFIG
    if not path.exists():
        near = [p.parent for p in sorted(workdir.parent.glob(f'*/{CONFIG}'))]
        hint = f'; did you mean {" or ".join(map(str, near[:5]))}?' if near else ''
        raise MissingError(f'{workdir} is not the workdir of a run: it has no {CONFIG}{hint}')
    fields = read_json(path)
    if 'class_names' not in fields:
        raise MissingError(
            f'{workdir} is not the workdir of a run: its {CONFIG} has no class_names'
        )
    return fields
