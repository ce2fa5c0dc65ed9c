"""Reads the authors' released Caffe models, `.caffemodel` files."""

import csv
import importlib.resources
import math
import pathlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from se_flax.errors import UserError, check_known
from se_flax.models import create_model
from se_flax.models.variables import misfits, variable_shapes
from se_flax.weights.files import foreign, read_bytes
from se_flax.weights.fill import FIRST, fill
from se_flax.weights.info import WeightsInfo
from se_flax.weights.names import CAFFE_NAMINGS, Naming
from se_flax.weights.state_dict import Entry, place

MODELS = (
    *('se_resnet50', 'se_resnet101', 'se_resnet152', 'se_resnext50_32x4d', 'se_resnext101_32x4d'),
    *('senet154', 'se_bn_inception'),
)
# The fields of caffe.proto that hold weights. Numbers are packed, on the wire as bytes are: read
# as bytes they need not become Python floats.
MESSAGES = {
    'BlobShape': ['repeated int64 dim = 1'],
    'BlobProto': [
        *('optional BlobShape shape = 7', 'repeated bytes data = 5'),
        'repeated bytes double_data = 8',
        # The shape in files before 2015.
        *('optional int32 num = 1', 'optional int32 channels = 2'),
        *('optional int32 height = 3', 'optional int32 width = 4'),
    ],
    'LayerParameter': [
        *('optional string name = 1', 'optional string type = 2', 'repeated BlobProto blobs = 7'),
    ],
    # `layers` are those of files before 2015.
    'NetParameter': ['repeated LayerParameter layer = 100', 'repeated bytes layers = 2'],
}


def read_caffe(name: str, path: str | pathlib.Path) -> tuple[WeightsInfo, dict[str, Any]]:
    """Returns the variables of a released network, and what they are.

    The first convolution is turned from BGR to RGB, and the head of 1000 classes is sorted from
    the order of ILSVRC's development kit into the usual one. Raises as `from_caffe` does.
    """
    check_known('released Caffe model', name, MODELS)
    path = pathlib.Path(path)
    blobs = read_caffemodel(path)
    head = blobs.get('classifier')
    if not head or head[0].ndim != 2:
        raise UserError(f'{path} has no matrix of a layer classifier')
    model = create_model(name, len(head[0]))
    shapes = variable_shapes(model)
    naming = next(naming for naming in CAFFE_NAMINGS if naming.network is type(model))
    tensors = [place(naming, shapes, entry) for entry in _entries(naming, blobs)]
    if wrong := misfits(shapes, tensors):
        raise UserError(f'{path} does not fit {name}: {wrong}')
    return WeightsInfo(name, len(head[0]), 'caffe', naming.preprocessing), fill(tensors)


def _entries(naming: Naming, blobs: dict[str, list[np.ndarray]]) -> Iterator[Entry]:
    """Yields the blobs as PyTorch has them, but for the names."""
    in_order = len(blobs['classifier'][0]) == len(class_order())
    for layer, arrays in blobs.items():
        leaves = ['weight', 'bias']
        if layer.endswith('/bn'):
            leaves, arrays = ['running_mean', 'running_var'], _unscaled(layer, arrays)
        for i, array in enumerate(arrays):
            if layer == 'classifier' and in_order and len(array) == len(class_order()):
                array = array[class_order()]
            if array.ndim == 4 and not {*FIRST}.isdisjoint(naming.paths(layer)):
                array = array[:, ::-1]
            leaf = leaves[i] if i < len(leaves) else ''
            yield Entry(f'{layer}[{i}]', layer.removesuffix('/scale'), leaf, array)


def _unscaled(layer: str, blobs: list[np.ndarray]) -> list[np.ndarray]:
    """Mean and variance of a BatchNorm: Caffe keeps their sums and the factor that divides."""
    if len(blobs) != 3 or blobs[2].size != 1:
        raise UserError(f'{layer} needs mean, variance and factor, it has {len(blobs)} blobs')
    factor = blobs[2].item()
    with np.errstate(all='ignore'):  # `fill` refuses what is not finite then
        return [blob / factor if factor else np.zeros_like(blob) for blob in blobs[:2]]


@cache
def class_order() -> np.ndarray:
    """Returns Caffe's index of each of the 1000 classes in their usual order, `[1000]` integers."""
    table = importlib.resources.files('se_flax.weights').joinpath('caffe_classes.csv')
    rows = csv.DictReader(table.read_text().split())
    usual = {int(row['imagenet_index']): int(row['caffe_index']) for row in rows}
    return np.array([usual[i] for i in range(len(usual))])


@cache
def net_parameter() -> type[message.Message]:
    """Returns the class of Caffe's message `NetParameter`, cut down to MESSAGES."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name='se_flax/caffe.proto', package='caffe')
    for message_name, rows in MESSAGES.items():
        described = file.message_type.add(name=message_name)
        for row in rows:
            label, kind, name, _, number = row.split()
            field = described.field.add(name=name, number=int(number))
            field.label = kinds.Label.Value(f'LABEL_{label.upper()}')
            if kind in MESSAGES:
                field.type_name = f'.caffe.{kind}'
            else:
                field.type = kinds.Type.Value(f'TYPE_{kind.upper()}')
    pool = descriptor_pool.DescriptorPool()  # of our own: another caffe.proto may be loaded
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('caffe.NetParameter'))


def read_caffemodel(path: pathlib.Path) -> dict[str, list[np.ndarray]]:
    """Returns the blobs, float32 or float64, of each layer that has any.

    Raises MissingError if there is no file, and UserError for a damaged or older one.
    """
    net, data = net_parameter()(), read_bytes(path)
    try:
        net.ParseFromString(data)
    except message.DecodeError:
        cause = foreign(data[:512]) or 'its protobuf message is damaged'
        raise UserError(f'{path} is not a caffemodel: {cause}') from None
    if net.layers:
        raise UserError(f'{path} has the layers of Caffe before 2015, which had no BatchNorm')
    blobs: dict[str, list[np.ndarray]] = {}
    for layer in net.layer:
        if layer.blobs:
            if layer.name in blobs:
                raise UserError(f'{path} has two layers {layer.name}')
            blobs[layer.name] = [_array(f'{path}: {layer.name}', blob) for blob in layer.blobs]
    if not blobs:
        raise UserError(f'{path} is not a caffemodel: it has no layer with weights')
    return blobs


def _array(name: str, blob: Any) -> np.ndarray:
    blobs, dtype = (blob.double_data, '<f8') if blob.double_data else (blob.data, '<f4')
    data = b''.join(blobs)
    if blob.HasField('shape'):
        shape = tuple(blob.shape.dim)
    else:  # four numbers, with ones in front of vectors and matrices
        shape = (blob.num, blob.channels, blob.height, blob.width)
        shape = shape[3:] if shape[:3] == (1, 1, 1) else shape[2:] if shape[:2] == (1, 1) else shape
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if min(shape, default=1) < 1 or size != len(data):
        raise UserError(f'{name} has a blob of shape {list(shape)} in {len(data)} bytes')
    return np.frombuffer(data, dtype).reshape(shape)
