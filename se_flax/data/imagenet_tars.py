"""Lists the images in ImageNet's two tars by name, label and byte offset, without reading them.

The training tar holds a tar for each class, the validation tar the images themselves.
"""

import functools
import os
import pathlib
import re
import tarfile

import numpy as np
import tensorflow_datasets as tfds

from se_flax.errors import MissingError, UserError

TARS = {'train': 'ILSVRC2012_img_train.tar', 'validation': 'ILSVRC2012_img_val.tar'}
COUNTS = {'train': (1_281_167, 1000), 'validation': (50_000, 1000)}  # images, classes
# The group determines the label: the wnid, or the number of the validation image.
FILE_NAMES = {
    'train': re.compile(r'(n\d{8})_\d{1,8}\.JPEG'),
    'validation': re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG'),
}
ENTRY = np.dtype([('name', 'S32'), ('label', '<i8'), ('offset', '<i8'), ('size', '<i8')])
BLOCK = 512  # bytes, the unit of a tar


def _tfds_list(name: str) -> list[str]:
    return tfds.core.tfds_path(f'datasets/imagenet2012/{name}.txt').read_text().split()


def class_names() -> list[str]:
    """Returns the 1000 wnids by label."""
    return _tfds_list('labels')


@functools.cache
def labels_of(split: str) -> dict[str, int]:
    """Maps the group of FILE_NAMES to the label."""
    labels = {wnid: label for label, wnid in enumerate(class_names())}
    if split == 'train':
        return labels
    wnids = _tfds_list('validation_labels')
    return {f'{number:08}': labels[wnid] for number, wnid in enumerate(wnids, 1)}


def list_tar(tar: pathlib.Path, start: int = 0, end: int | None = None) -> list[tarfile.TarInfo]:
    """Lists the tar in bytes `start` to `end` of a file; offsets are relative to the whole file."""
    with tar.open('rb', buffering=0) as file:
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode='r:') as archive:
                members = [member for member in archive if member.isfile()]
        except tarfile.TarError as error:
            raise UserError(f'{tar} is damaged, truncated or not a tar: {error}') from error
        # tarfile takes damage and the end of the file for the end of the archive, a block of zeros.
        at, end = archive.offset, end or tar.stat().st_size
        if at + BLOCK > end or os.pread(file.fileno(), BLOCK, at) != bytes(BLOCK):
            raise UserError(f'{tar} is damaged or truncated: no end of archive at byte {at:,}')
    return members


def list_images(
    split: str, tar: pathlib.Path, start: int = 0, end: int | None = None
) -> np.ndarray:
    """Lists the images of a tar as `list_tar` does, ENTRY `[images]`; UserError for others."""
    entries = []
    for member in list_tar(tar, start, end):
        name = pathlib.PurePosixPath(member.name).name
        match = FILE_NAMES[split].fullmatch(name)
        if not match or match[1] not in labels_of(split):
            raise UserError(
                f'{tar} holds {member.name}, which is not an image of the {split} split'
            )
        entries.append((name, labels_of(split)[match[1]], member.offset_data, member.size))
    return np.array(entries, ENTRY)


def find_tars(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the tar of each split; raises MissingError if one is missing."""
    if not folder.is_dir():
        raise MissingError(
            f'no folder {folder}; imagenet2012 is made from {" and ".join(TARS.values())}'
        )
    absent = [name for name in TARS.values() if not (folder / name).is_file()]
    if absent:
        them = 'them' if len(absent) > 1 else 'it'
        raise MissingError(
            f'no {" and no ".join(absent)} in {folder}; https://image-net.org has {them}'
        )
    return {split: folder / name for split, name in TARS.items()}


def check_counts(split: str, tar: pathlib.Path, entries: np.ndarray, allow_others: bool) -> None:
    """Raises UserError for a tar without images, or with other counts than ImageNet's."""
    counts = len(entries), len(np.unique(entries['label']))
    if not len(entries):
        raise UserError(f'{tar} holds no images')
    if counts != COUNTS[split] and not allow_others:
        raise UserError(
            f'{tar} holds {counts[0]:,} images of {counts[1]:,} classes, but ImageNet has '
            f'{COUNTS[split][0]:,} of {COUNTS[split][1]:,}; to use only a part of it, add '
            f'--allow-other-counts'
        )
