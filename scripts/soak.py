"""Disturbs a run of several processes repeatedly, and compares it with an undisturbed run.

    python scripts/soak.py --processes 2 --kills 50 --seed 0 --workdir runs/soak

Trains once into WORKDIR/reference, then into WORKDIR/disturbed-<seed>. After some steps it sends a
signal to a process, both chosen by the seed, waits until all processes have ended, and starts them
again. SIGTERM, SIGUSR1 and SIGINT must end each process with code 143. After SIGKILL the others
must end within a minute with code 142. Append `--config.FIELD=VALUE` to change the run.

Prints a line per kill and a verdict. Exits with code 1 if an exit code is wrong, or if a row of
metrics.jsonl, DONE, or a bit of the final state differs from the reference. Times are not compared.
"""

import argparse
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
from kill_run import differences, finish, start, whole_step

from se_flax.training.distributed import PEER_LOST
from se_flax.training.metrics_log import read_rows
from se_flax.training.preemption import EXIT_CODE

FIELDS = (
    *('num_steps=1000', 'log_every_steps=1', 'checkpoint_every_steps=5', 'eval_every_steps=250'),
    *('heartbeat_seconds=10', 'keep_checkpoints=2'),
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
DEVICES = 2  # per process
PATIENCE = 60  # seconds until all must have ended


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, or 1 if the disturbed run differs from the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/soak')
    args, fields = parser.parse_known_args(argv)
    fields = [*(f'--config.{field}' for field in FIELDS), *fields]

    reference, workdir = args.workdir / 'reference', args.workdir / f'disturbed-{args.seed}'
    for process in start_all(args.processes, reference, fields):
        finish(process)
    num_steps = read_rows(reference / 'metrics.jsonl')[-1]['step']
    rng, wrong = random.Random(args.seed), []
    print('kill  signal   process  ended after  checkpoint  codes')
    for kill in range(1, args.kills + 1):
        number, victim = rng.choice(SIGNALS), rng.randrange(args.processes)
        steps, delay = rng.randint(1, max(1, num_steps // args.kills - 6)), rng.uniform(0, 0.1)
        processes = start_all(args.processes, workdir, fields)
        began, target = time.time(), whole_step(workdir) + steps
        while not reached(workdir, target, began) and all(p.poll() is None for p in processes):
            time.sleep(0.02)
        time.sleep(delay)
        processes[victim].send_signal(number)
        seconds, codes = end(processes)
        wanted = [PEER_LOST if number == signal.SIGKILL else EXIT_CODE] * args.processes
        if number == signal.SIGKILL:
            wanted[victim] = -signal.SIGKILL
        if codes != wanted:
            wrong.append(f'kill {kill}: the codes are {codes}, not {wanted}')
        name = signal.Signals(number).name
        print(
            f'{kill:>4}  {name:<7}  {victim:>7}  {seconds:>9.1f} s  {whole_step(workdir):>10}  '
            f'{" ".join(map(str, codes))}',
            flush=True,
        )
    for process in start_all(args.processes, workdir, fields):
        finish(process)
    wrong += differences(reference, workdir)
    print(*wrong, sep='\n', end='\n' if wrong else '')
    verdict = (
        'NOT AS EXPECTED' if wrong else 'each code right, bitwise equal to the undisturbed run'
    )
    print(f'{args.kills} kills of {args.processes} processes: {verdict}')
    return int(bool(wrong))


def start_all(number: int, workdir: pathlib.Path, fields: list[str]) -> list[subprocess.Popen]:
    """Starts the processes of a run; appends their output to <workdir>-<process>.log."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    fields = [*fields, f'--coordinator=127.0.0.1:{port}', f'--num-processes={number}']
    return [start(workdir, [*fields, f'--process-id={i}'], f'-{i}') for i in range(number)]


def reached(workdir: pathlib.Path, step: int, began: float) -> bool:
    """Returns whether the run has written a row of that step since the time `began`."""
    rows = read_rows(workdir / 'metrics.jsonl')
    return any(row['step'] >= step and row['time'] > began for row in rows)


def end(processes: list[subprocess.Popen]) -> tuple[float, list[int | None]]:
    """Waits for all; returns the seconds it took and the exit codes, None for one that hangs."""
    began = time.monotonic()
    while any(p.poll() is None for p in processes) and time.monotonic() < began + PATIENCE:
        time.sleep(0.01)
    seconds, codes = time.monotonic() - began, [p.poll() for p in processes]
    for process in processes:
        process.kill()
        process.wait()
    return seconds, codes


if __name__ == '__main__':
    os.environ['JAX_NUM_CPU_DEVICES'] = str(DEVICES)
    jax.config.update('jax_platforms', 'cpu')  # only to read checkpoints here
    sys.exit(main(sys.argv[1:]))
