"""The mesh of devices: batches are split over it, everything else is replicated."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = 'data'


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the 1-D mesh of devices with axis 'data'; None is all devices of all processes."""
    # By process, so that process p has the p-th part of a batch, whatever the topology.
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    # Auto axes: the compiler places the collectives. With JAX's default each operation would.
    return Mesh(np.array(devices), (DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a whole copy on each device, for state and metrics."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch, which splits its first axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def spread(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the sharding along the longest axis that the devices divide; replicated if none."""
    axes = [axis for axis, size in enumerate(shape) if size and size % mesh.size == 0]
    if not axes:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, DATA))


def whole_batch(mesh: Mesh, batch_size: int) -> int:
    """Returns a batch size rounded up to a multiple of the devices."""
    return -(-batch_size // mesh.size) * mesh.size


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes global arrays `[B, ...]` from this process's part, `[B / processes, ...]`."""
    sharding = split(mesh)
    with jax.transfer_guard_host_to_device('allow'):  # the one transfer of a step
        return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
