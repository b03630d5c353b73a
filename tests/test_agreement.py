"""What several processes decide together, though they see other things."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen_jax.data import sources
from gen_jax.errors import UserError
from gen_jax.runtime import sharding
from gen_jax.runtime.checkpoint import Checkpoints
from gen_jax.runtime.process import as_first_sees


def decide(port: str, process: str, folder: str) -> None:
    """As one of two processes, prints what it takes in `folder`, and which mistakes it is told."""
    sharding.join_processes(f'localhost:{port}', 2, int(process))
    print('told', json.dumps(taken(int(process), Path(folder))), flush=True)


def taken(process: int, folder: Path) -> dict:
    """Process 0 cannot read the newest checkpoint; process 1 sees more of some folders."""
    everywhere = jax.sharding.NamedSharding(
        jax.sharding.Mesh(jax.devices(), ('data',)), jax.sharding.PartitionSpec('data')
    )
    shape = {'w': jax.ShapeDtypeStruct((4, 2), jnp.float32, sharding=everywhere)}
    found = {'seen': as_first_sees({'of': process, 'long': 'x' * process * 100})}
    found['longer'] = as_first_sees('y' * (100 - 90 * process))

    def broken(self, step, state):
        if (step, process) == (3, 0):
            raise ValueError('this host cannot read it')
        return plain(self, step, state)

    plain, Checkpoints._read = Checkpoints._read, broken
    with contextlib.closing(Checkpoints(folder / 'checkpoints')) as checkpoints:
        step, state, data = checkpoints.restore(shape)
    whole = jax.experimental.multihost_utils.process_allgather(state['w'], tiled=True)
    found |= {'step': step, 'next': data['next'], 'w': np.unique(whole).tolist()}
    with contextlib.closing(Checkpoints(folder / f'checkpoints_{process}')) as checkpoints:
        found['other steps'] = mistake(checkpoints.restore, shape)
    config = sources_of(folder / f'images_{process}')
    found['other images'] = mistake(sources.open_source, config, 'train')
    return found


def sources_of(folder: Path):
    from gen_jax.config import default

    config = default('autoencoders.vae')
    config.data.source = f'folder:{folder}'
    return config.data


def mistake(function, *args) -> str:
    try:
        function(*args)
    except UserError as error:
        return str(error)
    return 'none'


@pytest.fixture
def places(tmp_path):
    for name, steps in (('checkpoints', 3), ('checkpoints_0', 1), ('checkpoints_1', 2)):
        with contextlib.closing(Checkpoints(tmp_path / name, keep=3)) as checkpoints:
            for step in range(1, steps + 1):
                checkpoints.save(step, {'w': jnp.full((4, 2), float(step))}, {'next': step * 10})
    for process in range(2):
        folder = tmp_path / f'images_{process}'
        folder.mkdir()
        for i in range(2 + process):
            Image.new('L', (8, 8), i).save(folder / f'{i}.png')
    return tmp_path


@pytest.mark.slow
def test_two_processes_take_the_same(places, xla_cache):
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'JAX_COMPILATION_CACHE_DIR': str(xla_cache),
        'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=2',
    }
    command = [sys.executable, __file__, port]
    processes = [
        subprocess.Popen(
            [*command, str(i), str(places)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    lines = [process.communicate(timeout=200)[0] for process in processes]
    told = [json.loads(line.split('told ')[1]) for line in lines]
    for found in told:
        assert found['seen'] == {'of': 0, 'long': ''}
        assert found['longer'] == 'y' * 100
        assert (found['step'], found['next'], found['w']) == (2, 20, [2.0])
        assert 'processes see other checkpoints in' in found['other steps']
        assert 'is not the same for this process and for process' in found['other images']


def test_alone_a_process_takes_what_it_sees(tmp_path):
    assert as_first_sees((1, [2])) == (1, [2])
    Image.new('L', (8, 8)).save(tmp_path / 'a.png')
    assert len(sources.open_source(sources_of(tmp_path), 'train')) == 1


if __name__ == '__main__':
    decide(*sys.argv[1:])
