"""Trained networks, from runs and weights files: evaluate them, predict with them, save them."""

import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from se_flax.data import Dataset, EvalTransform, open_dataset
from se_flax.data.folder import image_files
from se_flax.errors import MissingError, UserError, check_known, extra_needed
from se_flax.evaluation.evaluator import Evaluation, Evaluator, Network, Seen
from se_flax.evaluation.predictions import Predictions
from se_flax.evaluation.protocols import OWN_VIEW, Protocol
from se_flax.models import create_model, fold_batch_norm
from se_flax.parallel import data_mesh
from se_flax.storage import as_path
from se_flax.training.checkpoint import load
from se_flax.training.config import base_config
from se_flax.training.distributed import all_or_none
from se_flax.training.recipe import make_model, make_start, make_training, make_view
from se_flax.training.workdir import CHECKPOINTS, read_config

WEIGHTS_BATCH = 64  # images per device when a weights file is evaluated
PREDICT_BATCH = 32  # images per device; small, so that the first predictions come soon


class Trained(NamedTuple):
    """A network from a run or a weights file."""

    name: str  # its path
    network: Network
    class_names: tuple[str, ...]  # empty if unknown
    step: int | None  # of the checkpoint; None for a weights file
    config: ml_collections.ConfigDict  # the run's; `base_config()` for a weights file


def open_run(workdir: str | os.PathLike, dtype: str | None = None) -> Trained:
    """Reads the newest good checkpoint of a run, even while it trains.

    `dtype` is 'float32' or 'bfloat16', by default the run's own. Raises MissingError if there is no
    run or no checkpoint yet.
    """
    directory = as_path(workdir)
    config, class_names = all_or_none(read_config, directory)
    model = make_model(config, len(class_names))
    _, optimizer = make_training(config, num_steps=2, steps_per_epoch=1)
    init = make_start(config, model, optimizer, data_mesh())
    state, _ = load(directory / CHECKPOINTS, jax.eval_shape(init, jax.random.key(0)))
    model = _with_dtype(model, dtype) if dtype else model
    view = make_view(EvalTransform, config)
    network = Network(model, state.variables, view, config.mean, config.std)
    _cache_programs(config)
    return Trained(str(workdir), network, class_names, int(state.step), config)


def open_weights(path: str | os.PathLike, dtype: str | None = None) -> Trained:
    """Reads a weights file and the preprocessing stored in it; `dtype` is float32 by default."""
    from se_flax.weights import read_weights  # its extra is not needed for a workdir

    info, variables = all_or_none(read_weights, path)
    model = create_model(info.model, info.num_classes, **info.fields)
    model = _with_dtype(model, dtype or 'float32')
    view = info.preprocessing._asdict()
    return _of_file(path, info.model, model, variables, view, info.class_names)


def _of_file(path, name, model, variables, preprocessing, class_names) -> Trained:
    """`preprocessing` has the fields of a `Preprocessing`."""
    mean, std = preprocessing.pop('mean'), preprocessing.pop('std')
    view = EvalTransform(channels=model.in_channels, **preprocessing)
    config = base_config()
    config.eval_batch_size, config.model = WEIGHTS_BATCH * jax.device_count(), name
    _cache_programs(config)
    network = Network(model, variables, view, mean, std)
    return Trained(str(path), network, tuple(class_names), None, config)


class OnnxModel:
    """An ONNX file in the place of a model: `apply` runs it, on the CPU, in ONNX Runtime."""

    dtype = jnp.dtype('float32')

    def __init__(self, path: pathlib.Path):
        with extra_needed():
            import onnxruntime

        if not path.is_file():
            raise MissingError(f'no file {path}')
        try:
            self._session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        except Exception as error:  # its exceptions have no other class in common
            raise UserError(f'{path} cannot be read as ONNX: {error}') from None
        self.properties = self._session.get_modelmeta().custom_metadata_map
        if 'input' not in self.properties:
            raise UserError(f'{path} was not written by `se-flax export --format onnx`')
        self._nchw = self.properties['input'] == 'nchw'
        self._width = self._session.get_outputs()[0].shape[-1]
        # 0 without a head; older files do not say.
        self.num_classes = int(self.properties.get('num_classes', self._width))
        shape = self._session.get_inputs()[0].shape
        self.in_channels, self._size = shape[1 if self._nchw else -1], shape[2]

    def apply(self, variables: Any, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits of images; `variables` are unused, as the file has its own.

        Raises UserError for images of another size than the file's.
        """
        if images.shape[1] != self._size or images.shape[2] != self._size:
            raise UserError(
                f'images are {images.shape[1]} x {images.shape[2]}; the ONNX file takes '
                f'{self._size} x {self._size}'
            )

        def run(images):
            images = np.asarray(images)
            images = images.transpose(0, 3, 1, 2) if self._nchw else images.astype(np.uint8)
            return self._session.run(['logits'], {'images': images})[0]

        logits = jax.ShapeDtypeStruct((len(images), self._width), jnp.float32)
        return jax.pure_callback(run, logits, images)


def open_onnx(path: str | os.PathLike, dtype: str | None = None) -> Trained:
    """Reads an ONNX file of `se-flax export`, with the preprocessing in its properties.

    Raises MissingError if there is no such file, and UserError if it is another file or `dtype` is
    not float32.
    """
    check_known('dtype of an ONNX file', dtype or 'float32', ('float32',))
    model = OnnxModel(pathlib.Path(path))
    known = model.properties
    names = ('image_size', 'resize', 'mean', 'std', 'exif_orientation', 'class_names')
    values = {name: json.loads(known[name]) for name in names}
    class_names = values.pop('class_names')
    values['interpolation'] = known['interpolation']
    if known['input'] == 'nhwc':  # the file normalizes
        values |= {'mean': [0.0] * model.in_channels, 'std': [1.0] * model.in_channels}
    return _of_file(path, known['network'], model, {}, values, class_names)


def _with_dtype(model, dtype: str):
    check_known('dtype', dtype, ('float32', 'bfloat16'))
    return model.clone(dtype=jnp.dtype(dtype))


def _cache_programs(config: ml_collections.ConfigDict) -> None:
    cache = config.compilation_cache  # the trainer's
    if cache and not jax.config.values['jax_compilation_cache_dir']:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser(cache))


def fold(trained: Trained) -> Trained:
    """Returns the same network without BatchNorm, see `fold_batch_norm`."""
    network = trained.network
    if isinstance(network.model, OnnxModel):
        return trained  # folded when it was exported
    model, variables = fold_batch_norm(network.model, network.variables)
    return trained._replace(network=network._replace(model=model, variables=variables))


def evaluate_networks(
    networks: Sequence[Trained],
    data: str | None = None,
    data_dir: str | None = None,
    protocol: Protocol = OWN_VIEW,
    *,
    batch_size: int | None = None,
    predictions: Predictions | None = None,
    seen: Seen | None = None,
) -> Evaluation:
    """Evaluates one network, or the average of several, on every example of a data set.

    Each gets images in its own preprocessing, with the views of `protocol`. `batch_size` is rounded
    up to a multiple of the devices; default: the first run's `eval_batch_size`, or 64 per device.
    In several processes, each reads its part of the images, and all return the same. Raises
    UserError as `open_eval_set` and `Evaluator` do, before anything is compiled.
    """
    evaluator = all_or_none(make_evaluator, networks, data, data_dir, protocol, batch_size)
    return evaluator.run(predictions=predictions, seen=seen)


def make_evaluator(
    networks: Sequence[Trained],
    data: str | None = None,
    data_dir: str | None = None,
    protocol: Protocol = OWN_VIEW,
    batch_size: int | None = None,
) -> Evaluator:
    """Returns what `evaluate_networks` runs, for the results of each image."""
    config = _leading(networks)
    return Evaluator(
        [trained.network for trained in networks],
        open_eval_set(networks, data, data_dir),
        _mesh(networks),
        protocol,
        batch_size=config.eval_batch_size if batch_size is None else batch_size,
        num_threads=config.num_threads,
        max_corrupt=config.max_corrupt,
    )


def _mesh(networks: Sequence[Trained]) -> jax.sharding.Mesh:
    # Callbacks into ONNX Runtime need a program of one device.
    onnx = any(isinstance(trained.network.model, OnnxModel) for trained in networks)
    if onnx and jax.process_count() > 1:
        raise UserError('ONNX files are evaluated by one process')
    return data_mesh(jax.devices()[:1]) if onnx else data_mesh()


def _leading(networks: Sequence[Trained]) -> ml_collections.ConfigDict:
    return next((n.config for n in networks if n.step is not None), networks[0].config)


def open_eval_set(
    networks: Sequence[Trained], data: str | None = None, data_dir: str | None = None
) -> Dataset:
    """Opens the evaluation images of a data set, by default that of the runs among the networks.

    `data_dir` is for TFDS, by default the first run's. Raises UserError if the runs differ in data
    set or held-out images, or a network has other classes.
    """
    if not data:
        own = list(dict.fromkeys(n.config.data for n in networks if n.config.data))
        if not own:
            raise UserError('a weights file names no data set; set --data NAME')
        if len(own) > 1:
            raise UserError(f'the runs use different data sets ({", ".join(own)}); set --data NAME')
        [data] = own
    configs = [n.config for n in networks if n.config.data == data]
    held_out = {(c.eval_split, c.seed if c.eval_split else 0) for c in configs} or {(0.0, 0)}
    if len(held_out) > 1:
        raise UserError(
            f'the runs hold out different images of {data} for evaluation, so some of them were '
            'trained on images that others hold out; evaluate them one by one'
        )
    [(eval_split, seed)] = held_out
    data_dir = data_dir or _leading(networks).data_dir or None
    dataset = open_dataset(data, 'eval', data_dir, eval_split=eval_split, seed=seed)
    names = dataset.class_names
    for trained in networks:
        ours, count = trained.class_names, trained.network.model.num_classes
        if ours and names != ours:
            pairs = enumerate(itertools.zip_longest(names, ours))
            i, (theirs, own) = next((i, pair) for i, pair in pairs if len({*pair}) > 1)
            raise UserError(
                f'the {len(names)} classes of {data} differ from the {len(ours)} of '
                f'{trained.name}, first in number {i}: {theirs!r} instead of {own!r}'
            )
        if len(names) != count:
            raise UserError(f'{data} has {len(names)} classes, {trained.name} has {count}')
    return dataset


def predict(
    trained: Trained,
    images: Sequence[str | os.PathLike],
    *,
    batch_size: int | None = None,
    predictions: Predictions | None = None,
    seen: Seen | None = None,
) -> Iterator[tuple[str, list[tuple[str, float]] | None]]:
    """Yields each image's path and its five most probable classes, with their probabilities.

    `images` are files and folders, read as the results are consumed; one that cannot be decoded
    yields None, with a warning. `batch_size` is rounded up to a multiple of the devices; default:
    32 per device. Raises MissingError for a missing path and UserError for a network without a
    head, before anything is compiled.
    """
    count = trained.network.model.num_classes
    if not count:
        raise UserError(f'{trained.name} has no classifier head, so it cannot predict')
    names = trained.class_names or tuple(f'class {i}' for i in range(count))
    dataset = image_files(images, names)
    mesh = _mesh([trained])
    default = min(PREDICT_BATCH * mesh.size, len(dataset) or 1)
    evaluator = Evaluator(
        [trained.network],
        dataset,
        mesh,
        batch_size=default if batch_size is None else batch_size,
        num_threads=trained.config.num_threads,
        max_corrupt=None,
    )

    def answers():
        for first, results in evaluator.batches(predictions=predictions, seen=seen):
            for i, decoded in enumerate(results['mask'][: len(dataset) - first]):
                best = zip(results['top'][i], results['probability'][i].tolist(), strict=True)
                classes = [(names[label], p) for label, p in best]
                yield dataset.key(first + i), classes if decoded else None

    return answers()


def save_run_weights(
    workdir: str | os.PathLike,
    out: pathlib.Path,
    *,
    head: str = 'keep',
    in_channels: int | None = None,
) -> None:
    """Writes the newest checkpoint of a run, with its preprocessing, to a weights file.

    `head` and `in_channels` are as in `load_weights`.
    """
    from se_flax.weights import Preprocessing, WeightsInfo, adapt, write_weights
    from se_flax.weights.store import check_out

    check_out(out)
    run = open_run(workdir)
    c = run.config
    pixels = tuple(c.mean), tuple(c.std), c.exif_orientation
    view = Preprocessing(c.image_size, c.eval_resize, c.interpolation, *pixels)
    fields = c.model_fields.to_dict()
    if c.in_channels != 3:
        fields['in_channels'] = c.in_channels
    info = WeightsInfo(c.model, len(run.class_names), 'se_flax', view, fields, run.class_names)
    write_weights(out, *adapt(info, run.network.variables, head, in_channels))
