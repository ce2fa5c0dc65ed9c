"""Compares the input pipeline's speed and memory with tf.data's and PyTorch's loaders.

    pip install -e '.[all,torch]' tensorflow-cpu scikit-image scikit-learn
    python benchmarks/input.py --cores 1
    python benchmarks/input.py --memory 10

All loaders read the same JPEGs from the page cache: photographs of two of these packages, cut to
ImageNet's sizes. Each loader has its own process and they take turns, so that noise of the machine
affects all of them. A turn starts a loader, lets it fill its buffers, and measures the batches
after that. Images per CPU second of all its threads and processes are the images per second of one
core that a loader has to itself. The goal is 1.2 times Flax's ImageNet example in training and 1.5
times in evaluation.

`--memory MINUTES` instead repeats the few images to make epochs of 1,281,167 images, first of the
photographs and then of thumbnails, for that many minutes each, and prints the memory of the
process.
"""

import argparse
import functools
import gc
import importlib.util
import multiprocessing
import os
import pathlib
import struct
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import psutil
import simplejpeg
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from record import processor, spread, versions

from se_flax.data import EvalTransform, TrainTransform, eval_batches, train_batches
from se_flax.data.imagenet import serialize
from se_flax.data.records import open_records
from se_flax.data.sources import TfdsDataset
from se_flax.tables import markdown

PHOTOS = (
    *('astronaut', 'chelsea', 'coffee', 'hubble_deep_field', 'ihc', 'motorcycle_left', 'retina'),
    *('rocket', 'china', 'flower'),
)
SIZES, THUMBNAILS = ((375, 500), (500, 375), (333, 500)), ((48, 64),)  # height, width
CLASSES, IMAGENET, ENDLESS = 10, 1_281_167, 10**6
SIZE, RESIZE, BATCH = 224, 256, 128
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
RAND_AUGMENT = 'rand-m7-mstd0.5-inc1'
PACKAGES = {  # name when imported, name when installed
    **{name: name for name in ('se_flax', 'grain', 'array_record', 'simplejpeg')},
    **{'cv2': 'opencv-python-headless', 'tensorflow': 'tensorflow-cpu', 'PIL': 'pillow'},
    **{name: name for name in ('torch', 'torchvision', 'timm')},
}


class Files(NamedTuple):
    """The same images in three forms."""

    jpegs: list[str]
    tfrecord: str
    array_record: str


def is_installed(package):
    return importlib.util.find_spec(package) is not None


def read_photos():
    for package in ('skimage', 'sklearn'):
        if not is_installed(package):
            sys.exit(f'{package} is not installed, whose photographs are cut: see --help')
        folder = pathlib.Path(importlib.util.find_spec(package).origin).parent
        for path in sorted(folder.rglob('*')):
            if path.stem in PHOTOS and path.suffix in ('.png', '.jpg'):
                yield cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def cut(photo, height, width, rng):
    """Cuts out a window and adds sensor-like noise, so that files have ImageNet's sizes."""
    scale = min(photo.shape[0] / height, photo.shape[1] / width) * rng.uniform(0.6, 1)
    h, w = int(height * scale), int(width * scale)
    top, left = rng.integers(photo.shape[0] - h + 1), rng.integers(photo.shape[1] - w + 1)
    window = photo[top : top + h, left : left + w]
    pixels = cv2.resize(window, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)


def write_files(folder, count, sizes):
    rng, photos = np.random.default_rng(0), list(read_photos())
    files = Files([], str(folder / 'tfrecord'), str(folder / 'array_record'))
    records = []
    for i in range(count):
        pixels = cut(photos[i % len(photos)], *sizes[i % len(sizes)], rng)
        quality, sampling = int(rng.integers(92, 98)), ('444', '420')[i % 2]
        jpeg = simplejpeg.encode_jpeg(pixels, quality, 'RGB', sampling)
        files.jpegs.append(str(folder / f'{i}.jpg'))
        pathlib.Path(files.jpegs[-1]).write_bytes(jpeg)
        records.append(serialize(jpeg, i % CLASSES, b''))
    writer = ArrayRecordWriter(files.array_record, 'group_size:1')
    for record in records:
        writer.write(record)
    writer.close()
    if is_installed('tensorflow'):  # which compares checksums
        import tensorflow as tf

        with tf.io.TFRecordWriter(files.tfrecord) as writer:
            for record in records:
                writer.write(record)
    else:
        frames = (struct.pack('<QI', len(record), 0) + record + bytes(4) for record in records)
        pathlib.Path(files.tfrecord).write_bytes(b''.join(frames))
    return files


class Repeated(TfdsDataset):
    """Repeats its records until there are as many as in ImageNet."""

    def __len__(self):
        return IMAGENET

    def read(self, i):
        return super().read(i % len(self.records))


def open_files(files, form):
    names = tuple(map(str, range(CLASSES)))
    records = open_records([getattr(files, form)], form)
    return Repeated('photographs', 'train', names, records)


def train_ours(files, cores, form='array_record', size=SIZE, workers=False, **fields):
    return train_batches(
        open_files(files, form),
        TrainTransform(size, **fields),
        batch_size=BATCH,
        seed=0,
        start_step=0,
        num_steps=ENDLESS,
        num_threads=1 if workers else cores,
        num_workers=cores if workers else 0,
    )


def ours(files, train, cores, form):
    if train:
        return train_ours(files, cores, form)
    view = EvalTransform(SIZE, RESIZE)
    return eval_batches(open_files(files, form), view, batch_size=BATCH, num_threads=cores)


def our_workers(files, train, cores):
    return train_ours(files, cores, workers=True) if train else None


def our_rand_augment(files, train, cores):
    fields = {'ra_operations': 2, 'ra_magnitude': 7.0, 'fill': tuple(map(round, MEAN))}
    return train_ours(files, cores, **fields) if train else None


def tf_data(files, train, cores, method='bicubic', normalise=False):
    """Follows Flax's `examples/imagenet/input_pipeline.py`, in the same order of operations."""
    import tensorflow as tf

    def window(shape):
        if train:
            begin, size, _ = tf.image.sample_distorted_bounding_box(
                shape,
                tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
                min_object_covered=0.1,
                aspect_ratio_range=(3 / 4, 4 / 3),
                area_range=(0.08, 1.0),
                max_attempts=10,
            )
            return tf.concat([begin[:2], size[:2]], 0)
        least = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
        side = tf.cast(SIZE / RESIZE * least, tf.int32)
        return tf.stack([(shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2, side, side])

    def view(record):
        kinds = {'image': tf.string, 'label': tf.int64}
        kinds = {name: tf.io.FixedLenFeature([], kind) for name, kind in kinds.items()}
        example = tf.io.parse_single_example(record, kinds)
        box = window(tf.io.extract_jpeg_shape(example['image']))
        image = tf.image.decode_and_crop_jpeg(example['image'], box, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), method)
        if train:
            image = tf.image.random_flip_left_right(image)
        if normalise:
            image = (image - MEAN) / STD
        else:
            image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return image, example['label']

    records = tf.data.TFRecordDataset(files.tfrecord).repeat()
    if train:
        records = records.shuffle(16 * BATCH)
    views = records.map(view, tf.data.AUTOTUNE).batch(BATCH, drop_remainder=True).prefetch(10)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 48
    options.threading.max_intra_op_parallelism = 1
    return views.with_options(options).as_numpy_iterator()


class Loaded:
    """A map-style data set for PyTorch's DataLoader."""

    def __init__(self, paths, load, transform):
        self.paths, self.load, self.transform = paths, load, transform

    def __len__(self):
        return IMAGENET

    def __getitem__(self, i):
        i %= len(self.paths)
        return self.transform(self.load(self.paths[i])), i % CLASSES


def load_pillow(path):
    return Image.open(path).convert('RGB')


def load_tensor(path):
    from torchvision.io import decode_jpeg, read_file

    return decode_jpeg(read_file(path))


def data_loader(files, train, cores, load, transform, collate=None):
    from torch.utils.data import DataLoader

    dataset = Loaded(files.jpegs, load, transform)
    return iter(DataLoader(dataset, BATCH, train, num_workers=cores, collate_fn=collate))


def timm_loader(files, train, cores, **augment):
    """Uses timm's transforms and uint8 batches, without color jitter, which no other side has."""
    from timm.data import create_transform
    from timm.data.loader import fast_collate

    options = {'color_jitter': None, **augment} if train else {'crop_pct': SIZE / RESIZE}
    options |= {'is_training': train, 'interpolation': 'bilinear', 'use_prefetcher': True}
    transform = create_transform(SIZE, **options)
    return data_loader(files, train, cores, load_pillow, transform, fast_collate)


def timm_rand_augment(files, train, cores):
    return timm_loader(files, train, cores, auto_augment=RAND_AUGMENT) if train else None


def torchvision_loader(files, train, cores):
    """Uses torchvision's decoder and its transforms of uint8 tensors."""
    from torchvision.transforms import v2

    random = [v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()]
    center = [v2.Resize(RESIZE), v2.CenterCrop(SIZE)]
    return data_loader(files, train, cores, load_tensor, v2.Compose(random if train else center))


EXAMPLE, TWIN = "tf.data, as Flax's example", 'tf.data, the same in uint8'
LOADERS = {  # required package, and a function of files, train and cores
    EXAMPLE: ('tensorflow', functools.partial(tf_data, normalise=True)),
    TWIN: ('tensorflow', tf_data),
    'tf.data, bilinear in uint8': ('tensorflow', functools.partial(tf_data, method='bilinear')),
    'ours, ArrayRecord, threads': ('se_flax', functools.partial(ours, form='array_record')),
    'ours, TFRecord, threads': ('se_flax', functools.partial(ours, form='tfrecord')),
    'ours, ArrayRecord, workers': ('se_flax', our_workers),
    'ours, RandAugment': ('se_flax', our_rand_augment),
    'timm, DataLoader': ('timm', timm_loader),
    'timm, RandAugment': ('timm', timm_rand_augment),
    'torchvision, DataLoader': ('torchvision', torchvision_loader),
}


def cpu_seconds():
    """Returns the CPU seconds of this process and of those it has started."""
    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(times.user + times.system for times in children)


def take_turn(name, files, train, cores, images):
    """Returns the images per CPU second and per second of a loader after its start."""
    batches = LOADERS[name][1](files, train, cores)
    if batches is None:
        return None
    for _ in range(4):
        next(batches)
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in range(images // BATCH):
        next(batches)
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    del batches  # ends its threads and processes
    gc.collect()
    return images / cpu, images / wall


def compare(files, loaders, cores, rounds, images):
    """Prints a table of training and one of evaluation."""
    processes = {n: ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) for n in loaders}
    results = {(train, name): [] for train in (True, False) for name in loaders}
    for i in range(rounds):
        for train, name in results:
            turn = processes[name].submit(take_turn, name, files, train, cores, images).result()
            print(f'round {i}:', ('eval', 'train')[train], name, turn, file=sys.stderr)
            if turn:
                results[train, name].append(turn)
    for train, what in ((True, 'training'), (False, 'evaluation')):
        titles = 'images by CPU second', 'by second', 'ratio to the example', 'to the same in uint8'
        table = [(what, *titles)]
        for name in loaders:
            if turns := results[train, name]:
                cells = [spread(column, '.0f') for column in zip(*turns, strict=True)]
                for base in (EXAMPLE, TWIN):
                    pairs = zip(turns, results.get((train, base), ()), strict=False)
                    cells.append(spread([mine[0] / other[0] for mine, other in pairs], '.2f'))
                table.append((name, *cells))
        print(f'\n{markdown(table)}')


def watch_memory(files, what, size, cores, minutes):
    """Prints a line before the first batch, after it, and after each tenth of the time."""
    print(f'\n| minutes of {what} to {size} | images | epochs | MB held |\n|---|---|---|---|')
    batches, process, images = train_ours(files, cores, size=size), psutil.Process(), 0
    begin = time.perf_counter()
    for line in range(-1, 11):
        while line >= 0 and (not images or time.perf_counter() - begin < 6 * minutes * line):
            images += len(next(batches)['label'])
        at, held = (time.perf_counter() - begin) / 60, process.memory_info().rss / 1e6
        print(f'| {at:.1f} | {images:,} | {images / IMAGENET:.2f} | {held:.0f} |', flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--cores', type=int, default=1, help='cores for the loaders')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--images', type=int, default=2048, help='images per turn')
    parser.add_argument('--files', type=int, default=512, help='number of different JPEGs')
    parser.add_argument('--memory', type=float, metavar='MINUTES', help='measure memory instead')
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])

    with tempfile.TemporaryDirectory() as folder:
        files = write_files(pathlib.Path(folder), args.files, SIZES)
        kb = sum(map(os.path.getsize, files.jpegs)) / len(files.jpegs) / 1e3
        packages = (dist for name, dist in PACKAGES.items() if is_installed(name))
        print(f'{processor()} of {os.cpu_count()}; {versions(*packages)}')
        print(f'{args.files} JPEGs of {kb:.0f} KB, to {SIZE} pixels, batches of {BATCH}')
        if args.memory:
            watch_memory(files, 'photographs', SIZE, args.cores, args.memory)
            small = pathlib.Path(folder, 'small')
            small.mkdir()
            files = write_files(small, args.files, THUMBNAILS)
            watch_memory(files, 'thumbnails', 32, args.cores, args.memory)
            return
        loaders = [name for name, (package, _) in LOADERS.items() if is_installed(package)]
        for name, (package, _) in LOADERS.items():
            if name not in loaders:
                print(f'{name} is left out: {package} is not installed')
        compare(files, loaders, args.cores, args.rounds, args.images)


if __name__ == '__main__':
    main()
