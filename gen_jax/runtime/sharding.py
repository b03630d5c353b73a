"""Where arrays live: one mesh with axes data, fsdp and tensor, and a rule for every parameter.

The batch is split over data x fsdp. A parameter is split by its shape: its last axis over
`tensor`, its largest remaining axis over `fsdp`, each only where it divides. Optimiser moments
and averages have the shapes of their parameters, and so lie where these lie.
"""

import math
import os
import re
import socket
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gen_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
# Splitting a bias costs a collective and saves nothing.
SMALLEST_SPLIT = 2**12

# Seconds. A cluster may start its processes minutes apart; one that runs is never silent for long,
# as its heartbeats do not wait for Python.
PATIENCE = 300
HEARTBEAT = 40
TIMEOUTS = {'initialization_timeout': PATIENCE, 'heartbeat_timeout_seconds': HEARTBEAT}


def join_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Makes this process one of several, or does nothing where no flag asks for it.

    From then on none outlives the others: an error ends this process at once, and a process that is
    silent for `HEARTBEAT` seconds ends all of them.

    Args:
      coordinator: host:port of the first; 'auto' where the cluster knows all three.
      processes: how many there are.
      process: which one this is, from 0.

    Raises:
      UserError: flags that do not fit each other, a port that is taken, no cluster for 'auto', or
        a coordinator that does not answer within `PATIENCE` seconds.
    """
    several = (coordinator, processes, process)
    if all(flag is None for flag in several):
        return
    if coordinator == 'auto':
        _join_cluster(processes, process)
    elif None in several:
        raise UserError('--coordinator, --processes and --process go together: set all three')
    else:
        _meet(*several)
        jax.distributed.initialize(*several, **TIMEOUTS)
    sys.excepthook = _end_at_once


def _join_cluster(processes: int | None, process: int | None) -> None:
    if (processes, process) != (None, None):
        raise UserError('--coordinator=auto finds out --processes and --process: leave them out')
    try:
        jax.distributed.initialize(**TIMEOUTS)
    except ValueError:
        raise UserError(
            '--coordinator=auto: this is no cluster that JAX knows (TPU slice, SLURM, Open MPI, '
            'Kubernetes): set --coordinator=HOST:PORT, --processes and --process'
        ) from None


def _meet(coordinator: str, processes: int, process: int) -> None:
    """Raises UserError where JAX would abort, or crash, without a word of what is wrong."""
    if processes < 1:
        raise UserError(f'--processes={processes}: expected at least 1')
    if not 0 <= process < processes:
        raise UserError(
            f'--process={process}: expected 0 to {processes - 1}, as --processes={processes}'
        )
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator={coordinator!r}: expected HOST:PORT of process 0, or 'auto'"
        )
    if process:
        _await_answer(host.strip('[]'), int(port))
        return
    try:
        socket.create_server(('', int(port))).close()
    except OSError as error:
        raise UserError(
            f'--coordinator={coordinator}: process 0 cannot listen on port {port} '
            f'({error.strerror}): choose another'
        ) from None


def _await_answer(host: str, port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f'--coordinator={host}:{port} does not answer within {PATIENCE} seconds '
                    f'({error.strerror or error}): start process 0 there, and see whether it runs'
                ) from None
            time.sleep(0.5)
        else:
            return


def _end_at_once(kind, error, trace) -> None:
    """What happens to an error that nobody caught, where there are several processes."""
    sys.__excepthook__(kind, error, trace)
    print(
        f'process {jax.process_index()} of {jax.process_count()} ends: by the error above, or '
        'because another died, whose log tells why; start all again to go on from the last '
        'checkpoint',
        file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    # An orderly exit would wait for the others, which wait for this one.
    os._exit(1)


def make_mesh(config, devices: list | None = None) -> Mesh:
    """The mesh of `config.mesh` over all devices of all processes; `data=-1` takes the rest."""
    devices = jax.devices() if devices is None else devices
    sizes = [config[axis] for axis in AXES]
    if sizes[0] == -1:
        sizes[0] = len(devices) // (sizes[1] * sizes[2]) or 1
    if math.prod(sizes) != len(devices):
        raise UserError(
            f'config.mesh asks for {_named(sizes)} = {math.prod(sizes)} devices, but there are '
            f'{len(devices)}: try {_named(_nearest_sizes(sizes, len(devices)))}'
        )
    return Mesh(_arranged(devices, sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def _arranged(devices: list, sizes: Sequence[int]) -> np.ndarray:
    """Devices as an array of these sizes; of a TPU's, so that neighbours along axes lie near."""
    plain = np.array(devices).reshape(sizes)
    slices = {getattr(device, 'slice_index', 0) for device in devices}
    # Between slices there are no links to be near on.
    if devices[0].platform != 'tpu' or len(devices) == 1 or len(slices) > 1:
        return plain
    try:
        near = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except NotImplementedError:  # these chips cannot be cut so
        return plain
    return min(plain, near, key=hops)


def hops(mesh: np.ndarray) -> float:
    """Links from chip to chip between neighbours along an axis, the ends' too: mean, over all axes.

    Args:
      mesh: of TPU devices, whose rings are taken to be open.
    """
    places = np.array([device.coords for device in mesh.flat]).reshape(*mesh.shape, -1)
    axes = [axis for axis, size in enumerate(mesh.shape) if size > 1]
    return sum(np.abs(places - np.roll(places, 1, i)).sum(-1).mean() for i in axes)


def _named(sizes: Sequence[int]) -> str:
    return ' x '.join(f'{axis}={size}' for axis, size in zip(AXES, sizes, strict=True))


def _nearest_sizes(sizes: Sequence[int], devices: int) -> tuple[int, ...]:
    """The mesh of that many devices nearest in tensor and in fsdp; data takes the rest."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    meshes = [
        (devices // (fsdp * tensor), fsdp, tensor)
        for fsdp in divisors
        for tensor in divisors
        if devices % (fsdp * tensor) == 0
    ]
    return min(meshes, key=lambda m: sum(abs(math.log(m[i] / sizes[i])) for i in (1, 2)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp."""
    return NamedSharding(mesh, P(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def parts(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return mesh.shape['data'] * mesh.shape['fsdp']


def check_divides(batch_size: int, mesh: Mesh, field: str, accumulate: int = 1) -> None:
    """Raises UserError where a batch, or each of its `accumulate` parts, cannot be split evenly."""
    n = parts(mesh)
    least, told = n * accumulate, f'the {n} parts that the mesh splits a batch into'
    if accumulate > 1:
        told = f'{least}, {told} times config.accumulate={accumulate}'
    if batch_size % least:
        nearest = max(1, math.floor(batch_size / least + 0.5)) * least
        raise UserError(f'config.{field}={batch_size} is not a multiple of {told}: try {nearest}')


def laid_out(shapes, placed):
    """Shapes and where each array lies, as ShapeDtypeStructs that say both."""

    def one(x, where):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(one, shapes, placed)


def check_rules(rules: tuple, state) -> None:
    """Raises UserError where a rule's regex is found in no leaf's path."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0] if rules else []
    names = {_name(path): leaf.size for path, leaf in leaves}
    for pattern, _ in rules:
        if not any(re.search(pattern, name) for name in names):
            largest = max(names, key=names.get)
            raise UserError(
                f'config.mesh.rules: {pattern!r} is found in the path of no parameter: expected a '
                f'regex for paths such as {largest!r}'
            )


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')


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
        name = _name(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, _checked(spec, leaf.shape, sizes, name, pattern))
        return NamedSharding(mesh, _by_shape(leaf.shape, sizes))

    return jax.tree_util.tree_map_with_path(place, state)


def held(shapes, parts: tuple[str, ...]) -> int:
    """Bytes that each device holds of some parts of a state.

    Args:
      shapes: of a method's state, as `laid_out` gives them.
      parts: names of fields of `Net`.
    """

    def size(path, leaf):
        n = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        return n if set(parts) & set(_name(path).split('/')) else 0

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(size, shapes)))


def gathered(state, shardings, parts: tuple[str, ...] = ('params', 'ema')):
    """A state whose parameters are whole along fsdp, as networks use them.

    Left to itself, XLA's partitioner may sum partial products over fsdp instead; and where the
    batch is split over data and fsdp, and a kernel over fsdp and tensor, it gets the gradients of
    convolutions wrong (jaxlib 0.10.2 and 0.12; tests/runtime/test_layouts.py shows it).

    Args:
      state: a method's state, inside jit.
      shardings: of its leaves, as from `state_shardings`.
      parts: names of what is gathered, of the fields of `Net`.
    """

    def gather(path, leaf, where):
        if not set(parts) & set(_name(path).split('/')):
            return leaf
        spec = P(*(None if axis == 'fsdp' else axis for axis in where.spec))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(where.mesh, spec))

    return jax.tree_util.tree_map_with_path(gather, state, shardings)


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
    named = [axis for axis in spec if axis is not None]
    fits = len(spec) <= len(shape) and all(
        axis is None or (axis in sizes and size % sizes[axis] == 0)
        for axis, size in zip(spec, shape, strict=False)
    )
    if not fits or len({*named}) < len(named):
        raise UserError(
            f'config.mesh.rules: {pattern!r} -> {tuple(spec)} does not fit {name} of shape '
            f'{tuple(shape)}: name one of {AXES} or None per dimension, none twice, each dividing '
            'its size'
        )
    return P(*spec)


def rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Which rows of a batch this process has to read, int [n], ascending: those its devices hold.

    Processes that share rows (because `tensor` spans them) all read them.
    """
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique([i for (part,) in held for i in range(*part.indices(batch_size))])


def to_global(batch, sharding: NamedSharding, rows: np.ndarray, batch_size: int):
    """Global arrays of what each process has read.

    Args:
      batch: arrays [n, ...].
      sharding: of the global batch.
      rows: int [n], ascending, of the global batch, which these are.
      batch_size: of the global batch.
    """
    held = sharding.addressable_devices_indices_map((batch_size,))
    ends = {device: part.indices(batch_size) for device, (part,) in held.items()}

    def place(x):
        parts = []
        for device, (first, end, _) in ends.items():
            at = np.searchsorted(rows, first)
            # Explicitly, as transfer guards ask.
            parts.append(jax.device_put(x[at : at + end - first], device))
        shape = (batch_size, *x.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return jax.tree.map(place, batch)
