"""Behind `se-flax data check NAME` and `se-flax data prepare NAME`."""

import os
from typing import Any

import tensorflow_datasets as tfds

from se_flax.data import imagenet, sources
from se_flax.data.fashion_mnist import DEBIAN_FOLDER, FashionMnist
from se_flax.data.sources import FOLDER, data_folder, find_builder
from se_flax.errors import MissingError, UserError
from se_flax.storage import AnyPath, copy_missing, is_remote, local_path


def check(name: str, data_dir: str | None = None) -> str:
    """Describes the data set `name` in a line, from its headers; raises as `open_dataset` does."""
    train, evaluation = (sources.open_dataset(name, s, data_dir) for s in sources.SPLITS)
    if name == sources.SYNTHETIC:
        where = 'made on the fly'
    elif name.startswith(FOLDER):
        where = f'in {name.removeprefix(FOLDER)}'
    else:
        builder = find_builder(name, data_dir)
        where = f'{builder.info.file_format.value} in {builder.data_dir}'
        where += ', ships with se_flax' if name == sources.EMBEDDED else ''
    return (
        f'{name}: {len(train):,} training and {len(evaluation):,} evaluation images, '
        f'{train.num_classes} classes, {where}'
    )


def list_known(data_dir: str | None = None) -> list[tuple[str, str]]:
    """Returns the most used data sets, each with `check`'s description."""
    rows = []
    for name in sources.COMMON:
        try:
            found = check(name, data_dir).removeprefix(f'{name}: ')
        except MissingError:
            found = f'not found; to prepare it: se-flax data prepare {name}'
            if name == imagenet.NAME:
                found += ' --from DIR_WITH_THE_TWO_TARS'
            elif name.startswith(FOLDER):
                found = 'images in PATH/train/<class> and PATH/val/<class>'
        except UserError as error:
            found = str(error)
        rows.append((name, found))
    return rows


def prepare(
    name: str, data_dir: str | None = None, folder: str | os.PathLike | None = None, **options: Any
) -> str:
    """Builds the data set `name` if it is not there; returns `check`'s description of it.

    It is written below `data_dir` (default: where tfds looks), and found there once it is complete.
    `imagenet2012` is made from the two tars in `folder`, with `se_flax.data.imagenet.Options`;
    `fashion_mnist` from the four files in `folder`, or a download; other names by tfds. Raises
    UserError if `name` cannot be built, and MissingError for a missing folder or tar.
    """
    root = data_folder(data_dir)
    if folder is not None:
        if is_remote(folder):
            raise UserError(f'--from={os.fspath(folder)}: the files must be on a disk or a mount')
        if name not in (imagenet.NAME, FashionMnist.name):
            names = f'{imagenet.NAME} and {FashionMnist.name}'
            raise UserError(f'--from is for {names}, not for {name!r}')
        folder = local_path(folder)
    if any(options.values()) and name != imagenet.NAME:
        raise UserError(
            f'--max-side, --quality and --allow-other-counts are for {imagenet.NAME}, not {name!r}'
        )
    how = imagenet.Options(**options).checked()
    try:
        description = check(name, data_dir)
    except MissingError:
        if name.startswith(FOLDER) or (name == imagenet.NAME and folder is None):
            raise
    else:
        if how.quality:
            imagenet.check_made_with(find_builder(name, data_dir).data_dir, how._asdict())
        return description
    if name == imagenet.NAME and folder is not None:
        imagenet.build(folder, root, how)
    elif is_remote(root):
        _build_and_copy(name, root, folder)
    else:
        _build(name, root, folder)
    return check(name, data_dir)


def _build_and_copy(name: str, root: AnyPath, folder: str | os.PathLike | None) -> None:
    # tfds cannot write ArrayRecord files to a bucket.
    default = tfds.core.constants.DATA_DIR
    local = '~/tensorflow_datasets' if is_remote(default) else default
    prepare(name, local, folder)
    builder = find_builder(name, local)
    target = root / builder.info.full_name
    copy_missing(builder.data_path, target, last=tfds.core.constants.FEATURES_FILENAME)


def _build(name: str, data_dir: AnyPath, folder: str | os.PathLike | None) -> None:
    hint = ''
    try:
        if name == FashionMnist.name:
            hint = '; the Debian package dataset-fashion-mnist has its files'
            builder = FashionMnist(data_dir, folder=folder or DEBIAN_FOLDER)
        else:
            builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
        builder.download_and_prepare()
    except ImportError as error:
        raise UserError(
            f'tfds needs {error.name!r} to build {name!r}: install it (tensorflow takes 1.4 GB), '
            f'or copy a data set that was prepared elsewhere, which se_flax reads without it'
        ) from error
    except Exception as error:  # tfds, each of its builders and the network have their own
        reason = str(error) or type(error).__name__
        raise UserError(f'{name!r} cannot be built: {reason}{hint}') from error
