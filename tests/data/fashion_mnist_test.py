import hashlib
import pathlib
import runpy
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds

from se_flax.data import decode, open_dataset
from se_flax.data.fashion_mnist import FashionMnist, read_idx

pytestmark = pytest.mark.quick

PACKAGE = pathlib.Path(open_dataset.__code__.co_filename).parent
SCRIPTS = pathlib.Path(__file__).parents[2] / 'scripts'
SCRIPT = runpy.run_path(str(SCRIPTS / 'build_fashion_mnist_mini.py'))
draw_balanced = SCRIPT['draw_balanced']


class Tiny(SCRIPT['FashionMnistMini'], skip_registration=True):
    """Draws as the embedded set does, from few images."""

    per_class = types.MappingProxyType({'train': 3, 'test': 1})


def build(builder):
    """The images, as bytes, and labels of each split, in their order."""
    builder.download_and_prepare()
    source = tfds.builder_from_directory(builder.data_dir)
    return {
        split: [(e['image'].tobytes(), int(e['label'])) for e in source.as_data_source(split)]
        for split in ('train', 'test')
    }


def test_all_images_are_kept(idx_folder, tmp_path):
    """Compares with NumPy on the same files."""
    built = build(FashionMnist(tmp_path, folder=idx_folder))
    for split, stem in (('train', 'train'), ('test', 't10k')):
        images = read_idx(idx_folder / f'{stem}-images-idx3-ubyte.gz')
        names = read_idx(idx_folder / f'{stem}-labels-idx1-ubyte.gz')
        assert images.shape == (len(names), 28, 28)
        want = [(image.tobytes(), int(label)) for image, label in zip(images, names, strict=True)]
        assert sorted(built[split]) == sorted(want)
        assert built[split] != want  # tfds shuffles what it writes


def test_two_builds_of_a_part_are_equal(idx_folder, tmp_path):
    a, b = (build(Tiny(tmp_path / name, folder=idx_folder)) for name in 'ab')
    assert a == b
    for split, count in (('train', 3), ('test', 1)):
        assert np.bincount([label for _, label in a[split]]).tolist() == [count] * 10
    files = [path for path in sorted((tmp_path / 'a').rglob('*')) if path.is_file()]
    for path in files:
        assert path.read_bytes() == (tmp_path / 'b' / path.relative_to(tmp_path / 'a')).read_bytes()


def test_draw_is_balanced_and_fixed():
    labels = np.random.default_rng(0).integers(4, size=200)
    drawn = draw_balanced(labels, 7)
    assert np.bincount(labels[drawn]).tolist() == [7] * 4
    assert len(set(drawn)) == 28
    assert drawn.tolist() == draw_balanced(labels, 7).tolist()
    assert drawn.tolist() == sorted(drawn)


@pytest.mark.parametrize(
    ('split', 'per_class', 'fingerprint'),
    [
        ('train', 1000, 'a709b3bdeb8c4d83774990116490c5a93a84bf09f67236b22b39d98de87d1d7d'),
        ('eval', 200, '4a5869b258b420ab901c27a7c27078c92875563ec16d0346d1656997a18a984c'),
    ],
)
def test_the_embedded_images_are_these(split, per_class, fingerprint):
    """Pixels and labels in order, independent of the PNG encoder."""
    dataset = open_dataset('fashion_mnist_mini', split)
    digest, labels = hashlib.sha256(), []
    for i in range(len(dataset)):
        image, label = dataset.read(i)
        labels.append(label)
        digest.update(decode(image)[..., 0].tobytes() + bytes([label]))
    assert digest.hexdigest() == fingerprint
    assert np.bincount(labels).tolist() == [per_class] * 10


def test_the_licence_ships():
    text = next(PACKAGE.glob('fashion_mnist_mini/*/LICENSE')).read_text()
    assert 'Copyright (c) 2017 Zalando SE' in text
    assert 'THE SOFTWARE IS PROVIDED "AS IS"' in text
