"""Small data sets that tests write themselves, without TensorFlow."""

import gzip
import json
import struct

import cv2
import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource

from se_flax.data.fashion_mnist import STEMS, FashionMnist

SIZES = {'train': 60, 'test': 20}


@pytest.fixture(scope='session')
def idx_folder(tmp_path_factory):
    """The four files of Fashion-MNIST, with 60 and 20 random images."""
    folder = tmp_path_factory.mktemp('idx')
    rng = np.random.default_rng(0)
    for split, stem in STEMS.items():
        n = SIZES[split]
        images = rng.integers(256, size=(n, 28, 28), dtype=np.uint8)
        labels = rng.permutation(np.arange(n, dtype=np.uint8) % 10)
        for kind, values in (('images-idx3', images), ('labels-idx1', labels)):
            header = struct.pack('>BBBB', 0, 0, 8, values.ndim)
            header += struct.pack(f'>{values.ndim}I', *values.shape)
            path = folder / f'{stem}-{kind}-ubyte.gz'
            path.write_bytes(gzip.compress(header + values.tobytes()))
    return folder


@pytest.fixture(scope='session')
def array_record_dir(idx_folder, tmp_path_factory):
    """A data_dir that holds `fashion_mnist` as tfds wrote it."""
    data_dir = tmp_path_factory.mktemp('array_record')
    FashionMnist(data_dir, folder=idx_folder).download_and_prepare()
    return data_dir


@pytest.fixture
def tfrecord_dir(array_record_dir, write_tfrecord, tmp_path):
    """The same data set as TFRecord files of three shards a split."""
    source = array_record_dir / 'fashion_mnist' / '3.0.1'
    target = tmp_path / 'tfrecord' / 'fashion_mnist' / '3.0.1'
    target.mkdir(parents=True)
    for name in ('features.json', 'label.labels.txt'):
        (target / name).write_bytes((source / name).read_bytes())
    info = json.loads((source / 'dataset_info.json').read_text())
    info['fileFormat'] = 'tfrecord'
    for split in info['splits']:
        stem = f'fashion_mnist-{split["name"]}'
        records = list(ArrayRecordDataSource(f'{source}/{stem}.array_record-00000-of-00001'))
        shards = [records[:7], records[7:8], records[8:]]
        split['shardLengths'] = [str(len(shard)) for shard in shards]
        for i, shard in enumerate(shards):
            write_tfrecord(target / f'{stem}.tfrecord-{i:05}-of-00003', shard)
    (target / 'dataset_info.json').write_text(json.dumps(info))
    return tmp_path / 'tfrecord'


@pytest.fixture(scope='session')
def write_tfrecord():
    """Writes TFRecord frames; the checksums, which are not verified, are zero."""

    def write(path, records):
        frames = (struct.pack('<QI', len(r), 0) + r + struct.pack('<I', 0) for r in records)
        path.write_bytes(b''.join(frames))

    return write


@pytest.fixture
def image_folder(tmp_path):
    """An image folder of 3 classes: 4 training and 2 eval images each, of several sizes."""
    root = tmp_path / 'pets'
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        for label, name in enumerate(('cat', 'dog', 'eel')):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(256, size=(20 + i, 24 + label, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f'{i}.{"png" if i % 2 else "JPEG"}'), image)
    return root
