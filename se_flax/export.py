"""A network as one file of StableHLO, to be run without this library."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import export

from se_flax.errors import UserError, check_at_least, extra_needed
from se_flax.evaluation import normalize
from se_flax.storage import atomic_write

with extra_needed():
    import flatbuffers  # noqa: F401  (jax serialises with it)

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


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

    It takes images, uint8 `[B, H, W, C]`, RGB if there are three channels, and gives logits,
    float32 `[B, classes]`: `exported.call(images)`. `exported.serialize()` are bytes that
    `jax.export.deserialize` reads with any jax of the half year that follows;
    `exported.mlir_module()` is the StableHLO.

    Args:
        model: a network; see `fold_batch_norm` for one without BatchNorm.
        variables: of it.
        image_size: H and W, pixels.
        mean, std: a number a channel, of pixels from 0 to 255.
        batch_size: B; None leaves it open.
        platforms: that it is lowered for, of cpu, cuda, rocm and tpu.

    Raises UserError for another platform or a batch without images.
    """
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(f'unknown platform {platform!r}: cpu, cuda, rocm or tpu')
    if batch_size is not None:
        check_at_least('batch_size', batch_size, 1)

    def logits(images):
        images = normalize(images, mean, std, model.dtype)
        return model.apply(variables, images, train=False)

    batch = export.symbolic_shape('b')[0] if batch_size is None else batch_size
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, model.in_channels), jnp.uint8)
    return export.export(jax.jit(logits), platforms=platforms)(images)


def save_exported(path: str | os.PathLike, exported: export.Exported) -> None:
    """Writes it to a file, in whose place a crash leaves the old one or the new one."""
    atomic_write(pathlib.Path(path), bytes(exported.serialize()))
