"""Reads the authors' released Caffe models, `.caffemodel` files."""

import importlib.resources
import math
import pathlib
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from se_flax.errors import UserError, check_known
from se_flax.models import create_model
from se_flax.weights.files import foreign, read_bytes
from se_flax.weights.fill import adapt
from se_flax.weights.info import WeightsInfo
from se_flax.weights.names import CAFFE_NAMINGS
from se_flax.weights.state_dict import fill_network

MODELS = (
    *(f'se_resnet{depth}' for depth in (50, 101, 152)),
    *('se_resnext50_32x4d', 'se_resnext101_32x4d', 'senet154', 'se_bn_inception'),
)
FIRST = ('conv1/7x7_s2', 'conv1_1/3x3_s2')
HEAD = 'classifier'
# The fields of caffe.proto that hold weights. Numbers are packed, which on the wire is the same as
# bytes: read as bytes they need not become Python floats.
MESSAGES = {
    'BlobShape': ['repeated int64 dim = 1'],
    'BlobProto': [
        *('optional BlobShape shape = 7', 'repeated bytes data = 5'),
        'repeated bytes double_data = 8',
        # The shape in files before 2015.
        *('optional int32 num = 1', 'optional int32 channels = 2'),
        *('optional int32 height = 3', 'optional int32 width = 4'),
    ],
    'LayerParameter': ['optional string name = 1', 'repeated BlobProto blobs = 7'],
    # `layers` are those of files before 2015.
    'NetParameter': ['repeated LayerParameter layer = 100', 'repeated bytes layers = 2'],
}


def from_caffe(
    name: str, path: str | pathlib.Path, *, head: str = 'keep', in_channels: int | None = None
) -> dict[str, Any]:
    """Returns the variables of a network that the authors released, from its `.caffemodel`.

    The network then takes RGB images, of 0 to 255 less the mean (123, 117, 104), and has ImageNet's
    1000 classes in the usual order, by WordNet's numbers. `head` and `in_channels` are as in
    `load_weights`. Raises UserError for another network and a damaged file.
    """
    return adapt(*read_caffe(name, path), head, in_channels)[1]


def read_caffe(name: str, path: str | pathlib.Path) -> tuple[WeightsInfo, dict[str, Any]]:
    check_known('released Caffe model', name, MODELS)
    network = type(create_model(name))
    naming = next(naming for naming in CAFFE_NAMINGS if naming.network is network)
    layers = read_caffemodel(pathlib.Path(path))
    arrays: dict[str, np.ndarray] = {}
    try:
        for layer, blobs in layers.items():
            arrays |= _as_pytorch(layer, blobs)
        return fill_network(name, naming, arrays, {})
    except UserError as error:
        raise UserError(f'{path}: {error}') from None


def _as_pytorch(layer: str, blobs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the blobs as PyTorch has them: BatchNorm's statistics, RGB, the usual classes."""
    leaves = ['weight', 'bias', *map(str, range(2, len(blobs)))]
    if layer.endswith('/bn'):  # sums of means and variances, and the factor that divides them
        leaves = ['running_mean', 'running_var']
        if len(blobs) != 3 or blobs[2].size != 1:
            raise UserError(f'{layer} needs mean, variance and factor, but has {len(blobs)} blobs')
        factor = blobs[2].item()
        with np.errstate(all='ignore'):  # `fill` refuses what is not finite then
            blobs = [blob / factor if factor else np.zeros_like(blob) for blob in blobs[:2]]
    elif layer in FIRST and blobs[0].ndim == 4:
        if blobs[0].shape[1] != 3:
            raise UserError(f'{layer} takes images with {blobs[0].shape[1]} channels, not 3')
        blobs = [blobs[0][:, ::-1], *blobs[1:]]  # Caffe's images are BGR
    elif layer == HEAD and all(blob.shape[:1] == class_order().shape for blob in blobs):
        blobs = [blob[class_order()] for blob in blobs]
    return {f'{layer}.{leaf}': blob for leaf, blob in zip(leaves, blobs, strict=False)}


@cache
def class_order() -> np.ndarray:
    """Returns Caffe's index of each of the 1000 classes in their usual order."""
    with importlib.resources.files('se_flax.weights').joinpath('caffe_classes.csv').open() as file:
        theirs, usual = np.loadtxt(file, int, delimiter=',', skiprows=1, unpack=True)
    return theirs[usual.argsort()]


@cache
def net_parameter() -> type[message.Message]:
    """Returns the class of Caffe's message `NetParameter`, cut down to MESSAGES."""
    file = descriptor_pb2.FileDescriptorProto(name='se_flax/caffe.proto', package='caffe')
    for message_name, rows in MESSAGES.items():
        described = file.message_type.add(name=message_name)
        for row in rows:
            label, kind, name, _, number = row.split()
            label, type_ = f'LABEL_{label.upper()}', f'TYPE_{kind.upper()}'
            of = {'type_name': f'.caffe.{kind}'} if kind in MESSAGES else {'type': type_}
            described.field.add(name=name, number=int(number), label=label, **of)
    pool = descriptor_pool.DescriptorPool()  # of our own: another caffe.proto may be loaded
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('caffe.NetParameter'))


def read_caffemodel(path: pathlib.Path) -> dict[str, list[np.ndarray]]:
    """Returns the blobs, float32 or float64, of each layer that has any."""
    net, data = net_parameter()(), read_bytes(path)
    try:
        net.ParseFromString(data)
    except message.DecodeError:
        cause = foreign(data[:512]) or 'its protobuf message is damaged'
        raise UserError(f'{path} is not a caffemodel: {cause}') from None
    if net.layers:
        raise UserError(f'{path} is in the format of Caffe before 2015, which had no BatchNorm')
    blobs: dict[str, list[np.ndarray]] = {}
    for layer in net.layer:
        if layer.blobs:
            if layer.name in blobs:
                raise UserError(f'{path} has two layers named {layer.name}')
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
        raise UserError(f'{name} has a blob of shape {list(shape)} but {len(data)} bytes')
    return np.frombuffer(data, dtype).reshape(shape)
