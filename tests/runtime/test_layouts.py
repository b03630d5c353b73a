"""A network of each family on every kind of mesh, in a process that sees eight devices."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gen_jax.runtime.compilation import spare_threads

ROOT = Path(__file__).parents[2]
MESHES = {
    'one': (1, 1, 1),
    'data': (8, 1, 1),
    'all': (2, 2, 2),
    'tensor': (1, 1, 8),
}
# Each method's tiny config, with the sizes that eight slices divide.
CONFIGS = {
    'ddpm_digits': {'model.channels': 16, 'model.attention': (4,)},
    'vae_fashion_mnist': {},
    'dcgan_fashion_mnist': {'model.width': 8},
    'classifier_digits': {'model.widths': (8, 16)},
    'vae_gan_fashion_mnist': {},
    'stylegan2_cifar10': {'data.image_size': 8},
}
# Those that are compiled for a mesh of each kind; others for one device and the mesh that has all.
ON_EACH = ('vae_fashion_mnist', 'classifier_digits')
# Leaves of this many elements are split, so that networks of a test's size are split at all.
SMALLEST_SPLIT = 256
# Of the numbers of a leaf: below it they are rounding (such as the gradients of keys' biases, which
# attention does not depend on).
SMALLEST = 1e-5


def run(name: str) -> dict:
    """What two steps, and a batch of samples, give on each mesh, and how the state lies there.

    Returns:
      For each mesh: `metrics` of each step, `images`, `decoded` images, and `state`, {path: {shape,
      parts, norm, error}}: the shapes of a leaf and of each device's part of it, its L2 norm, and
      its largest difference from one device's over that leaf's largest number.
    """
    import jax

    from gen_jax.config import create
    from gen_jax.data import pipeline, sources
    from gen_jax.runtime import sharding
    from gen_jax.runtime.program import Program

    sharding.SMALLEST_SPLIT = SMALLEST_SPLIT
    sys.path.insert(0, str(ROOT / 'configs'))
    config = __import__(name).get_config('tiny')
    config.update_from_flattened_dict({**CONFIGS[name], 'sample.batch_size': 8, 'batch_size': 16})
    source = sources.open_source(config.data, config.data.split)
    found, alone = {}, None
    for mesh in ('one', *others(name)):
        sizes = MESHES[mesh]
        config.mesh.update(dict(zip(sharding.AXES, sizes, strict=True)))
        devices = jax.devices()[: int(np.prod(sizes))]
        program = Program(config, create(config), devices)
        batches = pipeline.train_iterator(config, source, program.rows)
        state, losses = program.init(), []
        for step in range(2):
            state, metrics = program.train_step(step, state, program.to_global(next(batches)))
            losses.append({name: float(value) for name, value in metrics.items()})
        decoded, images = None, None
        if program.method.encode is not None:  # five images, which no mesh of several divides
            z = program.encode(state, program.given([source[i] for i in range(5)]))
            decoded = program.decode(state, z).tolist()
        if program.method.sample_step is not None:
            images = program.sample(state, np.arange(8)).tolist()
        leaves = {
            jax.tree_util.keystr(path, simple=True, separator='/'): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
        }
        alone = alone or jax.tree.map(np.asarray, leaves)
        described = {name: describe(leaf, alone[name]) for name, leaf in leaves.items()}
        found[mesh] = {'metrics': losses, 'images': images, 'state': described}
        found[mesh]['decoded'] = decoded
    return found


def others(name: str) -> list[str]:
    """The meshes of several devices that a config is run on."""
    return [mesh for mesh in MESHES if mesh != 'one'] if name in ON_EACH else ['all']


def describe(leaf, expected: np.ndarray) -> dict:
    values = np.asarray(leaf, np.float64)
    return {
        'shape': leaf.shape,
        'parts': sorted({part.data.shape for part in leaf.addressable_shards}),
        'norm': np.linalg.norm(values),
        'error': np.abs(values - expected).max() / (np.abs(expected).max() + SMALLEST),
    }


@functools.cache
def ran(name: str, cache) -> dict:
    """`run`, in a process of its own."""
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'JAX_COMPILATION_CACHE_DIR': str(cache),
        'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=8',
    }
    command = [sys.executable, __file__, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def found(request, xla_cache):
    """What `run` says of the config that is the parameter; it runs once."""
    return ran(request.param, xla_cache)


pytestmark = pytest.mark.slow
EVERY = pytest.mark.parametrize(
    ('found', 'mesh'),
    [(name, mesh) for name in CONFIGS for mesh in others(name)],
    indirect=['found'],
)


@EVERY
def test_every_mesh_gives_the_numbers_of_one_device(found, mesh):
    one, other = found['one'], found[mesh]
    for step, metrics in enumerate(one['metrics']):
        assert other['metrics'][step] == pytest.approx(metrics, rel=1e-4, abs=1e-6), step
    for name, leaf in other['state'].items():
        # A gradient near zero keeps few digits, and Adam makes a step of full length of it.
        assert leaf['norm'] == pytest.approx(one['state'][name]['norm'], rel=2e-3, abs=1e-6), name
        if '/params/' not in name and '/ema/' not in name:  # moments, batch statistics, counts
            assert leaf['error'] < 1e-3, name
    if one['decoded'] is not None:
        np.testing.assert_allclose(other['decoded'], one['decoded'], atol=1e-2)
    if one['images'] is not None:
        difference = np.subtract(other['images'], one['images'])
        assert np.abs(difference).max() <= 1  # another program may round a pixel the other way


@EVERY
def test_parameters_moments_and_averages_are_split_alike(found, mesh):
    _, fsdp, tensor = MESHES[mesh]
    kept = {'params': 0, 'ema': 0, 'mu': 0, 'nu': 0}
    for name, leaf in found[mesh]['state'].items():
        shape, (part,) = leaf['shape'], leaf['parts']  # every device holds as much
        expected = 1
        if len(shape) > 1 and np.prod(shape) >= SMALLEST_SPLIT:
            by_tensor = tensor > 1 and shape[-1] % tensor == 0
            free = shape[:-1] if by_tensor else shape
            expected *= tensor if by_tensor else 1
            expected *= fsdp if any(size % fsdp == 0 for size in free) else 1
        assert np.prod(shape) == expected * np.prod(part), (name, shape, part)
        for role in kept:
            kept[role] += expected > 1 and f'/{role}/' in name
    if fsdp * tensor > 1:
        assert kept['params'] == kept['mu'] == kept['nu'] > 0
        assert (kept['ema'] > 0) == any('/ema/' in name for name in found[mesh]['state'])
    else:
        assert not any(kept.values())


if __name__ == '__main__':
    spare_threads()
    print(json.dumps(run(sys.argv[1])))
