"""What is on the axes, read from the figure; the file, from its header."""

import pathlib
import struct

import numpy as np
import pytest

from se_flax.errors import UserError
from se_flax.training.curves import draw_curves, new_figure, save

pytestmark = pytest.mark.quick


def rows(num_train, num_eval):
    rng = np.random.default_rng(0)
    train = [
        {'step': 10 * i, 'split': 'train', 'loss': rng.random(), 'top1': rng.random()}
        for i in range(1, num_train + 1)
    ]
    evaluation = [
        {'step': 25 * i, 'split': 'eval', 'loss': rng.random(), 'top1': rng.random()}
        for i in range(1, num_eval + 1)
    ]
    return sorted(train + evaluation, key=lambda row: row['step'])


@pytest.mark.parametrize(
    ('panel', 'field', 'factor', 'label'),
    [(0, 'loss', 1, 'loss (nats)'), (1, 'top1', 100, 'top-1 accuracy (%)')],
)
def test_axes_hold_the_rows_with_names_and_units(panel, field, factor, label):
    data = rows(30, 5)
    axes = draw_curves(data).axes[panel]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('training step', label)
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ['training batch', 'evaluation, all images']
    for line, split in zip(lines.values(), ('train', 'eval'), strict=True):
        want = [(r['step'], factor * r[field]) for r in data if r['split'] == split]
        np.testing.assert_array_equal(line.get_xydata(), want)
    last = [r for r in data if r['split'] == 'eval'][-1]
    assert (
        axes.get_title(loc='right').split()[2]
        == {
            'loss': f'{last["loss"]:.4f}',
            'top1': f'{100 * last["top1"]:.2f}',
        }[field]
    )


@pytest.mark.parametrize(('num_train', 'window'), [(39, None), (40, 3), (100, 5), (1000, 51)])
def test_the_average_says_over_how_many_rows_it_is(num_train, window):
    data = rows(num_train, 1)
    axes = draw_curves(data).axes[0]
    means = {line.get_label(): line for line in axes.lines if 'mean' in line.get_label()}
    if window is None:
        assert not means
        return
    ((label, line),) = means.items()
    assert label == f'training, mean of {window} logged batches'
    loss = [r['loss'] for r in data if r['split'] == 'train']
    half = window // 2
    want = [np.mean(loss[max(0, i - half) : i + half + 1]) for i in range(num_train)]
    np.testing.assert_allclose(line.get_ydata(), want, rtol=1e-12)


def test_the_legend_covers_no_data():
    figure = draw_curves(rows(100, 5))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 3
    for axes in figure.axes:
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert figure.bbox.containsx(legend.get_window_extent().x1)


@pytest.mark.parametrize('data', [[], rows(1, 0), rows(0, 1), rows(100, 5)])
def test_the_picture_is_a_png_of_the_said_size(tmp_path, data):
    save(draw_curves(data), tmp_path / 'curves.png')
    png = (tmp_path / 'curves.png').read_bytes()
    assert png.startswith(b'\x89PNG\r\n\x1a\n')
    assert png.endswith(b'IEND\xaeB`\x82')
    assert struct.unpack('>II', png[16:24]) == (1350, 570)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_crash_while_drawing_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / 'curves.png'
    save(draw_curves(rows(3, 1)), path)
    old = path.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, 'replace', crash)
    with pytest.raises(KeyboardInterrupt):
        save(draw_curves(rows(5, 1)), path)
    assert path.read_bytes() == old


def test_in_the_place_of_a_folder_nothing_is_left(tmp_path):
    folder = tmp_path / 'runs'
    folder.mkdir()
    with pytest.raises(UserError, match='runs: it is a folder'):
        save(new_figure(1, 1), folder)
    assert list(tmp_path.iterdir()) == [folder]
