"""Pictures of studies, runs and gates."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from se_flax.analysis.excitation import Gates
from se_flax.storage import AnyPath, atomic_write
from se_flax.training.curves import moving_mean

# Okabe and Ito's palette, told apart by every kind of colour vision; black is for the whole.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
INK = '#222222'


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format='png')
    return file.getvalue()


def save(figure: Figure, path: AnyPath) -> None:
    """Writes a figure as PNG, atomically."""
    atomic_write(path, png(figure))


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes) -> None:
    axes.grid(color='0.9')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)


def draw_study(title: str, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Returns the top-1 error of each cell, a dot a seed and their mean, beside the paper's."""
    figure = _figure(9, 1.6 + 0.4 * len(rows))
    ours, papers = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    places = np.arange(len(rows))
    for place, row in zip(places, rows, strict=True):
        seeds = row['top1_error']
        ours.plot(seeds, [place] * len(seeds), 'o', color=COLOURS[5], markersize=5)
        ours.plot(row['top1_error_mean'], place, '|', color=INK, markersize=16, markeredgewidth=2)
        if row['paper_top1_error'] is not None:
            papers.plot(row['paper_top1_error'], place, 's', color=COLOURS[1], markersize=6)
    ours.plot([], [], 'o', color=COLOURS[5], label='a seed')
    ours.plot([], [], '|', color=INK, markersize=12, markeredgewidth=2, label='mean')
    papers.plot([], [], 's', color=COLOURS[1], label='the paper')
    ours.set_yticks(places, [row['cell'] for row in rows])
    ours.invert_yaxis()
    ours.set(xlabel='top-1 error (%)')
    papers.set(xlabel='top-1 error on ImageNet (%)')
    for axes in (ours, papers):
        _tidy(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(y=0.5 / max(len(rows), 1))
    figure.suptitle(title, fontsize=11)
    figure.legend(loc='outside lower center', ncols=3, frameon=False)
    return figure


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Returns training loss and evaluation error by step of up to six runs (Figure 4).

    Args:
        runs: rows of `metrics.jsonl` by the name in the legend.
    """
    figure = _figure(9, 4.2)
    loss, error = figure.subplots(1, 2)
    for (name, rows), colour in zip(runs.items(), COLOURS, strict=False):
        train, evaluations = [[r for r in rows if r['split'] == s] for s in ('train', 'eval')]
        means = moving_mean(np.array([r['loss'] for r in train]), len(train) // 20 | 1)
        style = {'color': colour, 'linewidth': 1.5}
        loss.plot([r['step'] for r in train], means, label=name, **style)
        errors = [100 * (1 - r['top1']) for r in evaluations]
        error.plot([r['step'] for r in evaluations], errors, marker='o', markersize=3, **style)
    loss.set(xlabel='training step', ylabel='training loss (nats)')
    error.set(xlabel='training step', ylabel='top-1 error, all evaluation images (%)')
    for axes in (loss, error):
        _tidy(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.legend(loc='outside lower center', ncols=min(len(runs), 3), frameon=False)
    return figure


def draw_between(gates: Sequence[Gates], classes: Mapping[str, int], channels: int) -> Figure:
    """Returns the mean gates of some classes and of all images, a panel a block (Figure 6).

    Args:
        gates: of the blocks to show.
        classes: their numbers by name.
        channels: so many of each block, evenly spaced.
    """
    figure, panels = _panels(gates)
    for axes, block in zip(panels, gates, strict=True):
        at = sampled(block.channels, channels)
        for (name, number), colour in zip(classes.items(), COLOURS, strict=False):
            axes.plot(block.mean[number][at], color=colour, linewidth=1.1, label=name)
        axes.plot(block.overall_mean[at], color=INK, linewidth=1.6, linestyle='--', label='all')
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=5, frameon=False)
    return figure


def draw_within(gates: Sequence[Gates], classes: Mapping[str, int], channels: int) -> Figure:
    """Returns mean and standard deviation over the images of each class (Figure 7)."""
    figure, panels = _panels(gates)
    for axes, block in zip(panels, gates, strict=True):
        at = sampled(block.channels, channels)
        for (name, number), colour in zip(classes.items(), COLOURS, strict=False):
            mean, std = block.mean[number][at], block.std[number][at]
            axes.plot(mean, color=colour, linewidth=1.2, label=f'{name}, mean')
            label = f'{name}, ± one standard deviation'
            axes.fill_between(
                np.arange(len(at)), mean - std, mean + std, color=colour, alpha=0.25, label=label,
                linewidth=0,
            )  # fmt: skip
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=4, frameon=False)
    return figure


def sampled(channels: int, count: int) -> np.ndarray:
    """Returns up to `count` evenly spaced channel numbers."""
    return np.unique(np.linspace(0, channels - 1, min(count, channels)).round().astype(int))


def _panels(gates: Sequence[Gates]):
    columns = min(3, len(gates))
    lines = -(-len(gates) // columns)
    figure = _figure(3.6 * columns, 2.5 * lines + 0.7)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axes in grid[len(gates) :]:
        axes.remove()
    for i, (axes, block) in enumerate(zip(grid, gates, strict=False)):
        axes.set_title(f'{block.name} ({block.channels} channels)', fontsize=9)
        axes.set(xlabel='channel, evenly sampled')
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if i % columns == 0:
            axes.set_ylabel('gate')
        _tidy(axes)
    return figure, grid[: len(gates)]
