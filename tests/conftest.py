import gc
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from peers import import_torchvision

from gen_jax.runtime.process import collect_rarely

ROOT = Path(__file__).parents[1]

# Tests mostly compile: with less optimising they take half the time, or less. With GEN_JAX_AS_USERS
# set they compile as users do.
QUICKLY = [
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_parallel_codegen_split_count=1',
]
# The older one of two ways that this jaxlib has to emit code takes another third less.
if version('jaxlib').startswith('0.10.'):
    QUICKLY.append('--xla_cpu_use_fusion_emitters=false')
if os.environ.get('GEN_JAX_AS_USERS'):
    QUICKLY = []
else:
    os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *QUICKLY]).strip()


MANY_OBJECTS = 400_000  # that Python's garbage collector visits

# Files of several minutes, the longest first: one that began last would keep one process busy while
# others have nothing left to do.
LONGEST = ('test_tiny_configs', 'test_stops', 'test_experiments', 'test_layouts', 'test_latent')


# The folder of what this process compiles, and those it starts: many compile the same programs.
# pytest-xdist's processes have one each, as JAX may read there what another has half written.
COMPILED = Path(tempfile.mkdtemp())


def pytest_configure(config):
    """With pytest-xdist files are taken in the order that they are collected in."""
    if hasattr(config.option, 'loadscopereorder'):
        config.option.loadscopereorder = False
    import jax  # which asks for the folder once, when it first compiles: as tests are collected

    jax.config.update('jax_compilation_cache_dir', str(COMPILED))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def pytest_unconfigure():
    """Removes what was compiled."""
    shutil.rmtree(COMPILED, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Puts the longest files first."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish():
    """Has garbage looked for as rarely as main.py has it, and not in what was imported."""
    gc.collect()
    collect_rarely()


def pytest_sessionfinish(session):
    """With GEN_JAX_PARITY set, a comparison that was left out is a failure."""
    reporter = session.config.pluginmanager.get_plugin('terminalreporter')
    if reporter is None:  # a worker of pytest-xdist: the process that started it reports
        return
    left_out = [x for x in reporter.stats.get('skipped', []) if 'tests/parity' in x.nodeid]
    if os.environ.get('GEN_JAX_PARITY') and left_out:
        reporter.write_line(f'left out, but GEN_JAX_PARITY is set: {left_out[0].nodeid}')
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# The oracles import torchvision.
if find_spec('torch') and find_spec('torchvision'):
    import_torchvision()


@pytest.fixture(scope='module', autouse=True)
def let_go(request):
    """Lets go of what a file's tests keep and, once that is much, of what JAX traced and compiled.

    Else collecting garbage, which visits all that is alive, ends up taking most of the time.
    """
    yield
    for kept in vars(request.module).values():
        if hasattr(kept, 'cache_clear'):
            kept.cache_clear()
    if len(gc.get_objects()) > MANY_OBJECTS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope='session')
def xla_cache():
    """Where programs that several processes compile are kept for this session."""
    return COMPILED


@pytest.fixture
def traced_once(monkeypatch):
    """Runs of one config in this process share its Program, and so what that has traced.

    For configs without a guide or a first stage, which their texts do not tell.
    """
    from gen_jax import evaluate, inspect, sample, train
    from gen_jax.runtime.program import Program

    made = {}

    def shared(config, method):
        key = config.to_json()
        if key not in made:
            made[key] = Program(config, method)
        return made[key]

    for module in (evaluate, inspect, sample, train):
        monkeypatch.setattr(module, 'Program', shared)


@pytest.fixture(scope='module')
def small_network():
    """Makes `default(METHOD, network='small')` known: what stands on networks compiles quickly."""
    import small_network

    from gen_jax.diffusion import networks

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, 'small', small_network)
        yield


@pytest.fixture
def main(xla_cache):
    """Runs main.py in a process of its own: main(args...) -> CompletedProcess."""

    def start(*args, devices=1, wait=True, **options):
        flags = [f'--xla_force_host_platform_device_count={devices}', *QUICKLY]
        environment = {
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'JAX_COMPILATION_CACHE_DIR': str(xla_cache),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
            'XLA_FLAGS': ' '.join(flags),
        }
        command = [sys.executable, str(ROOT / 'main.py'), *map(str, args)]
        options = {'text': True, 'env': environment, **options}
        if wait:
            return subprocess.run(command, capture_output=True, timeout=300, **options)
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
        return subprocess.Popen(command, **{**pipes, **options})

    return start
