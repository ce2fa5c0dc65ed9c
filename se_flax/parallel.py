"""The mesh of devices and what lies where on it: batches split, everything else replicated."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = 'data'


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the 1-D mesh of devices, its axis named 'data'; None is all of all processes."""
    # By process: the p-th part of a batch is then process p's, whatever the network's topology.
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    # Auto axes: the compiler places the collectives; jax's default, Explicit, asks each op.
    return Mesh(np.array(devices), (DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of state and metrics: a whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: a contiguous part of the first axis on each device."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def spread(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the sharding of one array over all devices: along its longest axis they divide.

    Replicated where there is none.
    """
    axes = [axis for axis, size in enumerate(shape) if size and size % mesh.size == 0]
    if not axes:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, DATA))


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's part of a global batch on its devices.

    Takes arrays `[B / processes, ...]`, returns global ones `[B, ...]`, split over the mesh.
    """
    sharding = split(mesh)
    with jax.transfer_guard_host_to_device('allow'):  # the one transfer of a step
        return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
