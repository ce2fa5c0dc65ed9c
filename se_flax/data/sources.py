"""Data sets by name: tfds, image folders, and the one that ships with the install."""

import dataclasses
import difflib
import os
import pathlib
import re
import shlex

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from se_flax.data import imagenet
from se_flax.data.dataset import Dataset, digest
from se_flax.data.decode import DecodeError
from se_flax.data.fashion_mnist import FashionMnistMini
from se_flax.data.folder import open_folder
from se_flax.data.records import Records, open_records, parse_example
from se_flax.data.synthetic import open_synthetic
from se_flax.errors import MissingError, UserError, check_known

SPLITS = ('train', 'eval')
# The eval split is the first of these that a tfds data set has: ImageNet's test has no labels.
TFDS_EVAL = ('validation', 'test')
EMBEDDED = FashionMnistMini.name
SYNTHETIC = 'synthetic'
IMAGENET = imagenet.NAME
FOLDER = 'folder:'
COMMON = (
    EMBEDDED,
    SYNTHETIC,
    FOLDER + 'PATH',
    'fashion_mnist',
    'cifar10',
    'cifar100',
    IMAGENET,
    'places365_small',
)


@dataclasses.dataclass(frozen=True)
class TfdsDataset(Dataset):
    """A split of a prepared tfds data set, read from its files without TensorFlow."""

    records: Records = dataclasses.field(repr=False)
    shards: tuple[str, ...] = dataclasses.field(repr=False, default=())  # names and sizes

    def __len__(self) -> int:
        return len(self.records)

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        try:
            record = self.records[i]
        except (RuntimeError, OSError) as error:  # ArrayRecord raises the former
            raise DecodeError(str(error)) from error
        return parse_example(record)

    def fingerprint(self) -> str:
        return digest([super().fingerprint(), *self.shards])


def open_dataset(
    name: str, split: str, data_dir: str | None = None, *, eval_split: float = 0.0, seed: int = 0
) -> Dataset:
    """Opens one split, 'train' or 'eval', of a data set.

    `name` is 'fashion_mnist_mini' (in the install), 'synthetic', 'folder:PATH' (`open_folder`),
    or a tfds data set such as 'imagenet2012' or 'imagenet_resized/64x64', prepared as ArrayRecord
    or TFRecord files under `data_dir` (by default where tfds looks: TFDS_DATA_DIR, or
    `~/tensorflow_datasets`). A tfds set's eval split is 'validation', else 'test'; its
    features are an Image `image` and a ClassLabel `label`. A folder without images for 'eval' has
    the share `eval_split` of them drawn by `seed`.

    Raises UserError for an unknown name or split, and MissingError, which says how to prepare it,
    for a data set that is not there.
    """
    check_known('split', split, SPLITS)
    if eval_split and not name.startswith(FOLDER):
        raise UserError(f'eval_split={eval_split} belongs to folder:PATH, and {name!r} is none')
    if name == SYNTHETIC:
        return open_synthetic(split)
    if name.startswith(FOLDER):
        path = name.removeprefix(FOLDER)
        return open_folder(name, split, path, eval_split=eval_split, seed=seed)
    return _open_tfds(name, split, find_builder(name, data_dir))


def find_builder(name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Finds the files of a prepared tfds data set; raises as `open_dataset` does."""
    if name == EMBEDDED:
        folder = pathlib.Path(__file__).parent / EMBEDDED / str(FashionMnistMini.VERSION)
        return tfds.builder_from_directory(folder)
    data_dir = data_dir and os.path.expanduser(data_dir)
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        pass
    plain_name = re.split('[/:]', name)[0]
    _check_name(plain_name)
    root = data_dir or tfds.core.constants.DATA_DIR
    option = f' --data-dir={shlex.quote(str(data_dir))}' if data_dir else ''
    if plain_name == IMAGENET:
        raise MissingError(imagenet.how_to_prepare(root, option))
    raise MissingError(
        f'data set {name!r} is not in {root}; run: se-flax data prepare {name}{option}'
    )


def _check_name(name: str) -> None:
    names = [*COMMON, *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name, names, cutoff=0.5)
    check_known('data set', name, names if near else COMMON)  # all of tfds fills two screens


def _open_tfds(name: str, split: str, builder: tfds.core.DatasetBuilder) -> TfdsDataset:
    info = builder.info
    tfds_split = next((s for s in _candidates(split) if s in info.splits), None)
    if tfds_split is None:
        raise UserError(
            f'data set {name!r} has no {" or ".join(_candidates(split))} split; '
            f'it has {", ".join(info.splits) or "none"}'
        )
    for key, kind in (('image', tfds.features.Image), ('label', tfds.features.ClassLabel)):
        if key not in info.features or not isinstance(info.features[key], kind):
            raise UserError(
                f'data set {name!r} has no {kind.__name__} named {key!r}; '
                f'it has {", ".join(sorted(info.features))}'
            )

    paths = info.splits[tfds_split].filepaths
    absent = [path for path in paths if not path.exists()]
    if absent:
        raise MissingError(
            f'data set {name!r} lacks {len(absent)} of its {len(paths)} {tfds_split} files, first '
            f'{absent[0]}; delete {builder.data_dir} and prepare it again'
        )
    records = open_records(paths, info.file_format.value)
    if len(records) != info.splits[tfds_split].num_examples:
        raise UserError(
            f'the files of {name!r} hold {len(records)} {tfds_split} records, its '
            f'dataset_info.json says {info.splits[tfds_split].num_examples}; prepare it again'
        )
    shards = tuple(f'{path.name} {path.stat().length}' for path in paths)
    return TfdsDataset(name, split, tuple(info.features['label'].names), records, shards)


def _candidates(split: str) -> tuple[str, ...]:
    return ('train',) if split == 'train' else TFDS_EVAL
