"""`se-flax analyze` (gates, costs of SE, curves, studies) and `se-flax report`."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from se_flax import tables
from se_flax.commands import common
from se_flax.commands.common import add_command, names
from se_flax.errors import UserError, check_at_least, check_known
from se_flax.storage import as_path, check_writable, write_text

# The four classes of Figures 6 and 7: goldfish, pug, plane (an airliner) and cliff.
PAPER_CLASSES = ('n01443537', 'n02110958', 'n02690373', 'n09246464')


def add_to(commands: Any) -> None:
    verbs = common.add_group(commands, 'analyze', 'analyze trained networks and the costs of SE')
    parser = add_command(verbs, 'excitation', _excitation, 'measure the gates of a network')
    common.add_network(parser.add_mutually_exclusive_group(required=True))
    option = parser.add_argument
    option('--data', metavar='NAME', help="default: the run's own; required with --weights")
    option('--data-dir', help=common.DATA_DIR)
    text = 'shown in the figures, 6 at most'
    option('--classes', type=names, default=(), metavar='NAME,NAME', help=text)
    option('--samples', type=int, default=50, metavar='N', help='images per class; default: 50')
    option('--out', metavar='DIR', help='default: excitation in the workdir or here')

    text = 'compare the costs of SE with the paper'
    option = add_command(verbs, 'complexity', _complexity, text).add_argument
    option('--networks', type=names, default=('resnet50',), metavar='NAME,NAME', help='to time')
    option('--batch-size', type=int, default=8, metavar='B', help='default: 8')
    option('--size', type=int, metavar='S', help="pixels; default: each network's own")
    option('--dtype', default='float32', help='float32 (default) or bfloat16')
    option('--out', metavar='FILE.md', help='also write the tables to a file')

    text = 'draw the training curves of several runs'
    option = add_command(verbs, 'curves', _curves, text).add_argument
    option('workdirs', nargs='+', metavar='DIR')
    option('--out', default='curves.png', metavar='FILE.png')

    text = 'draw the differences of studies, from their results.jsonl'
    option = add_command(verbs, 'differences', _differences, text).add_argument
    option('studies', nargs='+', metavar='STUDY', help='the folder of a study')
    option('--out', default='differences.png', metavar='FILE.png')

    text = 'write one HTML page of a study or a run'
    option = add_command(commands, 'report', _report, text).add_argument
    option('directory', metavar='DIR')
    option('--out', metavar='FILE.html', help='default: report.html in DIR')


def _excitation(args: argparse.Namespace) -> None:
    from se_flax.analysis import excitation, plots
    from se_flax.inference import open_eval_set
    from se_flax.training.curves import save

    check_at_least('--samples', args.samples, 1)
    trained = common.open_network(args.network)
    network = trained.network
    dataset = open_eval_set([trained], args.data, args.data_dir)
    known = dataset.class_names
    for name in args.classes:
        check_known(f'class of {dataset.name}', name, known)
    default = PAPER_CLASSES if {*PAPER_CLASSES} <= {*known} else known[:4]
    classes = {name: known.index(name) for name in args.classes or default}
    if len(classes) > len(plots.COLORS):
        raise UserError(f'--classes: at most {len(plots.COLORS)}, not {len(classes)}')
    folder = '.' if trained.step is None else trained.name
    out = as_path(args.out or as_path(folder) / excitation.EXCITATION)
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / 'excitation.md')

    blocks = excitation.se_blocks(network.model, network.variables, network.view.image_size)
    config = trained.config
    loading = {'batch_size': config.eval_batch_size, 'num_threads': config.num_threads}
    loading |= {'max_corrupt': config.max_corrupt}
    gates = excitation.measure_gates(network, blocks, dataset, args.samples, **loading)
    removal = excitation.remove_last_stage(network, gates, dataset, **loading)
    shown = [g for g in gates if g.block in excitation.shown(blocks)]
    pair = dict(list(classes.items())[:2])
    save(plots.draw_gates(shown, classes), out / 'between_classes.png')
    save(plots.draw_gates(shown, pair, within=True), out / 'within_classes.png')
    print(excitation.write(out, trained.name, dataset, args.samples, gates, removal))
    print(f'{out}: excitation.md, excitation.csv, between_classes.png, within_classes.png')


def _complexity(args: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp

    from se_flax.analysis.overhead import NOTE, TIMES, count_table, measure

    check_known('dtype', args.dtype, ('float32', 'bfloat16'))
    check_at_least('--batch-size', args.batch_size, 1)
    if args.size is not None:
        check_at_least('--size', args.size, 1)
    if args.out:
        check_writable(as_path(args.out))
    counts = count_table()
    print(tables.aligned(counts), end='\n\n', flush=True)
    times = [TIMES]
    for name in args.networks:
        times += measure(name, args.batch_size, args.size, jnp.dtype(args.dtype))
    devices = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    note = f'{devices}, jax {jax.__version__}, {args.dtype}. {NOTE}'
    print(tables.aligned(times, left=2), note, sep='\n\n')
    if args.out:
        page = '\n\n'.join([tables.markdown(counts), tables.markdown(times), note])
        write_text(as_path(args.out), f'{page}\n')


def _curves(args: argparse.Namespace) -> None:
    from se_flax.analysis import plots
    from se_flax.training.curves import save
    from se_flax.training.metrics_log import read_rows
    from se_flax.training.workdir import read_config

    if len(args.workdirs) > len(plots.COLORS):
        raise UserError(
            f'a figure shows {len(plots.COLORS)} runs at most, not {len(args.workdirs)}'
        )
    runs = {}
    for name, workdir in _by_name(args.workdirs).items():
        read_config(as_path(workdir))  # raises if it is no run
        runs[name] = read_rows(as_path(workdir) / 'metrics.jsonl')
        if not runs[name]:
            raise UserError(f'{workdir} has no metrics yet')
    save(plots.draw_curves(runs), as_path(args.out))
    print(args.out)


def _by_name(folders: Sequence[str]) -> dict[str, str]:
    """Returns each folder by the part of its path that tells it from the others."""
    paths = {os.path.abspath(folder): folder for folder in folders}
    parent = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {os.path.relpath(path, parent): folder for path, folder in paths.items()}


def _differences(args: argparse.Namespace) -> None:
    from se_flax.analysis import plots, results
    from se_flax.training.curves import save

    studies = {}
    for name, study in _by_name(args.studies).items():
        rows = results.comparisons(results.read_results(as_path(study)))
        if not rows:
            raise UserError(f'{study} has no comparison yet')
        studies[name] = rows
    save(plots.draw_differences(studies), as_path(args.out))
    print(args.out)


def _report(args: argparse.Namespace) -> None:
    from se_flax.analysis.report import report

    directory = as_path(args.directory)
    out = as_path(args.out or directory / 'report.html')
    page = report(directory)
    check_writable(out)
    write_text(out, page)
    print(out)
