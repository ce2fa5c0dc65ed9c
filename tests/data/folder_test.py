import shutil

import pytest

from se_flax.data import decode, open_dataset
from se_flax.errors import MissingError, UserError


def test_classes_are_sorted_and_shared(image_folder):
    (image_folder / 'train' / 'cat' / 'notes.txt').write_text('no image')
    for split, count in (('train', 4), ('eval', 2)):
        dataset = open_dataset(f'folder:{image_folder}', split)
        assert dataset.class_names == ('cat', 'dog', 'eel')
        assert [dataset.read(i)[1] for i in range(len(dataset))] == sorted([0, 1, 2] * count)
        # The fixture's widths tell the class, its heights the number.
        assert decode(dataset.read(count)[0]).shape == (20, 25, 3)
    assert dataset.key(0) == str(image_folder / 'val' / 'cat' / '0.JPEG')


def test_eval_may_lack_a_class(image_folder):
    shutil.rmtree(image_folder / 'val' / 'dog')
    dataset = open_dataset(f'folder:{image_folder}', 'eval')
    assert dataset.num_classes == 3
    assert [dataset.read(i)[1] for i in range(len(dataset))] == [0, 0, 2, 2]


@pytest.mark.parametrize('name', ['validation', 'test', 'eval'])
def test_other_names_of_the_eval_folder(image_folder, name):
    (image_folder / 'val').rename(image_folder / name)
    assert len(open_dataset(f'folder:{image_folder}', 'eval')) == 6


def test_what_is_missing_is_named(image_folder):
    with pytest.raises(MissingError, match='no folder /nowhere'):
        open_dataset('folder:/nowhere', 'train')
    shutil.rmtree(image_folder / 'val')
    with pytest.raises(MissingError, match='no folder val or validation or test or eval in /'):
        open_dataset(f'folder:{image_folder}', 'eval')
    (image_folder / 'val').mkdir()
    with pytest.raises(UserError, match='val is empty: it must hold a folder of images for each'):
        open_dataset(f'folder:{image_folder}', 'eval')
    (image_folder / 'val' / 'dogs').mkdir()
    with pytest.raises(UserError, match=r"unknown class in .*val 'dogs': did you mean dog\?"):
        open_dataset(f'folder:{image_folder}', 'eval')
    (image_folder / 'val' / 'dogs').rename(image_folder / 'val' / 'dog')
    with pytest.raises(UserError, match=r'no images in .*val/dog: it holds none of \*\.jpg'):
        open_dataset(f'folder:{image_folder}', 'eval')
