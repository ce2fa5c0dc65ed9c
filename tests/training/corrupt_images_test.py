"""A run on an image folder of which some files are cut short."""

import json

import cv2
import numpy as np
import pytest


@pytest.fixture
def pets(tmp_path):
    """An image folder of ten classes, 2 training images and one eval image each."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 2), ('val', 1)):
        for label in range(10):
            folder = tmp_path / 'pets' / split / f'pet{label}'
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(256, size=(28, 28, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f'{i}.png'), image)
    return tmp_path / 'pets'


@pytest.fixture
def start(pets, tmp_path, train_main, capfd, caplog):
    """`start(*paths)` cuts them short and trains: exit code, warnings, and what it printed."""

    def started(*paths):
        for path in paths:
            path.write_bytes(path.read_bytes()[:100])
        fields = (f'--config.data=folder:{pets}', '--config.max_corrupt=0.05')  # one of 20
        code = train_main(tmp_path / 'run', *fields)
        warnings = [r.getMessage() for r in caplog.records if r.name == 'se_flax.data.pipeline']
        return code, warnings, capfd.readouterr().err

    return started


def test_one_is_named_once_and_replaced(pets, tmp_path, start):
    bad = pets / 'train' / 'pet3' / '1.png'
    code, warnings, _ = start(bad)
    assert code == 0
    assert len(warnings) == 1, 'met in each of many epochs, told in the first'
    assert warnings[0].startswith(f'{bad}: ')
    assert warnings[0].endswith('; replaced by the next image')
    assert json.loads((tmp_path / 'run/DONE').read_text())['examples'] == 10


def test_one_of_the_eval_split_is_left_out(pets, tmp_path, start):
    bad = pets / 'val' / 'pet3' / '0.png'
    code, warnings, _ = start(bad)
    assert code == 0
    assert {line.partition(': ')[0] for line in warnings} == {str(bad)}
    assert all(line.endswith('; skipped') for line in warnings)
    assert json.loads((tmp_path / 'run/DONE').read_text())['examples'] == 9


def test_two_are_over_the_limit_and_stop_the_run(pets, tmp_path, start):
    bad = [pets / 'train' / 'pet3' / f'{i}.png' for i in range(2)]
    code, _, errors = start(*bad)
    assert code == 2
    assert 'Traceback' not in errors
    # Not the last line: threads that load ahead have OpenCV say what it thinks of the files.
    told = next(line for line in errors.splitlines() if line.startswith('error: '))
    beginning = 'error: 2 of 20 records cannot be decoded; max_corrupt allows 1: '
    assert told.startswith(beginning)
    assert set(told.removeprefix(beginning).split(', ')) == set(map(str, bad))
    assert not (tmp_path / 'run/DONE').exists()
