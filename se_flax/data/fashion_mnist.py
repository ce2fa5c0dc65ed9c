"""Fashion-MNIST (arXiv 1708.07747) as a tfds data set, all of it or a class-balanced part.

tfds's own builder of this set needs TensorFlow. This one writes the same name, version and
features from the four files of the original, found in a folder or downloaded.
"""

import gzip
import os
import pathlib
import types
from collections.abc import Mapping

import cv2
import numpy as np
import tensorflow_datasets as tfds

# Where Debian's package `dataset-fashion-mnist` puts the files.
DEBIAN_FOLDER = '/usr/share/datasets/fashion-mnist'
# tfds keeps the checksums of these four URLs, and its downloads are compared with them.
URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/'
STEMS = {'train': 'train', 'test': 't10k'}  # of the file names, by split
CLASS_NAMES = (
    'T-shirt/top',
    'Trouser',
    'Pullover',
    'Dress',
    'Coat',
    'Sandal',
    'Shirt',
    'Sneaker',
    'Bag',
    'Ankle boot',
)
LICENSE = """\
The images and labels are from Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist

The MIT License (MIT) Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


# tfds has no types, so mypy does not know this argument.
class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes 28x28 gray PNG images and their labels; needs no TensorFlow.

    Attributes:
        per_class: images of each class to draw, by split; None takes all 60,000 and 10,000.
        folder: holds the four gzip files; where one is absent, tfds downloads them.
    """

    name = 'fashion_mnist'
    VERSION = tfds.core.Version('3.0.1')
    per_class: Mapping[str, int] | None = None
    # The inherited look-up imports importlib_resources, which tfds uses but does not declare;
    # the checksums of URL are found without it.
    url_infos = None

    def __init__(
        self,
        data_dir: str | os.PathLike | None = None,
        *,
        folder: str | os.PathLike = DEBIAN_FOLDER,
    ):
        self.folder = pathlib.Path(folder)
        super().__init__(data_dir=data_dir, file_format='array_record')

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description='Article images of Zalando, 28x28 gray, in 10 classes.',
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(28, 28, 1), encoding_format='png'),
                    'label': tfds.features.ClassLabel(names=CLASS_NAMES),
                }
            ),
            supervised_keys=('image', 'label'),
            homepage='https://github.com/zalandoresearch/fashion-mnist',
            license=LICENSE,
        )

    def _split_generators(self, dl_manager):
        names = {
            split + kind: f'{stem}-{kind}-ubyte.gz'
            for split, stem in STEMS.items()
            for kind in ('images-idx3', 'labels-idx1')
        }
        paths = {key: self.folder / name for key, name in names.items()}
        if not all(path.exists() for path in paths.values()):
            paths = dl_manager.download({key: URL + name for key, name in names.items()})
        return {
            split: self._generate_examples(
                split, paths[split + 'images-idx3'], paths[split + 'labels-idx1']
            )
            for split in STEMS
        }

    def _generate_examples(self, split, images_path, labels_path):
        images, labels = read_idx(images_path), read_idx(labels_path)
        chosen = np.arange(len(labels))
        if self.per_class:
            chosen = draw_balanced(labels, self.per_class[split])
        for i in chosen.tolist():
            yield i, {'image': encode_png(images[i]), 'label': int(labels[i])}


class FashionMnistMini(FashionMnist, skip_registration=True):  # type: ignore[call-arg]
    """The 10,000 training and 2,000 test images that ship with the install."""

    name = 'fashion_mnist_mini'
    VERSION = tfds.core.Version('1.0.0')
    per_class = types.MappingProxyType({'train': 1000, 'test': 200})


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Reads a gzipped IDX file of bytes: a header of the rank and sizes, then uint8 values."""
    data = gzip.decompress(pathlib.Path(path).read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, '>i4', count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def draw_balanced(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Draws `per_class` positions of each class by a fixed seed; sorted int64 [classes * n]."""
    rng = np.random.default_rng(0)
    drawn = [
        rng.choice(np.flatnonzero(labels == label), per_class, replace=False)
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn))


def encode_png(image: np.ndarray) -> bytes:
    """Encodes a uint8 image, [H, W] gray or [H, W, 3] BGR, as PNG at the highest compression."""
    return cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
