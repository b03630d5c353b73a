import os
import subprocess
import sys

import jax
import pytest

from gen_jax.runtime.compilation import cpu, keep_compiled


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """JAX without a cache, put back afterwards; no variable of the environment has a say."""
    names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update('jax_compilation_cache_dir', None)
    for name in ('GEN_JAX_CACHE', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_the_users_cache_and_names_the_cpu(settings, tmp_path):
    keep_compiled()
    folder = tmp_path / 'gen_jax' / 'xla' / cpu()
    assert settings.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o077 == 0  # code lies there: nobody else may put any
    assert settings.jax_persistent_cache_min_compile_time_secs == 0.5


def test_without_xdg_it_is_in_the_home(settings, tmp_path, monkeypatch):
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    keep_compiled()
    assert settings.jax_compilation_cache_dir.startswith(f'{tmp_path}/.cache/gen_jax/xla/')


def test_ones_own_folder_and_none(settings, tmp_path, monkeypatch):
    monkeypatch.setenv('GEN_JAX_CACHE', '')
    keep_compiled()
    assert settings.jax_compilation_cache_dir is None
    monkeypatch.setenv('GEN_JAX_CACHE', str(tmp_path / 'mine'))
    keep_compiled()
    assert settings.jax_compilation_cache_dir == str(tmp_path / 'mine' / cpu())


def test_what_jax_was_told_stays(settings, tmp_path, monkeypatch):
    monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '7')
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 7.0)
    keep_compiled()
    assert settings.jax_persistent_cache_min_compile_time_secs == 7.0
    jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'theirs'))
    keep_compiled()
    assert settings.jax_compilation_cache_dir == str(tmp_path / 'theirs')


def test_a_folder_that_cannot_be_written_is_one_line_and_no_error(
    settings, tmp_path, monkeypatch, caplog
):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('GEN_JAX_CACHE', str(tmp_path / 'file'))
    keep_compiled()
    assert settings.jax_compilation_cache_dir is None
    (record,) = caplog.records
    assert 'GEN_JAX_CACHE' in record.getMessage()
    assert '\n' not in record.getMessage()


def test_cpus_of_other_features_have_other_names(tmp_path):
    def named(text):
        path = tmp_path / 'cpuinfo'
        path.write_text(text)
        return cpu(path)

    old = named('processor\t: 0\ncpu MHz\t: 2000\nflags\t\t: sse2 avx2\n')
    assert old == named('processor\t: 0\ncpu MHz\t: 3000\nflags\t\t: sse2 avx2\n')
    assert old != named('processor\t: 0\ncpu MHz\t: 2000\nflags\t\t: sse2 avx2 avx512f\n')
    arm = named('processor\t: 0\nFeatures\t: fp asimd\n')
    assert arm != named('processor\t: 0\nFeatures\t: fp asimd sve\n')


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    script = (
        'import jax; from gen_jax.runtime.compilation import keep_compiled; keep_compiled(); '
        'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0); hits = []; '
        'jax.monitoring.register_event_listener(lambda event, **_: hits.append(event)); '
        'jax.jit(lambda x: x * 3)(2.0); print(hits.count("/jax/compilation_cache/cache_hits"))'
    )
    environment = {**os.environ, 'GEN_JAX_CACHE': str(tmp_path), 'JAX_PLATFORMS': 'cpu'}
    environment.pop('JAX_COMPILATION_CACHE_DIR', None)
    runs = [
        subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True)
        for _ in range(2)
    ]
    assert [run.stdout.strip() for run in runs] == [b'0', b'1'], runs
    assert [run.stderr for run in runs] == [b'', b'']


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='only the GNU library has to be told')
def test_what_compiling_took_goes_back():
    """A process that compiles something large holds less with it than without."""
    program = (
        'import sys, pathlib, jax, jax.numpy as jnp\n'
        'from gen_jax.runtime.compilation import return_memory\n'
        'if sys.argv[1] == "back": return_memory()\n'
        'def f(x):\n'
        '    for i in range(300): x = jnp.sin(x @ x + i) @ x[::-1]\n'
        '    return x\n'
        'jax.jit(f)(jnp.ones((8, 8))).block_until_ready()\n'
        'status = pathlib.Path("/proc/self/status").read_text()\n'
        'print(status.split("VmRSS:")[1].split()[0])\n'
    )
    held, as_users = {}, {**os.environ, 'XLA_FLAGS': ''}
    for way in ('kept', 'back'):
        command = [sys.executable, '-c', program, way]
        done = subprocess.run(command, env=as_users, capture_output=True, text=True, check=True)
        held[way] = int(done.stdout)
    assert held['back'] < held['kept'] - 100 * 1024  # KiB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='counts threads as Linux shows them')
def test_devices_of_one_cpu_have_threads_to_spare():
    """A thread for each device and some more; one device leaves XLA as it is."""
    program = (
        'import sys, os, jax\n'
        'from gen_jax.runtime.compilation import spare_threads\n'
        'if sys.argv[1] == "spare": spare_threads()\n'
        'jax.block_until_ready(jax.device_put(1.0, jax.devices()[-1]))\n'
        'print(len(os.listdir("/proc/self/task")))\n'
    )

    def threads(devices, way):
        flags = f'--xla_force_host_platform_device_count={devices}'
        environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
        environment.pop('NPROC', None)
        command = [sys.executable, '-c', program, way]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert threads(8, 'spare') >= threads(8, 'as is') + 3 * 8
    assert threads(1, 'spare') == threads(1, 'as is')
