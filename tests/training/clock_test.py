import contextlib
import json
import logging
import time

import pytest

from se_flax.training.clock import Clock

pytestmark = pytest.mark.quick


@pytest.fixture
def now(monkeypatch):
    """`now[0]` is the time of `time.perf_counter`, in seconds."""
    now = [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    return now


def test_time_is_data_devices_or_the_host_and_pauses_are_none(now):
    clock = Clock()
    now[0] += 7.0
    with clock.spending('steps', 'the first step'):
        for _ in range(2):  # a reading starts anew
            now[0] += 1.0
            for kind, seconds in {'saving': 100.0, 'data': 2.0, 'device': 5.0}.items():
                with clock.spending(kind, 'something'):
                    now[0] += seconds
            assert clock.read(4, batch_size=8) == pytest.approx(
                {'images_per_second': 4.0, 'data_wait': 0.25, 'host_ms': 250.0}
            )


def test_each_second_has_one_kind(now):
    clock = Clock()
    now[0] += 1.0
    with clock.spending('saving', 'a checkpoint'):
        now[0] += 2.0
        with contextlib.suppress(OSError), clock.spending('compiling', 'something'):
            now[0] += 3.0
            raise OSError
        now[0] += 4.0
    goodput = clock.goodput()
    kinds = {'other': 0.1, 'saving': 0.6, 'compiling': 0.3}
    none = dict.fromkeys(('steps', 'data', 'evaluation', 'lost'), 0)
    assert goodput == {'seconds': 10.0} | kinds | none


def test_what_is_done_again_is_lost(now, tmp_path):
    """A run of 40 steps of a second: killed after step 27, again after 25, saved at 10 and 20."""
    path = tmp_path / 'times.jsonl'

    def process(resumed, last):
        clock = Clock()
        now[0] += 5.0
        with clock.keeping(path, resumed):
            for step in range(resumed + 1, last + 1):
                with clock.spending('steps', f'step {step}'):
                    now[0] += 1.0
                if step % 10 == 0:
                    with clock.spending('saving', 'a checkpoint'):
                        now[0] += 2.0
                    clock.note(step)
                elif step % 3 == 0:
                    clock.note(step)
        return clock.goodput()

    process(0, 27)
    process(20, 25)  # after a note of step 24
    with path.open('a') as file:
        file.write('{"step": 24, "sec')  # torn by a power cut
    goodput = process(10, 40)  # the checkpoint of step 20 is damaged
    # Lost: steps 11 to 20 and a save; 21 to 27; 5 seconds of starting at 20; and 21 to 24.
    spent = {'steps': 40, 'saving': 8, 'other': 10, 'lost': 10 + 2 + 7 + 5 + 4}
    total = sum(spent.values())
    assert goodput['seconds'] == total
    for kind, seconds in spent.items():
        assert goodput[kind] == pytest.approx(seconds / total, abs=1e-4), kind
    assert process(40, 40)['seconds'] == total + 5
    assert all(json.loads(line)['step'] <= 40 for line in path.read_text().splitlines())


def test_a_stuck_step_is_told_once(caplog):
    clock = Clock()
    with caplog.at_level(logging.WARNING), clock.watching(hang_seconds=0.1):
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
    with Clock().watching(hang_seconds=0):
        time.sleep(0.05)
    assert not caplog.records
