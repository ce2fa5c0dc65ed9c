"""Converts ImageNet (ILSVRC 2012) from its two tars to a tfds data set, without TensorFlow.

The tars are listed once; each image is then read in place, so nothing is extracted. One process
writes a shard and renames it when it is complete. The folder is named `.incomplete` until all
shards are there; in a bucket, where folders have no names to change, features.json is written last.
An interrupted build therefore resumes with the missing shards, ends in the same bytes as an
uninterrupted one, and is never mistaken for a data set.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import io
import json
import math
import multiprocessing
import os
import pathlib
import shlex
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from se_flax.data import imagenet_tars
from se_flax.data.dataset import cores, end_with_parent
from se_flax.data.decode import JPEG, decode
from se_flax.data.imagenet_tars import ENTRY, TARS
from se_flax.errors import UserError, check_at_least
from se_flax.progress import Progress
from se_flax.storage import (
    AnyPath,
    as_path,
    atomic_write,
    copy_missing,
    is_remote,
    read_json,
    sync,
    write_text,
)

NAME = 'imagenet2012'
VERSION = '5.1.0'  # of tfds's data set, whose features and labels are used
MAX_SHARDS = {'train': 1024, 'validation': 64}
PLAN = 'prepared.json'  # how the data set was made; stays in it
INDEX = 'index.npz'  # of an incomplete data set: what is in the tars
QUALITY = 90  # default for smaller images
PathLike = str | os.PathLike
Entries = dict[str, np.ndarray]  # ENTRY [images], by split


class Options(NamedTuple):
    """How to write ImageNet: RGB and gray JPEGs keep their bytes, other images become RGB JPEGs.

    With a `quality` (1 to 100; 90 if only `max_side` is given) training images are encoded again,
    and with a `max_side` their shorter side is reduced to that many pixels. `allow_other_counts`
    accepts tars with only a part of the images.
    """

    max_side: int | None = None
    quality: int | None = None
    allow_other_counts: bool = False

    def checked(self) -> 'Options':
        """Returns these with the default quality filled in; raises UserError if invalid."""
        if self.max_side is not None:
            check_at_least('max_side', self.max_side, 1)
        if self.quality is None:
            return self._replace(quality=QUALITY if self.max_side else None)
        if not 1 <= self.quality <= 100:
            raise UserError(f'quality={self.quality} must be 1 to 100')
        return self


def build(folder: PathLike, data_dir: PathLike, options: Options) -> None:
    """Makes `data_dir/imagenet2012/5.1.0` from the two tars in `folder`, or resumes that.

    The features are tfds's: `image` (JPEG), `label` (1000 wnids in ascending order), `file_name`.
    Raises MissingError for a missing tar, and UserError for a damaged one, one with other images
    than ImageNet's, and if the build was begun with other tars or options.
    """
    tars = imagenet_tars.find_tars(pathlib.Path(folder))
    final, work = _folders(data_dir)
    plan: dict[str, Any] = {
        'from': os.path.abspath(folder),
        **options._asdict(),
        'tars': {tar.name: [tar.stat().st_size, tar.stat().st_mtime_ns] for tar in tars.values()},
    }
    begun = (work / PLAN).exists()
    if final.exists() and not (begun and work == final):
        raise UserError(f'{final} exists, but is not a complete data set; delete it first')
    if begun:
        check_made_with(work, plan)
    pool = concurrent.futures.ProcessPoolExecutor(
        cores(),
        multiprocessing.get_context('spawn'),  # a fork copies locks that our threads hold
        _start_worker,
    )
    try:
        if begun and (work / INDEX).exists():
            entries = dict(np.load(io.BytesIO((work / INDEX).read_bytes())))
        else:
            entries = _list_splits(tars, pool)
        for split, tar in tars.items():
            imagenet_tars.check_counts(split, tar, entries[split], options.allow_other_counts)
        plan['shards'] = {split: num_shards(split, len(entries[split])) for split in tars}
        there = {path.name for path in work.glob(f'{NAME}-*')}
        shards = [
            (work / name, split, part)
            for split, count in plan['shards'].items()
            for i, part in enumerate(np.array_split(entries[split], count))
            if (name := f'{NAME}-{split}.array_record-{i:05}-of-{count:05}') not in there
        ]
        # The size of images that are encoded again is unknown.
        kept = [part for _, split, part in shards if split != 'train' or not options.quality]
        needed = sum(int(part['size'].sum()) for part in kept)
        with _lock(work, needed):
            index = io.BytesIO()
            np.savez(index, train=entries['train'], validation=entries['validation'])
            atomic_write(work / INDEX, index.getvalue())
            write_text(work / PLAN, json.dumps(plan, indent=2))
            how = {'train': options, 'validation': Options()}
            futures = {
                pool.submit(write_shard, path, tars[split], part, how[split]): len(part)
                for path, split, part in shards
            }
            _wait('images', futures)
            _write_metadata(work, entries, plan)
            (work / INDEX).unlink(missing_ok=True)
            if work != final:
                work.rename(final)
                sync(final.parent)
    except (OSError, RuntimeError) as error:  # ArrayRecord and a broken pool raise RuntimeError
        raise UserError(
            f'{NAME!r} cannot be built: {error}; finished shards are kept: run the same command '
            f'to resume'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # running tasks finish


def read_plan(folder: PathLike) -> dict[str, Any]:
    """Reads how a data set was made; one that another program made keeps all bytes."""
    path = as_path(folder) / PLAN
    return read_json(path) if path.exists() else {'max_side': None, 'quality': None}


def check_made_with(folder: PathLike, wanted: dict[str, Any]) -> None:
    """Raises UserError if a folder was made with other options, or other tars, than `wanted`."""
    made = read_plan(folder)
    for tar, size_and_time in wanted.get('tars', {}).items():
        if made['tars'][tar] != size_and_time:
            raise UserError(
                f'{folder} was made from another {tar}, of different size or time; to start over, '
                f'delete the folder'
            )
    for option in ('max_side', 'quality'):
        if made[option] != wanted[option]:
            raise UserError(
                f'{folder} was made with {option}={made[option]}, not {wanted[option]}; use that '
                f'or another --data-dir, or delete the folder to start over'
            )


def how_to_prepare(data_dir: PathLike, option: str = '') -> str:
    """Returns the message for a missing data set; `option` is the command's for `data_dir`."""
    _, work = _folders(data_dir)
    command = f'se-flax data prepare {NAME} --from'
    if not (work / PLAN).exists():
        return (
            f'data set {NAME!r} is not in {data_dir}; with {" and ".join(TARS.values())} of '
            f'https://image-net.org in a folder DIR, run: {command} DIR{option}'
        )
    plan = read_plan(work)
    command += f' {shlex.quote(plan["from"])}'
    for name in ('max_side', 'quality'):
        command += f' --{name.replace("_", "-")} {plan[name]}' if plan[name] else ''
    command += ' --allow-other-counts' if plan['allow_other_counts'] else ''
    done, shards = len(list(work.glob(f'{NAME}-*'))), sum(plan['shards'].values())
    return (
        f'data set {NAME!r} in {data_dir} is not complete: {done:,} of {shards:,} shards are '
        f'written; to resume, run: {command}{option}'
    )


def shuffle(entries: np.ndarray) -> np.ndarray:
    """Sorts images by a hash of their name, which mixes the classes independently of the tar."""
    hashes = [hashlib.blake2b(name, digest_size=8).digest() for name in entries['name'].tolist()]
    return entries[np.argsort(np.frombuffer(b''.join(hashes), '>u8'))]


def num_shards(split: str, images: int) -> int:
    """Returns the number of shards; a shard never holds fewer images than there are shards."""
    return min(MAX_SHARDS[split], math.isqrt(images))


def encode(image: bytes, max_side: int | None = None, quality: int | None = None) -> bytes:
    """Converts an image file to an RGB or gray JPEG; returns such a JPEG unchanged.

    With a `quality` it is encoded again, with its shorter side reduced to `max_side` pixels, unless
    that gives more bytes at the same size. Raises DecodeError if it is not an image.
    """
    if not _is_plain(image):
        image = simplejpeg.encode_jpeg(decode(image), 100, 'RGB', '444')  # as tfds does
    if quality is None:
        return image
    pixels = decode(image)
    scale = max_side / min(pixels.shape[:2]) if max_side else 1
    if scale < 1:
        size = tuple(round(side * scale) for side in pixels.shape[1::-1])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, 'RGB', '420')
    return encoded if scale < 1 or len(encoded) < len(image) else image


def _is_plain(image: bytes) -> bool:
    if image[:2] != JPEG:
        return False
    try:
        return simplejpeg.decode_jpeg_header(image, strict=False)[2] not in ('CMYK', 'YCCK')
    except (ValueError, KeyError):  # KeyError for the colors of a damaged header
        decode(image)  # raises, unless only the header is unusual
        return True


def serialize(image: bytes, label: int, name: bytes) -> bytes:
    """Returns the `tf.train.Example` of an image file with tfds's features."""
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature['image'].bytes_list.value.append(image)
    feature['label'].int64_list.value.append(label)
    feature['file_name'].bytes_list.value.append(name)
    return example.SerializeToString(deterministic=True)


def write_shard(shard: AnyPath, tar: pathlib.Path, entries: np.ndarray, options: Options) -> None:
    """Writes images to an ArrayRecord file."""
    if is_remote(shard):  # where ArrayRecord cannot write
        with tempfile.TemporaryDirectory() as folder:
            local = pathlib.Path(folder, shard.name)
            write_shard(local, tar, entries, options)
            atomic_write(shard, local.read_bytes())
        return
    temporary = shard.with_name(f'.{shard.name}.new')
    # JPEG does not compress further, and reads faster uncompressed; tfds groups by one, too.
    writer = ArrayRecordWriter(str(temporary), 'group_size:1,uncompressed')
    with tar.open('rb', buffering=0) as file:
        for name, label, offset, size in entries.tolist():
            image = os.pread(file.fileno(), size, offset)
            try:
                image = encode(image, options.max_side, options.quality)
            except (ValueError, cv2.error, MemoryError) as error:  # DecodeError, or of an encoder
                raise UserError(f'{name.decode()} of {tar} is not an image: {error}') from error
            writer.write(serialize(image, label, name))
    writer.close()
    sync(temporary)
    temporary.replace(shard)


def _folders(data_dir: PathLike) -> tuple[AnyPath, AnyPath]:
    """Returns the folders of the complete data set and of one in the making."""
    final = as_path(data_dir) / NAME / VERSION
    return final, final if is_remote(final) else final.with_name(f'{VERSION}.incomplete')


@contextlib.contextmanager
def _lock(work: AnyPath, needed: int) -> Iterator[None]:
    """Makes and locks the folder; the system releases the lock when the process ends.

    Raises UserError if another process holds it, or its disk has less than `needed` bytes free. A
    bucket has no lock; two processes write the same bytes there.
    """
    if is_remote(work):
        yield
        return
    work.parent.mkdir(parents=True, exist_ok=True)
    if needed > (free := shutil.disk_usage(work.parent).free):
        raise UserError(
            f'{work.parent} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed'
        )
    work.mkdir(exist_ok=True)
    descriptor = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f'another process is working in {work}; let it finish') from error
    finally:
        os.close(descriptor)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    end_with_parent()


def _list_splits(tars: dict[str, pathlib.Path], pool: concurrent.futures.Executor) -> Entries:
    list_images, train = imagenet_tars.list_images, tars['train']
    validation = pool.submit(list_images, 'validation', tars['validation'])
    training = [
        pool.submit(list_images, 'train', train, tar.offset_data, tar.offset_data + tar.size)
        for tar in imagenet_tars.list_tar(train)
    ]
    _wait('classes', dict.fromkeys(training, 1))
    images = [future.result() for future in training]
    return {
        'train': shuffle(np.concatenate([np.empty(0, ENTRY), *images])),
        'validation': shuffle(validation.result()),
    }


def _write_metadata(work: AnyPath, entries: Entries, plan: dict[str, Any]) -> None:
    shards = list(epath.Path(work).glob(f'{NAME}-*'))
    shrunk = ''
    if plan['quality']:
        side = f', shorter side {plan["max_side"]} pixels at most' if plan['max_side'] else ''
        shrunk = f' Training images were encoded again: JPEG quality {plan["quality"]}{side}.'
    with tempfile.TemporaryDirectory() as folder:
        splits = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(part) for part in np.array_split(entries[split], count)],
                num_bytes=sum(p.stat().length for p in shards if f'-{split}.' in p.name),
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=folder, dataset_name=NAME, split=split, filetype_suffix='array_record'
                ),
            )
            for split, count in plan['shards'].items()
        ]
        named = [pathlib.Path(folder, shard.name) for shard in shards]
        for path in named:  # tfds reads only the names
            path.touch()
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features={
                'image': tfds.features.Image(encoding_format='jpeg'),
                'label': tfds.features.ClassLabel(names=imagenet_tars.class_names()),
                'file_name': tfds.features.Text(),
            },
            split_infos=splits,
            version=VERSION,
            check_data=False,  # that needs TensorFlow
            description=f'ImageNet, ILSVRC 2012.{shrunk}',
            supervised_keys=('image', 'label'),
            homepage='https://image-net.org/',
        )
        for path in named:
            path.unlink()
        copy_missing(pathlib.Path(folder), work, last=tfds.core.constants.FEATURES_FILENAME)
    sync(work)


def _wait(what: str, futures: dict[concurrent.futures.Future, int]) -> None:
    """Shows the progress of tasks, each worth a number of `what`, until all are done."""
    done, total = 0, sum(futures.values())
    with Progress(what, 'starting') as progress:
        for future in concurrent.futures.as_completed(futures):
            future.result()
            done += futures[future]
            progress.show(done, total)
