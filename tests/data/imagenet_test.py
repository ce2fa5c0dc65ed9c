import concurrent.futures
import fcntl
import io
import json
import os
import pathlib
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from se_flax.cli import main
from se_flax.data import check, decode, imagenet, open_dataset, prepare
from se_flax.data.imagenet_tars import list_images, list_tar
from se_flax.errors import MissingError, UserError

from ..emulator import BUCKET

ROOT = pathlib.Path(__file__).parents[2]
TRAIN, VALIDATION = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
CMYK, PNG = 'n01440764_0.JPEG', 'n01440764_1.JPEG'  # the formats of the script's first two images


@pytest.fixture(scope='session')
def script():
    """The functions of scripts/make_tiny_imagenet.py."""
    return runpy.run_path(str(ROOT / 'scripts' / 'make_tiny_imagenet.py'))


@pytest.fixture(scope='session')
def tars(script, tmp_path_factory):
    """A folder of the two tars: 36 training images of 3 classes, and 16 others."""
    folder = tmp_path_factory.mktemp('tars')
    script['main']([str(folder), '--classes=3', '--train-per-class=12', '--val=16'])
    return folder


@pytest.fixture(scope='session')
def originals(tars):
    """The image files of each split by name, as tarfile reads them."""

    def read(file):
        with tarfile.open(fileobj=file) as tar:
            return {member.name: tar.extractfile(member).read() for member in tar}

    classes = read((tars / TRAIN).open('rb')).values()
    train = {name: data for tar in classes for name, data in read(io.BytesIO(tar)).items()}
    return {'train': train, 'validation': read((tars / VALIDATION).open('rb'))}


def run(*argv, code='', **options):
    """Runs `code`, then the command line, in a process of its own."""
    code = f'{code}\nimport sys; from se_flax.cli import main; sys.exit(main(sys.argv[1:]))'
    command = [sys.executable, '-c', code, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def in_threads(monkeypatch):
    """`prepare` works in threads, as starting two processes takes seconds."""
    threads = concurrent.futures.ThreadPoolExecutor
    monkeypatch.setattr(
        imagenet.concurrent.futures, 'ProcessPoolExecutor', lambda number, *_: threads(number)
    )


@pytest.fixture(scope='session')
def no_tensorflow(tmp_path_factory):
    """An environment in which importing tensorflow ends the process."""
    folder = tmp_path_factory.mktemp('no_tensorflow')
    (folder / 'tensorflow.py').write_text('import os; os._exit(3)')
    return os.environ | {'PYTHONPATH': f'{folder}:{ROOT}'}


@pytest.fixture(scope='session')
def prepared(tars, no_tensorflow, tmp_path_factory):
    """A data_dir made by an uninterrupted command, with one worker."""
    data_dir = tmp_path_factory.mktemp('prepared')
    alone = 'from se_flax.data import imagenet; imagenet.cores = lambda: 1'
    ended = run(*command(tars, data_dir), code=alone, env=no_tensorflow)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith('imagenet2012: 36 training and 16 evaluation images, 1000 clas')
    return data_dir


def command(tars, data_dir):
    where = ['--from', tars, '--data-dir', data_dir]
    return ['data', 'prepare', 'imagenet2012', *where, '--allow-other-counts']


def files_of(data_dir):
    folder = data_dir / 'imagenet2012' / '5.1.0'
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def as_tfds_reads(data_dir, split):
    builder = tfds.builder_from_directory(data_dir / 'imagenet2012' / '5.1.0')
    return {e['file_name'].decode(): e for e in builder.as_data_source(split)}


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_tfds_reads_each_image_with_its_label(prepared, originals, split):
    """Compares with tarfile, Pillow, and tfds's own lists of labels."""
    lists = tfds.core.tfds_path('datasets/imagenet2012')
    wnids = (lists / 'labels.txt').read_text().split()
    of_validation = (lists / 'validation_labels.txt').read_text().split()
    assert wnids == sorted(wnids)
    examples = as_tfds_reads(prepared, split)
    assert sorted(examples) == sorted(originals[split])
    for name, example in examples.items():
        number = int(name[-13:-5]) if split == 'validation' else None
        wnid = of_validation[number - 1] if number else name.partition('_')[0]
        assert wnids[example['label']] == wnid, name
        want = np.asarray(Image.open(io.BytesIO(originals[split][name])).convert('RGB'))
        assert example['image'].shape == want.shape
        # Versions of libjpeg differ; images converted to JPEG of quality 100 lose a little more.
        difference = np.abs(example['image'].astype(int) - want)
        assert difference.max() <= (6 if name in (CMYK, PNG) else 3), name


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_files_keep_their_bytes_unless_they_are_no_rgb_jpeg(prepared, originals, split):
    dataset = open_dataset('imagenet2012', {'validation': 'eval'}.get(split, split), prepared)
    wnids = dataset.class_names
    assert (len(wnids), wnids[0], wnids[999]) == (1000, 'n01440764', 'n15075141')
    kept = [dataset.read(i)[0] for i in range(len(dataset))]
    want = {data for name, data in originals[split].items() if name not in (CMYK, PNG)}
    assert want < set(kept) if split == 'train' else want == set(kept)
    assert len(set(kept)) == len(originals[split])
    for data in set(kept) - want:
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode) == ('JPEG', 'RGB')
    formats = [Image.open(io.BytesIO(originals['train'][name])) for name in (CMYK, PNG)]
    assert [(i.format, i.mode) for i in formats] == [('JPEG', 'CMYK'), ('PNG', 'RGB')]


def test_trailing_zeros_of_a_file_stay():
    image = imagenet.simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)) + b'\0\0'
    assert imagenet.encode(image) == image


def test_shards_mix_the_classes(prepared):
    dataset = open_dataset('imagenet2012', 'train', prepared)
    shards = [path for path in files_of(prepared) if '-train.' in path]
    assert len(shards) == 6
    labels = np.array([dataset.read(i)[1] for i in range(36)]).reshape(6, 6)
    assert all(len(set(shard)) > 1 for shard in labels.tolist())
    assert sorted(labels.ravel().tolist()) == [label for label in range(3) for _ in range(12)]


def test_the_order_depends_on_the_names_alone():
    entries = np.zeros(500, imagenet.ENTRY)
    entries['name'] = [f'n01440764_{i}.JPEG' for i in range(500)]
    other = entries[np.random.default_rng(0).permutation(500)]
    assert (imagenet.shuffle(entries) == imagenet.shuffle(other)).all()
    places = np.argsort(imagenet.shuffle(entries)['name'])
    assert abs(np.corrcoef(places, np.argsort(np.sort(entries['name'])))[0, 1]) < 0.2


@given(st.sampled_from(['train', 'validation']), st.integers(1, 2_000_000))
def test_number_of_shards(split, images):
    shards = imagenet.num_shards(split, images)
    assert 1 <= shards <= {'train': 1024, 'validation': 64}[split]
    assert shards**2 <= images


def test_number_of_shards_at_full_size():
    assert imagenet.num_shards('train', 1_281_167) == 1024
    assert imagenet.num_shards('validation', 50_000) == 64


# The parent kills itself after the third shard, while its workers write others.
DIE = """
import os, signal
from se_flax import progress
shown = []
def show(self, done, total):
    shown.append(self._things)
    if shown.count('images') == 3:
        os.kill(os.getpid(), signal.SIGKILL)
progress.Progress.show = show
"""


@pytest.mark.faults
@pytest.mark.usefixtures('in_threads')
def test_a_killed_build_resumes(tars, prepared, tmp_path, capsys):
    data_dir = tmp_path / 'with space'
    # Workers hold the pipes, so this returns only after they have ended, too.
    assert run(*command(tars, data_dir), code=DIE).returncode == -signal.SIGKILL
    work = data_dir / 'imagenet2012' / '5.1.0.incomplete'
    written = {path: path.stat().st_mtime_ns for path in work.glob('imagenet2012-*')}
    assert 3 <= len(written) < 10

    with pytest.raises(MissingError):
        open_dataset('imagenet2012', 'train', data_dir)
    assert main(['data', 'check', 'imagenet2012', '--data-dir', str(data_dir)]) == 2
    said = capsys.readouterr().err
    assert f'is not complete: {len(written)} of 10 shards are written; to resume, run: ' in said
    with pytest.raises(UserError, match='was made with max_side=None, not 64; use that or anot'):
        prepare('imagenet2012', data_dir, tars, max_side=64, allow_other_counts=True)

    assert main(shlex.split(said.partition('to resume, run: se-flax ')[2])) == 0
    final = {path.name: path.stat().st_mtime_ns for path in (work.with_name('5.1.0')).iterdir()}
    assert all(final[path.name] == time for path, time in written.items())  # not written again
    assert not work.exists()
    assert files_of(data_dir) == files_of(prepared)


@pytest.mark.faults
@pytest.mark.usefixtures('in_threads')
def test_a_killed_build_in_a_bucket_resumes(bucket, tars, prepared, capsys):
    env = os.environ | {'PYTHONPATH': str(ROOT)}  # etils would open buckets with TensorFlow
    data_dir = f'gs://{BUCKET}/tfds'
    assert run(*command(tars, data_dir), code=DIE, env=env).returncode == -signal.SIGKILL

    def stored():
        return {
            about['name'].rpartition('/')[2]: about
            for about in bucket.get_file_list(BUCKET, 'tfds/imagenet2012/5.1.0/')[0]
        }

    written = {name: about for name, about in stored().items() if name.startswith('imagenet2012-')}
    assert 3 <= len(written) < 10
    assert main(['data', 'check', 'imagenet2012', '--data-dir', data_dir]) == 2
    said = capsys.readouterr().err
    assert f'in {data_dir} is not complete: {len(written)} of 10 shards are written' in said

    assert main(shlex.split(said.partition('to resume, run: se-flax ')[2])) == 0
    final = stored()
    assert all(final[name] == about for name, about in written.items())  # not written again
    assert {n: bucket.get_file(BUCKET, a['name']) for n, a in final.items()} == files_of(prepared)


def test_nothing_is_done_twice(tars, prepared):
    before = files_of(prepared)
    assert prepare('imagenet2012', prepared, '/nowhere') == check('imagenet2012', prepared)
    with pytest.raises(UserError, match='was made with max_side=None, not 64; use that'):
        prepare('imagenet2012', prepared, tars, max_side=64)
    assert files_of(prepared) == before


@pytest.mark.usefixtures('in_threads')
def test_smaller_training_images(tars, originals, prepared, tmp_path):
    prepare('imagenet2012', tmp_path, tars, max_side=100, allow_other_counts=True)
    for name, example in as_tfds_reads(tmp_path, 'train').items():
        width, height = Image.open(io.BytesIO(originals['train'][name])).size
        got = example['image'].shape
        assert min(got[:2]) == 100
        # The longer edge, of 100 pixels or more, is rounded.
        assert got[0] / got[1] == pytest.approx(height / width, rel=0.01)
    files, others = files_of(tmp_path), files_of(prepared)
    assert {n: d for n, d in files.items() if '-validation.' in n} == {
        n: d for n, d in others.items() if '-validation.' in n
    }
    assert json.loads(files['prepared.json'])['quality'] == 90
    description = json.loads(files['dataset_info.json'])['description']
    assert description.endswith('JPEG quality 90, shorter side 100 pixels at most.')


def test_encoding_again(originals):
    image = originals['train']['n01440764_2.JPEG']
    pixels = decode(image)
    smaller = imagenet.encode(image, None, 80)
    assert len(smaller) < len(image)
    assert decode(smaller).shape == pixels.shape
    assert np.abs(decode(smaller).astype(int) - pixels).mean() < 3
    assert imagenet.encode(image, None, 100) == image  # encoding it again would take more bytes
    assert imagenet.encode(image, 5000, 100) == image  # it is never enlarged
    half = decode(imagenet.encode(image, min(pixels.shape[:2]) // 2, 100))
    assert abs(half.mean() - pixels.mean()) < 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'max_side': 0}, 'max_side=0 must be at least 1'),
        ({'quality': 101}, 'quality=101 must be 1 to 100'),
        ({'quality': 0}, 'quality=0 must be 1 to 100'),
        ({}, 'holds 36 images of 3 classes, but ImageNet has 1,281,167 of 1,000; to use only'),
    ],
)
@pytest.mark.usefixtures('in_threads')
def test_wrong_options(tars, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare('imagenet2012', tmp_path, tars, **options)
    assert not list(tmp_path.iterdir())


def test_options_of_other_data_sets(tmp_path):
    with pytest.raises(UserError, match="--from is for imagenet2012 .*not for 'cifar10'"):
        prepare('cifar10', tmp_path, tmp_path)
    with pytest.raises(UserError, match="--max-side, --quality .* not 'cifar10'"):
        prepare('cifar10', tmp_path, quality=3)


def test_tars_that_are_not_there(tars, tmp_path, capsys):
    with pytest.raises(MissingError, match='no folder /nowhere'):
        prepare('imagenet2012', tmp_path, '/nowhere')
    with pytest.raises(MissingError, match=f'no {TRAIN} and no {VALIDATION} in .*has them'):
        prepare('imagenet2012', tmp_path, tmp_path)
    shutil.copy(tars / TRAIN, tmp_path)
    assert main(list(map(str, command(tmp_path, tmp_path)))) == 2
    said = capsys.readouterr().err
    assert said == f'error: no {VALIDATION} in {tmp_path}; https://image-net.org has it\n'


def test_missing_set_gives_the_command(tmp_path):
    for name in ('imagenet2012', 'imagenet2012:5.1.0'):
        with pytest.raises(MissingError) as error:
            check(name, tmp_path)
        assert f'with {TRAIN} and {VALIDATION} of ' in str(error.value)
        assert f'--from DIR --data-dir={tmp_path}' in str(error.value)
        assert '\n' not in str(error.value)


def test_a_tar_that_is_cut_short_anywhere(tars, tmp_path):
    """Also between two members, which tarfile does not notice."""
    whole = list_tar(tars / VALIDATION)
    data = (tars / VALIDATION).read_bytes()
    cut = tmp_path / 'cut.tar'
    last = whole[-1].offset_data + -(-whole[-1].size // 512) * 512
    places = {0, 1, 511, 513, last - 1, last, last + 511, *(member.offset for member in whole)}
    places |= {member.offset_data + member.size // 2 for member in whole}
    for place in sorted(places):
        cut.write_bytes(data[:place])
        with pytest.raises(UserError, match=r'cut\.tar is damaged'):
            list_tar(cut)
    cut.write_bytes(data[: last + 512])
    assert len(list_images('validation', cut)) == 16


def test_a_damaged_header(tars, tmp_path):
    data = bytearray((tars / VALIDATION).read_bytes())
    data[list_tar(tars / VALIDATION)[7].offset + 3] ^= 1
    (tmp_path / 'bad.tar').write_bytes(data)
    with pytest.raises(UserError, match=r'bad\.tar is damaged or truncated: no end of archi'):
        list_tar(tmp_path / 'bad.tar')


@pytest.fixture
def pack(script):
    """`pack(name, data)` is a tar of one file, `pack()` a tar of none."""

    def pack(*file):
        packed = io.BytesIO()
        with script['create'](packed) as tar:
            if file:
                script['add'](tar, *file)
        return packed.getvalue()

    return pack


@pytest.fixture
def build(tars, tmp_path):
    """`build(data)` builds from these bytes of a training tar."""

    def build(data):
        shutil.copy(tars / VALIDATION, tmp_path)
        (tmp_path / TRAIN).write_bytes(data)
        return prepare('imagenet2012', tmp_path, tmp_path, allow_other_counts=True)

    return build


@pytest.mark.usefixtures('in_threads')
@pytest.mark.parametrize('name', ['n99999999_1.JPEG', 'readme.txt'])
def test_files_that_are_not_images_of_imagenet(build, pack, name):
    with pytest.raises(UserError, match=f'holds {name}, which is not an image of the train'):
        build(pack('n01440764.tar', pack(name, b'')))


def test_an_error_of_a_worker_is_told(build, pack, monkeypatch):
    monkeypatch.setattr(imagenet, 'cores', lambda: 1)  # a process takes seconds to start
    of_class = pack('n01440764_7.JPEG', b'\xff\xd8 and then nothing')
    with pytest.raises(UserError, match='n01440764_7.JPEG of .*_train.tar is not an image: '):
        build(pack('n01440764.tar', of_class))


@pytest.mark.usefixtures('in_threads')
def test_the_tar_of_a_class_is_damaged_or_there_is_none(build, pack):
    cut = pack('n01440764_1.JPEG', bytes(512))[:1024]  # the zeros after it belong to the outer tar
    for of_class in (b'not a tar' * 200, cut):
        with pytest.raises(UserError, match=f'{TRAIN} is damaged or truncated: no end of archive'):
            build(pack('n01440764.tar', of_class))
    with pytest.raises(UserError, match=f'{TRAIN} holds no images'):
        build(pack())


@pytest.mark.usefixtures('in_threads')
def test_a_disk_that_is_too_small(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(UserError, match=r'has 0\.0 GB free, but 0\.0 GB are needed'):
        prepare('imagenet2012', tmp_path, tars, allow_other_counts=True)
    assert 'is not in' in imagenet.how_to_prepare(tmp_path)


@pytest.mark.usefixtures('in_threads')
def test_two_builds_at_a_time(tars, tmp_path):
    work = tmp_path / 'imagenet2012' / '5.1.0.incomplete'
    work.mkdir(parents=True)
    descriptor = os.open(work, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match='another process is working in .*; let it finish'):
        prepare('imagenet2012', tmp_path, tars, allow_other_counts=True)
    os.close(descriptor)


def test_a_folder_in_the_way(tars, tmp_path):
    (tmp_path / 'imagenet2012' / '5.1.0').mkdir(parents=True)
    with pytest.raises(
        UserError, match=r'5\.1\.0 exists, but is not a complete data set; delete it'
    ):
        prepare('imagenet2012', tmp_path, tars, allow_other_counts=True)


@pytest.mark.usefixtures('in_threads')
def test_other_tars_than_it_was_begun_with(tars, tmp_path, monkeypatch):
    for name in (TRAIN, VALIDATION):
        shutil.copy2(tars / name, tmp_path)

    def fail(*_):
        raise OSError('No space left on device')

    monkeypatch.setattr(imagenet, 'write_shard', fail)
    with pytest.raises(UserError, match='cannot be built: No space left on device; finished sha'):
        prepare('imagenet2012', tmp_path, tmp_path, allow_other_counts=True)
    os.utime(tmp_path / VALIDATION, ns=(0, 0))
    with pytest.raises(UserError, match=f'was made from another {VALIDATION}, of different si'):
        prepare('imagenet2012', tmp_path, tmp_path, allow_other_counts=True)


def test_the_script_writes_the_same_again(script, tars, tmp_path):
    script['main']([str(tmp_path), '--classes=3', '--train-per-class=12', '--val=16'])
    for name in (TRAIN, VALIDATION):
        assert (tmp_path / name).read_bytes() == (tars / name).read_bytes()
