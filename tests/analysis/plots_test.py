"""What is drawn is what was measured, with names, units and nothing beside the axes cut off."""

import numpy as np
import pytest

from se_flax.analysis.excitation import Block, Gates
from se_flax.analysis.plots import draw_curves, draw_differences, draw_gates, draw_study, sampled
from se_flax.training.curves import png

pytestmark = pytest.mark.quick


@pytest.fixture
def gates():
    rng = np.random.default_rng(0)
    blocks = []
    for name, channels in (('stage2_block3', 256), ('stage5_block1', 20)):
        mean, std = rng.uniform(size=(2, 5, channels))
        blocks.append(Gates(Block((name, 'se'), 2, 0), mean, std, mean.mean(0), 0.5, 0.1, 0.0, 0.0))
    return blocks


def test_fifty_channels_are_even_and_few_are_all():
    assert sampled(20, 50).tolist() == list(range(20))
    chosen = sampled(2048, 50)
    assert (len(chosen), chosen[0], chosen[-1]) == (50, 0, 2047)
    assert set(np.diff(chosen)) <= {41, 42}


def test_between_classes_are_the_means(gates):
    figure = draw_gates(gates, {'cat': 4, 'dog': 0})
    for axes, block in zip(figure.axes, gates, strict=True):
        at = sampled(block.channels, 50)
        cat, dog, everything = (line.get_ydata() for line in axes.lines)
        np.testing.assert_array_equal(cat, block.mean[4][at])
        np.testing.assert_array_equal(dog, block.mean[0][at])
        np.testing.assert_array_equal(everything, block.overall_mean[at])
        assert block.block.name in axes.get_title()
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['cat', 'dog', 'all']


def test_within_a_class_the_band_is_one_deviation(gates):
    figure = draw_gates(gates, {'cat': 4}, within=True)
    for axes, block in zip(figure.axes, gates, strict=True):
        at = sampled(block.channels, 50)
        [band] = axes.collections
        edges = band.get_paths()[0].vertices
        for i, channel in enumerate(at):
            mean, std = block.mean[4][channel], block.std[4][channel]
            ys = edges[edges[:, 0] == i, 1]
            assert (ys.min(), ys.max()) == pytest.approx((mean - std, mean + std))


def test_a_run_may_have_been_evaluated_before_its_first_row():
    loss, error = draw_curves({'run': [{'split': 'eval', 'step': 9, 'top1': 0.75}]}).axes
    assert [list(axes.lines[0].get_ydata()) for axes in (loss, error)] == [[], [25]]


def test_a_study_shows_each_seed_and_the_paper():
    se = {'cell': 'SE', 'top1_error': [9.0, 11.0], 'top1_error_mean': 10.0}
    largest = {'cell': 'max', 'top1_error': [12.0], 'top1_error_mean': 12.0}
    rows = [se | {'paper_top1_error': 22.3}, largest | {'paper_top1_error': None}]
    figure = draw_study('Squeeze', rows)
    ours, papers = figure.axes
    assert [label.get_text() for label in ours.get_yticklabels()] == ['SE', 'max']
    seeds, means = (line.get_xydata().tolist() for line in ours.lines)
    assert seeds == [[9.0, 0], [11.0, 0], [12.0, 1]]
    assert means == [[10.0, 0], [12.0, 1]]
    np.testing.assert_array_equal(papers.lines[0].get_xydata(), [[22.3, 0], [np.nan, 1]])
    assert '%' in ours.get_xlabel()
    assert png(figure).startswith(b'\x89PNG')
    assert not figure.get_tightbbox().x0 < 0  # all of the names are within
    assert len(draw_study('Grid', rows[1:]).axes) == 1  # nothing of the paper


def test_differences_have_their_interval_their_seeds_and_the_papers():
    row = {'cell': 'max', 'baseline': 'average', 'difference': 0.5, 'low': -0.5, 'high': 1.5}
    row |= {'differences': [0.0, 1.0], 'paper_difference': 0.29}
    one_seed = {**row, 'cell': 'pre', 'low': None, 'high': None, 'differences': [0.5]}
    rows = [row, one_seed | {'paper_difference': None}]
    figure = draw_differences({'of the paper': rows, 'own': rows[1:]})
    first, second = figure.axes
    drawn = [line.get_xydata().tolist() for line in first.lines[1:]]  # after the line at 0
    assert drawn[:4] == [
        [[0.5, 0]],
        [[-0.5, 0], [1.5, 0]],
        [[0.0, 0.25], [1.0, 0.25]],
        [[0.29, 0]],
    ]
    assert drawn[4:6] == [[[0.5, 1]], [[0.5, 1], [0.5, 1]]]  # an interval of no length
    labels = [text.get_text() for text in first.get_yticklabels()]
    assert labels == ['max', 'pre']
    assert [axes.get_title(loc='left') for axes in (first, second)] == [
        'of the paper: against average',
        'own: against average',
    ]
    [legend] = figure.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == ['mean, 95 % interval', 'a seed', 'the paper']
    assert len(draw_differences({'own': rows[1:]}).legends[0].get_texts()) == 2
    png(figure)  # lays out
    assert not figure.get_tightbbox().x0 < 0
