"""What is in ImageNet's two tars, and where: names, labels, offsets, without reading an image.

The training tar holds a tar for each class, the validation tar the images themselves, whose labels
are a list that tfds brings.
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
IMAGES = {'train': 1_281_167, 'validation': 50_000}
CLASSES = 1000
# The group is the wnid, and the number from which the label follows.
FILE_NAMES = {
    'train': re.compile(r'(n\d{8})_\d{1,8}\.JPEG'),
    'validation': re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG'),
}
ENTRY = np.dtype([('name', 'S32'), ('label', '<i8'), ('offset', '<i8'), ('size', '<i8')])
BLOCK = 512  # bytes, the unit of a tar


def class_names() -> list[str]:
    """Reads tfds's list of the 1000 wnids, by label."""
    return tfds.core.tfds_path('datasets/imagenet2012/labels.txt').read_text().split()


@functools.cache
def labels_of(split: str) -> dict[str, int]:
    """Maps what the group of FILE_NAMES finds to the label."""
    labels = {wnid: label for label, wnid in enumerate(class_names())}
    if split == 'train':
        return labels
    wnids = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt').read_text().split()
    return {f'{number:08}': labels[wnid] for number, wnid in enumerate(wnids, 1)}


def list_tar(tar: pathlib.Path, start: int = 0, end: int | None = None) -> list[tarfile.TarInfo]:
    """Lists the files of a tar that lies in bytes `start` to `end` of `tar`; offsets are `tar`'s.

    Raises UserError for one that is damaged or cut short.
    """
    with tar.open('rb', buffering=0) as file:
        end = end or tar.stat().st_size
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode='r:') as archive:
                members = [member for member in archive if member.isfile()]
        except tarfile.TarError as error:
            raise UserError(f'{tar} is damaged, cut short or no tar: {error}') from error
        # tarfile takes damage and the end of the file for the end of the archive, a block of zeros.
        at = archive.offset
        if at + BLOCK > end or os.pread(file.fileno(), BLOCK, at) != bytes(BLOCK):
            raise UserError(f'{tar} is damaged or cut short: no end of the archive at byte {at:,}')
    return members


def list_images(
    split: str, tar: pathlib.Path, start: int = 0, end: int | None = None
) -> np.ndarray:
    """Lists the images of a tar as `list_tar`: ENTRY `[images]`.

    Raises UserError for a member whose name is none of the split's.
    """
    entries = []
    for member in list_tar(tar, start, end):
        name = pathlib.PurePosixPath(member.name).name
        match = FILE_NAMES[split].fullmatch(name)
        if not match or match[1] not in labels_of(split):
            raise UserError(f'{tar} holds {member.name}, which is no image of the {split} split')
        entries.append((name, labels_of(split)[match[1]], member.offset_data, member.size))
    return np.array(entries, ENTRY)


def find_tars(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Finds the tar of each split; raises MissingError for one that is not there."""
    if not folder.is_dir():
        raise MissingError(
            f'no folder {folder}; imagenet2012 is made of {" and ".join(TARS.values())}'
        )
    tars = {split: folder / name for split, name in TARS.items()}
    absent = [tar.name for tar in tars.values() if not tar.is_file()]
    if absent:
        raise MissingError(
            f'no {" and no ".join(absent)} in {folder}; https://image-net.org has '
            f'{"them" if len(absent) > 1 else "it"}'
        )
    return tars


def check_counts(split: str, tar: pathlib.Path, entries: np.ndarray, others: bool) -> None:
    """Raises UserError for a tar of no images, or others than ImageNet's unless these may be."""
    images, classes = len(entries), len(np.unique(entries['label']))
    if not images:
        raise UserError(f'{tar} holds no images')
    if not others and (images, classes) != (IMAGES[split], CLASSES):
        raise UserError(
            f'{tar} holds {images:,} images of {classes:,} classes, and ImageNet has '
            f'{IMAGES[split]:,} of {CLASSES:,}; for a part of it, made on purpose, add '
            f'--allow-other-counts'
        )
