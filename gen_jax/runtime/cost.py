"""What a program costs a TPU, by its compiler: memory, work, traffic, and bounds on its time."""

import re
from collections.abc import Callable

import jax

from gen_jax.runtime import hlo
from gen_jax.runtime.topology import Chip

# XLA's effort level O1, as JAX numbers it. Programs run as O2 made them, which takes a U-Net three
# times as long to compile; docs/plan.md says what it changes.
COMPILER_OPTIONS = {'optimization_level': 19}
UNITS = {'B': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class OutOfMemory(Exception):
    """A program that does not fit; `needed` and `available` are bytes, `needed` at the least."""

    def __init__(self, needed: float, available: float):
        super().__init__(needed, available)
        self.needed, self.available = needed, available


def measure(
    lowered: jax.stages.Lowered, chip: Chip, unrolled: Callable[[], float] | None = None
) -> dict:
    """Compiles, and says what one run costs one device.

    Args:
      lowered: a program for devices of `topology.devices`.
      chip: that these are.
      unrolled: FLOPs of one device, counted elsewhere: asked for where the compiled program has
        loops, whose inside the compiler counts once.

    Returns:
      `memory`: bytes by kind, and in all.
      `flops`, and `bytes` read and written.
      `collectives`: see `hlo.collectives`.
      `optimal_seconds`: the compiler's; None where it has none.
      `roofline`: the seconds that FLOPs, memory and interconnect need at the chip's peaks.
      `seconds`: the longest of these.

    Raises:
      OutOfMemory: the compiler cannot make it fit.
    """
    compiled = _compile(lowered)
    cost, text = compiled.cost_analysis(), compiled.as_text()
    flops = cost['flops']
    if unrolled and ' while(' in text:
        flops = max(flops, unrolled())
    sent = hlo.collectives(text)
    roofline = {
        'flops': flops / chip.flops,
        'memory': cost['bytes accessed'] / chip.hbm_bandwidth,
        'interconnect': sum(kind['bytes'] for kind in sent.values()) / chip.ici_bandwidth,
    }
    # A core's peaks are its share of the chip's.
    roofline = {name: seconds * chip.devices for name, seconds in roofline.items()}
    # A sum in which -1 stands for each operation of unknown time.
    optimal = cost['optimal_seconds'] if cost['optimal_seconds'] > 0 else None
    return {
        'memory': memory(compiled),
        'flops': flops,
        'bytes': cost['bytes accessed'],
        'collectives': sent,
        'optimal_seconds': optimal,
        'roofline': roofline,
        'seconds': max(*roofline.values(), optimal or 0.0),
    }


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on one device by kind; aliased outputs lie in their arguments' place."""
    stats = compiled.memory_analysis()
    kinds = {
        'arguments': stats.argument_size_in_bytes,
        'outputs': stats.output_size_in_bytes,
        'temporaries': stats.temp_size_in_bytes,
        'aliased': stats.alias_size_in_bytes,
        'code': stats.generated_code_size_in_bytes,
    }
    return {**kinds, 'total': sum(kinds.values()) - 2 * kinds['aliased']}


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        return lowered.compile(compiler_options=COMPILER_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        found = exhausted(str(error))
        if not found:
            raise
        raise OutOfMemory(*found) from None


def exhausted(message: str) -> tuple[float, float] | None:
    """(needed, available) bytes of a message that memory ran out; None for another message."""
    size = r'(\d+(?:\.\d+)?)([BKMGT])'
    # Of the whole program, and of its temporaries alone where these are too large already.
    for pattern in (rf'Used {size} of {size} hbm', rf'\({size}\) exceeds available HBM \({size}\)'):
        if 'RESOURCE_EXHAUSTED' in message and (found := re.search(pattern, message)):
            needed, unit, available, other = found.groups()
            return float(needed) * UNITS[unit], float(available) * UNITS[other]
    return None
