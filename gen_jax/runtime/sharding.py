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
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


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


def check_divides(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises UserError where a batch cannot be split evenly over the mesh."""
    n = parts(mesh)
    if batch_size % n:
        nearest = max(1, math.floor(batch_size / n + 0.5)) * n
        raise UserError(
            f'config.{field}={batch_size} is not a multiple of the {n} parts that the mesh '
            f'splits a batch into: try {nearest}'
        )


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
