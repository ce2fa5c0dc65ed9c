"""The picture of a run: loss and top-1 accuracy by step, in training and evaluation."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from se_flax.storage import AnyPath, as_path, atomic_write

# From Okabe and Ito's palette, distinguishable with every kind of color vision.
PALE, TRAIN, EVAL = '#56B4E9', '#0072B2', '#D55E00'
# Field, label of the axis, factor to the axis's unit, format of a value.
PANELS = (('loss', 'loss (nats)', 1, '{:.4f}'), ('top1', 'top-1 accuracy (%)', 100, '{:.2f} %'))


def plot_curves(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Writes the figure of `rows`, as `read_rows` returns them, to a PNG, atomically."""
    save(draw_curves(rows), as_path(path))


def save(figure: Figure, path: AnyPath) -> None:
    """Writes a figure as PNG, atomically."""
    atomic_write(path, png(figure))


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format='png')
    return file.getvalue()


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Returns a figure of 1350 x 570 pixels; 40 or more train rows also get a moving average."""
    train, evaluation = [[row for row in rows if row['split'] == s] for s in ('train', 'eval')]
    figure = Figure(figsize=(9, 3.8), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    window = len(train) // 20 | 1  # odd: as many rows before as after
    for axes, (field, label, factor, text) in zip(figure.subplots(1, 2), PANELS, strict=True):
        steps = [row['step'] for row in train]
        values = np.array([factor * row[field] for row in train])
        marker = '.' if window == 1 else None  # makes a single row visible
        style = {'color': PALE, 'alpha': 0.6, 'linewidth': 0.8, 'marker': marker}
        axes.plot(steps, values, label='training batch', **style)
        if window > 1:
            name = f'training, mean of {window} logged batches'
            axes.plot(steps, moving_mean(values, window), color=TRAIN, linewidth=1.6, label=name)
        if evaluation:
            steps = [row['step'] for row in evaluation]
            values = [factor * row[field] for row in evaluation]
            style = {'color': EVAL, 'linewidth': 1.6, 'marker': 'o', 'markersize': 4}
            axes.plot(steps, values, label='evaluation, all images', **style)
            last = f'last evaluation: {text.format(values[-1])}'
            axes.set_title(last, loc='right', color=EVAL, fontsize=10)
        axes.set(xlabel='training step', ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
        axes.grid(color='0.9')
        axes.set_axisbelow(True)
        axes.spines[['top', 'right']].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc='outside upper center', ncols=3, frameon=False)
    return figure


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the means of the `window` values around each; of fewer at the ends."""
    ones = np.ones(window)
    return np.convolve(values, ones, 'same') / np.convolve(np.ones(len(values)), ones, 'same')
