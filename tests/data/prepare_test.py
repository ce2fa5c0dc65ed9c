import http.server
import shutil
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from se_flax import cli
from se_flax.data import check, decode, list_known, open_dataset, prepare
from se_flax.data import fashion_mnist as builder
from se_flax.errors import MissingError, UserError

pytestmark = pytest.mark.quick


def test_prepare_makes_what_check_then_finds(idx_folder, tmp_path):
    with pytest.raises(MissingError, match='run: se-flax data prepare fashion_mnist'):
        check('fashion_mnist', str(tmp_path))
    said = prepare('fashion_mnist', str(tmp_path), folder=idx_folder)
    assert said == check('fashion_mnist', str(tmp_path))
    assert said.startswith('fashion_mnist: 60 training and 20 evaluation images, 10 classes, array')
    written = [path.stat().st_mtime_ns for path in tmp_path.rglob('*')]
    prepare('fashion_mnist', str(tmp_path), folder='/nowhere')  # there is nothing left to do
    assert written == [path.stat().st_mtime_ns for path in tmp_path.rglob('*')]
    # tfds itself reads it by name.
    source = tfds.data_source('fashion_mnist', split='test', data_dir=tmp_path, download=False)
    assert len(source) == 20


PREPARE_AND_DIE = """
import os, sys
from se_flax.data import fashion_mnist, prepare

encode, calls = fashion_mnist.encode_png, []

def die_in_the_test_split(image):
    calls.append(image)
    if len(calls) == 70:
        os._exit(9)  # as SIGKILL: nothing is cleaned up
    return encode(image)

fashion_mnist.encode_png = die_in_the_test_split
prepare('fashion_mnist', sys.argv[1], folder=sys.argv[2])
"""


@pytest.mark.faults
def test_a_build_that_was_killed_is_no_data_set(idx_folder, tmp_path):
    command = [sys.executable, '-c', PREPARE_AND_DIE, str(tmp_path), str(idx_folder)]
    assert subprocess.run(command, capture_output=True).returncode == 9
    assert list(tmp_path.glob('fashion_mnist/*'))  # it had begun
    with pytest.raises(MissingError):
        open_dataset('fashion_mnist', 'train', str(tmp_path))
    prepare('fashion_mnist', str(tmp_path), folder=idx_folder)
    assert len(open_dataset('fashion_mnist', 'train', str(tmp_path))) == 60


class _Server(http.server.ThreadingHTTPServer):
    """Serves a folder, as a host or as a proxy."""

    def __init__(self, folder):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def translate_path(self, path):
                return str(folder / path.rsplit('/')[-1])

        super().__init__(('127.0.0.1', 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{self.server_port}/'

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()


def test_files_that_are_not_in_the_folder_are_downloaded(idx_folder, tmp_path, monkeypatch):
    with _Server(idx_folder) as url:
        monkeypatch.setattr(builder, 'URL', url)
        prepare('fashion_mnist', str(tmp_path), folder=tmp_path / 'nowhere')
    assert len(open_dataset('fashion_mnist', 'eval', str(tmp_path))) == 20


def test_the_folder_of_the_files_may_start_at_home(idx_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(idx_folder.parent))
    monkeypatch.setattr(downloader, 'MAX_RETRIES', 0)
    monkeypatch.setattr(builder, 'URL', 'http://127.0.0.1:9/')
    prepare('fashion_mnist', str(tmp_path), folder=f'~/{idx_folder.name}')
    assert len(open_dataset('fashion_mnist', 'eval', str(tmp_path))) == 20


def test_a_download_is_compared_with_its_checksum(idx_folder, tmp_path, monkeypatch):
    """Uses the real URL, behind a proxy that serves other files."""
    monkeypatch.setattr(downloader, 'MAX_RETRIES', 0)  # retries would outlive the server
    with _Server(idx_folder) as url:
        monkeypatch.setenv('http_proxy', url)
        monkeypatch.setenv('no_proxy', '')
        with pytest.raises(UserError, match="(?s)'fashion_mnist' cannot be built: .*checksum"):
            prepare('fashion_mnist', str(tmp_path), folder=tmp_path / 'nowhere')
    with pytest.raises(MissingError):
        check('fashion_mnist', str(tmp_path))


def test_without_a_network_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(downloader, 'MAX_RETRIES', 0)  # 10 take three minutes
    monkeypatch.setattr(builder, 'URL', 'http://127.0.0.1:9/')
    with pytest.raises(UserError, match='(?s)refused.*package dataset-fashion-mnist has its files'):
        prepare('fashion_mnist', str(tmp_path), folder=tmp_path / 'nowhere')


@pytest.mark.parametrize(
    ('name', 'splits', 'suffix', 'classes'),
    [
        ('cifar10', {'train': 9, 'test': 5}, '.png', 10),
        ('cifar100', {'train': 9, 'test': 5}, '.png', 100),
        ('places365_small', {'train': 9, 'test': 7, 'validation': 5}, '.jpg', 365),
    ],
)
def test_a_set_of_tfds_by_name(tmp_path, monkeypatch, name, splits, suffix, classes):
    """Built by tfds's own class, without its download and extraction, which need TensorFlow."""
    cls = tfds.builder_cls(name)
    side = 256 if suffix == '.jpg' else 32
    image = cv2.imencode(suffix, np.full((side, side, 3), 50, np.uint8))[1].tobytes()

    def examples(builder, count):
        for i in range(count):
            example = dict.fromkeys(builder.info.features, str(i))
            example |= {'image': image, 'label': classes - 1 - i, 'coarse_label': i}
            yield i, {key: example[key] for key in builder.info.features}

    def generators(builder, *_):
        return {split: examples(builder, count) for split, count in splits.items()}

    monkeypatch.setattr(cls, '_split_generators', generators)
    said = prepare(name, str(tmp_path))
    assert said.startswith(f'{name}: 9 training and 5 evaluation images, {classes} classes, array')
    dataset = open_dataset(name, 'train', str(tmp_path))
    assert sorted(dataset.labels()) == list(range(classes - 9, classes))
    assert decode(dataset.read(0)[0]).shape == (side, side, 3)


def test_what_needs_no_preparing(image_folder):
    assert 'ships with se_flax' in prepare('fashion_mnist_mini')
    assert prepare('synthetic') == (
        'synthetic: 4,096 training and 512 evaluation images, 10 classes, made on the fly'
    )
    folder = f'folder:{image_folder}'
    assert check(folder) == (
        f'{folder}: 12 training and 6 evaluation images, 3 classes, in {image_folder}'
    )


def test_what_cannot_be_prepared(tmp_path):
    with pytest.raises(MissingError, match='ILSVRC2012_img_val.tar'):
        prepare('imagenet2012', str(tmp_path))
    with pytest.raises(MissingError, match='no folder /nowhere'):
        prepare('folder:/nowhere')
    with pytest.raises(UserError, match='unknown data set'):
        prepare('fashion', str(tmp_path))


def test_known_data_sets_are_listed_with_what_is_there(array_record_dir, tmp_path, capsys):
    rows = dict(list_known(array_record_dir))
    assert rows['fashion_mnist'].startswith('60 training and 20 evaluation images, 10 classes')
    assert rows['fashion_mnist_mini'].endswith('ships with se_flax')
    assert rows['cifar10'] == 'not found; to prepare it: se-flax data prepare cifar10'
    assert rows['imagenet2012'].startswith(
        'not found; to prepare it: se-flax data prepare imagenet2012 --from '
    )
    assert cli.main(['data', 'check', '--data-dir', str(array_record_dir)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(rows)

    damaged = shutil.copytree(array_record_dir, tmp_path / 'damaged')
    [shard] = damaged.glob('fashion_mnist/*/*train.array_record*')
    shard.write_bytes(shard.read_bytes()[:-9])
    assert 'damaged' in dict(list_known(damaged))['fashion_mnist']


@pytest.mark.parametrize('error', [AssertionError(), ValueError('no such version')])
def test_whatever_tfds_raises_is_a_line(tmp_path, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr('tensorflow_datasets.builder', refuse)
    reason = str(error) or 'AssertionError'
    with pytest.raises(UserError, match=f"'cifar10' cannot be built: {reason}"):
        prepare('cifar10', str(tmp_path))
