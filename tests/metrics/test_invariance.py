"""FID neither depends on the batch size nor on the number of devices."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gen_jax.config import default
from gen_jax.data import sources


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sets')
    data = default('autoencoders.vae').data
    for split in ('train', 'test'):
        images = np.concatenate(list(sources.images_of(sources.open_source(data, split))))
        np.save(folder / f'{split}.npy', images)
    return folder


def fid(folder, batch_size, devices, *flags):
    out = folder / 'metrics.json'
    command = [sys.executable, '-m', 'gen_jax.metrics', folder / 'test.npy', folder / 'train.npy']
    flags = [*flags, f'--batch_size={batch_size}', f'--out={out}']
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        # Optimised, unlike other tests: Inception computes for longer than it compiles.
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    }
    subprocess.run([*map(str, command), *flags], check=True, env=environment, capture_output=True)
    (row,) = json.loads(out.read_text()).values()
    return row['value']


@pytest.mark.slow
def test_through_a_classifier(sets):
    value = fid(sets, 50, 1, '--network=digits')
    assert value > 0.1
    for batch_size, devices in ((1, 1), (7, 1), (256, 1), (50, 8), (7, 8)):
        again = fid(sets, batch_size, devices, '--network=digits')
        assert again == pytest.approx(value, rel=1e-6), (batch_size, devices)


@pytest.mark.slow
def test_through_inception(sets, inception_weights):
    flags = f'--weights={inception_weights}', '--n=24', '--dims=768'
    value = fid(sets, 50, 1, *flags)
    assert value > 0.1
    assert fid(sets, 7, 8, *flags) == pytest.approx(value, rel=1e-6)
