import itertools
import os
import shutil
import unicodedata
from collections import Counter

import pytest
from PIL import Image

from se_flax.data import decode, open_dataset
from se_flax.data.decode import PILLOW
from se_flax.data.folder import LEFTOVERS, SUFFIXES
from se_flax.errors import MissingError, UserError

pytestmark = pytest.mark.quick


def test_classes_are_sorted_and_shared(image_folder):
    (image_folder / 'train' / 'cat' / 'notes.txt').write_text('no image')
    for split, count in (('train', 4), ('eval', 2)):
        dataset = open_dataset(f'folder:{image_folder}', split)
        assert dataset.class_names == ('cat', 'dog', 'eel')
        assert [dataset.read(i)[1] for i in range(len(dataset))] == sorted([0, 1, 2] * count)
        # The fixture encodes the class in the width and the number in the height.
        assert decode(dataset.read(count)[0]).shape == (20, 25, 3)
    assert dataset.key(0) == str(image_folder / 'val' / 'cat' / '0.JPEG')


def test_eval_may_lack_a_class(image_folder):
    shutil.rmtree(image_folder / 'val' / 'dog')
    dataset = open_dataset(f'folder:{image_folder}', 'eval')
    assert dataset.num_classes == 3
    assert [dataset.read(i)[1] for i in range(len(dataset))] == [0, 0, 2, 2]


@pytest.mark.parametrize('name', ['valid', 'validation', 'test', 'eval'])
def test_other_names_of_the_eval_folder(image_folder, name):
    (image_folder / 'val').rename(image_folder / name)
    assert len(open_dataset(f'folder:{image_folder}', 'eval')) == 6


def test_missing_folders_and_images_are_named(image_folder):
    for path in ('/nowhere', '~no.such.user/photos'):
        with pytest.raises(MissingError, match=f'no folder {path}'):
            open_dataset(f'folder:{path}', 'train')
    shutil.rmtree(image_folder / 'val')
    with pytest.raises(MissingError, match='no folder val or valid or .* or eval in /'):
        open_dataset(f'folder:{image_folder}', 'eval')
    (image_folder / 'val').mkdir()
    with pytest.raises(UserError, match='val has no folders: it must contain a folder of images'):
        open_dataset(f'folder:{image_folder}', 'eval')
    (image_folder / 'val' / 'dogs').mkdir()
    with pytest.raises(UserError, match=r"unknown class in .*val 'dogs': did you mean dog\?"):
        open_dataset(f'folder:{image_folder}', 'eval')
    (image_folder / 'val' / 'dogs').rename(image_folder / 'val' / 'dog')
    with pytest.raises(UserError, match=r'no images in .*val/dog: no file ends in \.jpg'):
        open_dataset(f'folder:{image_folder}', 'eval')


def content(root, split='train', **options):
    """The class and the path below its split of each image."""
    dataset = open_dataset(f'folder:{root}', split, **options)
    for i in range(len(dataset)):
        decode(dataset.read(i)[0])
    return [(dataset.class_names[label], path) for path, label in dataset.files]


def test_what_file_managers_leave_is_ignored(image_folder, caplog):
    want = content(image_folder)
    image = next(image_folder.glob('train/cat/*.png'))
    for i, name in enumerate([*LEFTOVERS, '.ipynb_checkpoints', '.thumbnails', 'Thumbs.db']):
        for folder in ('train', 'train/cat'):
            (image_folder / folder / name).mkdir(exist_ok=True)
            shutil.copy(image, image_folder / folder / name / f'{i}.png')
    for name in ('._0.png', '.DS_Store', '._0.jpg'):
        for folder in ('train', 'train/cat'):
            shutil.copy(image, image_folder / folder / name)
    (image_folder / 'train' / 'cat' / 'album.jpg').mkdir()
    assert content(image_folder) == want
    assert not caplog.records


def test_images_are_found_at_any_depth_and_in_any_format(image_folder, caplog):
    want = content(image_folder)
    image = next(image_folder.glob('train/cat/*.png')).read_bytes()
    more = [f'{i}/a{suffix}' for i, suffix in enumerate((*SUFFIXES, '.PNG'))]
    for name in (*more, '2024/may/summer/b.jpg'):
        path = image_folder / 'train' / 'cat' / name
        path.parent.mkdir(parents=True)
        path.write_bytes(image)
    (image_folder / 'train' / 'cat' / '2024' / 'round').symlink_to('..')  # a loop
    found = [('cat', f'cat/{name}') for name in (*more, '2024/may/summer/b.jpg')]
    assert sorted(content(image_folder)) == sorted(want + found)
    assert not caplog.records


def test_every_suffix_of_pillows_for_what_is_decoded_is_known():
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in PILLOW}
    assert known - {*SUFFIXES} == {'.pfm'}  # of floats


def test_other_files_are_counted_in_one_warning(image_folder, caplog):
    for name in ('cat/a.txt', 'dog/b.txt', 'dog/c.heic', 'dog/README', 'loose.png'):
        (image_folder / 'train' / name).write_text('')
    content(image_folder)
    [record] = caplog.records
    where, _, told = record.getMessage().partition(': ')
    assert where == str(image_folder / 'train')
    assert told == (
        'ignored 5 files: 2 .txt, 1 without a suffix, 1 .heic, 1 beside the folders of the classes'
    )


def test_validation_comes_before_test(image_folder):
    shutil.copytree(image_folder / 'val', image_folder / 'test')
    (image_folder / 'val').rename(image_folder / 'valid')
    dataset = open_dataset(f'folder:{image_folder}', 'eval')
    assert dataset.key(0).startswith(str(image_folder / 'valid'))


def test_names_are_compared_in_one_spelling_of_unicode(image_folder):
    composed, decomposed = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))
    (image_folder / 'train' / 'cat').rename(image_folder / 'train' / composed)
    (image_folder / 'val' / 'cat').rename(image_folder / 'val' / decomposed)
    for split, count in (('train', 4), ('eval', 2)):
        assert Counter(name for name, _ in content(image_folder, split))[composed] == count
    # Some disks can hold both.
    shutil.copytree(image_folder / 'val' / decomposed, image_folder / 'train' / decomposed)
    assert Counter(name for name, _ in content(image_folder))[composed] == 6


def test_names_that_are_no_utf8_are_escaped(image_folder):
    folder = os.fsencode(image_folder / 'train' / 'cat')
    os.rename(folder + b'/0.JPEG', folder + b'/caf\xe9.JPEG')
    dataset = open_dataset(f'folder:{image_folder}', 'train')
    keys = [dataset.key(i) for i in range(len(dataset))]
    assert str(image_folder / 'train' / 'cat' / 'caf\\xe9.JPEG') in keys
    decode(dataset.read(3)[0])
    dataset.fingerprint()
    ''.join(keys).encode()
    os.rename(folder, os.path.dirname(folder) + b'/c\xe4t')
    shutil.rmtree(image_folder / 'val' / 'cat')
    assert 'c\\xe4t' in open_dataset(f'folder:{image_folder}', 'train').class_names
    assert len(content(image_folder)) == 12


def test_an_address_is_no_folder():
    for address in ('gs://bucket/photos', 's3://bucket'):
        with pytest.raises(UserError, match=f'a disk or a mount, not at {address}'):
            open_dataset(f'folder:{address}', 'train')


@pytest.fixture
def classes(image_folder):
    """A folder of three classes of 20, 4 and 1 images, without splits."""
    image = next(image_folder.glob('train/cat/*.png')).read_bytes()
    root = image_folder.parent / 'classes'
    for name, count in (('cat', 20), ('dog', 4), ('eel', 1)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f'{i}.png').write_bytes(image)
    return root


def test_a_share_is_drawn_for_evaluation(classes):
    splits = [content(classes, split, eval_split=0.3) for split in ('train', 'eval')]
    counts = [Counter(name for name, _ in files) for files in splits]
    assert counts == [{'cat': 14, 'dog': 3, 'eel': 1}, {'cat': 6, 'dog': 1}]
    every = list(itertools.chain(*splits))
    others = [content(classes, split, eval_split=0.001) for split in ('train', 'eval')]
    assert sorted(every) == sorted(itertools.chain(*others))
    assert len(set(every)) == 25
    other = content(classes, 'eval', eval_split=0.3, seed=1)
    assert other != splits[1]
    assert len(other) == 7


def test_the_share_is_the_same_in_a_copy_and_hardly_changes_with_more_images(classes, tmp_path):
    drawn = content(classes, 'eval', eval_split=0.3)
    copy = shutil.copytree(classes, tmp_path / 'elsewhere' / 'train')
    assert content(copy.parent, 'eval', eval_split=0.3) == drawn  # PATH/train alone
    for i in range(20, 24):
        shutil.copy(classes / 'cat' / '0.png', classes / 'cat' / f'{i}.png')
    assert len(set(content(classes, 'eval', eval_split=0.3)) & set(drawn)) >= 4


def test_a_share_that_cannot_be_drawn(classes, image_folder):
    with pytest.raises(MissingError, match=r'no folder train in .*set --config\.eval_split=0\.1'):
        open_dataset(f'folder:{classes}', 'train')
    with pytest.raises(UserError, match=r'eval_split=0\.1, but .*val has images'):
        open_dataset(f'folder:{image_folder}', 'train', eval_split=0.1)
    for name in ('cat', 'dog'):
        shutil.rmtree(classes / name)
    with pytest.raises(UserError, match='no class has two images'):
        open_dataset(f'folder:{classes}', 'eval', eval_split=0.1)
    with pytest.raises(UserError, match=r'eval_split=0\.1 is for folder:PATH'):
        open_dataset('fashion_mnist_mini', 'eval', eval_split=0.1)
