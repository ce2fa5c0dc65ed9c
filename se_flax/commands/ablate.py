"""`se-flax ablate` runs a study and writes its tables and figure."""

import argparse
import os
import re
import shlex
import sys
from typing import Any

from se_flax import tables
from se_flax.analysis.study import NETWORKS, STUDIES, Study, grid, networks
from se_flax.commands.common import add_command, names
from se_flax.errors import Problems, UserError, check_at_least, check_known
from se_flax.storage import as_path, is_remote, write_text

EXAMPLE = 'se-flax ablate squeeze --config quickstart --out runs/squeeze'
FLAGS = (
    *('--config', '--config.FIELD=VALUE', '--out', '--seeds', '--networks', '--vary'),
    *('--shard', '--runs', '--pilot', '--detect'),
)
EPILOG = (
    '--config.FIELD=VALUE sets a field of the config for all cells, as in training. The same '
    'command resumes a study; a larger --seeds adds runs.'
)


def add_to(commands: Any) -> None:
    text = 'run a study: several seeds of each cell, with a table and a figure'
    parser = add_command(commands, 'ablate', _run, text)
    parser.set_defaults(trains=True)
    parser.epilog = EPILOG
    option = parser.add_argument
    option('study', nargs='?', metavar='STUDY', help='default: list the studies and an example')
    option('--config', metavar='FILE[:ARGUMENT]', help='config of a network with SE')
    option('--out', metavar='DIR')
    option('--seeds', type=int, default=3, metavar='K', help='runs of each cell; default: 3')
    option('--networks', type=names, default=(), metavar='NAME,NAME')
    text = 'for grid (all combinations, the first is the baseline) and networks (each value)'
    option('--vary', action='append', default=[], metavar='FIELD=VALUE,VALUE', help=text)
    text = 'run part I (from 0) of N; SLURM array jobs set it; indexed Kubernetes jobs need /N'
    option('--shard', metavar='I/N', help=text)
    text = 'workdirs, which studies of one config may share; default: runs in --out'
    option('--runs', metavar='DIR', help=text)
    text = 'run --seeds of each cell; estimate how many the study needs, and how long it takes'
    option('--pilot', action='store_true', help=text)
    text = 'with --pilot: the difference to find, in points of top-1 error; default: 0.5'
    option('--detect', type=float, metavar='POINTS', help=text)


def _run(args: argparse.Namespace) -> int:
    if args.study is None:
        rows = [(name, study.title) for name, study in STUDIES.items()]
        rows += [('networks', f'{NETWORKS}: --networks NAME,NAME, for each --vary')]
        rows += [('grid', 'all combinations of any fields: --vary FIELD=VALUE,VALUE')]
        print(f'{tables.aligned(rows, left=2)}\n\nexample: {EXAMPLE}')
        return 0
    from se_flax.analysis import pilot, results
    from se_flax.analysis.ablate import ablate, check
    from se_flax.analysis.plan import RUNS, Plan, distinct, save_plan, shard_of
    from se_flax.training.config import parse_assignments
    from se_flax.training.loop import Preempted
    from se_flax.training.preemption import stop_signals

    problems = Problems()
    assignments = problems.check((), parse_assignments, args.rest, FLAGS)
    study = problems.check((), _study, args)
    problems.check((), check_at_least, '--seeds', args.seeds, 2 if args.pilot else 1)
    if args.detect is not None and not args.pilot:
        problems.add((), '--detect is for --pilot, which tells the number of seeds')
    if args.detect is not None and not 0.001 <= args.detect <= 100:
        problems.add((), f'--detect={args.detect:g} must be from 0.001 to 100 points')
    if is_remote(args.out or '') or is_remote(args.runs or ''):
        problems.add(
            (), 'a study appends to its logs, so its folders must be local, not in a bucket'
        )
    if not (args.config and args.out):
        problems.add((), f'a study needs --config and --out, such as {EXAMPLE}')
    problems.raise_all()
    out = as_path(args.out)
    runs = as_path(args.runs) if args.runs else out / RUNS
    plan = Plan(study, args.config, tuple(assignments), args.seeds, runs)
    steps = check(plan)
    shard_of(plan.tasks(), args.shard, os.environ)  # raises before anything is written
    plan = save_plan(out, plan)
    every = plan.tasks()  # the config's file may change before the last run ends
    tasks = shard_of(distinct(every), args.shard, os.environ)
    if text := pilot.beginning(tasks):
        print(text, flush=True)
    failed, stopped = [], None
    try:
        with stop_signals() as stop_requested:
            failed = ablate(plan, steps, every, tasks, stop_requested)
    except Preempted as error:
        stopped = error
    rows = results.write_results(out, plan, every)
    if rows:
        print('\n\n'.join(map(tables.aligned, results.both_tables(rows))))
    if stopped:
        raise stopped
    if args.pilot:
        command = re.sub(r' --(pilot|(detect|seeds)[ =]\S+)', '', shlex.join(sys.argv[1:]))
        page = pilot.page(plan, rows, args.detect or 0.5, f'se-flax {command}')
        write_text(out / 'pilot.md', page)
        print(f'\n{page}')
    for line in failed:
        print(f'failed: {line}', file=sys.stderr)
    picture = ', results.png' if rows else ''
    print(f'{out}: results.md, results.csv, results.jsonl{picture}')
    return 1 if failed else 0


def _study(args: argparse.Namespace) -> Study:
    check_known('study', args.study, [*STUDIES, 'networks', 'grid'])
    for option, studies in (('networks', ['networks']), ('vary', ['grid', 'networks'])):
        if getattr(args, option) and args.study not in studies:
            known = ' and '.join(studies)
            raise UserError(f'--{option} is for the study {known}, not for {args.study}')
    if args.study == 'networks':
        return networks(args.networks, args.vary)
    return grid(args.vary) if args.study == 'grid' else STUDIES[args.study]
