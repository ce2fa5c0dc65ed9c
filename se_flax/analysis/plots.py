"""Pictures of studies, runs and gates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from se_flax.analysis.excitation import Gates
from se_flax.training.curves import COLORS, moving_mean, new_figure, tidy

INK = '#222222'  # for totals
CHANNELS = 50  # of each block, as in the paper


def draw_study(title: str, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the top-1 error of each cell, each seed and their mean, beside the paper's, if any."""
    figure = new_figure(9, 1.6 + 0.4 * len(rows))
    places = np.arange(len(rows))
    errors = np.array([row['paper_top1_error'] for row in rows], float)  # NaN for None
    if np.isnan(errors).all():
        ours = figure.subplots()
    else:
        ours, papers = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
        papers.plot(errors, places, 's', color=COLORS[1], markersize=6, label='the paper')
        papers.set(xlabel='top-1 error on ImageNet (%)')
    counts = [len(row['top1_error']) for row in rows]
    seeds = np.concatenate([row['top1_error'] for row in rows])
    ours.plot(seeds, places.repeat(counts), 'o', color=COLORS[5], markersize=5, label='a seed')
    means = [row['top1_error_mean'] for row in rows]
    bar: dict[str, Any] = {'color': INK, 'markersize': 16, 'markeredgewidth': 2}
    ours.plot(means, places, '|', label='mean', **bar)
    ours.set_yticks(places, [row['cell'] for row in rows])
    ours.invert_yaxis()
    ours.set(xlabel='top-1 error (%)')
    for axes in figure.axes:
        tidy(axes)
        axes.margins(y=0.5 / len(rows))
    figure.suptitle(title, fontsize=11)
    figure.legend(loc='outside lower center', ncols=3, frameon=False)
    return figure


def draw_differences(studies: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draws the `comparisons` of studies, a panel each: mean and interval, seeds, the paper's."""
    counts = [len(rows) for rows in studies.values()]
    figure = new_figure(9, 1 + 0.5 * len(studies) + 0.3 * sum(counts))
    heights = [count + 0.5 for count in counts]
    panels = figure.subplots(len(studies), 1, sharex=True, squeeze=False, height_ratios=heights)
    legend: dict[str, Any] = {}
    for axes, (name, rows) in zip(panels.flat, studies.items(), strict=True):
        axes.axvline(0, color=INK, linewidth=0.8)
        for place, row in enumerate(rows):
            seeds, mean = row['differences'], row['difference']
            ends = [mean if row[end] is None else row[end] for end in ('low', 'high')]
            style = {'color': INK, 'linewidth': 1.6, 'markeredgewidth': 1.6}
            axes.plot([mean], [place], '|-', markersize=12, label='mean, 95 % interval', **style)
            axes.plot(ends, [place] * 2, '|-', markersize=6, **style)
            below = [place + 0.25] * len(seeds)
            axes.plot(seeds, below, 'o', color=COLORS[5], markersize=4, label='a seed')
            if (paper := row['paper_difference']) is not None:
                axes.plot(paper, place, 's', color=COLORS[1], markersize=5, label='the paper')
        handles, labels = axes.get_legend_handles_labels()
        legend |= zip(labels, handles, strict=True)
        axes.set_yticks(range(len(rows)), [row['cell'] for row in rows])
        [baseline, *others] = dict.fromkeys(row['baseline'] for row in rows)
        against = 'each against its baseline' if others else f'against {baseline}'
        axes.set_title(f'{name}: {against}', loc='left', fontsize=10)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        tidy(axes)
    axes.set(xlabel='difference of top-1 error (points); left of 0 is better')
    figure.legend(
        legend.values(), legend.keys(), loc='outside lower center', ncols=3, frameon=False
    )
    return figure


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draws training loss and evaluation error of up to six runs (Figure 4).

    `runs` has the rows of `metrics.jsonl` by the name in the legend.
    """
    figure = new_figure(9, 4.2)
    loss, error = figure.subplots(1, 2)
    for (name, rows), color in zip(runs.items(), COLORS, strict=False):
        train, evaluations = [[r for r in rows if r['split'] == s] for s in ('train', 'eval')]
        means = moving_mean(np.array([r['loss'] for r in train]), len(train) // 20 | 1)
        style = {'color': color, 'linewidth': 1.5}
        loss.plot([r['step'] for r in train], means, label=name, **style)
        errors = [100 * (1 - r['top1']) for r in evaluations]
        error.plot([r['step'] for r in evaluations], errors, marker='o', markersize=3, **style)
    loss.set(xlabel='training step', ylabel='training loss (nats)')
    error.set(xlabel='training step', ylabel='top-1 error, all evaluation images (%)')
    for axes in (loss, error):
        tidy(axes, integer=True)
    figure.legend(loc='outside lower center', ncols=min(len(runs), 3), frameon=False)
    return figure


def draw_gates(gates: Sequence[Gates], classes: Mapping[str, int], within: bool = False) -> Figure:
    """Draws the gates of some classes (label by name), a panel per block.

    The mean of each class and of all images (Figure 6), or `within` each class the mean and one
    standard deviation over its images (Figure 7). CHANNELS are evenly sampled from each block.
    """
    columns = min(3, len(gates))
    lines = -(-len(gates) // columns)
    figure = new_figure(3.6 * columns, 2.5 * lines + 0.7)
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axes in panels[len(gates) :]:
        axes.remove()
    for i, (axes, g) in enumerate(zip(panels, gates, strict=False)):
        at = sampled(g.channels, CHANNELS)
        for (name, label), color in zip(classes.items(), COLORS, strict=False):
            mean, std = g.mean[label][at], g.std[label][at]
            if not within:
                axes.plot(mean, color=color, linewidth=1.1, label=name)
                continue
            axes.plot(mean, color=color, linewidth=1.2, label=f'{name}, mean')
            band = {'color': color, 'alpha': 0.25, 'linewidth': 0}
            text = f'{name}, ± one standard deviation'
            axes.fill_between(np.arange(len(at)), mean - std, mean + std, label=text, **band)
        if not within:
            axes.plot(g.overall_mean[at], color=INK, linewidth=1.6, linestyle='--', label='all')
        axes.set_title(f'{g.block.name} ({g.channels} channels)', fontsize=9)
        axes.set(xlabel='channel, evenly sampled', ylabel='' if i % columns else 'gate')
        tidy(axes, integer=True)
    handles, names = panels[0].get_legend_handles_labels()
    ncols = 4 if within else 5
    figure.legend(handles, names, loc='outside lower center', ncols=ncols, frameon=False)
    return figure


def sampled(channels: int, count: int) -> np.ndarray:
    """Returns up to `count` evenly spaced channel numbers."""
    return np.unique(np.linspace(0, channels - 1, min(count, channels)).round().astype(int))
