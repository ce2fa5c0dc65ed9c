"""What SE costs: the table against the paper's sentences, the timing on a tiny net."""

import jax.numpy as jnp

from se_flax.analysis.overhead import count_table, measure, time_table


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


def test_timings_are_of_both_networks_and_their_ratio():
    timings = measure('resnet8_cifar', batch_size=2, image_size=None, dtype=jnp.float32, rounds=3)
    assert [t.what for t in timings] == ['forward', 'forward + backward']
    for t in timings:
        assert (t.batch_size, t.image_size) == (2, 32)
        low, high = t.spread
        assert 0 < low <= t.ratio <= high
        assert min(t.plain, t.se) > 0
    assert timings[1].plain > timings[0].plain
    assert len(time_table(timings)) == 3
