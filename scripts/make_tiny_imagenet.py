"""Makes a tiny ImageNet: two tars of the real layout and names, to test whatever reads them.

    python scripts/make_tiny_imagenet.py OUT [--classes 10] [--train-per-class 20] [--val 50]
    se-flax data prepare imagenet2012 --from OUT --allow-other-counts

The images are Fashion-MNIST's photographs, which ship with se_flax, in ImageNet's sizes. Every ten
classes share a color. The first training image is CMYK and the second a PNG, as a few in ImageNet
are. Validation images have the numbers of ImageNet's images of the same classes. Every run writes
the same bytes.
"""

import argparse
import io
import itertools
import pathlib
import tarfile

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from se_flax.data import decode, open_dataset
from se_flax.data.imagenet_tars import TARS, class_names, labels_of

SIZES = ((375, 500), (500, 375), (333, 500))  # height, width
PHOTO_CLASSES = 10
# Images per class of Fashion-MNIST's photographs, and of ImageNet's validation images.
MOST_TRAIN, MOST_VAL = 1000, 50


def main(argv: list[str] | None = None) -> None:
    """Writes both tars."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('out', type=pathlib.Path, metavar='OUT')
    parser.add_argument('--classes', type=int, default=10, metavar='N', help='1 to 1000')
    parser.add_argument('--train-per-class', type=int, default=20, metavar='K', help='1 to 1000')
    parser.add_argument('--val', type=int, default=50, metavar='M', help='1 to 50 per class')
    args = parser.parse_args(argv)
    for option, value, most in (
        ('--classes', args.classes, len(class_names())),
        ('--train-per-class', args.train_per_class, MOST_TRAIN),
        ('--val', args.val, MOST_VAL * args.classes),
    ):
        if not 1 <= value <= most:
            parser.error(f'{option} {value} is not 1 to {most}')

    args.out.mkdir(parents=True, exist_ok=True)
    photos = read_photos('train')
    encoders = itertools.chain([encode_cmyk, encode_png], itertools.repeat(encode))
    with create(args.out / TARS['train']) as tar:
        for label, wnid in enumerate(class_names()[: args.classes]):
            file = io.BytesIO()
            with create(file) as of_class:
                for i in range(args.train_per_class):
                    image = next(encoders)(draw(photos, label, i))
                    add(of_class, f'{wnid}_{i}.JPEG', image)
            add(tar, f'{wnid}.tar', file.getvalue())
    photos = read_photos('eval')
    drawn = [(key, label) for key, label in labels_of('validation').items() if label < args.classes]
    with create(args.out / TARS['validation']) as tar:
        for i, (key, label) in enumerate(drawn[: args.val]):
            add(tar, f'ILSVRC2012_val_{key}.JPEG', encode(draw(photos, label, i)))
    for name in TARS.values():
        print(f'{args.out / name}: {(args.out / name).stat().st_size / 1e6:.1f} MB')


def read_photos(split: str) -> list[list[np.ndarray]]:
    """Reads the gray photographs that ship with se_flax, `[28, 28]`, by class."""
    photos = [[] for _ in range(PHOTO_CLASSES)]
    dataset = open_dataset('fashion_mnist_mini', split)
    for image, label in map(dataset.read, range(len(dataset))):
        photos[label].append(decode(image)[..., 0])
    return photos


def draw(photos: list[list[np.ndarray]], label: int, i: int) -> np.ndarray:
    """Returns the i-th image of a class: uint8 RGB, `[H, W, 3]`."""
    of_class = photos[label % PHOTO_CLASSES]
    height, width = SIZES[i % len(SIZES)]
    gray = cv2.resize(of_class[i % len(of_class)], (width, height), interpolation=cv2.INTER_CUBIC)
    hue = label // PHOTO_CLASSES * 180 // (1000 // PHOTO_CLASSES)
    hsv = cv2.merge([np.full_like(gray, hue), np.full_like(gray, 128), gray])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def encode(pixels: np.ndarray) -> bytes:
    """Encodes a JPEG like most images of ImageNet."""
    return simplejpeg.encode_jpeg(pixels, 95, 'RGB', '420')


def encode_cmyk(pixels: np.ndarray) -> bytes:
    """Encodes a CMYK JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert('CMYK').save(file, 'JPEG', quality=95)
    return file.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes a PNG."""
    return cv2.imencode('.png', pixels[..., ::-1])[1].tobytes()


def create(file: pathlib.Path | io.BytesIO) -> tarfile.TarFile:
    """Opens a tar for writing, in the format of ImageNet's tars."""
    where = {'fileobj': file} if isinstance(file, io.BytesIO) else {'name': file}
    return tarfile.open(mode='w', format=tarfile.GNU_FORMAT, **where)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file without a date."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


if __name__ == '__main__':
    main()
