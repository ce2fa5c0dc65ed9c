"""Behind `se-flax data check NAME` and `se-flax data prepare NAME`."""

import os

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from se_flax.data.fashion_mnist import DEBIAN_FOLDER, FashionMnist
from se_flax.data.sources import (
    EMBEDDED,
    FOLDER,
    IMAGENET,
    SPLITS,
    SYNTHETIC,
    find_builder,
    open_dataset,
)
from se_flax.errors import MissingError, UserError


def check(name: str, data_dir: str | None = None) -> str:
    """Says what the data set `name` holds and where; reads its headers, not its images.

    Raises as `open_dataset` does: for a data set that is not there, MissingError with the command
    that prepares it, or for imagenet2012 the files that tfds builds it from.
    """
    train, evaluation = (open_dataset(name, split, data_dir) for split in SPLITS)
    where = _where(name, data_dir)
    return (
        f'{name}: {len(train):,} training and {len(evaluation):,} evaluation images, '
        f'{train.num_classes} classes, {where}'
    )


def prepare(
    name: str, data_dir: str | None = None, folder: str | os.PathLike = DEBIAN_FOLDER
) -> str:
    """Builds the data set `name` under `data_dir`, by default where tfds looks; returns `check`'s.

    `fashion_mnist` is made from the four files in `folder`, else from a download; other names by
    tfds. tfds writes beside the final folder and renames at the end, so a build that was cut off
    is never taken for a data set. Nothing is done for one that is there.

    Raises UserError where `name` cannot be built, with what it lacks; imagenet2012 and folders by
    `check`'s MissingError.
    """
    data_dir = data_dir and os.path.expanduser(data_dir)
    try:
        return check(name, data_dir)
    except MissingError:
        if name == IMAGENET or name.startswith(FOLDER):
            raise
    try:
        if name == FashionMnist.name:
            builder = FashionMnist(data_dir, folder=folder)
        else:
            builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
        builder.download_and_prepare()
    except ImportError as error:
        raise UserError(
            f'tfds needs {error.name!r} to build {name!r}, though se_flax does not to read it: '
            f'install it (tensorflow counts 1.4 GB), or copy a set that was prepared elsewhere'
        ) from error
    except (OSError, tfds.download.DownloadError, NonMatchingChecksumError) as error:
        hint = ''
        if name == FashionMnist.name:
            hint = '; the Debian package dataset-fashion-mnist has its files'
        raise UserError(f'{name!r} cannot be built: {error}{hint}') from error
    return check(name, data_dir)


def _where(name: str, data_dir: str | None) -> str:
    if name == SYNTHETIC:
        return 'made on the fly'
    if name.startswith(FOLDER):
        return f'in {name.removeprefix(FOLDER)}'
    builder = find_builder(name, data_dir)
    origin = ', ships with the install' if name == EMBEDDED else ''
    return f'{builder.info.file_format.value} in {builder.data_dir}{origin}'
