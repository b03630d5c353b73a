"""Where arrays live: one mesh with axes data, fsdp and tensor, and a rule for every parameter.

The batch is split over data x fsdp. A parameter is split by its shape: its last axis over
`tensor`, its largest remaining axis over `fsdp`, each only where it divides. Optimiser moments
and averages have the shapes of their parameters, and so lie where these lie.
"""

import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gen_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
# Splitting a bias costs a collective and saves nothing.
SMALLEST_SPLIT = 2**12


def join_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Makes this process one of several, or does nothing where no flag asks for it.

    Args:
      coordinator: host:port of the first; 'auto' where the cluster knows all three.
      processes: how many there are.
      process: which one this is, from 0.
    """
    several = (coordinator, processes, process)
    if coordinator == 'auto':
        jax.distributed.initialize()
    elif None not in several:
        jax.distributed.initialize(*several)
    elif any(flag is not None for flag in several):
        raise UserError('--coordinator, --processes and --process go together: set all three')


def make_mesh(config, devices: list | None = None) -> Mesh:
    """The mesh of `config.mesh` over all devices of all processes; `data=-1` takes the rest."""
    devices = jax.devices() if devices is None else devices
    sizes = [config[axis] for axis in AXES]
    if sizes[0] == -1:
        sizes[0] = len(devices) // (sizes[1] * sizes[2]) or 1
    if math.prod(sizes) != len(devices):
        asked = ' x '.join(f'{axis}={size}' for axis, size in zip(AXES, sizes, strict=True))
        raise UserError(
            f'config.mesh asks for {asked} = {math.prod(sizes)} devices, but there are '
            f'{len(devices)}: set the sizes so that their product is {len(devices)}'
        )
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp."""
    return NamedSharding(mesh, P(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def check_divides(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises UserError where a batch cannot be split evenly over the mesh."""
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    if batch_size % parts:
        raise UserError(
            f'config.{field}={batch_size} is not a multiple of the {parts} parts that the mesh '
            f'splits a batch into: try {math.ceil(batch_size / parts) * parts}'
        )


def state_shardings(mesh: Mesh, state, rules: tuple = ()):
    """A NamedSharding for every leaf of a state.

    Args:
      mesh: the mesh.
      state: a pytree of arrays or ShapeDtypeStructs.
      rules: (regex, spec) pairs; the first regex found in a leaf's path decides, its spec giving
        an axis name or None for each dimension.
    """
    sizes = mesh.shape

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        for pattern, spec in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, _checked(spec, leaf.shape, sizes, name, pattern))
        return NamedSharding(mesh, _by_shape(leaf.shape, sizes))

    return jax.tree_util.tree_map_with_path(place, state)


def _by_shape(shape: tuple, sizes: dict) -> P:
    spec = [None] * len(shape)
    if len(shape) < 2 or math.prod(shape) < SMALLEST_SPLIT:
        return P()
    if sizes['tensor'] > 1 and shape[-1] % sizes['tensor'] == 0:
        spec[-1] = 'tensor'
    free = [i for i, name in enumerate(spec) if name is None and shape[i] % sizes['fsdp'] == 0]
    if sizes['fsdp'] > 1 and free:
        spec[max(free, key=lambda i: shape[i])] = 'fsdp'
    return P(*spec)


def _checked(spec: tuple, shape: tuple, sizes: dict, name: str, pattern: str) -> P:
    fits = len(spec) <= len(shape) and all(
        axis is None or (axis in sizes and size % sizes[axis] == 0)
        for axis, size in zip(spec, shape, strict=False)
    )
    if not fits:
        raise UserError(
            f'config.mesh.rules: {pattern!r} -> {tuple(spec)} does not fit {name} of shape '
            f'{tuple(shape)}: name one of {AXES} or None per dimension, each dividing its size'
        )
    return P(*spec)


def reader(sharding: NamedSharding, batch_size: int) -> tuple[int, int]:
    """Which part of a batch this process has to read: slice `index` of `count`.

    Processes that share rows (because `tensor` spans them) read the same slice.

    Raises:
      UserError: its devices hold rows that are no such slice.
    """
    rows = sharding.addressable_devices_indices_map((batch_size,)).values()
    held = {i for (part,) in rows for i in range(*part.indices(batch_size))}
    count, rest = divmod(batch_size, len(held))
    index = min(held) // len(held)
    if rest or held != set(range(index * len(held), (index + 1) * len(held))):
        raise UserError(
            'config.mesh gives a process rows of the batch that do not lie together: make '
            'data * fsdp a multiple of the number of processes, or tensor one of their devices'
        )
    return index, count


def to_global(batch, sharding: NamedSharding, count: int):
    """Global arrays of what each process has read: slices of a batch cut into `count`."""

    def place(x):
        return jax.make_array_from_process_local_data(sharding, x, (len(x) * count, *x.shape[1:]))

    return jax.tree.map(place, batch)
