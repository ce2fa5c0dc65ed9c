"""Image folders: `PATH/train/<class>/` and `PATH/val/<class>/`, or `PATH/<class>/` alone."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from se_flax.data.dataset import Dataset, digest, map_examples
from se_flax.data.decode import DecodeError
from se_flax.errors import MissingError, UserError, check_known
from se_flax.storage import local_path

logger = logging.getLogger(__name__)
SUFFIXES = (  # of the formats that `decode` reads
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.apng', '.webp', '.gif'),
    *('.bmp', '.dib', '.tif', '.tiff', '.jp2', '.j2k', '.j2c', '.jpc', '.jpf', '.jpx'),
    *('.avif', '.avifs', '.ppm', '.pgm', '.pbm', '.pnm'),
)
FOLDERS = {'train': ('train',), 'eval': ('val', 'valid', 'validation', 'test', 'eval')}
# Left by file managers, archivers and network disks; ignored like all hidden names.
LEFTOVERS = {
    *('@eadir', '#recycle', '#snapshot', '$recycle.bin', '__macosx', '__pycache__'),
    *('desktop.ini', 'lost+found', 'system volume information', 'thumbs.db'),
}


@dataclasses.dataclass(frozen=True)
class FolderDataset(Dataset):
    """Image files, sorted by class and name: `files` has each path below `root` and its label."""

    root: str
    files: list[tuple[str, int]] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        path, label = self.files[i]
        try:
            return pathlib.Path(self.root, path).read_bytes(), label
        except OSError as error:
            raise DecodeError(error.strerror) from error

    def key(self, i: int) -> str:
        return printable(os.path.join(self.root, self.files[i][0]))

    def fingerprint(self) -> str:
        def name_and_size(i):
            path, size = self.files[i][0], -1
            with contextlib.suppress(OSError):  # a broken link: `read` reports it
                size = os.stat(os.path.join(self.root, path)).st_size
            return f'{normal(path)} {size}'

        return digest(map_examples(name_and_size, len(self), 16))  # network disks are slow

    def labels(self) -> np.ndarray:
        return np.array([label for _, label in self.files], np.int32)


def open_folder(
    name: str, split: str, path: str, *, eval_split: float = 0.0, seed: int = 0
) -> FolderDataset:
    """Opens one split, 'train' or 'eval', of an image folder.

    The classes are the sorted folders of `train`, each with images at any depth; the eval images
    are in the first of FOLDERS['eval'] that exists. Without one, the share `eval_split` of each
    class, at least one image but never all, is drawn by `seed` from `train` or `path` itself; an
    image that is added later hardly changes the draw of the others. Raises MissingError for a
    missing folder, and UserError for a class without images, or one that `train` lacks.
    """
    if '://' in path:
        raise UserError(f'{name}: images must be on a disk or a mount, not at {path}')
    root = local_path(path)
    if not root.is_dir():
        raise MissingError(f'no folder {root}')
    if eval_split:
        if existing := [of for of in FOLDERS['eval'] if (root / of).is_dir()]:
            raise UserError(
                f'eval_split={eval_split}, but {root / existing[0]} has images; use eval_split=0'
            )
        folder = train = root / 'train' if (root / 'train').is_dir() else root
    else:
        folder, train = (_split_folder(root, of) for of in (split, 'train'))
    class_names = tuple(_class_folders(train))
    files = _files(folder, class_names)
    if eval_split:
        files = _draw(files, split, eval_split, seed)
        if not files:
            raise UserError(
                f'eval_split={eval_split} draws nothing from {folder}: no class has two images'
            )
    return FolderDataset(name, split, class_names, str(folder), files)


def _split_folder(root: pathlib.Path, split: str) -> pathlib.Path:
    for folder in FOLDERS[split]:
        if (root / folder).is_dir():
            return root / folder
    raise MissingError(
        f'no folder {" or ".join(FOLDERS[split])} in {root}; to train with one tenth of the images '
        'held out for evaluation, set --config.eval_split=0.1'
    )


def _class_folders(folder: pathlib.Path) -> dict[str, list[str]]:
    """Returns the folders of each class; a class may exist in two Unicode spellings."""
    found = collections.defaultdict(list)
    for path in folder.iterdir():
        if path.is_dir() and not is_leftover(path.name):
            found[printable(normal(path.name))].append(path.name)
    if not found:
        raise UserError(
            f'{folder} has no folders: it must contain a folder of images for each class'
        )
    return {name: sorted(found[name]) for name in sorted(found)}


def _files(folder: pathlib.Path, class_names: Sequence[str]) -> list[tuple[str, int]]:
    files, others = [], collections.Counter[str]()
    labels = {name: label for label, name in enumerate(class_names)}
    for name, folders in _class_folders(folder).items():
        if name not in labels:  # `check_known` reads all names, half a minute for 20,000
            check_known(f'class in {folder}', name, class_names)
        images = [
            os.path.join(of, image) for of in folders for image in find_images(folder / of, others)
        ]
        if not images:
            raise _no_images(folder / name)
        files += [(image, labels[name]) for image in images]
    loose = [p.name for p in folder.iterdir() if not (p.is_dir() or is_leftover(p.name))]
    if loose:
        others['beside the folders of the classes'] += len(loose)
    _warn_left_out(folder, others)
    return files


def _draw(
    files: Iterable[tuple[str, int]], split: str, share: float, seed: int
) -> list[tuple[str, int]]:
    def order(file):  # depends neither on the machine nor on the other images
        text = f'{seed} {normal(file[0])}'
        return hashlib.sha256(text.encode(errors='surrogateescape')).digest()

    drawn = []
    for _, group in itertools.groupby(files, key=lambda file: file[1]):
        of_class = list(group)
        count = min(max(1, round(share * len(of_class))), len(of_class) - 1)
        of_eval = set(sorted(of_class, key=order)[:count])
        drawn += [file for file in of_class if (file in of_eval) == (split == 'eval')]
    return drawn


def image_files(paths: Sequence[str | os.PathLike], class_names: tuple[str, ...]) -> FolderDataset:
    """Returns the files in `paths` and all images below its folders; each label is 0."""
    files = []
    for path in paths:
        path = os.fspath(path)
        if os.path.isdir(path):
            others = collections.Counter[str]()
            found = [os.path.join(path, image) for image in find_images(path, others)]
            _warn_left_out(path, others)
            if not found:
                raise _no_images(path)
            files += found
        elif os.path.exists(path):
            files.append(path)
        else:
            folder = pathlib.Path(path).parent
            near = [p.name for p in sorted(folder.glob('*')) if p.is_file()][:5]
            raise MissingError(f'no image {path}; its folder has {", ".join(near) or "no files"}')
    return FolderDataset('images', 'eval', class_names, '', [(path, 0) for path in files])


def find_images(folder: str | os.PathLike, others: collections.Counter[str]) -> Iterator[str]:
    """Yields the sorted relative paths of images; counts other files in `others` by suffix."""
    for path in sorted(_walk(os.fspath(folder)), key=normal):
        if (suffix := os.path.splitext(path)[1].lower()) in SUFFIXES:
            yield path
        else:
            others[suffix or 'without a suffix'] += 1


def _walk(folder: str, within: str = '', above: tuple[str, ...] = ()) -> Iterator[str]:
    here = os.path.join(folder, within)
    real = os.path.realpath(here)
    if real in above:  # a link to one of its own parents
        return
    with os.scandir(here) as entries:
        for entry in entries:
            path = os.path.join(within, entry.name)
            if is_leftover(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(folder, path, (*above, real))
            else:
                yield path


def _warn_left_out(folder: str | os.PathLike, others: collections.Counter[str]) -> None:
    if others:
        kinds = ', '.join(f'{n:,} {kind}' for kind, n in others.most_common(5))
        where = printable(os.fspath(folder))
        logger.warning('%s: ignored %s files: %s', where, f'{others.total():,}', kinds)


def _no_images(folder: str | os.PathLike) -> UserError:
    return UserError(f'no images in {folder}: no file ends in {", ".join(SUFFIXES)}')


def is_leftover(name: str) -> bool:
    """Returns whether a file or folder is hidden, or left by a file manager and the like."""
    return name.startswith('.') or name.lower() in LEFTOVERS


def normal(text: str) -> str:
    """Returns text in Unicode's normal form C; macOS spells names in form D."""
    return unicodedata.normalize('NFC', text)


def printable(path: str) -> str:
    """Returns a path with escapes for the bytes that are not UTF-8."""
    return os.fsencode(path).decode('utf-8', 'backslashreplace')
