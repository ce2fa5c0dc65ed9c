"""Reads `.caffemodel` files: the few fields of Caffe's protobuf messages that hold weights."""

import math
import pathlib
from functools import cache

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from se_flax.errors import UserError
from se_flax.weights.files import foreign, read_bytes

FIELD = descriptor_pb2.FieldDescriptorProto
# Name, number, type and label of each field, from caffe.proto. Numbers are packed, which on the
# wire is the same as bytes: so they are read as bytes and need not become Python floats.
MESSAGES = {
    'BlobShape': [('dim', 1, FIELD.TYPE_INT64, FIELD.LABEL_REPEATED)],
    'BlobProto': [
        ('shape', 7, '.caffe.BlobShape', FIELD.LABEL_OPTIONAL),
        ('data', 5, FIELD.TYPE_BYTES, FIELD.LABEL_REPEATED),
        ('double_data', 8, FIELD.TYPE_BYTES, FIELD.LABEL_REPEATED),
        # The shape in files before 2015.
        ('num', 1, FIELD.TYPE_INT32, FIELD.LABEL_OPTIONAL),
        ('channels', 2, FIELD.TYPE_INT32, FIELD.LABEL_OPTIONAL),
        ('height', 3, FIELD.TYPE_INT32, FIELD.LABEL_OPTIONAL),
        ('width', 4, FIELD.TYPE_INT32, FIELD.LABEL_OPTIONAL),
    ],
    'LayerParameter': [
        ('name', 1, FIELD.TYPE_STRING, FIELD.LABEL_OPTIONAL),
        ('type', 2, FIELD.TYPE_STRING, FIELD.LABEL_OPTIONAL),
        ('blobs', 7, '.caffe.BlobProto', FIELD.LABEL_REPEATED),
    ],
    'NetParameter': [
        ('layer', 100, '.caffe.LayerParameter', FIELD.LABEL_REPEATED),
        ('layers', 2, FIELD.TYPE_BYTES, FIELD.LABEL_REPEATED),  # of files before 2015
    ],
}


@cache
def net_parameter() -> type[message.Message]:
    """Returns the class of Caffe's message `NetParameter`, cut down to MESSAGES."""
    file = descriptor_pb2.FileDescriptorProto(
        name='se_flax/caffe.proto', package='caffe', syntax='proto2'
    )
    for name, fields in MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, number, kind, label in fields:
            if isinstance(kind, str):
                typed = {'type': FIELD.TYPE_MESSAGE, 'type_name': kind}
            else:
                typed = {'type': kind}
            described.field.add(name=field, number=number, label=label, **typed)
    pool = descriptor_pool.DescriptorPool()  # of our own: another caffe.proto may be loaded
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('caffe.NetParameter'))


def read_caffemodel(path: pathlib.Path) -> dict[str, list[np.ndarray]]:
    """Returns the blobs of each layer that has any, float32 or float64.

    Raises MissingError where there is no file, and UserError for a damaged or older one.
    """
    net, data = net_parameter()(), read_bytes(path)
    try:
        net.ParseFromString(data)
    except message.DecodeError:
        cause = foreign(data[:512]) or 'its protobuf message is damaged'
        raise UserError(f'{path} is no caffemodel: {cause}') from None
    if net.layers:
        raise UserError(f'{path} has the layers of Caffe before 2015, which had no BatchNorm')
    blobs = {}
    for layer in net.layer:
        if layer.blobs:
            if layer.name in blobs:
                raise UserError(f'{path} has two layers {layer.name}')
            blobs[layer.name] = [_array(f'{path}: {layer.name}', blob) for blob in layer.blobs]
    if not blobs:
        raise UserError(f'{path} is no caffemodel: it has no layer with weights')
    return blobs


def _array(name: str, blob: message.Message) -> np.ndarray:
    data, dtype = (blob.double_data, '<f8') if blob.double_data else (blob.data, '<f4')
    data = b''.join(data)
    if blob.HasField('shape'):
        shape = tuple(blob.shape.dim)
    else:  # one of four numbers, with ones in front of vectors and matrices
        shape = (blob.num, blob.channels, blob.height, blob.width)
        shape = shape[3:] if shape[:3] == (1, 1, 1) else shape[2:] if shape[:2] == (1, 1) else shape
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if min(shape, default=1) < 1 or size != len(data):
        raise UserError(f'{name} has a blob of shape {list(shape)} in {len(data)} bytes')
    return np.frombuffer(data, dtype).reshape(shape)
