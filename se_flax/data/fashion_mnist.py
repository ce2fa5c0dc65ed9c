"""Fashion-MNIST (arXiv 1708.07747) as a tfds data set, without TensorFlow.

The name, version and features are those of tfds's own builder.
"""

import gzip
import os
import pathlib
from collections.abc import Iterable

import cv2
import numpy as np
import tensorflow_datasets as tfds

# Where Debian's package `dataset-fashion-mnist` puts the files.
DEBIAN_FOLDER = '/usr/share/datasets/fashion-mnist'
# tfds has the checksums of these four URLs, and verifies its downloads.
URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/'
STEMS = {'train': 'train', 'test': 't10k'}  # of the file names, by split
CLASS_NAMES = [
    *('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat'),
    *('Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot'),
]


# tfds has no types, so mypy does not know this argument.
class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes 28x28 gray PNG images; tfds downloads the files unless all four are in `folder`."""

    name = 'fashion_mnist'
    VERSION = tfds.core.Version('3.0.1')
    # The inherited look-up imports importlib_resources, which tfds uses but does not declare;
    # the checksums of URL are found without it.
    url_infos = None

    def __init__(self, data_dir=None, *, folder: str | os.PathLike = DEBIAN_FOLDER):
        self.folder = pathlib.Path(folder)
        super().__init__(data_dir=data_dir, file_format='array_record')

    def choose(self, split: str, labels: np.ndarray) -> Iterable[int]:
        """Returns the positions of the images to write; here all."""
        return range(len(labels))

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
            license=pathlib.Path(__file__).with_name('fashion_mnist_license.txt').read_text(),
        )

    def _split_generators(self, dl_manager):
        names = {
            (split, kind): f'{stem}-{kind}-ubyte.gz'
            for split, stem in STEMS.items()
            for kind in ('images-idx3', 'labels-idx1')
        }
        paths = {key: self.folder / name for key, name in names.items()}
        if not all(path.exists() for path in paths.values()):
            paths = dl_manager.download({key: URL + name for key, name in names.items()})
        return {split: self._generate_examples(split, paths) for split in STEMS}

    def _generate_examples(self, split, paths):
        images, labels = (read_idx(paths[split, k]) for k in ('images-idx3', 'labels-idx1'))
        for i in self.choose(split, labels):
            yield i, {'image': encode_png(images[i]), 'label': int(labels[i])}


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Reads a gzipped IDX file of bytes: a header of the rank and sizes, then uint8 values."""
    data = gzip.decompress(pathlib.Path(path).read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, '>i4', count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def encode_png(image: np.ndarray) -> bytes:
    """Encodes a uint8 image, [H, W] gray or [H, W, 3] BGR, as PNG at the highest compression."""
    return cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
