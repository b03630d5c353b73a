"""DCGAN's networks: the paper's counts and initial values, and what the options change."""

import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from games import is_finer_than_bfloat16

from gen_jax import config as house
from gen_jax.errors import UserError
from gen_jax.gans import dcgan


def small(**changes):
    config = house.default('gans.adversarial', network='dcgan')
    config.update_from_flattened_dict(
        {'data.image_size': 16, 'model.width': 4, 'model.latent_dim': 6, **changes}
    )
    return config


def shapes(size, channels=3, **changes):
    """Images, logits and both networks' variables, of a batch of 2, as shapes."""
    changes = {'data.image_size': size, 'data.channels': channels, **changes}
    generator, discriminator = dcgan.from_config(small(**changes), 3)
    key, label = jax.random.key(0), jnp.zeros(2, jnp.int32)

    def run():
        z, x = jnp.zeros((2, 6)), jnp.zeros((2, size, size, channels))
        image, g = generator.init_with_output(key, z, label, train=False)
        logit, d = discriminator.init_with_output(key, x, label, train=False)
        return image, logit, g, d

    return jax.eval_shape(run)


def test_paper_size_has_the_papers_parameters():
    config = runpy.run_path('configs/dcgan_folder64.py')['get_config']()
    method = house.create(config)
    batch = {'image': jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)}
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    count = lambda net: sum(leaf.size for leaf in jax.tree.leaves(net.params))  # noqa: E731
    assert count(state.generator) == 3_576_704
    assert count(state.discriminator) == 2_765_568


@pytest.mark.slow
@pytest.mark.parametrize(('size', 'stages'), [(16, 2), (32, 3), (64, 4), (128, 5)])
def test_sizes(size, stages):
    image, logit, g, d = shapes(size)
    assert (image.shape, logit.shape) == ((2, size, size, 3), (2,))
    assert g['params']['conv_0']['kernel'].shape == (4, 4, 4 * 2 ** (stages - 1), 6)
    assert d['params'][f'conv_{stages}']['kernel'].shape == (4, 4, 4 * 2 ** (stages - 1), 1)
    # Batch norm in all layers but the generator's last and the discriminator's first and last.
    assert g['batch_stats'].keys() == {f'norm_{i}' for i in range(stages)}
    assert d['batch_stats'].keys() == {f'norm_{i}' for i in range(1, stages)}
    assert all('bias' not in g['params'][f'conv_{i}'] for i in range(stages + 1))
    assert all('bias' not in d['params'][f'conv_{i}'] for i in range(stages + 1))


def test_options_of_the_discriminator():
    *_, d = shapes(16, **{'model.d_batch_norm': False, 'model.d_spectral': True})
    assert d.keys() == {'params', 'spectral'}
    assert d['params']['conv_1']['bias'].shape == (8,)
    *_, d = shapes(16, **{'model.minibatch_kernels': 5})
    assert d['params']['nearness']['kernel'].shape == (5, 1)


@pytest.mark.slow
def test_labels_are_told_to_both():
    _, _, g, d = shapes(16, **{'model.condition': 'concat'})
    assert g['params']['conv_0']['kernel'].shape[-1] == 6 + 3
    assert d['params']['conv_0']['kernel'].shape[2] == 3 + 3
    generator, discriminator = dcgan.from_config(small(**{'model.condition': 'concat'}), 3)
    z, x = jnp.ones((2, 6)), jnp.ones((2, 16, 16, 1))
    label, key = jnp.int32([0, 2]), jax.random.key(0)
    for net, told in ((generator, z), (discriminator, x)):
        out, _ = net.init_with_output(key, told, label, train=False)
        assert jnp.abs(out[0] - out[1]).max() > 1e-4


@pytest.mark.slow
def test_bfloat16_ends_in_float32():
    g, d = dcgan.from_config(small(**{'model.dtype': 'bfloat16', 'model.d_batch_norm': False}), 0)
    x, z = jax.random.normal(jax.random.key(1), (9, 16, 16, 1)), jnp.ones((1, 6))
    logits, image = (
        net.init_with_output(jax.random.key(0), given, train=False)[0]
        for net, given in ((d, x), (g, z))
    )
    assert is_finer_than_bfloat16(logits)
    assert is_finer_than_bfloat16(jnp.arctanh(image))


@pytest.mark.slow
def test_initial_weights_are_the_papers():
    method = house.create(small(**{'model.width': 32, 'data.image_size': 32}))
    state = jax.jit(method.init)(jax.random.key(0), {'image': jnp.zeros((2, 32, 32, 1))})
    for params in (state.generator.params, state.discriminator.params):
        kernel, norm = params['conv_1']['kernel'], params['norm_1']
        assert abs(kernel.mean()) < 1e-3
        assert abs(kernel.std() - 0.02) < 1e-3
        assert abs(norm['scale'].mean() - 1) < 0.01
        assert 0.01 < norm['scale'].std() < 0.03
        assert (norm['bias'] == 0).all()


def test_running_variance_is_flaxs():
    """momentum 0.9 on the biased variance: 0.9 * 1 + 0.1 * E[(x - E x)^2]."""
    norm = dcgan._norm(True, jnp.float32, None)
    x = jnp.array([[0.0], [4.0]])
    _, variables = norm.init_with_output(jax.random.key(0), x)
    _, stats = norm.apply(variables, x, mutable=['batch_stats'])
    np.testing.assert_allclose(stats['batch_stats']['mean'], [0.2], rtol=1e-6)
    np.testing.assert_allclose(stats['batch_stats']['var'], [0.9 + 0.1 * 4], rtol=1e-6)


WRONG = [
    {'data.image_size': 28},
    {'data.image_size': 8},
    {'data.image_size': 48},
    {'model.width': 0},
    {'model.dtype': 'float16'},
    {'model.latent_dim': 0},
    {'model.minibatch_kernels': -1},
    {'model.condition': 'projection', 'data.num_classes': 3},
]


@pytest.mark.parametrize('changes', WRONG)
def test_a_wrong_config_is_told_in_one_line(changes):
    with pytest.raises(UserError, match=next(iter(changes))) as error:
        house.create(small(**changes))
    assert '\n' not in str(error.value)
