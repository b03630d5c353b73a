"""TPUs that need not be there: their figures, their topologies, and devices to compile for.

The figures stand in the Google Cloud TPU documentation, cloud.google.com/tpu/docs/v3, v4, v5e, v5p
and v6e: per chip, peak compute in bfloat16, capacity and bandwidth of its memory (HBM). What a chip
sends over its links (ICI) is the all-reduce bandwidth of a whole pod, divided by its chips: 340
TB/s by 1,024 for v3, 1.1 PB/s by 4,096 for v4, 51.2 TB/s by 256 for v5e, 102.4 TB/s by 256 for v6e.
The page of v5p has none, but 1,200 GB/s per chip in both directions, half of which is one's.
"""

import importlib.util
import math
import os
from typing import NamedTuple

import jax
from jax.experimental import topologies

from gen_jax.errors import UserError


class Chip(NamedTuple):
    """One kind of TPU chip.

    Attributes:
      flops: peak in bfloat16, per second. Float32 that JAX multiplies at its default precision is
        rounded to bfloat16 on the way in, and has the same peak.
      hbm: bytes of memory.
      hbm_bandwidth: bytes per second.
      ici_bandwidth: bytes per second, over all links together.
      dimensions: of a topology.
      devices: that JAX sees in a chip: its cores, where these are not one device.
      options: what the compiler is told besides the topology.
    """

    flops: float
    hbm: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dimensions: int
    devices: int = 1
    options: tuple = ()


GIB = 2**30
CHIPS = {
    'v3': Chip(123e12, 32 * GIB, 900e9, 332e9, dimensions=2, devices=2),
    # Megacore: two cores that work as one device, as they do on a Cloud TPU VM.
    'v4': Chip(
        275e12, 32 * GIB, 1200e9, 268e9, dimensions=3, options=(('chip_config_name', 'megacore'),)
    ),
    'v5e': Chip(197e12, 16 * GIB, 819e9, 200e9, dimensions=2),
    'v5p': Chip(459e12, 95 * GIB, 2765e9, 600e9, dimensions=3),
    'v6e': Chip(918e12, 32 * GIB, 1638e9, 400e9, dimensions=2),
}
# Slices that can be rented, of one chip to 256 or 512.
SHAPES = {
    2: ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
    3: ('1x1x1', '2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8'),
}
SWEEP = ('v4:2x2x1', 'v4:4x4x4', 'v5e:2x4', 'v5e:16x16', 'v6e:2x4', 'v6e:16x16')


class Topology(NamedTuple):
    """A slice of chips.

    Attributes:
      name: such as 'v5e:4x4'.
      chip: of which it is made.
      chips: how many.
    """

    name: str
    chip: Chip
    chips: int


def parse(names: str | None) -> list[Topology]:
    """The topologies of a comma-separated list; of `SWEEP` where it is None.

    Raises:
      UserError: one is not known.
    """
    return [_known(name.strip()) for name in (names.split(',') if names is not None else SWEEP)]


def _known(name: str) -> Topology:
    kind, _, shape = name.partition(':')
    if kind not in CHIPS:
        known = ', '.join(f'{kind}:{SHAPES[chip.dimensions][2]}' for kind, chip in CHIPS.items())
        raise UserError(f'--topology={name!r} is of no known TPU; known are such as {known}')
    chip = CHIPS[kind]
    shapes = SHAPES[chip.dimensions]
    if shape not in shapes:
        raise UserError(f'--topology={name!r}: {kind} comes as {kind}:{f", {kind}:".join(shapes)}')
    return Topology(name, chip, math.prod(map(int, shape.split('x'))))


def require_compiler() -> None:
    """Raises UserError where libtpu, which has the compiler, is missing."""
    if not importlib.util.find_spec('libtpu'):
        raise UserError("TPU programs are compiled by libtpu: pip install -e '.[tpu]'")


def devices(topology: Topology) -> list:
    """Devices that programs can be compiled for; JAX itself keeps to the CPU.

    Raises:
      UserError: libtpu is missing or refuses.
    """
    require_compiler()
    # Nothing is asked about a TPU here, and as none is opened several compilers may work at a time.
    jax.config.update('jax_platforms', 'cpu')
    os.environ.update(
        TPU_SKIP_MDS_QUERY='1',
        TPU_WORKER_HOSTNAMES='localhost',
        TPU_ACCELERATOR_TYPE='v5litepod-16',  # any known one: asked for, and then not used
        ALLOW_MULTIPLE_LIBTPU_LOAD='1',
        TPU_LOG_DIR='disabled',
        TPU_STDERR_LOG_LEVEL='3',
        TPU_MIN_LOG_LEVEL='3',
    )
    options = dict(topology.chip.options)
    if topology.chips == 1:
        options['chips_per_host_bounds'] = (1, 1, 1)
    try:
        described = topologies.get_topology_desc(
            platform='tpu', topology_name=topology.name, **options
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if 'lockfile' in reason:
            reason = 'another process holds libtpu: wait for it, or remove /tmp/libtpu_lockfile'
        raise UserError(f'libtpu cannot describe {topology.name}: {reason}') from None
    return list(described.devices)
