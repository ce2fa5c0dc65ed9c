"""The picture of a run: loss and top-1 accuracy by step, in training and evaluation."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from se_flax.storage import AnyPath, atomic_write, check_writable

# Palette of Okabe and Ito, distinguishable with every kind of color vision.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
# Field, label of the axis, factor to the axis's unit, format of a value.
PANELS = (('loss', 'loss (nats)', 1, '{:.4f}'), ('top1', 'top-1 accuracy (%)', 100, '{:.2f} %'))


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure; sides in inches of 150 pixels."""
    return Figure(figsize=(width, height), dpi=150, layout='constrained')


def tidy(axes: Any, *, integer: bool = False) -> None:
    """Sets the grid, spines and x ticks of a panel; `integer` for steps and channels."""
    axes.grid(color='0.9')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=integer))
    if integer:
        axes.xaxis.set_major_formatter('{x:,.0f}')


def save(figure: Figure, path: AnyPath) -> None:
    """Writes a figure as PNG, atomically; raises as `check_writable` does."""
    check_writable(path)
    atomic_write(path, png(figure))


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format='png')
    return file.getvalue()


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Returns a figure of 1350 x 570 pixels; 40 or more train rows also get a moving average."""
    train, evaluation = [[row for row in rows if row['split'] == s] for s in ('train', 'eval')]
    figure = new_figure(9, 3.8)
    window = len(train) // 20 | 1  # odd: as many rows before as after
    for axes, (field, label, factor, text) in zip(figure.subplots(1, 2), PANELS, strict=True):
        steps = [row['step'] for row in train]
        values = np.array([factor * row[field] for row in train])
        marker = '.' if window == 1 else None  # makes a single row visible
        style = {'color': COLORS[5], 'alpha': 0.6, 'linewidth': 0.8, 'marker': marker}
        axes.plot(steps, values, label='training batch', **style)
        if window > 1:
            name = f'training, mean of {window} logged batches'
            axes.plot(
                steps, moving_mean(values, window), color=COLORS[0], linewidth=1.6, label=name
            )
        if evaluation:
            steps = [row['step'] for row in evaluation]
            values = [factor * row[field] for row in evaluation]
            style = {'color': COLORS[1], 'linewidth': 1.6, 'marker': 'o', 'markersize': 4}
            axes.plot(steps, values, label='evaluation, all images', **style)
            last = f'last evaluation: {text.format(values[-1])}'
            axes.set_title(last, loc='right', color=COLORS[1], fontsize=10)
        axes.set(xlabel='training step', ylabel=label)
        tidy(axes, integer=True)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc='outside upper center', ncols=3, frameon=False)
    return figure


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the means of the `window` values around each; of fewer at the ends."""
    if not len(values):
        return values  # NumPy refuses to convolve nothing
    ones = np.ones(window)
    return np.convolve(values, ones, 'same') / np.convolve(np.ones(len(values)), ones, 'same')
