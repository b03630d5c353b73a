"""What XLA is told: where to keep what it compiled, its options, its threads and its memory."""

import ctypes
import hashlib
import logging
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

import jax

# XLA's CPU compiler drops optimisation barriers before it looks for common subexpressions, and so
# finds that what rematerialisation computes again is there already: the memory is not saved. With
# the pass that drops them off, a training step of the CIFAR-10 U-Net takes 527 MB of temporaries
# with remat, instead of about 2,000. A version without that pass ignores the option.
CPU_OPTIONS = {'xla_disable_hlo_passes': 'cse_barrier_expander'}
# For what runs once: to optimise it takes longer than it saves.
ONCE = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
# JAX leaves out what compiles in less than a second, which is most of a small network.
LEAST_SECONDS = 0.5
# What JAX reports when a program is ready, whether compiled or read.
COMPILED = '/jax/core/compile/backend_compile_duration'


def prepare() -> None:
    """What a command does once, before anything is compiled."""
    keep_compiled()
    return_memory()
    spare_threads()


def keep_compiled() -> None:
    """Has JAX keep compiled programs in a folder, for later processes on like machines.

    The folder is `cache_folder()`. A folder that JAX has been given already, such as by
    $JAX_COMPILATION_CACHE_DIR, stays; an empty $GEN_JAX_CACHE turns this off, and so does JAX's own
    $JAX_ENABLE_COMPILATION_CACHE=0. Where nothing can be written, one line says so and the run
    compiles anew. Call before anything is compiled.
    """
    if jax.config.jax_compilation_cache_dir or os.environ.get('GEN_JAX_CACHE') == '':
        return
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        logging.warning('compiled programs are not kept (%s): set GEN_JAX_CACHE', error)
        return
    jax.config.update('jax_compilation_cache_dir', str(folder))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', LEAST_SECONDS)


def spare_threads() -> None:
    """Has XLA keep more threads than devices where a CPU stands for several; call before it starts.

    It keeps as many threads as devices, each waiting where its device waits for the others. Where
    one of them has other work then, what they wait for never comes: one run in six stood still.
    """
    wanted = re.search(r'host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', ''))
    devices = max(int(wanted[1]) if wanted else 1, jax.config.jax_num_cpu_devices)
    if devices > 1:
        os.environ.setdefault('NPROC', str(4 * devices))  # XLA's name for it


def return_memory() -> None:
    """Has the memory that compiling took go back to the system; call once, before compiling.

    The C library keeps what was freed for later: after the CIFAR-10 U-Net's training step is
    compiled, twice the memory that the step then needs. Only the GNU one has to be told.
    """
    if sys.platform != 'linux' or not hasattr(library := ctypes.CDLL(None), 'malloc_trim'):
        return

    def trim(event: str, seconds: float, **_) -> None:
        if event == COMPILED and seconds > LEAST_SECONDS:
            library.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim)


def compiler_options(mesh: jax.sharding.Mesh, once: bool = False) -> dict:
    """XLA's options for programs of a mesh's devices, as `jax.jit(compiler_options=...)` takes.

    Args:
      mesh: of the devices.
      once: whether the program runs once only, so that compiling is what it costs.
    """
    cpu = mesh.devices.flat[0].platform == 'cpu'
    return CPU_OPTIONS | (ONCE if once else {}) if cpu else {}


def cache_folder() -> Path:
    """$GEN_JAX_CACHE, else $XDG_CACHE_HOME/gen_jax/xla, else ~/.cache/gen_jax/xla; per machine.

    The last part of the path names the CPU. Code that XLA compiled for one CPU may hold
    instructions that another lacks, and homes are shared between machines.
    """
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(os.environ.get('GEN_JAX_CACHE') or Path(cache, 'gen_jax', 'xla'), cpu())


def cpu(cpuinfo: Path = Path('/proc/cpuinfo')) -> str:
    """The architecture and a hash of the CPU's features, such as 'x86_64-0c2f9a1b'."""
    features = platform.processor()
    if cpuinfo.exists():
        with cpuinfo.open() as lines:
            # x86 and Arm; the first of the CPUs speaks for all.
            known = (line for line in lines if line.startswith(('flags', 'Features')))
            features = next(known, features)
    return f'{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}'
