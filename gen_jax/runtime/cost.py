"""What a program costs a TPU, by its compiler: memory, work, traffic, and bounds on its time."""

import re
from collections.abc import Callable

import jax

from gen_jax.errors import UserError
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
    lowered: jax.stages.Lowered, chip: Chip, asked: Callable[[], float] | None = None
) -> dict:
    """Compiles, and says what one run costs one device.

    Args:
      lowered: a program for devices of `topology.devices`.
      chip: that these are.
      asked: FLOPs that the program asks of one device: counted only where the compiled program has
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
      UserError: it refuses for another reason.
    """
    compiled = _compile(lowered)
    cost, text = compiled.cost_analysis(), compiled.as_text()
    flops = cost['flops']
    if asked and ' while(' in text:
        flops = max(flops, asked())
    # A sum in which -1 stands for each operation of unknown time.
    optimal = cost['optimal_seconds'] if cost['optimal_seconds'] > 0 else None
    counted = {
        'memory': memory(compiled),
        'flops': flops,
        'bytes': cost['bytes accessed'],
        'collectives': hlo.collectives(text),
        'optimal_seconds': optimal,
    }
    return _timed(counted, chip)


def in_parts(whole: dict, part: dict, k: int, kept: float, chip: Chip) -> dict:
    """What a step costs that takes k parts of its batch in turn, in a loop.

    Args:
      whole: what `measure` gives of it, whose loop counts once: its memory and its collectives,
        which count as often as they run, are the step's.
      part: and of a step on one of the parts alone.
      k: how many parts.
      kept: bytes of the optimiser's moments and of averages on a device, which each program reads
        and writes once: each part's too, where the step is to do so once for all of them.
      chip: that the devices are of.
    """
    spared = 2 * (k - 1) * kept
    optimal = part['optimal_seconds']
    counted = {
        'memory': whole['memory'],
        'flops': k * part['flops'],
        'bytes': k * part['bytes'] - spared,
        'collectives': whole['collectives'],
        'optimal_seconds': optimal and k * optimal - spared * chip.devices / chip.hbm_bandwidth,
    }
    return _timed(counted, chip)


def mean(shares: list[tuple[float, dict]], chip: Chip) -> dict:
    """What steps cost on average that are not all the same.

    Args:
      shares: of the steps, in all 1, and what `measure` gives of them.
      chip: that the devices are of.

    Returns:
      As `measure`; `memory` is that of those that need most.
    """

    def averaged(value):
        return sum(share * value(cost) for share, cost in shares)

    def sent(kind, what):
        return lambda cost: cost['collectives'].get(kind, none)[what]

    kinds = dict.fromkeys(kind for _, cost in shares for kind in cost['collectives'])
    none = {'count': 0, 'bytes': 0, 'sent': 0}
    unknown = any(cost['optimal_seconds'] is None for _, cost in shares)
    counted = {
        'memory': max((cost['memory'] for _, cost in shares), key=lambda memory: memory['total']),
        'flops': averaged(lambda cost: cost['flops']),
        'bytes': averaged(lambda cost: cost['bytes']),
        'collectives': {
            kind: {what: averaged(sent(kind, what)) for what in none} for kind in kinds
        },
        'optimal_seconds': None if unknown else averaged(lambda cost: cost['optimal_seconds']),
    }
    return _timed(counted, chip)


def _timed(counted: dict, chip: Chip) -> dict:
    """What was counted of one run, and the times that it needs at least."""
    roofline = {
        'flops': counted['flops'] / chip.flops,
        'memory': counted['bytes'] / chip.hbm_bandwidth,
        'interconnect': sum(x['sent'] for x in counted['collectives'].values())
        / chip.ici_bandwidth,
    }
    # A core's peaks are its share of the chip's.
    roofline = {name: seconds * chip.devices for name, seconds in roofline.items()}
    seconds = max(*roofline.values(), counted['optimal_seconds'] or 0.0)
    return {**counted, 'roofline': roofline, 'seconds': seconds}


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on one device by kind, in `total`, and `peak`, the most that is in use at once.

    Aliased outputs lie in their arguments' place.
    """
    stats = compiled.memory_analysis()
    kinds = {
        'arguments': stats.argument_size_in_bytes,
        'outputs': stats.output_size_in_bytes,
        'temporaries': stats.temp_size_in_bytes,
        'aliased': stats.alias_size_in_bytes,
        'code': stats.generated_code_size_in_bytes,
    }
    total = sum(kinds.values()) - 2 * kinds['aliased']
    return {**kinds, 'total': total, 'peak': stats.peak_memory_in_bytes}


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        return lowered.compile(compiler_options=COMPILER_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        found = exhausted(str(error))
        if not found:
            raise UserError(f'the compiler refuses: {str(error).splitlines()[0]}') from None
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
