"""ImageNet (ILSVRC 2012) as a tfds data set, from its two tars; needs no TensorFlow.

The tars are listed once, and each image is then read from where it lies: nothing is extracted. A
shard is a task for one of several processes, which renames it when it is whole, and the folder
is called `.incomplete` until all are. So a build that was cut off goes on with the shards that
lack, ends in the same bytes as one that was not, and is never taken for a data set.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
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
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from se_flax.data.decode import decode
from se_flax.data.imagenet_tars import (
    ENTRY,
    TARS,
    check_counts,
    class_names,
    find_tars,
    list_images,
    list_tar,
)
from se_flax.errors import UserError
from se_flax.storage import atomic_write, sync

NAME = 'imagenet2012'
VERSION = '5.1.0'  # of tfds, whose features and labels these are
MOST_SHARDS = {'train': 1024, 'validation': 64}
PLAN = 'prepared.json'  # stays in the data set, and tells how it was made
QUALITY = 90  # of smaller images
Shards = dict[pathlib.Path, tuple[str, np.ndarray]]  # the split and the images of each to write
Encodings = dict[str, tuple[int | None, int | None]]  # max_side and quality, by split


def build(
    folder: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    max_side: int | None = None,
    quality: int | None = None,
    allow_other_counts: bool = False,
) -> None:
    """Makes `data_dir/imagenet2012/5.1.0` of the two tars in `folder`, or goes on with it.

    The features are tfds's: `image` (JPEG), `label` (1000 wnids in ascending order), `file_name`.
    Images keep their bytes, except that CMYK and what is no JPEG become RGB JPEG. Where one of
    `max_side` and `quality` is given, training images are encoded again: the shorter side is
    shrunk to `max_side` pixels at most, and the JPEG quality is `quality` (1 to 100, default 90).

    Raises MissingError for a tar that is not there, and UserError for one that is damaged or
    holds other images than ImageNet (other counts may be allowed), for a build that was begun with
    other tars or options, for a folder that is in the way, and for a disk that is too small.
    """
    max_side, quality = full_encoding(max_side, quality)
    tars = find_tars(pathlib.Path(folder))
    final = pathlib.Path(data_dir) / NAME / VERSION
    if final.exists():
        raise UserError(f'{final} is there, but is no whole data set; delete it first')
    work = _incomplete(data_dir)
    encodings = {'train': (max_side, quality), 'validation': (None, None)}
    plan: dict[str, Any] = {
        'from': os.path.abspath(folder),
        'max_side': max_side,
        'quality': quality,
        'allow_other_counts': allow_other_counts,
        'tars': {tar.name: [tar.stat().st_size, tar.stat().st_mtime_ns] for tar in tars.values()},
    }
    _check_same(work, plan)
    try:
        with _workers() as pool:
            entries = _load_index(work) or _list_splits(tars, pool)
            for split, tar in tars.items():
                check_counts(split, tar, entries[split], allow_other_counts)
            plan['shards'] = {split: num_shards(split, len(entries[split])) for split in tars}
            shards = _plan_shards(work, entries, plan['shards'])
            work.parent.mkdir(parents=True, exist_ok=True)
            _check_space(work.parent, shards, encodings)
            with _lock(work):
                _save_index(work, entries)
                atomic_write(work / PLAN, json.dumps(plan, indent=2).encode())
                _write_shards(shards, tars, encodings, pool)
                _write_metadata(work, entries, plan)
                for split in entries:
                    _index_path(work, split).unlink()
                work.rename(final)
                sync(final.parent)
    except (OSError, RuntimeError) as error:  # ArrayRecord and a pool that broke raise the latter
        if isinstance(error, UserError):
            raise
        raise UserError(
            f'{NAME!r} cannot be built: {error}; what is written is kept: the same command goes on'
        ) from error


def full_encoding(max_side: int | None, quality: int | None) -> tuple[int | None, int | None]:
    """Gives smaller images a quality where none is given; returns both.

    Raises UserError unless an image can be encoded so.
    """
    if max_side is not None and max_side < 1:
        raise UserError(f'max_side={max_side} is too small; take at least 1')
    if quality is not None and not 1 <= quality <= 100:
        raise UserError(f'quality={quality} is none of JPEG; take 1 to 100')
    return max_side, QUALITY if max_side and quality is None else quality


def read_plan(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads how a data set was made; one that is not of this module kept all bytes."""
    path = pathlib.Path(folder) / PLAN
    return json.loads(path.read_text()) if path.exists() else {'max_side': None, 'quality': None}


def how_to_prepare(data_dir: str | os.PathLike, option: str = '') -> str:
    """Says, for a set that is not there, what is, and by which command it is made.

    `option` is what a command needs to find `data_dir`.
    """
    work = _incomplete(data_dir)
    command = f'se-flax data prepare {NAME} --from'
    if not (work / PLAN).exists():
        return (
            f'data set {NAME!r} is not in {data_dir}; with {" and ".join(TARS.values())} of '
            f'https://image-net.org in a folder DIR, run: {command} DIR{option}'
        )
    plan = read_plan(work)
    command += f' {shlex.quote(plan["from"])}'
    if plan['max_side']:
        command += f' --max-side {plan["max_side"]}'
    if plan['quality']:
        command += f' --quality {plan["quality"]}'
    if plan['allow_other_counts']:
        command += ' --allow-other-counts'
    done = len(list(work.glob(f'{NAME}-*')))
    return (
        f'data set {NAME!r} in {data_dir} is not complete: {done:,} of '
        f'{sum(plan["shards"].values()):,} shards are written; go on by: {command}{option}'
    )


def shuffle(entries: np.ndarray) -> np.ndarray:
    """Orders images by a hash of their name: mixes the classes, whatever the order in the tar."""
    hashes = [hashlib.blake2b(name, digest_size=8).digest() for name in entries['name'].tolist()]
    return entries[np.argsort(np.array(list(map(int.from_bytes, hashes)), np.uint64))]


def num_shards(split: str, images: int) -> int:
    """Chooses the number of shards, so that a shard holds no fewer images than there are shards."""
    return min(MOST_SHARDS[split], math.isqrt(images))


def encode(image: bytes, max_side: int | None = None, quality: int | None = None) -> bytes:
    """Makes an RGB or gray JPEG of an image file; one that is such a JPEG is returned as it is.

    With a `quality` all are encoded again, at that size or shrunk until the shorter side has
    `max_side` pixels; unless the bytes would become more at the same size.

    Raises DecodeError for what is no image.
    """
    if not _is_plain(image):
        image = simplejpeg.encode_jpeg(decode(image), 100, 'RGB', '444')  # as tfds, not to lose
    if quality is None:
        return image
    pixels = decode(image)
    scale = max_side / min(pixels.shape[:2]) if max_side else 1
    if scale < 1:
        size = tuple(round(side * scale) for side in pixels.shape[1::-1])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, 'RGB', '420')
    return encoded if scale < 1 or len(encoded) < len(image) else image


def serialize(image: bytes, label: int, name: bytes) -> bytes:
    """Makes the `tf.train.Example` of an image file, as tfds reads it."""

    def of_bytes(value):
        return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))

    of_label = tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[label]))
    feature = {'image': of_bytes(image), 'label': of_label, 'file_name': of_bytes(name)}
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def write_shard(
    shard: pathlib.Path,
    tar: pathlib.Path,
    entries: np.ndarray,
    max_side: int | None,
    quality: int | None,
) -> int:
    """Writes the images of `entries` to an ArrayRecord file, whole or not at all; returns how many.

    Raises UserError for what is no image.
    """
    temporary = shard.with_name(f'.{shard.name}.new')
    # tfds groups by one, too. JPEG does not shrink further, and reads faster uncompressed.
    writer = ArrayRecordWriter(str(temporary), 'group_size:1,uncompressed')
    with tar.open('rb', buffering=0) as file:
        for name, label, offset, size in entries.tolist():
            image = os.pread(file.fileno(), size, offset)
            try:
                image = encode(image, max_side, quality)
            except (ValueError, cv2.error, MemoryError) as error:  # DecodeError, or of an encoder
                raise UserError(f'{name.decode()} of {tar} is no image: {error}') from error
            writer.write(serialize(image, label, name))
    writer.close()
    sync(temporary)
    temporary.replace(shard)
    return len(entries)


def _is_plain(image: bytes) -> bool:
    if image[:2] != b'\xff\xd8':
        return False
    try:
        return simplejpeg.decode_jpeg_header(image, strict=False)[2] not in ('CMYK', 'YCCK')
    except (ValueError, KeyError):  # the latter for the colours of a damaged header
        decode(image)  # raises, unless the header is only odd
        return True


def _incomplete(data_dir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(data_dir) / NAME / f'{VERSION}.incomplete'


def _check_same(work: pathlib.Path, plan: dict[str, Any]) -> None:
    if not (work / PLAN).exists():
        return
    begun = read_plan(work)
    for name in TARS.values():
        if begun['tars'][name] != plan['tars'][name]:
            raise UserError(
                f'{work} was begun with another {name}, of other size or time; delete the folder '
                f'to begin again'
            )
    for option in ('max_side', 'quality'):
        if begun[option] != plan[option]:
            raise UserError(
                f'{work} was begun with {option}={begun[option]}, not {plan[option]}; take that, '
                f'or delete the folder to begin again'
            )


def _check_space(folder: pathlib.Path, shards: Shards, encodings: Encodings) -> None:
    """Counts images as they are, and those that become smaller, nobody knows by how much, not."""
    needed = sum(
        int(part['size'].sum()) for split, part in shards.values() if encodings[split][1] is None
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f'{folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are to be written'
        )


@contextlib.contextmanager
def _lock(work: pathlib.Path) -> Iterator[None]:
    """Makes the folder and holds it for this process; the system frees it when that ends."""
    work.mkdir(exist_ok=True)
    descriptor = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f'another process is at work in {work}; let it end') from error
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _workers() -> Iterator[concurrent.futures.Executor]:
    """A process for each core; those that run at an exception end what they are at."""
    pool = concurrent.futures.ProcessPoolExecutor(
        len(os.sched_getaffinity(0)),
        multiprocessing.get_context('spawn'),  # a fork copies locks that threads of ours hold
        _start_worker,
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's

    def die_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)  # it would wait for tasks for ever

    threading.Thread(target=die_with_parent, daemon=True).start()


def _index_path(work: pathlib.Path, split: str) -> pathlib.Path:
    return work / f'index-{split}.npy'


def _load_index(work: pathlib.Path) -> dict[str, np.ndarray] | None:
    paths = {split: _index_path(work, split) for split in TARS}
    # The plan is written after them.
    if all(path.exists() for path in (work / PLAN, *paths.values())):
        return {split: np.load(path) for split, path in paths.items()}
    return None


def _save_index(work: pathlib.Path, entries: dict[str, np.ndarray]) -> None:
    for split, of_split in entries.items():
        file = io.BytesIO()
        np.save(file, of_split)
        atomic_write(_index_path(work, split), file.getvalue())


def _list_splits(
    tars: dict[str, pathlib.Path], pool: concurrent.futures.Executor
) -> dict[str, np.ndarray]:
    """Lists both tars: the training tar holds a tar for each class."""
    classes = list_tar(tars['train'])
    validation = pool.submit(list_images, 'validation', tars['validation'])
    training = [
        pool.submit(list_images, 'train', tars['train'], c.offset_data, c.offset_data + c.size)
        for c in classes
    ]
    with _progress('classes listed', len(classes)) as advance:
        for future in concurrent.futures.as_completed(training):
            future.result()
            advance(1)
    images = [future.result() for future in training]
    return {
        'train': shuffle(np.concatenate([np.empty(0, ENTRY), *images])),
        'validation': shuffle(validation.result()),
    }


def _plan_shards(
    work: pathlib.Path, entries: dict[str, np.ndarray], counts: dict[str, int]
) -> Shards:
    """Deals out the images, in their order, to the shards that are not there yet."""
    shards = {}
    for split, count in counts.items():
        for i, part in enumerate(np.array_split(entries[split], count)):
            path = work / f'{NAME}-{split}.array_record-{i:05}-of-{count:05}'
            if not path.exists():
                shards[path] = (split, part)
    return shards


def _write_shards(
    shards: Shards,
    tars: dict[str, pathlib.Path],
    encodings: Encodings,
    pool: concurrent.futures.Executor,
) -> None:
    futures = [
        pool.submit(write_shard, path, tars[split], part, *encodings[split])
        for path, (split, part) in shards.items()
    ]
    with _progress('images written', sum(len(part) for _, part in shards.values())) as advance:
        for future in concurrent.futures.as_completed(futures):
            advance(future.result())


def _write_metadata(
    work: pathlib.Path, entries: dict[str, np.ndarray], plan: dict[str, Any]
) -> None:
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(part) for part in np.array_split(entries[split], count)],
            num_bytes=sum(path.stat().st_size for path in work.glob(f'{NAME}-{split}.*')),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=work, dataset_name=NAME, split=split, filetype_suffix='array_record'
            ),
        )
        for split, count in plan['shards'].items()
    ]
    shrunk = ''
    if plan['quality']:
        side = f', shorter side {plan["max_side"]} pixels at most' if plan['max_side'] else ''
        shrunk = f' Training images were encoded again: JPEG quality {plan["quality"]}{side}.'
    tfds.folder_dataset.write_metadata(
        data_dir=work,
        features={
            'image': tfds.features.Image(encoding_format='jpeg'),
            'label': tfds.features.ClassLabel(names=class_names()),
            'file_name': tfds.features.Text(),
        },
        split_infos=splits,
        version=VERSION,
        check_data=False,  # that needs TensorFlow
        description=f'ImageNet, ILSVRC 2012.{shrunk}',
        supervised_keys=('image', 'label'),
        homepage='https://image-net.org/',
    )
    sync(work)


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar on a terminal, else a line every ten seconds, on the standard error."""
    if sys.stderr.isatty():
        columns = (MofNCompleteColumn(), what, BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), speed_estimate_period=300) as bar:
            yield functools.partial(bar.advance, bar.add_task(what, total=total))
        return
    began = said = time.monotonic()
    done = 0

    def advance(count):
        nonlocal said, done
        done += count
        now = time.monotonic()
        if now > said + 10:
            said = now
            left = (now - began) * (total - done) / done
            print(f'{done:,} of {total:,} {what}, {left:,.0f} s left', file=sys.stderr)

    yield advance
