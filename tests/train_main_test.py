"""A mistake at the command line is answered in one line, with exit code 2, before it compiles."""

import pathlib
import runpy
import shutil

import cv2
import numpy as np
import pytest

from se_flax.data import open_dataset
from se_flax.training.config import parse_args
from se_flax.training.workdir import claim

ROOT = pathlib.Path(__file__).parent.parent
QUICKSTART = str(ROOT / 'configs' / 'quickstart.py')


@pytest.fixture
def refuse(tmp_path, monkeypatch, capfd):
    """`refuse(*arguments)` returns the one line, after `error: `, that a bad start prints."""
    main = runpy.run_path(str(ROOT / 'train_main.py'))['main']
    monkeypatch.chdir(tmp_path)

    def start(*arguments):
        code = main(list(arguments))
        output, errors = capfd.readouterr()
        assert (code, output) == (2, '')
        assert errors.startswith('error: ')
        assert errors.count('\n') == 1, errors
        return errors.removeprefix('error: ').rstrip()

    return start


@pytest.fixture
def pets(tmp_path):
    """An image folder of two classes, 4 training and 2 eval images each."""
    for split, count in (('train', 4), ('val', 2)):
        for name in ('cat', 'dog'):
            folder = tmp_path / 'pets' / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = np.random.default_rng(i).integers(256, size=(28, 28, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f'{i}.png'), image)
    return tmp_path / 'pets'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['--config.model=se_resnet05'],
            "unknown model 'se_resnet05': did you mean se_resnet50 or",
        ),
        (
            ['--config.batchsize=64'],
            "unknown config field 'batchsize': did you mean batch_size or",
        ),
        (
            ['--config.batchsize=64', f'--config={QUICKSTART}'],
            "unknown config field 'batchsize': did you mean batch_size or",
        ),
        (['--config.batch_size=many'], "config field batch_size has type int, got 'many'"),
        (
            ['--config.batch_size=60'],
            'batch_size=60 is not a multiple of the number of devices=8; take 56 or 64',
        ),
        (
            ['--config.batch_size=72'],
            'batch_size=72 is not a multiple of bn_group_size=32; take 64 or 96',
        ),
        (
            ['--config.data=fashion_mnist_min'],
            "unknown data set 'fashion_mnist_min': did you mean fashion_mnist_mini or",
        ),
        (
            ['--config.data=cifar10', '--config.data_dir=here'],
            "data set 'cifar10' is not in here; run: se-flax data prepare cifar10 --data-dir=here",
        ),
        (['--config.data=folder:nowhere'], 'no folder nowhere'),
        (
            ['--config=quickstart.py'],
            "unknown config file 'quickstart.py': did you mean configs/quickstart.py?",
        ),
        (
            [f'--config={QUICKSTART.replace("start", "strat")}'],
            f"unknown config file '{QUICKSTART.replace('start', 'strat')}': did you mean "
            f'{QUICKSTART}',
        ),
        (
            ['--config.model_fields.widht=8'],
            "unknown field of se_resnet8_cifar 'widht': did you mean width",
        ),
    ],
)
def test_a_mistake_is_answered_in_one_line(refuse, tmp_path, arguments, message):
    assert refuse('--workdir=run', *arguments).startswith(message)
    assert not (tmp_path / 'run').exists(), 'refused, but the workdir was made'


def test_fields_may_come_before_the_config(refuse):
    message = refuse('--config.batch_size=72', f'--config={QUICKSTART}', '--workdir=run')
    assert message == 'batch_size=72 is not a multiple of bn_group_size=32; take 64 or 96'


@pytest.mark.parametrize('split', ['train', 'val'])
def test_an_empty_folder_is_named(refuse, pets, split):
    shutil.rmtree(pets / split)
    (pets / split).mkdir()
    message = refuse('--config.data=folder:pets')
    assert message == f'pets/{split} is empty: it must hold a folder of images for each class'


def test_a_class_without_images_is_named(refuse, pets):
    for image in (pets / 'train' / 'cat').iterdir():
        image.rename(image.with_suffix('.txt'))
    message = refuse('--config.data=folder:pets')
    assert message.startswith('no images in pets/train/cat: it holds none of *.jpg')


def test_the_workdir_of_another_config_is_refused_with_the_fields(refuse, tmp_path):
    config, workdir = parse_args(['--workdir=run', '--config.seed=7'], QUICKSTART)
    claim(workdir, config, open_dataset(config.data, 'train').class_names)
    before = (tmp_path / 'run/config.json').read_bytes()
    message = refuse('--workdir=run', '--config.learning_rate=0.2', '--config.num_threads=1')
    assert message == (
        'run holds a run with another config: learning_rate is 0.1 there and 0.2 now; '
        'seed is 7 there and 0 now. Take another --workdir, or move that folder away'
    )
    assert (tmp_path / 'run/config.json').read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(refuse, tmp_path):
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis/chapter1.tex').write_text('Once upon a time')
    message = refuse('--workdir=thesis')
    assert message == 'thesis is not empty and holds no config.json; take another --workdir'
    assert [path.name for path in (tmp_path / 'thesis').iterdir()] == ['chapter1.tex']


def test_a_workdir_that_is_a_file(refuse, tmp_path):
    (tmp_path / 'run').write_text('')
    assert "'run'" in refuse('--workdir=run')
