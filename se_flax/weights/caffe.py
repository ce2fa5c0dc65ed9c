"""From the authors' released Caffe models to variables."""

import csv
import importlib.resources
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from se_flax.errors import UserError, check_known
from se_flax.models import create_model
from se_flax.models.bn_inception import BNInception
from se_flax.models.resnet import ResNet
from se_flax.models.variables import Tensor, misfits, variable_shapes
from se_flax.weights.adapt import FIRST, adapt
from se_flax.weights.caffe_file import read_caffemodel
from se_flax.weights.fill import fill, to_kernel
from se_flax.weights.info import CAFFE, WeightsInfo
from se_flax.weights.naming import Naming, norm_of

MODELS = (
    *('se_resnet50', 'se_resnet101', 'se_resnet152', 'se_resnext50_32x4d', 'se_resnext101_32x4d'),
    *('senet154', 'se_bn_inception'),
)
_CONVS = {'1x1_reduce': 'conv1', '3x3': 'conv2', '1x1_increase': 'conv3', '1x1_proj': 'conv_proj'}
_SE = {'down': 'reduce', 'up': 'expand'}
_DOUBLE = {'double3x3a': 'double3x3_1', 'double3x3b': 'double3x3_2'}
# A convolution's name; its BatchNorm and Scale have it with /bn and /bn/scale behind.
NAMINGS = (
    Naming(
        'caffe',
        ResNet,
        (
            (r'conv1/7x7_s2', 'conv_stem'),
            (r'conv1_([123])/3x3(?:_s2)?', lambda k: f'conv_stem{k}'),
            # Of SENet-154, the projections named 1x1 are 3x3.
            (
                rf'conv([2-5])_(\d{{1,2}})_({"|".join(_CONVS)})',
                lambda s, i, layer: f'stage{s}_block{i}/{_CONVS[layer]}',
            ),
            (
                r'conv([2-5])_(\d{1,2})_1x1_(down|up)',
                lambda s, i, way: f'stage{s}_block{i}/se/{_SE[way]}',
            ),
            (r'classifier', 'head'),
        ),
        CAFFE,
    ),
    Naming(
        'caffe',
        BNInception,
        (
            (r'conv1/7x7_s2', 'conv1'),
            (r'conv2/3x3(_reduce|)', lambda which: f'conv2{which}'),
            (
                r'(inception_\w\w)/(\w+)',
                lambda module, layer: f'{module}/conv_{_DOUBLE.get(layer, layer)}',
            ),
            (
                r'(inception_\w\w)_1x1_(down|up)',
                lambda module, way: f'{module}/se/{_SE[way]}',
            ),
            (r'classifier', 'head'),
        ),
        CAFFE,
    ),
)
FIRST_KERNELS = tuple(f'params/{conv}/kernel' for conv in FIRST)
HEAD = ('params/head/kernel', 'params/head/bias')


def from_caffe(
    name: str,
    path: str | pathlib.Path,
    *,
    head: str = 'keep',
    in_channels: int | None = None,
) -> dict[str, Any]:
    """Returns the variables of a network that the authors released, from its `.caffemodel`.

    The network then takes RGB images, of 0 to 255 less the mean (123, 117, 104), as the first
    convolution is turned round; and of 1000 classes it gives the usual order, in which WordNet's
    numbers ascend, as the head is sorted from the order of ILSVRC's development kit.

    Args:
        name: one of MODELS.
        path: of the `.caffemodel`.
        head, in_channels: as in `load_weights`.

    Raises:
        UserError: for another network, a damaged file, and anything missing, unexpected, mis-shaped
            or not finite. MissingError where there is no file.
    """
    return adapt(*read_caffe(name, path), head, in_channels)[1]


def read_caffe(name: str, path: str | pathlib.Path) -> tuple[WeightsInfo, dict[str, Any]]:
    """Returns what `from_caffe` does, and what belongs to the weights."""
    check_known('released Caffe model', name, MODELS)
    path = pathlib.Path(path)
    blobs = read_caffemodel(path)
    head = blobs.get('classifier')
    if not head or head[0].ndim != 2:
        raise UserError(f'{path} has no matrix of a layer classifier')
    num_classes = len(head[0])
    model = create_model(name, num_classes)
    shapes = variable_shapes(model)
    naming = next(naming for naming in NAMINGS if naming.network is type(model))
    tensors = [
        _in_our_order(tensor, shapes, num_classes)
        for layer, of in blobs.items()
        for tensor in _tensors(naming, shapes, layer, of)
    ]
    if wrong := misfits(shapes, tensors):
        raise UserError(f'{path} does not fit {name}: {wrong}')
    return WeightsInfo(name, num_classes, naming.lineage, naming.preprocessing), fill(tensors)


def _tensors(
    naming: Naming, shapes: Mapping[str, Any], layer: str, blobs: Sequence[np.ndarray]
) -> Iterator[Tensor]:
    base = layer.removesuffix('/scale').removesuffix('/bn')
    conv = next(naming.paths(base), '')
    if layer == base:
        places = [f'params/{conv}/kernel', f'params/{conv}/bias']
    elif layer.endswith('/bn'):
        places = [f'batch_stats/{norm_of(conv)}/{leaf}' for leaf in ('mean', 'var')]
        blobs = _unscaled(layer, blobs)
    else:
        places = [f'params/{norm_of(conv)}/{leaf}' for leaf in ('scale', 'bias')]
    for i, blob in enumerate(blobs):
        place = places[i] if conv and i < len(places) else None
        yield Tensor(f'{layer}[{i}]', place, blob)


def _unscaled(layer: str, blobs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Mean and variance of a BatchNorm, which Caffe keeps as sums beside their weight."""
    if len(blobs) != 3 or blobs[2].size != 1:
        raise UserError(f'{layer} has not mean, variance and factor, but {len(blobs)} blobs')
    factor = blobs[2].item()
    with np.errstate(all='ignore'):  # what is not finite then is told by name
        return [blob / factor if factor else np.zeros_like(blob) for blob in blobs[:2]]


def _in_our_order(tensor: Tensor, shapes: Mapping[str, Any], num_classes: int) -> Tensor:
    path, array = tensor.path, tensor.array
    if path in HEAD and num_classes == len(class_order()) == len(array):
        array = array[class_order()]
    if path in FIRST_KERNELS and array.ndim == 4:
        array = array[:, ::-1]  # Caffe's images are BGR
    if path and path.endswith('/kernel'):
        array = to_kernel(array, shapes.get(path, ()))
    return tensor._replace(array=array)


@cache
def class_order() -> np.ndarray:
    """Returns Caffe's index of each of the 1000 classes in their usual order, `[1000]` integers."""
    table = importlib.resources.files('se_flax.weights').joinpath('caffe_classes.csv')
    rows = csv.DictReader(table.read_text().split())
    usual = {int(row['imagenet_index']): int(row['caffe_index']) for row in rows}
    return np.array([usual[i] for i in range(len(usual))])
