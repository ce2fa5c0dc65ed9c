"""Fingerprints depend on the data, not on where they are stored."""

import dataclasses
import shutil

import pytest

from se_flax.data import decode_all, open_dataset
from se_flax.data.folder import open_folder

pytestmark = pytest.mark.quick


def of(root, split='train'):
    return open_folder('photos', split, str(root)).fingerprint()


def test_a_folder_is_known_by_names_and_sizes(image_folder, tmp_path):
    known = of(image_folder)
    assert len(known) == 16
    copy = tmp_path / 'elsewhere'
    for split in ('train', 'val'):
        shutil.copytree(image_folder / 'train', copy / split)
    assert of(copy) == of(copy, 'eval') == known  # the same names and sizes
    image = copy / 'train' / 'dog' / '2.JPEG'
    size = image.stat().st_size
    image.write_bytes(bytes(size))  # not noticed: only names and sizes count
    assert of(copy) == known
    image.write_bytes(bytes(size + 1))
    seen = {known, of(copy)}
    image.rename(image.with_name('4.JPEG'))
    seen.add(of(copy))
    image.with_name('4.JPEG').unlink()
    seen.add(of(copy))
    (image.parent / '9.jpg').symlink_to('nowhere')
    seen.add(of(copy))
    assert len(seen) == 5


@pytest.mark.parametrize('name', ['fashion_mnist_mini', 'synthetic'])
def test_the_splits_of_a_set_differ(name):
    first, again, other = (open_dataset(name, s) for s in ('train', 'train', 'eval'))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_the_shards_of_a_set_count():
    dataset = open_dataset('fashion_mnist_mini', 'eval')
    assert all(int(shard.split()[1]) > 0 for shard in dataset.shards)
    assert decode_all(dataset).fingerprint() == dataset.fingerprint()
    changed = dataclasses.replace(dataset, shards=[f'{shard}0' for shard in dataset.shards])
    assert changed.fingerprint() != dataset.fingerprint()
