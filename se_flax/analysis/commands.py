"""The commands `se-flax ablate`, `analyze` and `report`."""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from se_flax import tables
from se_flax.analysis.study import NETWORKS, STUDIES, Study, grid, networks
from se_flax.errors import Problems, UserError, check_known
from se_flax.storage import as_path, atomic_write, check_writable, is_remote

EXAMPLE = 'se-flax ablate squeeze --config configs/quickstart.py --out runs/squeeze'
FLAGS = (
    *('--config', '--config.FIELD=VALUE', '--out', '--seeds', '--networks', '--vary'),
    *('--shard', '--runs'),
)
CHANNELS = 50  # of a block in the figures, as in the paper's
# The four classes of Figures 6 and 7: goldfish, pug, plane (an airliner) and cliff.
PAPER_CLASSES = ('n01443537', 'n02110958', 'n02690373', 'n09246464')


def add_commands(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the parsers; `command(of, name, run, text)` makes one."""
    ablate = command(
        commands,
        'ablate',
        _ablate,
        'run a study: its cells, each with several seeds, its tables and its picture',
    )
    ablate.epilog = (
        '--config.FIELD=VALUE sets a field of the config for all cells, as in training. The same '
        'command again goes on; with more --seeds it adds them.'
    )
    ablate.add_argument(
        'study', nargs='?', metavar='STUDY', help='without one they are listed, as is their start'
    )
    ablate.add_argument('--config', metavar='FILE[:ARGUMENT]', help='has SE')
    ablate.add_argument('--out', metavar='DIR')
    ablate.add_argument('--seeds', type=int, default=3, metavar='K', help='of a cell; default: 3')
    ablate.add_argument('--networks', type=_words, default=(), metavar='NAME,NAME')
    ablate.add_argument(
        '--vary',
        action='append',
        default=[],
        metavar='FIELD=VALUE,VALUE',
        help='of a grid: all combinations; the first is the baseline',
    )
    ablate.add_argument(
        '--shard',
        metavar='I/N',
        help='every N-th run from the I-th on; a SLURM array job needs none, an indexed '
        'Kubernetes job /N',
    )
    ablate.add_argument(
        '--runs', metavar='DIR', help='that studies of one config share; default: runs in --out'
    )

    analyze = commands.add_parser('analyze', help='of trained networks and of all networks')
    verbs = analyze.add_subparsers(required=True, metavar='COMMAND')
    excitation = command(verbs, 'excitation', _excitation, 'what the gates of a network do')
    network = excitation.add_mutually_exclusive_group(required=True)
    network.add_argument('--workdir', metavar='DIR', help='of a run')
    network.add_argument('--weights', type=pathlib.Path, metavar='FILE.safetensors')
    excitation.add_argument('--data', metavar='NAME', help="default: the run's own")
    excitation.add_argument('--data-dir', help="default: the run's own, or tfds's")
    excitation.add_argument(
        '--classes', type=_words, default=(), metavar='NAME,NAME', help='in the figures, up to 6'
    )
    excitation.add_argument(
        '--samples', type=int, default=50, metavar='N', help='images of a class; default: 50'
    )
    excitation.add_argument(
        '--out', metavar='DIR', help='default: excitation in the workdir, where `report` finds it'
    )

    complexity = command(verbs, 'complexity', _complexity, 'what SE costs, beside the paper')
    complexity.add_argument(
        '--networks', type=_words, default=('resnet50',), metavar='NAME,NAME', help='that are timed'
    )
    complexity.add_argument('--batch-size', type=int, default=8, metavar='B')
    complexity.add_argument(
        '--size', type=int, metavar='S', help="pixels; default: a network's own"
    )
    complexity.add_argument('--dtype', default='float32')
    complexity.add_argument('--out', metavar='FILE.md', help='the tables, too')

    curves = command(verbs, 'curves', _curves, 'training curves of several runs in one picture')
    curves.add_argument('workdirs', nargs='+', metavar='DIR')
    curves.add_argument('--out', default='curves.png', metavar='FILE.png')

    report = command(commands, 'report', _report, 'one HTML page of a study or a run')
    report.add_argument('directory', metavar='DIR')
    report.add_argument('--out', metavar='FILE.html', help='default: report.html in DIR')


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(',')))


def _studies() -> str:
    rows = [(name, study.title) for name, study in STUDIES.items()]
    rows += [('networks', f'{NETWORKS}: --networks NAME,NAME')]
    rows += [('grid', 'all combinations of any fields: --vary FIELD=VALUE,VALUE')]
    return f'{tables.aligned(rows, left=2)}\n\nto start one: {EXAMPLE}'


def _study(args: argparse.Namespace) -> Study:
    check_known('study', args.study, [*STUDIES, 'networks', 'grid'])
    if args.networks and args.study != 'networks':
        raise UserError(f'--networks belongs to the study networks, not to {args.study}')
    if args.vary and args.study != 'grid':
        raise UserError(f'--vary belongs to the study grid, not to {args.study}')
    if args.study == 'networks':
        return networks(args.networks)
    return grid(args.vary) if args.study == 'grid' else STUDIES[args.study]


def _ablate(args: argparse.Namespace) -> int:
    from rich.console import Console

    from se_flax.analysis.ablate import ablate, check
    from se_flax.analysis.plan import RUNS, Plan, save_plan, shard_of
    from se_flax.analysis.plots import draw_study, save
    from se_flax.analysis.results import table, write_results
    from se_flax.training.config import parse_assignments
    from se_flax.training.loop import Preempted
    from se_flax.training.preemption import EXIT_CODE, stop_signals

    if args.study is None:
        print(_studies())
        return 0
    problems = Problems()
    assignments = problems.check((), parse_assignments, args.rest, FLAGS)
    study = problems.check((), _study, args)
    if args.seeds < 1:
        text = f'--seeds {args.seeds}: at least 1, and 3 for an interval worth reading'
        problems.add((), UserError(text))
    if is_remote(args.out or '') or is_remote(args.runs or ''):
        text = 'a study is in folders of a disk, whose logs can grow; not in a bucket'
        problems.add((), UserError(text))
    if not (args.config and args.out):
        problems.add((), UserError(f'a study needs --config and --out, such as {EXAMPLE}'))
    problems.tell()
    directory = as_path(args.out)
    runs = as_path(args.runs) if args.runs else directory / RUNS
    plan = Plan(study, args.config, tuple(assignments), args.seeds, runs)
    steps = check(plan)
    shard_of(plan.tasks(), args.shard, os.environ)  # before anything is written
    plan = save_plan(directory, plan)
    tasks = shard_of(plan.tasks(), args.shard, os.environ)
    # rich takes FORCE_COLOR for a terminal; a log file must stay plain all the same.
    console = Console(file=sys.stdout, force_terminal=sys.stdout.isatty())
    stopped = failed = ()
    try:
        with stop_signals() as stop_requested:
            failed = ablate(plan, steps, tasks, console, stop_requested)
    except Preempted as stop:
        stopped = stop.args
    rows = write_results(directory, plan)
    if rows:
        save(draw_study(plan.study.title, rows), directory / 'results.png')
        print(tables.aligned(table(rows)))
    for line in failed:
        print(f'failed: {line}', file=sys.stderr)
    if stopped:
        print(
            f'stopped after step {stopped[0]} of a run, nothing is lost; the same command goes on'
        )
        return EXIT_CODE
    print(f'{directory}: results.md, results.csv, results.jsonl, results.png')
    return 1 if failed else 0


def _excitation(args: argparse.Namespace) -> None:
    from se_flax.analysis.excitation import (
        EXCITATION,
        measure_gates,
        remove_last_stage,
        se_blocks,
        shown,
        write_excitation,
    )
    from se_flax.analysis.plots import COLOURS, draw_between, draw_within, save
    from se_flax.evaluation.progress import Progress
    from se_flax.inference import open_eval_set, open_run, open_weights

    if args.samples < 1:
        raise UserError(f'--samples {args.samples}: at least 1 image of a class')
    trained = open_run(args.workdir) if args.workdir else open_weights(args.weights)
    config, network = trained.config, trained.network
    dataset = open_eval_set([trained], args.data, args.data_dir)
    names = dataset.class_names
    for name in args.classes:
        check_known(f'class of {dataset.name}', name, names)
    default = PAPER_CLASSES if set(PAPER_CLASSES) <= set(names) else names[:4]
    classes = {name: names.index(name) for name in args.classes or default}
    if len(classes) > len(COLOURS):
        raise UserError(f'--classes has {len(classes)} classes, a figure fits {len(COLOURS)}')
    out = as_path(args.out) if args.out else as_path(args.workdir or '.') / EXCITATION
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / 'excitation.md')
    blocks = se_blocks(network.model, network.variables, network.view.image_size)
    loading = {'batch_size': config.eval_batch_size, 'num_threads': config.num_threads or None}
    with Progress() as progress:
        gates = measure_gates(network, blocks, dataset, args.samples, seen=progress.show, **loading)
    with Progress() as progress:
        removal = remove_last_stage(network, blocks, gates, dataset, seen=progress.show, **loading)
    figure = [gates[blocks.index(block)] for block in shown(blocks)]
    save(draw_between(figure, classes, CHANNELS), out / 'between_classes.png')
    pair = dict(list(classes.items())[:2])
    save(draw_within(figure, pair, CHANNELS), out / 'within_classes.png')
    print(write_excitation(out, trained.name, dataset.name, args.samples, names, gates, removal))
    print(f'{out}: excitation.md, excitation.csv, between_classes.png, within_classes.png')


def _complexity(args: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp

    from se_flax.analysis.overhead import NOTE, count_table, measure, time_table

    check_known('dtype', args.dtype, ('float32', 'bfloat16'))
    for name in ('batch_size', 'size'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f'--{name.replace("_", "-")} {value}: at least 1')
    if args.out:
        check_writable(as_path(args.out))
    counts = count_table()
    print(tables.aligned(counts), end='\n\n', flush=True)
    timings = []
    for name in args.networks:
        timings += measure(
            name, batch_size=args.batch_size, image_size=args.size, dtype=jnp.dtype(args.dtype)
        )
    times = time_table(timings)
    device = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    note = f'{device}, jax {jax.__version__}, {args.dtype}. {NOTE}'
    print(tables.aligned(times, left=2), note, sep='\n\n')
    if args.out:
        page = [tables.markdown(counts), tables.markdown(times), note]
        atomic_write(as_path(args.out), ('\n\n'.join(page) + '\n').encode())


def _curves(args: argparse.Namespace) -> None:
    from se_flax.analysis.plots import COLOURS, draw_curves, save

    if len(args.workdirs) > len(COLOURS):
        raise UserError(f'{len(args.workdirs)} runs: a picture fits {len(COLOURS)}')
    runs = _histories(args.workdirs)
    save(draw_curves(runs), as_path(args.out))
    print(args.out)


def _histories(workdirs: Sequence[str]) -> dict[str, list[dict]]:
    """Returns the metrics of runs by the part of their paths that tells them apart."""
    from se_flax.training.metrics_log import read_rows
    from se_flax.training.workdir import read_config

    found = {}
    for workdir in dict.fromkeys(workdirs):
        read_config(as_path(workdir))
        found[workdir] = read_rows(as_path(workdir) / 'metrics.jsonl')
        if not found[workdir]:
            raise UserError(f'{workdir} has no metrics yet')
    if len(found) < 2:
        return found
    whole = [pathlib.PurePath(workdir).parts for workdir in found]
    same = len(os.path.commonprefix(whole))
    return dict(
        zip(('/'.join(parts[same:]) or '.' for parts in whole), found.values(), strict=True)
    )


def _report(args: argparse.Namespace) -> None:
    from se_flax.analysis.report import report

    directory = as_path(args.directory)
    out = as_path(args.out) if args.out else directory / 'report.html'
    atomic_write(out, report(directory).encode())
    print(out)
