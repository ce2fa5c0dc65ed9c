"""Behind `se-flax data check NAME` and `se-flax data prepare NAME`."""

import os

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from se_flax.data import imagenet
from se_flax.data.fashion_mnist import DEBIAN_FOLDER, FashionMnist
from se_flax.data.sources import (
    COMMON,
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
    that prepares it, or goes on with it.
    """
    train, evaluation = (open_dataset(name, split, data_dir) for split in SPLITS)
    where = _where(name, data_dir)
    return (
        f'{name}: {len(train):,} training and {len(evaluation):,} evaluation images, '
        f'{train.num_classes} classes, {where}'
    )


def list_known(data_dir: str | None = None) -> list[tuple[str, str]]:
    """Returns the data sets that most people use, and what `check` says of each."""
    rows = []
    for name in COMMON:
        try:
            said = check(name, data_dir).removeprefix(f'{name}: ')
        except MissingError:
            said = f'not there: se-flax data prepare {name}'
            if name == IMAGENET:
                said += ' --from DIR_WITH_THE_TWO_TARS'
            elif name.startswith(FOLDER):
                said = 'images in PATH/train/<class> and PATH/val/<class>'
        rows.append((name, said))
    return rows


def prepare(
    name: str,
    data_dir: str | None = None,
    folder: str | os.PathLike | None = None,
    *,
    max_side: int | None = None,
    quality: int | None = None,
    allow_other_counts: bool = False,
) -> str:
    """Builds the data set `name` under `data_dir`, by default where tfds looks; returns `check`'s.

    `imagenet2012` is made from the two tars in `folder` (`imagenet.build`, which has the last three
    arguments), `fashion_mnist` from the four files in it, else from a download; other names by
    tfds. What is written becomes the final folder at the end, so a build that was cut off is never
    taken for a data set. Nothing is done for one that is there.

    Raises UserError where `name` cannot be built, with what it lacks; folders and imagenet2012
    without a `folder` by `check`'s MissingError.
    """
    data_dir = data_dir and os.path.expanduser(data_dir)
    _check_options(name, folder, max_side or quality or allow_other_counts)
    encoding = imagenet.full_encoding(max_side, quality)
    try:
        said = check(name, data_dir)
    except MissingError:
        if name.startswith(FOLDER) or (name == IMAGENET and folder is None):
            raise
    else:
        if encoding != (None, None):
            _check_encoded(name, data_dir, encoding)
        return said
    if name == IMAGENET and folder is not None:
        imagenet.build(
            os.path.expanduser(folder),
            data_dir or tfds.core.constants.DATA_DIR,
            max_side=max_side,
            quality=quality,
            allow_other_counts=allow_other_counts,
        )
    else:
        _build(name, data_dir, folder)
    return check(name, data_dir)


def _build(name: str, data_dir: str | None, folder: str | os.PathLike | None) -> None:
    try:
        if name == FashionMnist.name:
            builder = FashionMnist(data_dir, folder=folder or DEBIAN_FOLDER)
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


def _check_options(name: str, folder: str | os.PathLike | None, of_imagenet: object) -> None:
    if folder is not None and name not in (IMAGENET, FashionMnist.name):
        raise UserError(f'{name!r} takes no --from: {IMAGENET} and {FashionMnist.name} do')
    if of_imagenet and name != IMAGENET:
        raise UserError(
            f'{name!r} takes no --max-side, --quality or --allow-other-counts: {IMAGENET} does'
        )


def _check_encoded(name: str, data_dir: str | None, wanted: tuple[int | None, int | None]) -> None:
    """Raises UserError where a set that is there was made with another encoding."""
    there = find_builder(name, data_dir).data_dir
    made = imagenet.read_plan(there)
    if (made['max_side'], made['quality']) != wanted:
        raise UserError(
            f'{there} is there with max_side={made["max_side"]} and quality={made["quality"]}, '
            f'not {wanted[0]} and {wanted[1]}; delete it, or take another --data-dir'
        )


def _where(name: str, data_dir: str | None) -> str:
    if name == SYNTHETIC:
        return 'made on the fly'
    if name.startswith(FOLDER):
        return f'in {name.removeprefix(FOLDER)}'
    builder = find_builder(name, data_dir)
    origin = ', ships with the install' if name == EMBEDDED else ''
    return f'{builder.info.file_format.value} in {builder.data_dir}{origin}'
