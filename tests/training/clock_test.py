import logging
import time

import pytest

from se_flax.training.clock import Clock

pytestmark = pytest.mark.quick


def test_time_is_data_devices_or_the_host_and_pauses_are_none(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    clock = Clock()
    for _ in range(2):  # a reading starts anew
        now[0] += 1.0
        for kind, seconds in {'pause': 100.0, 'data': 2.0, 'device': 5.0}.items():
            with clock.spending(kind, 'something'):
                now[0] += seconds
        assert clock.read(4, batch_size=8) == pytest.approx(
            {'images_per_second': 4.0, 'data_wait': 0.25, 'host_ms': 250.0}
        )


def test_a_stuck_step_is_told_once(caplog):
    with caplog.at_level(logging.WARNING), Clock(hang_seconds=0.1) as clock:
        clock.doing('step 7')
        while not caplog.records:
            time.sleep(0.01)
        time.sleep(0.15)
        told = 'still at step 7 after 0.1 s: is it stuck?'
        assert [record.getMessage() for record in caplog.records] == [told]
        with clock.spending('device', 'step 8'):
            while len(caplog.records) < 2:
                time.sleep(0.01)
    assert caplog.records[1].getMessage().startswith('still at step 8')


def test_zero_seconds_are_never(caplog):
    with Clock(hang_seconds=0):
        time.sleep(0.05)
    assert not caplog.records
