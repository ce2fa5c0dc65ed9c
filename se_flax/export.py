"""A network as one file, of StableHLO or of ONNX, which runs without this library."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import export

from se_flax.errors import UserError, check_at_least, extra_needed
from se_flax.evaluation import normalize
from se_flax.storage import atomic_write

with extra_needed():
    import flatbuffers  # noqa: F401  (jax serializes with it)

if TYPE_CHECKING:
    from onnx import ModelProto

MOST = 2**31 - 1  # bytes of a file: FlatBuffers and Protobuf cannot hold more


def export_network(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int | None = None,
    platforms: Sequence[str] = ('cpu', 'cuda', 'tpu'),
) -> export.Exported:
    """Returns the network, its weights and `(x - mean) / std` as one exported function.

    `exported.call(images)` takes uint8 `[B, image_size, image_size, C]`, RGB for three channels,
    and returns logits, float32 `[B, classes]`. `jax.export.deserialize` of any jax release of the
    following half year reads `exported.serialize()`; `exported.mlir_module()` is the StableHLO.

    `mean` and `std` are per channel, 0 to 255. `batch_size` None leaves B open. Raises UserError
    for another platform than cpu, cuda, rocm and tpu, a batch size below 1, and weights of 2 GiB.
    """
    _check_size(variables)
    for platform in platforms:
        if platform not in ('cpu', 'cuda', 'rocm', 'tpu'):
            raise UserError(f'unknown platform {platform!r}: cpu, cuda, rocm or tpu')
    if batch_size is not None:
        check_at_least('batch_size', batch_size, 1)

    def logits(images):
        images = normalize(images, mean, std, model.dtype)
        return model.apply(variables, images, train=False)

    batch = export.symbolic_shape('b')[0] if batch_size is None else batch_size
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, model.in_channels), jnp.uint8)
    return export.export(jax.jit(logits), platforms=platforms)(images)


def _check_size(variables: Mapping[str, Any]) -> None:
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
    if size > MOST:
        raise UserError(f'the weights have {size:,} bytes; an exported file holds at most {MOST:,}')


def save_exported(path: str | os.PathLike, exported: 'export.Exported | ModelProto') -> None:
    """Writes an exported network to a file, atomically."""
    if isinstance(exported, export.Exported):
        content = exported.serialize()
    else:
        content = exported.SerializeToString()
    atomic_write(pathlib.Path(path), bytes(content))


def export_onnx(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    nchw: bool = False,
    opset: int = 17,
    metadata: Mapping[str, str] | None = None,
) -> 'ModelProto':
    """Returns the network and its weights as an ONNX model for any number of images.

    It takes `images`, uint8 `[B, image_size, image_size, C]`, and normalizes them by `mean` and
    `std`, per channel, 0 to 255; or with `nchw` float32 `[B, C, image_size, image_size]` that the
    caller has normalized. `logits` are float32 `[B, classes]`. Maps are NCHW inside, and BatchNorm
    after a convolution is part of it. `metadata` becomes the model's properties.

    Raises UserError for an opset that cannot be written, for a network that is not in float32, and
    for weights of 2 GiB.
    """
    _check_size(variables)
    with extra_needed():
        from se_flax.onnx import to_onnx

    def logits(images):
        if not nchw:
            images = normalize(images, mean, std, jnp.float32)
        return model.apply(variables, images, train=False)

    if model.dtype != jnp.float32:
        raise UserError(f'ONNX export is of float32 networks; dtype is {model.dtype}')
    dtype = jnp.float32 if nchw else jnp.uint8
    images = jax.ShapeDtypeStruct((1, image_size, image_size, model.in_channels), dtype)
    return to_onnx(logits, images, nchw=nchw, opset=opset, metadata=metadata or {})
