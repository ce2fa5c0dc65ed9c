import time

import pytest

from se_flax.training.stopwatch import Stopwatch


def test_time_is_data_devices_or_the_host_and_pauses_are_none(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    watch = Stopwatch()
    for _ in range(2):  # a reading starts anew
        now[0] += 1.0
        with watch.paused():
            now[0] += 100.0
        with watch.waiting('data'):
            now[0] += 2.0
        with watch.waiting('device'):
            now[0] += 5.0
        assert watch.read(4, batch_size=8) == pytest.approx(
            {'images_per_second': 4.0, 'data_wait': 0.25, 'host_ms': 250.0}
        )
