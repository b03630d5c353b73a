"""--mode=benchmark: how fast a config trains and samples on the devices at hand.

Needs no data and no checkpoint: the state is a fresh one, the images are noise. Reading data is no
part of any figure.
"""

import contextlib
import functools
import logging
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gen_jax import latent
from gen_jax.plan import mean_flops, row
from gen_jax.runtime import cost, process, random, workdir
from gen_jax.runtime.operations import flops
from gen_jax.runtime.program import Program
from gen_jax.runtime.topology import GIB

REPEATS = 7  # enough for quartiles
LEAST = 0.2  # seconds of a repeat: clocks and dispatches then matter little
BUDGET = 60.0  # seconds for the repeats of one part: what takes longer is repeated less often
LONGEST = 600.0  # seconds: what takes longer, as sampling by a thousand steps may, is left out

# Rows of a matrix product, and images of 64x64 and channels of a convolution: of one device, or of
# a whole CPU. Large enough to keep it busy.
SIZES = {'cpu': (2048, 8, 128), 'accelerator': (8192, 64, 256)}

# Each part's batch size in the config, and how its program is made.
PARTS = {
    'train_step': (lambda config: config.batch_size, Program.lower_train),
    'network_call': (lambda config: config.sample.batch_size, Program.lower_call),
    'sample_step': (lambda config: config.sample.batch_size, Program.lower_sample),
}


def run(config, folder: Path) -> None:
    """Prints a config's speed, and leaves benchmark.json, which `measure` describes, in the folder.

    Every process takes part; the first one's clock and memory count, and it alone prints and
    writes. The folder may hold a run, which stays as it is.

    Raises:
      UserError: a config, a mesh or a batch that is wrong, or a folder that cannot be written to.
    """
    program = Program(config, latent.method(config))
    workdir.make(folder)
    report = measure(program, folder / '.benchmark_cache')
    if jax.process_index() == 0:
        workdir.write_json(folder / 'benchmark.json', report)
        print(in_full(report))


def measure(program: Program, cache: Path) -> dict:
    """What benchmark.json holds.

    Args:
      program: of any method.
      cache: a folder for `empty_cache`.

    Operations are those of the model's matrix products and convolutions as `flops` counts them,
    over all devices: what the mathematics asks for, whatever the machine does in its place. Their
    share of the peak is the "model FLOPs utilisation" of Chowdhery et al. 2022 (PaLM, appendix B),
    except that recomputation counts where the config asks for it. It may exceed 1 where the house
    computes a convolution with fewer multiplications (gen_jax/nn/conv.py).

    Returns:
      Where it ran: `platform`, `device`, `devices`, `processes`, `mesh`, `jax`, `code_version`,
      `config` (flat).
      `peaks`: of `matmul` and `convolution`, the best `flops_per_second` of all repeats, over all
      devices, in `dtype`, the type that the model computes in.
      `parts`: of `train_step`, `network_call` and `sample_step` (a batch from the indices to the
      images on the host, `network_calls` of the network) what `_figures` and `_timings` give.
      `left_out`: {part: why}, for parts without timings.
    """
    state, parts, left_out = program.init(), {}, _missing(program)
    with empty_cache(cache):
        for name in PARTS:
            if name not in left_out:
                logging.info('compiling %s', name)
                parts[name] = _figures(program, name)
        chains = {}
        for name in parts:
            if why := _excessive(program, name, chains):
                left_out[name] = why
                continue
            # Of lazy terms each repeat has as many as training does.
            lazy = (program.method.lazy or {}).values() if name == 'train_step' else ()
            call = _call(program, name, chains, state)
            chains[name] = Chain(*call, parts[name]['flops'], math.lcm(*lazy))
            parts[name]['peak_memory'] = chains[name].warm_up()
    peaks = peak_chains(program)
    for chain in peaks.values():
        chain.warm_up()
    logging.info('timing')
    interleave([*chains.values(), *peaks.values()])
    best = {name: chain.flops / min(chain.seconds) for name, chain in peaks.items()}
    for name, chain in chains.items():
        parts[name] |= _timings(parts[name], chain.seconds, best)
    return {
        **_where(program),
        'network_calls': program.method.network_calls,
        'dtype': _dtype(program),
        'peaks': {name: {'flops_per_second': value} for name, value in best.items()},
        'parts': parts,
        'left_out': left_out,
    }


def _missing(program: Program) -> dict[str, str]:
    method, name = program.method, f'config.method={program.config.method!r}'
    left_out = {}
    if not method.denoise:
        left_out['network_call'] = f'{name} has no denoise: see sample_step'
    if not method.sample_step:
        left_out['network_call'] = left_out['sample_step'] = f'{name} draws no samples'
    return left_out


def _where(program: Program) -> dict:
    device = program.mesh.devices.flat[0]
    return {
        'platform': device.platform,
        'device': device.device_kind,
        'devices': program.mesh.size,
        'processes': jax.process_count(),
        'mesh': dict(program.mesh.shape),
        'jax': jax.__version__,
        'code_version': workdir.code_version(),
        'config': workdir.flat(program.config),
    }


def _dtype(program: Program) -> str:
    return program.config.get('model', {}).get('dtype', 'float32')


# What is known before anything runs.


def _figures(program: Program, name: str) -> dict:
    """What a part costs by its program.

    Returns:
      `batch_size`; `flops` of one call; `compile_seconds`, see `compiled_twice`; `memory`, bytes on
      one device by kind, and `compiled_flops` of one device with the inside of loops counted once,
      both by the compiler.
    """
    size, lower = PARTS[name]
    compiled, seconds = compiled_twice(lambda: lower(program))
    analysis = compiled.cost_analysis() or {}
    return {
        'batch_size': size(program.config),
        'flops': part_flops(program, name),
        'compile_seconds': seconds,
        'memory': cost.memory(compiled),
        'compiled_flops': analysis.get('flops'),
    }


@contextlib.contextmanager
def empty_cache(folder: Path) -> Iterator[None]:
    """Within, JAX keeps all that it compiles in a folder that was empty; it is gone afterwards.

    Args:
      folder: one that all processes see, as the first alone writes what is kept.
    """
    wanted = {
        'jax_enable_compilation_cache': True,
        'jax_compilation_cache_dir': str(folder),
        'jax_persistent_cache_min_compile_time_secs': 0.0,
        'jax_persistent_cache_min_entry_size_bytes': 0,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    _use_cache(wanted, folder)
    try:
        yield
    finally:
        _use_cache(before, folder)


def _use_cache(settings: dict, folder: Path) -> None:
    multihost_utils.sync_global_devices('cache in use')
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    multihost_utils.sync_global_devices('cache empty')
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # otherwise JAX stays with the folder it began with


def compiled_twice(lower: Callable) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """A program compiled anew, and the seconds of lowering and compiling it.

    Args:
      lower: () -> jax.stages.Lowered.

    Returns:
      The program; seconds `cold`, and `warm`, with the first one's work in JAX's cache on disk.
    """
    programs, seconds = [], {}
    for kind in ('cold', 'warm'):
        jax.clear_caches()
        start = time.perf_counter()
        programs.append(lower().compile())
        seconds[kind] = time.perf_counter() - start
    return programs[0], seconds  # one that was read from disk may know less of its memory


# Operations.


def part_flops(program: Program, name: str) -> float:
    """The model's operations in one call of a part of `PARTS`, over all devices; see `flops`."""
    method, state, n = program.method, program.state_shape, program.config.sample.batch_size
    if name == 'train_step':
        return mean_flops(program)
    x_t, t, condition = jax.eval_shape(lambda: _asked(program))
    if name == 'network_call':
        return flops(jax.make_jaxpr(method.denoise)(state, x_t, t, condition))
    if method.denoise:  # a sampler's loop may not say how often it runs
        return method.network_calls * part_flops(program, 'network_call')
    keys = jax.eval_shape(lambda: random.sample_keys(0, 'sample', jnp.arange(n)))
    return flops(jax.make_jaxpr(method.sample_step)(keys, state, condition))


# What runs.


class Chain:
    """A call that takes its own result, so that no two of them overlap and none is left out.

    Attributes:
      flops: of one call, over all devices.
      period: calls after which their kinds come again: a repeat is so many, or a multiple.
      carry: the last result.
      seconds: of a call, for each repeat.
      calls, repeats: calls in a repeat, and how many repeats it gets.
    """

    def __init__(self, call: Callable, carry, flops: float, period: int = 1):
        self._call, self.carry, self.flops, self.period = call, carry, flops, period
        self.seconds = []

    def run(self, calls: int) -> float:
        """Calls so often; returns the seconds that one took."""
        start = time.perf_counter()
        for _ in range(calls):
            self.carry = self._call(self.carry)
        jax.block_until_ready(self.carry)
        return (time.perf_counter() - start) / calls

    def warm_up(self) -> dict:
        """Compiles, and settles how often to run; returns `peak_memory` of a call."""
        self.run(1)
        since = forget_peak_memory()
        seconds = _agreed(self.run(1))
        used = peak_memory(since)
        self.calls = self.period * max(1, math.ceil(LEAST / seconds / self.period))
        self.repeats = min(REPEATS, max(1, int(BUDGET / (self.calls * seconds))))
        return used


def _agreed(seconds: float) -> float:
    """Of the first process, so that all make the same number of calls."""
    return float(multihost_utils.broadcast_one_to_all(np.float32(seconds)))


def interleave(chains: list[Chain]) -> None:
    """Times all chains in turn, so that what disturbs the machine disturbs them alike."""
    for repeat in range(REPEATS):
        for chain in chains:
            if repeat < chain.repeats:
                chain.seconds.append(chain.run(chain.calls))


def _call(program: Program, name: str, chains: dict[str, Chain], state) -> tuple:
    """The call of a part's chain, and what it takes first.

    Training goes on with one batch from the last step on, denoising with what it has made; drawing
    starts anew. Both use the state that training has come to, as it leaves no other.
    """
    last = program.config.steps - 1

    def train(state):
        return program.train_step(last, state, batch)[0]

    def denoise(x_t):
        return program.denoise(chains['train_step'].carry, x_t, t, condition)

    def sample(_):
        # Whatever comes of it: a state that has seen noise for images may give no numbers.
        return program.sampled(chains['train_step'].carry, indices)[0]

    put = functools.partial(jax.jit, out_shardings=program.batch_sharding)
    if name == 'train_step':
        batch = put(lambda: _batch(program))()
        if hasattr(state, 'step'):  # by which networks grow
            where = program.state_shape.step
            state = state.replace(step=jax.device_put(where.dtype.type(last), where.sharding))
        return train, state
    if name == 'network_call':
        x_t, t, condition = put(lambda: _asked(program))()
        return denoise, x_t
    indices = np.arange(program.config.sample.batch_size, dtype=np.int32)
    return sample, None


def _excessive(program: Program, name: str, chains: dict[str, Chain]) -> str:
    """Why a part is not run; '' where it takes no longer than `LONGEST`, or nobody knows."""
    if name != 'sample_step' or 'network_call' not in chains:
        return ''
    calls = program.method.network_calls
    expected = _agreed(calls * chains['network_call'].run(1))
    if expected <= LONGEST:
        return ''
    return (
        f'{calls} network calls would take {expected / 60:.0f} minutes: lower '
        'config.sample.knobs.steps or config.sample.batch_size'
    )


def _batch(program: Program) -> dict:
    image, label = program.batch_spec['image'], program.batch_spec['label']
    key = random.stream(program.config.seed, 'benchmark')
    classes = max(1, program.config.data.num_classes)
    return {
        'image': jax.random.uniform(key, image.shape, image.dtype, -1, 1),
        'label': jnp.arange(label.size, dtype=label.dtype) % classes,
    }


def _asked(program: Program) -> tuple:
    """(x_t, t, condition) of a call of `denoise`, at the time 0, which every method has."""
    n = program.config.sample.batch_size
    key = random.stream(program.config.seed, 'benchmark')
    x_t = jax.random.normal(key, (n, *program.noised))
    condition = program.condition(np.arange(n, dtype=np.int32))
    return x_t, jnp.zeros(n, jnp.int32), jax.tree.map(jnp.asarray, condition)


def peak_chains(program: Program) -> dict[str, Chain]:
    """`matmul` and `convolution`, on every device at once, in the type that the model computes in.

    The convolution is XLA's own, 3x3.
    """
    devices, dtype = program.mesh.devices.ravel(), _dtype(program)
    # What JAX takes for several CPU devices are the same cores.
    cpu = devices[0].platform == 'cpu'
    size, images, channels = SIZES['cpu' if cpu else 'accelerator']
    shared = jax.local_device_count() if cpu else 1
    mesh = Mesh(devices, ('device',), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, P('device')), NamedSharding(mesh, P())

    def convolve(x, w):
        dimensions = ('NHWC', 'HWIO', 'NHWC')
        return jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=dimensions)

    def chain(f, first, rest, kernel):
        shape = max(1, first // shared) * len(devices), *rest

        def start():
            key = random.stream(0, 'peaks')
            # Of variance 1 / fan_in, so that products of products keep their size.
            limit = math.sqrt(3 / math.prod(kernel[:-1]))
            w = jax.random.uniform(key, kernel, jnp.float32, -limit, limit)
            return jax.random.uniform(key, shape, jnp.float32, -1, 1).astype(dtype), w.astype(dtype)

        x, w = jax.jit(start, out_shardings=(split, whole))()
        step = jax.jit(f, out_shardings=split)
        return Chain(lambda x: step(x, w), x, flops(jax.make_jaxpr(f)(x, w)))

    return {
        'matmul': chain(jnp.matmul, size, (size,), (size, size)),
        'convolution': chain(convolve, images, (64, 64, channels), (3, 3, channels, channels)),
    }


# What comes of it.


def forget_peak_memory() -> str:
    """Starts the process's peak of memory anew; returns since when it then counts."""
    try:
        Path('/proc/self/clear_refs').write_text('5')  # proc(5): the peak of the resident set
    except OSError:
        return 'start'
    return 'warm-up'


def peak_memory(since: str) -> dict:
    """The most memory in use at a time, in `bytes`, `of` what, `since` when.

    `of` is 'device' where devices count it: the fullest of this process's, since its start, so that
    a later part never shows less than an earlier one. Else it is 'process', all that it held
    resident: libraries, the state and whatever else the benchmark keeps included.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        most = max(each['peak_bytes_in_use'] for each in stats)
        return {'bytes': most, 'of': 'device', 'since': 'start'}
    most = process.resident('VmHWM')
    if most is None:
        unit = 1 if sys.platform == 'darwin' else 1024
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {'bytes': most, 'of': 'process', 'since': since}


def _timings(part: dict, seconds: list[float], peaks: dict[str, float]) -> dict:
    """What a part's repeats say.

    Returns:
      `seconds` of a call: their `median`, their quartiles `p25` and `p75`, and `repeats`.
      `images_per_second`, `flops_per_image`, `flops_per_second`, from the median.
      `share_of_peak`: of flops_per_second, for each of `peaks`.
    """
    p25, median, p75 = np.percentile(seconds, (25, 50, 75)).tolist()
    rate = part['flops'] / median
    return {
        'seconds': {'median': median, 'p25': p25, 'p75': p75, 'repeats': len(seconds)},
        'images_per_second': part['batch_size'] / median,
        'flops_per_image': part['flops'] / part['batch_size'],
        'flops_per_second': rate,
        'share_of_peak': {name: rate / peak for name, peak in peaks.items()},
    }


def in_full(report: dict) -> str:
    """The report as a person reads it."""
    parts, memory = report['parts'], report['parts']['train_step']['peak_memory']
    mesh = ' x '.join(f'{axis}={size}' for axis, size in report['mesh'].items())
    lines = [
        f'{report["device"]}: {report["devices"]} devices as {mesh}, {report["processes"]} '
        f'processes, {report["dtype"]}; {report["network_calls"]} network calls a sample',
        row('', *parts),
        *(row(name, *map(cell, parts.values())) for name, cell in ROWS.items()),
        f'peak memory is that of the {memory["of"]} since the {memory["since"]}',
        *(
            f'peak of a {name}: {peak["flops_per_second"] / 1e9:,.1f} GFLOP/s'
            for name, peak in report['peaks'].items()
        ),
        *(f'{name} is not timed: {why}' for name, why in report['left_out'].items()),
    ]
    return '\n'.join(lines)


def _cell(form: str, *path: str, scale: float = 1.0) -> Callable[[dict], str]:
    """How a part's number is printed; '-' where the part has none."""

    def cell(part):
        for name in path:
            part = part.get(name) if part else None
        return '-' if part is None else format(part / scale, form)

    return cell


ROWS = {
    'batch size': _cell(',.0f', 'batch_size'),
    'images/s': _cell(',.4g', 'images_per_second'),
    'ms a call, median': _cell(',.3f', 'seconds', 'median', scale=1e-3),
    '  a quarter below': _cell(',.3f', 'seconds', 'p25', scale=1e-3),
    '  a quarter above': _cell(',.3f', 'seconds', 'p75', scale=1e-3),
    '  repeats': _cell('.0f', 'seconds', 'repeats'),
    'GFLOP an image': _cell(',.4g', 'flops_per_image', scale=1e9),
    'GFLOP/s': _cell(',.1f', 'flops_per_second', scale=1e9),
    'share of matmul peak': _cell('.1%', 'share_of_peak', 'matmul'),
    'share of convolution peak': _cell('.1%', 'share_of_peak', 'convolution'),
    'compiling, cold, s': _cell('.2f', 'compile_seconds', 'cold'),
    'compiling, from cache, s': _cell('.2f', 'compile_seconds', 'warm'),
    "compiler's memory, GiB": _cell('.3f', 'memory', 'total', scale=GIB),
    'peak memory, GiB': _cell('.3f', 'peak_memory', 'bytes', scale=GIB),
}
