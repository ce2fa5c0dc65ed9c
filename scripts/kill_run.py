"""Kills a training run at random moments, and compares the result with an undisturbed run.

    python scripts/kill_run.py --kills 20 --seed 0 --workdir runs/kill_test

Trains once into WORKDIR/reference, then into WORKDIR/killed-<seed>-1, -2, ... Each of these is
killed with SIGKILL and resumed until it ends, until there were enough kills in total. Half of the
kills come while a checkpoint is being written. Append `--config.FIELD=VALUE` to change the run.

Prints a table and a verdict. Exits with code 1 if a row of metrics.jsonl, DONE, or a bit of the
final state differs from the reference. Times are not compared.
"""

import argparse
import itertools
import json
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp

from se_flax.training.checkpoint import MANIFEST
from se_flax.training.metrics_log import TIMING, read_rows

TRAIN_MAIN = pathlib.Path(__file__).parents[1] / 'train_main.py'
# Long enough for twenty kills; one row per step, so that each step is compared.
FIELDS = ('num_steps=200', 'log_every_steps=1', 'checkpoint_every_steps=10', 'eval_every_steps=25')


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, or 1 if a killed run differs from the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/kill_test')
    args, fields = parser.parse_known_args(argv)
    fields = [*(f'--config.{field}' for field in FIELDS), *fields]

    reference = args.workdir / 'reference'
    began = time.monotonic()
    finish(start(reference, fields))
    seconds = time.monotonic() - began
    num_steps = read_rows(reference / 'metrics.jsonl')[-1]['step']
    rng = random.Random(args.seed)
    kills, wrong = 0, []
    print(f'{"kill":>4}  {"moment":<28}  {"checkpoint":>10}  {"step":>5}  rows so far')
    for number in itertools.count(1):
        workdir = args.workdir / f'killed-{args.seed}-{number}'
        ended = False
        while kills < args.kills and not ended:
            stride = max(1, 2 * num_steps // args.kills)
            name, reached = draw_moment(rng, kills, workdir, stride, seconds)
            process = start(workdir, fields)
            while process.poll() is None and not reached():
                time.sleep(0.0005)
            process.kill()
            if process.wait() != -signal.SIGKILL:
                finish(process)
                ended = True
                continue
            kills += 1
            found = row_differences(reference, workdir, so_far=True)
            wrong += found
            step = max((row['step'] for row in read_rows(workdir / 'metrics.jsonl')), default=0)
            verdict = 'DIFFERENT' if found else 'equal'
            print(f'{kills:>4}  {name:<28}  {whole_step(workdir):>10}  {step:>5}  {verdict}')
        if not ended:
            finish(start(workdir, fields))
        wrong += differences(reference, workdir)
        print(f'      {workdir} ended', flush=True)
        if kills == args.kills:
            break
    print(*wrong, sep='\n', end='\n' if wrong else '')
    verdict = (
        'NOT EQUAL to the undisturbed run' if wrong else 'bitwise equal to the undisturbed run'
    )
    print(f'{kills} kills, {number} {"run" if number == 1 else "runs"}: {verdict}')
    return int(bool(wrong))


def start(workdir: pathlib.Path, fields: list[str], process: str = '') -> subprocess.Popen:
    """Starts or resumes the run; appends its output to <workdir><process>.log."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with workdir.with_name(f'{workdir.name}{process}.log').open('ab') as log:
        command = [sys.executable, str(TRAIN_MAIN), f'--workdir={workdir}', *fields]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen) -> None:
    """Waits for a run that is not killed."""
    if process.wait():
        sys.exit(f'the run failed on its own with code {process.returncode}: {process.args}')


def draw_moment(
    rng: random.Random, number: int, workdir: pathlib.Path, stride: int, seconds: float
) -> tuple[str, Callable[[], bool]]:
    """Draws a moment to kill: returns its name, and a function that returns whether it has come.

    Cycles through four kinds: some milliseconds after a step, or after Orbax began to write, at
    most `stride` steps ahead; before the manifest is written; any time within `seconds`.
    """
    began = time.time()
    target = whole_step(workdir) + rng.randint(1, stride)

    def is_new(path):  # not what an earlier kill left behind
        try:
            return path.stat().st_mtime > began
        except FileNotFoundError:
            return False

    def after_a_step():
        path = workdir / 'metrics.jsonl'
        return is_new(path) and any(row['step'] >= target for row in read_rows(path))

    def while_orbax_writes():
        folders = workdir.glob('checkpoints/[0-9]*.*')
        return any(int(f.name.partition('.')[0]) >= target and is_new(f) for f in folders)

    def before_the_manifest():
        folders = [f for f in workdir.glob('checkpoints/[0-9]*') if f.name.isdecimal()]
        missing = (f for f in folders if not (f / MANIFEST).exists())
        return any(int(f.name) >= target and is_new(f) for f in missing)

    def at_any_time():
        return True

    condition, longest = (
        (after_a_step, 0.03),
        (while_orbax_writes, 0.03),
        (before_the_manifest, 0.0),
        (at_any_time, seconds),
    )[number % 4]
    delay = rng.uniform(0, longest)
    met = None

    def reached():
        nonlocal met
        if met is None and condition():
            met = time.monotonic()
        return met is not None and time.monotonic() >= met + delay

    return f'{condition.__name__.replace("_", " ")} + {1000 * delay:.0f} ms', reached


def whole_step(workdir: pathlib.Path) -> int:
    """Returns the newest step that has a manifest, or 0."""
    manifests = workdir.glob(f'checkpoints/[0-9]*/{MANIFEST}')
    return max((int(path.parent.name) for path in manifests), default=0)


def differences(reference: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    """Returns descriptions of the differences between a finished run and the reference."""
    found = row_differences(reference, workdir)
    done = (json.loads((folder / 'DONE').read_text()) for folder in (reference, workdir))
    theirs, ours = (json.dumps(each | {'goodput': None}) for each in done)
    if ours != theirs:
        found.append(f'{workdir}: DONE differs')
    ours, theirs = (
        read_state(d / 'checkpoints' / str(whole_step(d))) for d in (workdir, reference)
    )
    return found + [
        f'{workdir}: the final state differs at {name}'
        for name in sorted(ours | theirs)
        if name not in ours or name not in theirs or not bitwise(ours[name], theirs[name])
    ]


def row_differences(
    reference: pathlib.Path, workdir: pathlib.Path, so_far: bool = False
) -> list[str]:
    """Compares the rows of both as JSON, without times; with `so_far`, rows may be missing."""
    ours, theirs = (
        [
            {k: v for k, v in row.items() if k not in TIMING}
            for row in read_rows(d / 'metrics.jsonl')
        ]
        for d in (workdir, reference)
    )
    pairs = zip(ours, theirs, strict=False)
    found = [f'{workdir}: {a} is not {b}' for a, b in pairs if json.dumps(a) != json.dumps(b)]
    if len(ours) > len(theirs) or (len(ours) < len(theirs) and not so_far):
        found.append(f'{workdir}: {len(ours)} rows, not {len(theirs)}')
    return found


def read_state(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a checkpoint with Orbax alone; returns the leaves of the state by name."""
    folder = checkpoint.absolute()
    handler = ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler())
    with ocp.Checkpointer(handler) as orbax:
        tree = orbax.metadata(folder).item_metadata['state'].tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=as_numpy))
        state = orbax.restore(folder, args)['state']
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}


def bitwise(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether dtype, shape and each bit agree."""
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # only to read checkpoints here
    sys.exit(main(sys.argv[1:]))
