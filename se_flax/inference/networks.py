"""What a workdir, finished or not, or a weights file is good for."""

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from se_flax.data import Dataset, EvalTransform, open_dataset
from se_flax.data.folder import image_files
from se_flax.errors import UserError, check_at_least, check_known
from se_flax.evaluation.ensemble import Network, Tally, judge_batches
from se_flax.evaluation.predictions import Predictions
from se_flax.evaluation.protocols import Protocol
from se_flax.models import create_model, fold_batch_norm
from se_flax.parallel import data_mesh
from se_flax.training.config import base_config
from se_flax.training.recipe import eval_transform
from se_flax.training.workdir import load_run

WEIGHTS_BATCH = 64  # a device's, in evaluating a weights file
PREDICT_BATCH = 32  # a device's, in predicting; the first answers are there soon
DTYPES = ('float32', 'bfloat16')
OWN_VIEW = Protocol()


class Trained(NamedTuple):
    """A network to be used, where it is from, and its class names if they are known.

    `step` is that of a run's checkpoint, else None. `config` is the run's; a weights file has
    `base_config()`'s, without a data set.
    """

    name: str
    network: Network
    class_names: tuple[str, ...]
    step: int | None
    config: ml_collections.ConfigDict


class Evaluation(NamedTuple):
    """What networks together said of a data set; `tally` has the counts of each class."""

    data: str
    class_names: tuple[str, ...]
    tally: Tally


def open_run(workdir: str | os.PathLike, dtype: str | None = None) -> Trained:
    """Reads the newest checkpoint of a run, which may still be going on.

    `dtype` is one of DTYPES; None is the run's own. Raises as `load_run` does.
    """
    run = load_run(workdir)
    config = run.config
    model = run.model if dtype is None else run.model.clone(dtype=_dtype(dtype))
    network = Network(model, run.variables, eval_transform(config), config.mean, config.std)
    return _ready(Trained(str(workdir), network, run.class_names, run.step, config))


def open_weights(path: pathlib.Path, dtype: str | None = None) -> Trained:
    """Reads a weights file, with the preprocessing it names; `dtype` None is float32."""
    from se_flax.weights import read_weights  # its extra is not needed for a workdir

    info, variables = read_weights(path)
    dtype = _dtype(dtype or DTYPES[0])
    model = create_model(info.model, info.num_classes, **{**info.fields, 'dtype': dtype})
    images = info.preprocessing
    view = EvalTransform(
        images.image_size,
        images.resize,
        images.interpolation,
        channels=model.in_channels,
        exif_orientation=images.exif_orientation,
    )
    config = base_config()
    config.eval_batch_size = WEIGHTS_BATCH * jax.device_count()
    network = Network(model, variables, view, images.mean, images.std)
    return _ready(Trained(str(path), network, info.class_names, None, config))


def fold(trained: Trained) -> Trained:
    """Returns the same network without BatchNorm, see `fold_batch_norm`."""
    network = trained.network
    model, variables = fold_batch_norm(network.model, network.variables)
    return trained._replace(network=network._replace(model=model, variables=variables))


def _dtype(name: str) -> Any:
    check_known('dtype', name, DTYPES)
    return jnp.dtype(name)


def _ready(trained: Trained) -> Trained:
    """Has what is compiled kept, where the trainer keeps it, if nobody has said where."""
    if trained.config.compilation_cache and not jax.config.values['jax_compilation_cache_dir']:
        cache = os.path.expanduser(trained.config.compilation_cache)
        jax.config.update('jax_compilation_cache_dir', cache)
    return trained


def evaluate_networks(
    networks: Sequence[Trained],
    data: str | None = None,
    data_dir: str | None = None,
    protocol: Protocol = OWN_VIEW,
    *,
    batch_size: int | None = None,
    predictions: Predictions | None = None,
    seen: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluates one network, or the mean of several, on every example of a set, once each.

    Args:
        networks: with the same classes; each sees images as it expects them.
        data: with the same classes; None is the data set of the runs among the networks.
        data_dir: of tfds; None is that of the first of these runs, else tfds's own.
        protocol: the views of an image; by default the one each network expects.
        batch_size: images at once, brought up to a multiple of the devices; None is the first
            run's `eval_batch_size`, without runs WEIGHTS_BATCH a device.
        predictions: collects what is said of each example; to be written at the end.
        seen: told after each batch how many examples of how many are done.

    Raises:
        UserError: for a set with other classes than a network, or another number of them, and for
            views no network can have; nothing is compiled before.
    """
    config = _leading(networks)
    dataset = open_eval_set(networks, data, data_dir)
    mesh = data_mesh()
    batch_size = _whole(batch_size, config.eval_batch_size, mesh)
    tally = Tally(dataset.num_classes)
    batches = judge_batches(
        [trained.network for trained in networks],
        dataset,
        protocol,
        mesh,
        batch_size=batch_size,
        num_threads=config.num_threads or None,
        max_corrupt=config.max_corrupt,
    )
    for first, results in zip(range(0, len(dataset), batch_size), batches, strict=True):
        tally.add(results)
        if predictions:
            predictions.add(dataset, first, results)
        seen(min(first + batch_size, len(dataset)), len(dataset))
    return Evaluation(dataset.name, dataset.class_names, tally)


def open_eval_set(
    networks: Sequence[Trained], data: str | None = None, data_dir: str | None = None
) -> Dataset:
    """Returns the evaluation images of a set, by default the networks' own.

    Raises UserError for a set with other classes than a network, or another number of them.
    """
    data = data or _own_data(networks)
    data_dir = data_dir or _leading(networks).data_dir or None
    runs = [n.config for n in networks if n.config.data == data]
    drawn = {(c.eval_split, c.seed if c.eval_split else 0) for c in runs} or {(0.0, 0)}
    if len(drawn) > 1:
        raise UserError(
            f'the runs have drawn different images of {data} for evaluation, so that some of them '
            'were trained on those of others; evaluate them one by one'
        )
    [(eval_split, seed)] = drawn
    dataset = open_dataset(data, 'eval', data_dir, eval_split=eval_split, seed=seed)
    for trained in networks:
        _check_classes(trained, data, dataset.class_names)
    return dataset


def _leading(networks: Sequence[Trained]) -> ml_collections.ConfigDict:
    """Returns the config of the first run among them."""
    return next((n.config for n in networks if n.step is not None), networks[0].config)


def evaluate_run(
    workdir: str | os.PathLike,
    data: str | None = None,
    data_dir: str | None = None,
    protocol: Protocol = OWN_VIEW,
) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run, see `evaluate_networks`.

    Returns `step`, `loss`, `top1`, `top5` (shares, 0 to 1), `examples` and `data`.
    """
    run = open_run(workdir)
    result = evaluate_networks([run], data, data_dir, protocol)
    return {'step': run.step, 'data': result.data, **result.tally.summary()}


def evaluate_weights(
    path: pathlib.Path, data: str, data_dir: str | None = None, protocol: Protocol = OWN_VIEW
) -> dict[str, Any]:
    """Evaluates a weights file; returns what `evaluate_run` does, without `step`."""
    result = evaluate_networks([open_weights(path)], data, data_dir, protocol)
    return {'data': result.data, **result.tally.summary()}


def _own_data(networks: Sequence[Trained]) -> str:
    names = list(dict.fromkeys(n.config.data for n in networks if n.config.data))
    if not names:
        raise UserError('a weights file has no data set of its own: --data NAME')
    if len(names) > 1:
        raise UserError(f'the runs have different data sets, {", ".join(names)}: --data NAME')
    return names[0]


def _check_classes(trained: Trained, data: str, names: tuple[str, ...]) -> None:
    ours, count = trained.class_names, trained.network.model.num_classes
    if ours and names != ours:
        raise UserError(
            f'{data} has other classes ({", ".join(names[:5])}, ...) than {trained.name} '
            f'({", ".join(ours[:5])}, ...)'
        )
    if len(names) != count:
        raise UserError(f'{data} has {len(names)} classes, {trained.name} has {count}')


def predict(
    trained: Trained,
    images: Sequence[str | os.PathLike],
    *,
    batch_size: int | None = None,
    predictions: Predictions | None = None,
    seen: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[str, list[tuple[str, float]] | None]]:
    """Yields each image's path and its five most probable classes, with their probabilities.

    Images are read in batches, on the way, so that memory does not grow with their number. One that
    cannot be decoded is named in a warning and has None.

    Args:
        trained: of `open_run` or `open_weights`, `fold`ed or not.
        images: files, and folders of them (`se_flax.data.folder.image_files`).
        batch_size: images at once, brought up to a multiple of the devices; None is PREDICT_BATCH a
            device.
        predictions: collects the same, unlabelled; to be written at the end.
        seen: told after each batch how many images of how many are done.

    Raises:
        MissingError, UserError: for a path that is not there, and a network without a head, before
            anything is compiled.
    """
    network = trained.network
    if not network.model.num_classes:
        raise UserError(f'{trained.name} has no head, so it predicts no classes')
    unnamed = tuple(f'class {i}' for i in range(network.model.num_classes))
    dataset = image_files(images, trained.class_names or unnamed)
    mesh = data_mesh()
    batch_size = _whole(batch_size, min(PREDICT_BATCH * mesh.size, len(dataset)), mesh)
    batches = judge_batches(
        [network],
        dataset,
        OWN_VIEW,
        mesh,
        batch_size=batch_size,
        num_threads=trained.config.num_threads or None,
        max_corrupt=None,
    )
    return _answers(dataset, batches, batch_size, predictions, seen)


def _answers(dataset, batches, batch_size, predictions, seen):
    for first, results in zip(range(0, len(dataset), batch_size), batches, strict=True):
        if predictions:
            predictions.add(dataset, first, results)
        for i in range(first, min(first + batch_size, len(dataset))):
            best = zip(results['top'][i - first], results['probability'][i - first], strict=True)
            classes = [(dataset.class_names[label], float(p)) for label, p in best]
            yield dataset.key(i), classes if results['mask'][i - first] else None
        seen(min(first + batch_size, len(dataset)), len(dataset))


def _whole(batch_size: int | None, default: int, mesh: Mesh) -> int:
    """Returns a batch size that the devices divide."""
    batch_size = default if batch_size is None else batch_size
    check_at_least('batch_size', batch_size, 1)
    return -(-batch_size // mesh.size) * mesh.size


def save_run_weights(
    workdir: str | os.PathLike,
    out: pathlib.Path,
    *,
    head: str = 'keep',
    in_channels: int | None = None,
) -> None:
    """Writes the newest checkpoint's network, with what it expects, to a weights file.

    `head` and `in_channels` are as in `load_weights`. Raises as `load_run` and `save_weights` do.
    """
    from se_flax.weights import Preprocessing, WeightsInfo, adapt, save_weights

    run = load_run(workdir)
    c = run.config
    view = Preprocessing(
        *(c.image_size, c.eval_resize, c.interpolation, tuple(c.mean), tuple(c.std)),
        exif_orientation=c.exif_orientation,
    )
    fields = c.model_fields.to_dict()
    if c.in_channels != 3:
        fields['in_channels'] = c.in_channels
    classes = run.class_names
    info = WeightsInfo(c.model, len(classes), 'se_flax', view, fields, classes)
    info, variables = adapt(info, run.variables, head, in_channels)
    save_weights(
        *(out, info.model, variables, info.preprocessing),
        fields=info.fields,
        class_names=info.class_names,
    )
