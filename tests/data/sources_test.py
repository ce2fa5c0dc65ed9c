import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from se_flax.data import decode, decode_all, open_dataset
from se_flax.data.dataset import cores
from se_flax.data.decode import DecodeError
from se_flax.errors import MissingError, UserError

pytestmark = pytest.mark.quick


def test_embedded_set():
    for split in ('train', 'eval'):
        dataset = open_dataset('fashion_mnist_mini', split)
        assert dataset.class_names[0] == 'T-shirt/top'
        assert dataset.num_classes == 10
        image = decode(dataset.read(0)[0])
        assert image.shape == (28, 28, 3)
        assert (image == image[..., :1]).all()
    assert dataset.key(3) == 'fashion_mnist_mini/eval/3'


@pytest.mark.parametrize('split', ['train', 'eval'])
def test_array_record_and_tfrecord_give_equal_examples(array_record_dir, tfrecord_dir, split):
    a = open_dataset('fashion_mnist', split, array_record_dir)
    b = open_dataset('fashion_mnist', split, tfrecord_dir)
    assert type(a.records) is not type(b.records)
    assert len(a) == len(b) == {'train': 60, 'eval': 20}[split]
    assert [a.read(i) for i in range(len(a))] == [b.read(i) for i in range(len(b))]
    assert a.class_names == b.class_names


def test_version_can_be_named(array_record_dir):
    assert len(open_dataset('fashion_mnist:3.0.1', 'eval', array_record_dir)) == 20


def test_data_dir_may_start_at_home(array_record_dir, monkeypatch):
    monkeypatch.setenv('HOME', str(array_record_dir.parent))
    assert len(open_dataset('fashion_mnist', 'eval', f'~/{array_record_dir.name}')) == 20


def test_a_damaged_record_is_a_decode_error(array_record_dir, tmp_path):
    copy = shutil.copytree(array_record_dir, tmp_path / 'copy')
    [shard] = copy.glob('fashion_mnist/*/*-train.*')
    data = bytearray(shard.read_bytes())
    data[20_000] ^= 0xFF
    shard.write_bytes(data)
    dataset = open_dataset('fashion_mnist', 'train', copy)
    bad = []
    for i in range(len(dataset)):
        try:
            dataset.read(i)
        except DecodeError:
            bad.append(i)
    assert len(bad) == 1


def test_missing_set_gives_the_command(tmp_path):
    message = f'is not in {tmp_path}; run: se-flax data prepare cifar10 --data-dir={tmp_path}$'
    with pytest.raises(MissingError, match=message):
        open_dataset('cifar10', 'train', str(tmp_path))


@pytest.mark.parametrize(
    ('name', 'hint'),
    [
        ('fashion_mnist_min', 'did you mean fashion_mnist_mini or fashion_mnist'),
        ('imagenet', 'did you mean imagenet'),
        ('cifar1000/x:1.0.0', 'did you mean cifar100 or cifar10'),
        ('qqq', 'one of fashion_mnist_mini, synthetic, folder:PATH'),
        ('cifar-10', 'did you mean cifar10'),
        ('fashion_mnist_mini:1.0.0', 'did you mean fashion_mnist_mini'),
        ('synthetic/x', 'did you mean synthetic'),
        ('', 'one of fashion_mnist_mini, synthetic, folder:PATH'),
        ('/', '/ is a folder; to read its images, use folder:/'),
    ],
)
def test_unknown_name_gives_the_nearest(tmp_path, name, hint):
    with pytest.raises(UserError, match=hint) as error:
        open_dataset(name, 'train', str(tmp_path))
    assert len(str(error.value)) < 200


def test_a_folder_of_its_name_hides_no_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'cifar10').mkdir()
    with pytest.raises(MissingError, match='run: se-flax data prepare cifar10'):
        open_dataset('cifar10', 'train', str(tmp_path / 'data'))


def test_unknown_split():
    with pytest.raises(UserError, match="unknown split 'test': one of train, eval"):
        open_dataset('synthetic', 'test')


def edit_info(data_dir, change):
    path = data_dir / 'fashion_mnist' / '3.0.1' / 'dataset_info.json'
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def test_missing_split_shard_and_records(tfrecord_dir):
    def rename(info):
        info['splits'][1]['name'] = 'extra'

    def empty(info):
        info['splits'][1] |= {'name': 'test', 'shardLengths': ['0']}

    for change, has in ((rename, 'train, extra'), (empty, 'train')):
        edit_info(tfrecord_dir, change)
        message = f'no validation or test split with examples; it has {has}$'
        with pytest.raises(UserError, match=message):
            open_dataset('fashion_mnist', 'eval', tfrecord_dir)

    shard = next(tfrecord_dir.glob('*/*/*-train.tfrecord-00001-of-00003'))
    data = shard.read_bytes()
    shard.write_bytes(b'')
    with pytest.raises(UserError, match='hold 59 train records, but its dataset_info.json says 60'):
        open_dataset('fashion_mnist', 'train', tfrecord_dir)
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match='00001-of-00003 is truncated'):
        open_dataset('fashion_mnist', 'train', tfrecord_dir)
    shard.unlink()
    with pytest.raises(
        MissingError, match='lacks 1 of its 3 train files, such as .*00001-of-00003'
    ):
        open_dataset('fashion_mnist', 'train', tfrecord_dir)


@pytest.mark.parametrize('file', ['dataset_info.json', 'features.json'])
def test_damaged_metadata_are_told_in_a_line(tfrecord_dir, file):
    path = next(tfrecord_dir.glob(f'*/*/{file}'))
    path.write_text(path.read_text()[:-20])
    message = f"data set 'fashion_mnist' in {tfrecord_dir} cannot be read: .*line"
    with pytest.raises(UserError, match=message) as error:
        open_dataset('fashion_mnist', 'train', tfrecord_dir)
    assert '\n' not in str(error.value)


def test_features_must_be_image_and_label(tfrecord_dir):
    path = next(tfrecord_dir.glob('*/*/features.json'))
    path.write_text(path.read_text().replace('"image": {', '"photo": {', 1))
    with pytest.raises(UserError, match="no Image named 'image'; it has label, photo"):
        open_dataset('fashion_mnist', 'train', tfrecord_dir)


def test_synthetic_is_the_same_each_time():
    a, b = (open_dataset('synthetic', 'train') for _ in range(2))
    np.testing.assert_array_equal(a.read(7)[0], b.read(7)[0])
    assert a.read(7)[0].shape == (64, 64, 3)
    assert a.read(7)[0].dtype == np.uint8
    assert (a.read(7)[0] != a.read(17)[0]).any()
    assert (a.read(7)[0] != open_dataset('synthetic', 'eval').read(7)[0]).any()
    assert a.num_classes == 10
    assert a.read(7)[1] == 7


def test_decode_all_keeps_pixels_labels_and_keys(image_folder):
    dataset = open_dataset(f'folder:{image_folder}', 'train')
    decoded = decode_all(dataset)
    assert len(decoded) == len(dataset)
    for i in range(len(dataset)):
        image, label = dataset.read(i)
        np.testing.assert_array_equal(decoded.read(i)[0], decode(image))
        assert decoded.read(i)[1] == label
        assert decoded.key(i) == dataset.key(i)
        assert decoded.read(i)[0] is decoded.read(i)[0]  # no second decode


def test_decode_all_leaves_what_it_cannot_decode(image_folder):
    (image_folder / 'train' / 'dog' / '1.png').write_bytes(b'no image')
    decoded = decode_all(open_dataset(f'folder:{image_folder}', 'train'))
    assert decoded.read(5) == (b'no image', 1)


USE = """
from se_flax.data import EvalTransform, check, eval_batches, open_dataset
check('fashion_mnist_mini')
next(eval_batches(open_dataset('fashion_mnist_mini', 'eval'), EvalTransform(28), batch_size=8))
print('used', flush=True)
import tensorflow
"""


def test_nothing_imports_tensorflow(tmp_path):
    """Importing this tensorflow ends the process, as the last line shows."""
    (tmp_path / 'tensorflow.py').write_text('import os; os._exit(3)')
    environment = os.environ | {'PYTHONPATH': f'{tmp_path}:{os.getcwd()}'}
    ended = subprocess.run([sys.executable, '-c', USE], env=environment, stdout=subprocess.PIPE)
    assert (ended.stdout, ended.returncode) == (b'used\n', 3)


def test_cores_are_counted_where_a_process_has_no_affinity(monkeypatch):
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, 'sched_getaffinity')  # as on macOS
    assert cores() == os.cpu_count()
