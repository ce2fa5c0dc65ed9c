"""Data sets in a bucket: `gs://`, served by an emulator on this machine."""

import dataclasses

import pytest
import tensorflow_datasets as tfds
from etils.epath import backend

from se_flax.cli import main
from se_flax.data import eval_batches, open_dataset, prepare
from se_flax.data.transforms import EvalTransform
from se_flax.errors import MissingError, UnreachableError, UserError
from se_flax.training.metrics_log import TIMING, read_rows

from ..emulator import BUCKET

DATA = f'gs://{BUCKET}/with/tfds'
MESSAGE = 'Retry policy exhausted before first request attempt; reading gs://bucket/x'


@pytest.fixture
def copied(bucket, array_record_dir):
    """A bucket with the files of a prepared `fashion_mnist`, as a copy to it would have them."""
    upload(bucket, array_record_dir, 'with/tfds')
    return bucket


def upload(bucket, folder, prefix):
    for path in folder.rglob('*'):
        if path.is_file():
            name = f'{prefix}/{path.relative_to(folder).as_posix()}'
            about = {'name': name, 'bucket': BUCKET, 'generation': '1', 'contentType': 'x'}
            about |= {'size': str(path.stat().st_size), 'crc32c': '', 'md5Hash': ''}
            bucket.create_file(BUCKET, name, path.read_bytes(), about)


def names(bucket, prefix=''):
    return sorted(about['name'] for about in bucket.get_file_list(BUCKET, prefix)[0])


def test_records_are_those_of_the_disk(copied, array_record_dir):
    for split in ('train', 'eval'):
        there, here = (open_dataset('fashion_mnist', split, d) for d in (DATA, array_record_dir))
        assert there.fingerprint() == here.fingerprint()
        assert len(there) == len(here)
        assert [there.read(i) for i in range(len(there))] == [
            here.read(i) for i in range(len(here))
        ]


def test_check_finds_it_and_names_what_is_missing(copied, capsys):
    assert main(['data', 'check', 'fashion_mnist', '--data-dir', DATA]) == 0
    assert capsys.readouterr().out == (
        'fashion_mnist: 60 training and 20 evaluation images, 10 classes, '
        f'array_record in {DATA}/fashion_mnist/3.0.1\n'
    )
    assert main(['data', 'check', 'cifar10', '--data-dir', DATA]) == 2
    command = f'se-flax data prepare cifar10 --data-dir={DATA}'
    assert capsys.readouterr().err == (
        f"error: data set 'cifar10' is not in {DATA}; run: {command}\n"
    )


def test_a_lost_shard_is_told(copied):
    shard = next(name for name in names(copied) if '-train.' in name)
    copied.delete_file(BUCKET, shard)
    with pytest.raises(MissingError, match=f'lacks 1 of its 1 train files, such as gs://{BUCKET}/'):
        open_dataset('fashion_mnist', 'train', DATA)


def test_what_a_bucket_cannot_hold_is_refused_with_its_address(bucket, tfrecord_dir, tmp_path):
    upload(bucket, tfrecord_dir, 'with/tfds')
    with pytest.raises(UserError, match=f'^{DATA}/.*tfrecord.*: TFRecord files must be on a disk'):
        open_dataset('fashion_mnist', 'train', DATA)
    with pytest.raises(UserError, match=f'images must be on a disk or a mount, not at {DATA}$'):
        open_dataset(f'folder:{DATA}', 'train')
    with pytest.raises(UserError, match=f'^--from={DATA}: the files must be on a disk'):
        prepare('imagenet2012', str(tmp_path), DATA)
    with pytest.raises(UserError, match='^s3://b/tfds: data sets are read from disks, mounts and'):
        open_dataset('cifar10', 'train', 's3://b/tfds')


def test_a_set_of_tfds_is_built_here_and_copied(bucket, idx_folder, tmp_path, monkeypatch):
    """Cut off before its last two files, it goes on with these."""
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
    said = prepare('fashion_mnist', DATA, idx_folder)
    assert said.endswith(f'array_record in {DATA}/fashion_mnist/3.0.1')
    local = {p.name: p.read_bytes() for p in (tmp_path / 'fashion_mnist' / '3.0.1').iterdir()}
    stored = names(bucket)
    contents = {name.rpartition('/')[2]: bucket.get_file(BUCKET, name) for name in stored}
    assert contents == local

    for name in stored:
        if name.endswith('features.json') or '-train.' in name:
            bucket.delete_file(BUCKET, name)
    backend.fsspec_backend.fs(DATA).invalidate_cache()  # this process would not look again
    kept = {name: bucket.get_file_obj(BUCKET, name)['generation'] for name in names(bucket)}
    with pytest.raises(MissingError):
        open_dataset('fashion_mnist', 'train', DATA)
    assert prepare('fashion_mnist', DATA, '/nowhere') == said
    assert names(bucket) == stored
    assert all(bucket.get_file_obj(BUCKET, n)['generation'] == g for n, g in kept.items())


@pytest.mark.slow  # gcsfs tries for half a minute
def test_a_bucket_that_is_away_is_told_in_a_line(monkeypatch, capsys, caplog):
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', 'http://localhost:9')
    monkeypatch.setenv('NO_GCE_CHECK', 'true')  # no account is looked for, which warns
    assert main(['data', 'check', 'cifar10', '--data-dir', 'gs://nobody/tfds']) == 2
    said = capsys.readouterr().err
    assert said.startswith('error: cannot reach gs://nobody/tfds: ')
    assert said.count('\n') == 1
    assert 'gcsfs' not in caplog.text


class Away:
    """Records of a bucket that went away, with the error of ArrayRecord's reader."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        raise RuntimeError(MESSAGE)


def test_a_bucket_that_goes_away_does_not_count_as_corrupt_records(copied, caplog):
    dataset = dataclasses.replace(open_dataset('fashion_mnist', 'eval', DATA), records=Away())
    batches = eval_batches(dataset, EvalTransform(28), batch_size=4, max_corrupt=None)
    caplog.clear()
    with pytest.raises(UnreachableError, match='^cannot reach the data: .*gs://bucket/x'):
        list(batches)
    assert caplog.text == ''


@pytest.mark.faults
def test_a_run_is_the_same_from_a_bucket(copied, array_record_dir, train_main, tmp_path, capsys):
    rows = []
    for folder in (DATA, array_record_dir):
        workdir = tmp_path / str(len(rows))
        short = ('data=fashion_mnist', 'num_steps=4', f'data_dir={folder}', 'drop_epochs=()')
        assert train_main(workdir, *(f'--config.{field}' for field in short)) == 0
        rows.append([{**r, **dict.fromkeys(TIMING)} for r in read_rows(workdir / 'metrics.jsonl')])
    assert rows[0] == rows[1]
    capsys.readouterr()
    assert main(['evaluate', '--workdir', str(tmp_path / '0')]) == 0
    from_bucket = capsys.readouterr().out.partition('\n')[2]
    where = ['--data-dir', str(array_record_dir)]
    assert main(['evaluate', '--workdir', str(tmp_path / '0'), *where]) == 0
    assert capsys.readouterr().out.partition('\n')[2] == from_bucket
