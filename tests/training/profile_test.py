import gzip
import json

import pytest

from se_flax.errors import UserError
from se_flax.training.clock import Clock
from se_flax.training.profile import Trace, check_steps


def test_the_trace_has_the_steps(tmp_path, train_main):
    assert train_main(tmp_path, '--config.num_steps=6', '--config.profile_steps=3,4') == 0
    [trace] = tmp_path.glob('profile/process0/plugins/profile/*/*.trace.json.gz')
    events = json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
    steps = [event['args']['step_num'] for event in events if event.get('name') == 'train']
    assert sorted(map(int, steps)) == [3, 4]
    assert list(trace.parent.glob('*.xplane.pb'))


def test_a_trace_that_cannot_be_written_is_the_only_error(tmp_path):
    (tmp_path / 'process0').write_text('no folder')
    with Trace(tmp_path, (1, 1), Clock()) as trace:
        trace.before(1)
        with pytest.raises(NotADirectoryError):
            trace.after(1)


@pytest.mark.quick
@pytest.mark.parametrize('steps', [(5,), (1, 2, 3), (0, 5), (7, 5), (5, 51), (1.5, 3)])
def test_other_steps_are_refused(steps):
    with pytest.raises(UserError, match=r'^profile_steps=.* from 1 to 50, such as 50,50$'):
        check_steps(steps, 50)


@pytest.mark.quick
@pytest.mark.parametrize('steps', [(), (1, 50), (7, 7)])
def test_these_are_taken(steps):
    check_steps(steps, 50)
