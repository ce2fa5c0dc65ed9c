"""Fingerprints depend on the data, not on where they are stored."""

import shutil

import pytest

from se_flax.data import decode_all, open_dataset
from se_flax.data.folder import open_folder

pytestmark = pytest.mark.quick


def of(root, split='train'):
    return open_folder('photos', split, str(root)).fingerprint()


def test_a_folder_is_known_by_names_and_sizes(tmp_path):
    root = tmp_path / 'photos'
    for split in ('train', 'val'):
        for name in 'ab':
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                (root / split / name / f'{i}.jpg').write_bytes(b'x' * (i + 10))
    known = of(root)
    assert len(known) == 16
    assert of(shutil.copytree(root, tmp_path / 'elsewhere')) == known
    assert of(root, 'eval') == known  # the same names and sizes
    image = root / 'train' / 'b' / '2.jpg'
    image.write_bytes(b'y' * 12)  # not noticed: only names and sizes count
    assert of(root) == known
    image.write_bytes(b'x' * 13)
    seen = {known, of(root)}
    image.rename(image.with_name('3.jpg'))
    seen.add(of(root))
    image.with_name('3.jpg').unlink()
    seen.add(of(root))
    (root / 'train' / 'a' / '9.jpg').symlink_to('nowhere')
    seen.add(of(root))
    assert len(seen) == 5


@pytest.mark.parametrize('name', ['fashion_mnist_mini', 'synthetic'])
def test_the_splits_of_a_set_differ(name):
    first, again, other = (open_dataset(name, s) for s in ('train', 'train', 'eval'))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_the_shards_of_a_set_count():
    dataset = open_dataset('fashion_mnist_mini', 'eval')
    assert all(int(shard.split()[1]) > 0 for shard in dataset.shards)
    assert decode_all(dataset).fingerprint() == dataset.fingerprint()
    changed = [f'{shard}0' for shard in dataset.shards]
    object.__setattr__(dataset, 'shards', changed)
    assert dataset.fingerprint() != open_dataset('fashion_mnist_mini', 'eval').fingerprint()
