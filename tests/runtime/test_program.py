"""Programs: what a step leaves of its memory, what parts of a batch change, what crosses over."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from gen_jax.config import create, default
from gen_jax.errors import NotFinite
from gen_jax.method import Method
from gen_jax.runtime import sharding
from gen_jax.runtime.program import Program

pytestmark = pytest.mark.usefixtures('small_network')

SMALL = {
    'diffusion.gaussian': {'sample.knobs.steps': 2},
    'autoencoders.vae': {
        'model.channels': 4,
        'model.multipliers': (1,),
        'model.hidden': 16,
        'model.latent_dim': 2,
    },
    'gans.adversarial': {'data.image_size': 16, 'model.width': 4},
    'metrics.features.classifier': {'data.num_classes': 10, 'model.widths': (4,)},
}
NETWORK = {'diffusion.gaussian': {'network': 'small'}}
METHODS = pytest.mark.parametrize('method', SMALL)


@functools.cache
def program(method, **changes):
    config = default(method, **NETWORK.get(method, {}))
    small = {'batch_size': 8, 'sample.batch_size': 4, **SMALL[method], **changes}
    config.update_from_flattened_dict(small)
    return Program(config, create(config))


def batches(made, n):
    rng, spec = np.random.default_rng(0), made.batch_spec
    return [
        {
            'image': rng.uniform(-1, 1, spec['image'].shape).astype(np.float32),
            'label': rng.integers(0, 10, spec['label'].shape).astype(np.int32),
        }
        for _ in range(n)
    ]


def assert_close(a, b, rtol, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


@pytest.mark.slow
@METHODS
def test_a_step_writes_the_state_where_it_was(method):
    made = program(method)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made.state_shape))
    assert made.lower_train().compile().memory_analysis().alias_size_in_bytes == size


@pytest.mark.slow
@pytest.mark.parametrize('method', [name for name in SMALL if name != 'gans.adversarial'])
def test_a_batch_in_parts_makes_the_same_step(method):
    whole, parts = program(method), program(method, accumulate=2)
    (batch,) = batches(whole, 1)
    (a, of_whole), (b, of_parts) = (
        made.train_step(0, made.init(), made.to_global(batch)) for made in (whole, parts)
    )
    assert_close(of_parts, of_whole, 1e-5, 1e-6)
    # The optimiser's moments are the gradient's, where Adam's step divides its size away.
    assert_close(b.net.opt_state, a.net.opt_state, 1e-3, 1e-7)


@pytest.mark.slow
def test_batch_statistics_pass_from_part_to_part():
    whole, parts = program('gans.adversarial'), program('gans.adversarial', accumulate=2)
    (batch,) = batches(whole, 1)
    a, b = (made.train_step(0, made.init(), made.to_global(batch))[0] for made in (whole, parts))
    (of_whole, of_parts) = (x.discriminator.extra['batch_stats']['norm_1']['var'] for x in (a, b))
    start = whole.init().discriminator.extra['batch_stats']['norm_1']['var']
    # Real and generated images each move the average by a tenth: twice in one part, four in two.
    # The statistics are of nearly the same images, so that the ways differ by those powers.
    moved = (np.asarray(start) - of_parts) / (np.asarray(start) - of_whole)
    np.testing.assert_allclose(moved, (1 - 0.9**4) / (1 - 0.9**2), rtol=0.1)


@pytest.mark.slow
def test_parts_need_less_memory():
    # So wide that activations, not parameters, fill the memory.
    wide = {'data.image_size': 16, 'batch_size': 32}
    needs = [
        program('diffusion.gaussian', **wide, accumulate=k)
        .lower_train()
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for k in (1, 4)
    ]
    assert needs[1] < 0.4 * needs[0]


@pytest.mark.slow
@METHODS
def test_nothing_crosses_to_the_device_unasked(method):
    made = program(method)
    (batch,) = batches(made, 1)
    indices = np.arange(8, dtype=np.int32)
    with jax.transfer_guard('disallow'):
        state = made.init()
        if made.method.sample_step:
            assert made.sample(state, np.arange(5)).dtype == np.uint8
        if made.method.encode:
            latents = made.encode(state, {'image': batch['image']})
            assert made.decode(state, latents).shape == batch['image'].shape
        if made.method.evaluate_step and method != 'diffusion.gaussian':
            found = made.evaluate(state, indices, made.to_global(batch))
            assert all(x.shape == (8,) for x in found.values())


def test_each_device_encodes_and_decodes_its_share():
    config = default('autoencoders.autoencoder')
    halves = Method(
        lambda key, batch: jnp.float32(0.5),
        None,
        encode=lambda half, batch: half * batch['image'],
        decode=lambda half, z, condition: z / half + condition['label'][:, None, None, None],
    )
    made = Program(config, halves)
    image = np.arange(5 * 64, dtype=np.float32).reshape(5, 8, 8, 1)
    z = made.encode(0.5, {'image': image})
    np.testing.assert_array_equal(z, image / 2)
    back = made.decode(0.5, z, np.arange(5, dtype=np.int32))
    np.testing.assert_array_equal(back, image + np.arange(5)[:, None, None, None])
    batch = {'image': jax.ShapeDtypeStruct((8, 8, 8, 1), np.float32)}
    for program, given in ((made._encode, batch), (made._decode, (batch['image'], {'label': z}))):
        given = given if isinstance(given, tuple) else (given,)
        text = program.lower(made.state_shape, *given).as_text()
        assert text.count('sharding_constraint') == len(jax.tree.leaves(given))


@pytest.mark.parametrize(('n', 'filled'), [(1, 4), (4, 4), (5, 8)])
def test_a_batch_is_filled_up_until_the_mesh_divides_it(n, filled):
    mesh = AbstractMesh((2, 2, 3), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    x = np.arange(n)
    (found, label), left = Program._filled(types.SimpleNamespace(mesh=mesh), (x, 2 * x))
    assert (len(found), left) == (filled, n)
    np.testing.assert_array_equal(found[:n], x)
    np.testing.assert_array_equal(label, 2 * found)


def test_what_is_encoded_and_decoded_is_filled_up_and_cut_again(monkeypatch):
    seen = []

    def doubled(state, given, *others):
        x = given['image'] if isinstance(given, dict) else given
        seen.append(len(x))
        return 2 * x

    monkeypatch.setattr(sharding, 'parts', lambda mesh: 4)
    made = program('autoencoders.vae')
    made._encode = made._decode = doubled
    x = np.arange(5.0)
    for found in (made.encode(None, {'image': x}), made.decode(None, x, np.arange(5))):
        np.testing.assert_array_equal(found, 2 * x)
    assert seen == [8, 8]


def broken(**changes):
    """A program whose images of class 1 have a NaN each, and those of class 2 an infinite value."""
    config = default('diffusion.gaussian')
    config.update_from_flattened_dict({'data.num_classes': 3, 'sample.batch_size': 4, **changes})

    def images(state, x, condition):
        at = jnp.float32([0.0, jnp.nan, -jnp.inf])[condition['label']]
        return jnp.zeros((len(at), 8, 8, 1)).at[:, 0, 1, 0].set(at)

    def sample(keys, state, condition):
        return images(state, keys, condition)

    return Program(config, Method(lambda key, batch: jnp.zeros(()), None, sample, decode=images))


def test_images_that_are_not_finite_are_told_and_black_where_that_is_asked_for():
    made = broken()
    says = '3 of 5 images hold values that are not finite: try more config.sample.knobs.steps, an'
    with pytest.raises(NotFinite, match=says) as error:
        made.sample(0.0, np.arange(5))
    assert '\n' not in str(error.value)
    images, finite = made.sampled(0.0, np.arange(5))
    np.testing.assert_array_equal(finite, [True, False, False, True, False])
    np.testing.assert_array_equal(images[:, 0, 1, 0], [128, 0, 0, 128, 0])
    assert (images[:, 1:] == 128).all()
    assert made.sample(0.0, np.array([0, 3])).dtype == np.uint8
    z = np.zeros((3, 2), np.float32)
    with pytest.raises(NotFinite, match='1 of 3 images'):
        made.decode(0.0, z, np.int32([0, 0, 1]))
    assert (made.decode(0.0, z, np.zeros(3, np.int32)) == 0).all()


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'guidance': 4.0}, 'knobs.steps, less config.sample.knobs.guidance, another checkpoint'),
        ({'steps': 0, 'tolerance': 1e-3}, 'try a larger config.sample.knobs.tolerance, another'),
    ],
)
def test_what_may_help_is_what_the_config_has(changes, says):
    config = default('diffusion.continuous')
    config.sample.knobs.update(changes)
    with pytest.raises(NotFinite, match=says):
        Program.require_finite(types.SimpleNamespace(config=config), np.zeros(1, bool))


@pytest.mark.slow
def test_a_part_that_the_mesh_cannot_split_is_told_in_one_line(main, tmp_path):
    config = '--config=configs/ddpm_digits.py:tiny'
    run = main(config, f'--workdir={tmp_path}/run', '--config.accumulate=8', devices=2)
    assert run.returncode == 2
    (line,) = [line for line in run.stderr.splitlines() if line.startswith('main.py')]
    assert 'config.batch_size=8 is not a multiple of 16, the 2 parts' in line
    assert line.endswith('times config.accumulate=8: try 16')
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('method', [name for name in SMALL if name != 'diffusion.gaussian'])
def test_half_precision_computes_what_single_does_and_keeps_its_parameters(method):
    single, half = program(method), program(method, **{'model.dtype': 'bfloat16'})
    assert jax.tree.map(lambda x: x.dtype, half.state_shape) == jax.tree.map(
        lambda x: x.dtype, single.state_shape
    )
    (batch,) = batches(single, 1)
    (_, a), (_, b) = (
        made.train_step(0, made.init(), made.to_global(batch)) for made in (single, half)
    )
    assert all(x.dtype == np.float32 for x in b.values())
    loss = 'd_loss' if method == 'gans.adversarial' else 'loss'
    assert float(b[loss]) != float(a[loss])
    assert float(b[loss]) == pytest.approx(float(a[loss]), rel=0.02)
