"""Opens data sets by name: tfds data sets, image folders, and the one that ships with se_flax."""

import contextlib
import dataclasses
import difflib
import os
import pathlib
import re
import shlex

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import naming, read_only_builder

from se_flax.data import imagenet
from se_flax.data.dataset import Dataset, digest
from se_flax.data.decode import DecodeError
from se_flax.data.folder import open_folder
from se_flax.data.records import Records, check_reached, open_records, parse_example
from se_flax.errors import MissingError, UserError, check_known
from se_flax.storage import AnyPath, as_path, is_remote, reaching

# The tfds splits of each; of an eval split's, the first that exists: ImageNet's test has no labels.
SPLITS = {'train': ('train',), 'eval': ('validation', 'test')}
EMBEDDED = 'fashion_mnist_mini'
SYNTHETIC = 'synthetic'
FOLDER = 'folder:'
COMMON = (
    *(EMBEDDED, SYNTHETIC, FOLDER + 'PATH', 'fashion_mnist', 'cifar10', 'cifar100'),
    *(imagenet.NAME, 'places365_small'),
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
        except (RuntimeError, OSError) as error:  # ArrayRecord raises RuntimeError
            check_reached(error)
            raise DecodeError(str(error)) from error
        return parse_example(record)

    def fingerprint(self) -> str:
        return digest([super().fingerprint(), *self.shards])


@dataclasses.dataclass(frozen=True)
class SyntheticDataset(Dataset):
    """Noisy stripes, 64 x 64; the class is their direction. Example i is always the same."""

    class_names: tuple[str, ...] = tuple(f'{degrees} degrees' for degrees in range(0, 180, 18))

    def __len__(self) -> int:
        return 4096 if self.split == 'train' else 512

    def read(self, i: int) -> tuple[np.ndarray, int]:
        label = i % self.num_classes
        rng = np.random.default_rng((int(self.split == 'eval'), i))
        angle = np.pi * label / self.num_classes
        x = np.linspace(0, 8 * np.pi, 64)
        phase = x * np.cos(angle) + x[:, None] * np.sin(angle) + rng.uniform(0, 2 * np.pi)
        stripes = (64 + 63 * np.sin(phase)).astype(np.uint8)
        return stripes[..., None] + rng.integers(128, size=(64, 64, 3), dtype=np.uint8), label


def open_dataset(
    name: str, split: str, data_dir: str | None = None, *, eval_split: float = 0.0, seed: int = 0
) -> Dataset:
    """Opens one split, 'train' or 'eval', of a data set.

    `name` is 'fashion_mnist_mini' (ships with se_flax), 'synthetic', 'folder:PATH' (`open_folder`,
    which takes `eval_split` and `seed`), or a tfds data set such as 'imagenet2012' or
    'imagenet_resized/64x64' with an Image `image` and a ClassLabel `label`, prepared as ArrayRecord
    or TFRecord files below `data_dir` (default: TFDS_DATA_DIR or `~/tensorflow_datasets`), the
    former also in a `gs://` bucket. Its eval split is 'validation', else 'test'. Raises
    MissingError, with the command that prepares it, for a missing data set, and UnreachableError.
    """
    check_known('split', split, SPLITS)
    if eval_split and not name.startswith(FOLDER):
        raise UserError(f'eval_split={eval_split} is for folder:PATH, not for {name!r}')
    if name == SYNTHETIC:
        return SyntheticDataset(name, split)
    if name.startswith(FOLDER):
        path = name.removeprefix(FOLDER)
        return open_folder(name, split, path, eval_split=eval_split, seed=seed)
    return _open_tfds(name, split, find_builder(name, data_dir))


def find_builder(name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Finds the files of a prepared tfds data set; raises as `open_dataset` does."""
    if name == EMBEDDED:
        return tfds.builder_from_directory(pathlib.Path(__file__).parent / EMBEDDED / '1.0.0')
    root = data_folder(data_dir)
    plain_name = re.split('[/:]', name)[0]
    if naming.is_valid_dataset_name(plain_name):
        try:
            with reaching(root), contextlib.suppress(tfds.core.DatasetNotFoundError):
                where = root if data_dir else None
                return read_only_builder.builder_from_files(name, data_dir=where)
        except UserError:
            raise
        except Exception as error:  # of JSON, protobuf and tfds
            reason = ' '.join(str(error).split())
            raise UserError(f'data set {name!r} in {root} cannot be read: {reason}') from error
    elif os.path.isdir(name):
        raise UserError(f'{name} is a folder; to read its images, use {FOLDER}{name}')
    else:  # tfds raises ValueError
        plain_name = name
    if plain_name in (EMBEDDED, SYNTHETIC):  # with a version or config, which they have not
        plain_name = name
    names = [*COMMON, *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(plain_name, names, cutoff=0.5)
    check_known('data set', plain_name, names if near else COMMON)  # all of tfds: two screens
    option = f' --data-dir={shlex.quote(os.fspath(root))}' if data_dir else ''
    if plain_name == imagenet.NAME:
        raise MissingError(imagenet.how_to_prepare(root, option))
    raise MissingError(
        f'data set {name!r} is not in {root}; run: se-flax data prepare {name}{option}'
    )


def data_folder(data_dir: str | os.PathLike | None) -> AnyPath:
    """Returns the folder of tfds, by default TFDS_DATA_DIR or `~/tensorflow_datasets`.

    Raises as `as_path` does, and UserError for a bucket that is not `gs://`.
    """
    folder = os.fspath(data_dir or tfds.core.constants.DATA_DIR)
    if is_remote(folder) and not folder.startswith('gs://'):
        raise UserError(f'{folder}: data sets are read from disks, mounts and gs:// buckets')
    return as_path(folder)


def _open_tfds(name: str, split: str, builder: tfds.core.DatasetBuilder) -> TfdsDataset:
    info = builder.info
    splits = [of for of, each in info.splits.items() if each.num_examples]
    tfds_split = next((of for of in SPLITS[split] if of in splits), None)
    if tfds_split is None:
        raise UserError(
            f'data set {name!r} has no {" or ".join(SPLITS[split])} split with examples; '
            f'it has {", ".join(splits) or "none"}'
        )
    for key, kind in (('image', tfds.features.Image), ('label', tfds.features.ClassLabel)):
        if key not in info.features or not isinstance(info.features[key], kind):
            raise UserError(
                f'data set {name!r} has no {kind.__name__} named {key!r}; '
                f'it has {", ".join(sorted(info.features))}'
            )
    paths, count = info.splits[tfds_split].filepaths, info.splits[tfds_split].num_examples
    with reaching(builder.data_dir):
        there = {path.name for path in epath.Path(builder.data_dir).iterdir()}  # one request
    absent = [path for path in paths if path.name not in there]
    if absent:
        raise MissingError(
            f'data set {name!r} lacks {len(absent)} of its {len(paths)} {tfds_split} files, such '
            f'as {absent[0]}; delete {builder.data_dir} and prepare it again'
        )
    records = open_records(paths, info.file_format.value)
    if len(records) != count:
        raise UserError(
            f'the files of {name!r} hold {len(records)} {tfds_split} records, but its '
            f'dataset_info.json says {count}; prepare it again'
        )
    with reaching(builder.data_dir):
        shards = tuple(f'{path.name} {path.stat().length}' for path in paths)
    return TfdsDataset(name, split, tuple(info.features['label'].names), records, shards)
