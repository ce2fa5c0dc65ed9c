"""What SE costs: the table against the paper's sentences, the timing on a tiny net."""

import pathlib
from functools import partial

import jax.numpy as jnp

from se_flax import create_model, tables
from se_flax.analysis import overhead
from se_flax.analysis.overhead import TIMES, count_table, measure


def test_se_resnet50_costs_what_the_paper_says():
    head, *rows = count_table()
    table = {row[0]: dict(zip(head[1:4] + head[4:], row[1:], strict=True)) for row in rows}
    assert len(table) == len(rows) > 25
    [plain], [se] = (
        [row for row in rows if row[0] == name] for name in ('resnet50', 'se_resnet50')
    )
    assert plain[1:4] == ['25,557,032', '25.6 M', '']
    assert se[1:4] == ['28,088,024', '28.1 M', '+9.90 %']  # "about 10 %"
    assert plain[5:] == ['3.86 G', '']
    assert se[5:] == ['3.87 G', '+0.065 %']  # of the layers alone; the paper says 0.26 %


def test_the_table_of_the_docs_is_made_from_the_counts():
    page = pathlib.Path(__file__).parents[2] / 'docs' / 'experiments' / 'complexity.md'
    assert tables.markdown(count_table()) in page.read_text()


def test_timings_are_of_both_networks_and_their_ratio(monkeypatch):
    monkeypatch.setattr(overhead, 'create_model', partial(create_model, stage_sizes=(1,)))
    rows = measure('resnet8_cifar', 2, None, jnp.float32, rounds=3)
    assert [row[:4] for row in rows] == [
        ['resnet8_cifar', what, '2', '32'] for what in ('forward', 'forward + backward')
    ]
    times = [[float(cell) for cell in (*row[4:7], *row[7].split(' to '))] for row in rows]
    for plain, se, ratio, low, high in times:
        assert 0 < low <= ratio <= high
        assert min(plain, se) > 0
    assert times[1][0] > times[0][0]
    assert {len(row) for row in rows} == {len(TIMES)}
