"""The loop with fakes: what is called when. A state is the list of the steps that made it."""

from types import SimpleNamespace

import pytest

from se_flax.training.loop import Preempted, train

NEVER = {'eval': 99, 'checkpoint': 99}


class NotFiniteError(Exception):
    pass


def run(start, num_steps, *, every, poisoned=None, stop_at=None):
    """Returns the calls in order, as words, and the last state or the exception."""
    calls = []

    def next_batch(i):
        calls.append(f'batch {i}')
        return i

    def step(state, i):
        assert state == list(range(i)), 'each step takes the state of the one before it'
        calls.append(f'step {i + 1}')
        return [*state, i], {'finite': i + 1 != poisoned}

    def report(i, metrics):
        calls.append(f'report {i}')
        if not metrics['finite']:
            raise NotFiniteError(i)

    def evaluate_or_save(name):
        def called(i, state):
            assert state == list(range(i)), f'{name} sees the state after step {i}'
            calls.append(f'{name} {i}')
            return state

        return called

    def stop_requested(i):
        steps = start + sum(c.startswith('step') for c in calls)
        return stop_at is not None and steps >= stop_at

    try:
        fake = SimpleNamespace(
            num_steps=num_steps,
            due=lambda what, i: i % every[what] == 0,
            evaluate=evaluate_or_save('evaluate'),
            save=evaluate_or_save('save'),
            next_batch=next_batch,
            step=step,
            report=report,
            stop_requested=stop_requested,
        )
        result = train(fake, list(range(start)), start)
    except (NotFiniteError, Preempted) as error:
        result = error
    return ', '.join(calls), result


def test_order_within_a_turn():
    calls, state = run(0, 4, every={'eval': 2, 'checkpoint': 3})
    assert calls == (
        'batch 0, step 1, '
        'batch 1, step 2, report 1, '
        'report 2, evaluate 2, batch 2, step 3, '
        'report 3, save 3, batch 3, step 4, '
        'report 4, evaluate 4, save 4'
    )
    assert state == [0, 1, 2, 3]


def test_a_step_is_reported_after_the_next_was_dispatched():
    calls, _ = run(0, 5, every=NEVER)
    assert calls == (
        'batch 0, step 1, batch 1, step 2, report 1, batch 2, step 3, report 2, '
        'batch 3, step 4, report 3, batch 4, step 5, report 4, report 5, evaluate 5, save 5'
    )


@pytest.mark.parametrize('k', [2, 3, 4, 6, 9])
def test_resumed_at_k_does_what_the_undisturbed_run_does_after_its_save(k):
    every = {'eval': 2, 'checkpoint': 1}
    whole, _ = run(0, 9, every=every)
    rest, state = run(k, 9, every=every)
    assert whole.partition(f'save {k}')[2].removeprefix(', ') == rest
    assert state == list(range(9))


@pytest.mark.parametrize('poisoned', range(1, 11))
def test_nothing_is_saved_or_evaluated_from_a_poisoned_step_on(poisoned):
    calls, error = run(0, 10, every={'eval': 4, 'checkpoint': 3}, poisoned=poisoned)
    assert isinstance(error, NotFiniteError)
    assert error.args == (poisoned,)
    for name, every in (('save', 3), ('evaluate', 4)):
        done = [int(c.split()[1]) for c in calls.split(', ') if c.startswith(name)]
        assert done == list(range(every, poisoned, every))


@pytest.mark.parametrize(('stop_at', 'saves'), [(4, ['3', '4']), (6, ['3', '6'])])
def test_asked_to_stop_it_finishes_the_step_and_saves_it_once(stop_at, saves):
    calls, error = run(0, 9, every={'eval': 99, 'checkpoint': 3}, stop_at=stop_at)
    assert isinstance(error, Preempted)
    assert error.args == (stop_at,)
    assert [c.split()[1] for c in calls.split(', ') if c.startswith('save')] == saves
    assert calls.endswith(f'report {stop_at}, save {stop_at}')


@pytest.mark.parametrize('start', [0, 3])
def test_asked_to_stop_before_its_first_step_it_saves_nothing(start):
    calls, error = run(start, 9, every={'eval': 1, 'checkpoint': 1}, stop_at=start)
    assert (calls, error.args) == ('', (start,))


def test_asked_to_stop_at_the_end_it_just_ends():
    calls, state = run(0, 3, every=NEVER, stop_at=3)
    assert calls.endswith('report 3, evaluate 3, save 3')
    assert state == [0, 1, 2]


def test_a_poisoned_step_wins_over_being_asked_to_stop():
    calls, error = run(0, 9, every=NEVER, poisoned=4, stop_at=4)
    assert isinstance(error, NotFiniteError)
    assert 'save' not in calls


def test_what_an_evaluation_adds_to_the_state_is_saved_and_trained_on():
    saved = []
    fake = SimpleNamespace(
        num_steps=3,
        due=lambda what, i: True,
        evaluate=lambda i, state: state + 10,
        save=lambda i, state: saved.append(state),
        next_batch=lambda i: None,
        step=lambda state, batch: (state + 1, None),
        report=lambda i, metrics: None,
        stop_requested=lambda i: False,
    )
    last = train(fake, 0, 0)
    assert saved == [11, 22, 33]
    assert last == 33
