"""Image folders: `PATH/train/<class>/*.jpg` and `PATH/val/<class>/*.jpg`."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import pathlib

import numpy as np

from se_flax.data.dataset import SPAN, Dataset, digest
from se_flax.data.decode import DecodeError
from se_flax.errors import MissingError, UserError, check_known

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
FOLDERS = {'train': ('train',), 'eval': ('val', 'validation', 'test', 'eval')}


@dataclasses.dataclass(frozen=True)
class FolderDataset(Dataset):
    """Image files, sorted by class and name."""

    files: list[tuple[pathlib.Path, int]] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        path, label = self.files[i]
        try:
            return path.read_bytes(), label
        except OSError as error:
            raise DecodeError(str(error)) from error

    def key(self, i: int) -> str:
        return str(self.files[i][0])

    def fingerprint(self) -> str:
        def of_span(start):
            files = self.files[start : start + SPAN]
            return [f'{self.class_names[i]}/{path.name} {_size(path)}' for path, i in files]

        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # network disks take their time
            spans = pool.map(of_span, range(0, len(self), SPAN))
            return digest(itertools.chain.from_iterable(spans))

    def labels(self) -> np.ndarray:
        return np.array([label for _, label in self.files], np.int32)


def open_folder(name: str, split: str, path: str) -> FolderDataset:
    """Opens one split of an image folder.

    The classes are the sorted folders of `train`, for both splits. The eval images are in the
    first of `val`, `validation`, `test` and `eval` that is there. Raises MissingError for a
    folder that is not there, and UserError for a class without images or one that `train` lacks.
    """
    root = pathlib.Path(path).expanduser()
    class_names = [folder.name for folder in _class_folders(_split_folder(root, 'train'))]
    files = []
    for folder in _class_folders(_split_folder(root, split)):
        check_known(f'class in {folder.parent}', folder.name, class_names)
        images = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
        if not images:
            raise UserError(f'no images in {folder}: it holds none of *{", *".join(SUFFIXES)}')
        files += [(image, class_names.index(folder.name)) for image in images]
    return FolderDataset(name, split, tuple(class_names), files)


def _size(path: pathlib.Path) -> int:
    with contextlib.suppress(OSError):  # a link to nowhere is a matter of `read`
        return os.stat(path).st_size
    return -1


def _split_folder(root: pathlib.Path, split: str) -> pathlib.Path:
    for folder in FOLDERS[split]:
        if (root / folder).is_dir():
            return root / folder
    if not root.is_dir():
        raise MissingError(f'no folder {root}')
    raise MissingError(f'no folder {" or ".join(FOLDERS[split])} in {root}')


def _class_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    if not folders:
        raise UserError(f'{folder} is empty: it must hold a folder of images for each class')
    return folders
