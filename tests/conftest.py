import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='session')
def xla_cache(tmp_path_factory):
    """Where programs that several processes compile are kept for this session."""
    return tmp_path_factory.mktemp('xla')


@pytest.fixture
def main(xla_cache):
    """Runs main.py in a process of its own: main(args...) -> CompletedProcess."""

    def start(*args, devices=1, wait=True, **options):
        environment = {
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'JAX_COMPILATION_CACHE_DIR': str(xla_cache),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
            'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
        }
        command = [sys.executable, str(ROOT / 'main.py'), *map(str, args)]
        options = {'text': True, 'env': environment, **options}
        if wait:
            return subprocess.run(command, capture_output=True, timeout=300, **options)
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
        return subprocess.Popen(command, **{**pipes, **options})

    return start
