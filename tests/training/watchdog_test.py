import logging
import time

from se_flax.training.watchdog import Watchdog


def test_a_stuck_step_is_told_once(caplog):
    with caplog.at_level(logging.WARNING), Watchdog(0.1) as watchdog:
        watchdog.doing('step 7')
        while not caplog.records:
            time.sleep(0.01)
        time.sleep(0.15)
        told = 'still at step 7 after 0.1 s: is it stuck?'
        assert [record.getMessage() for record in caplog.records] == [told]
        watchdog.doing('step 8')
        while len(caplog.records) < 2:
            time.sleep(0.01)
    assert caplog.records[1].getMessage().startswith('still at step 8')


def test_zero_seconds_are_never(caplog):
    with Watchdog(0):
        time.sleep(0.05)
    assert not caplog.records
