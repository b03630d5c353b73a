"""Progressive GAN's and StyleGAN's networks by themselves; tests/parity has what they compute."""

from functools import partial
from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gen_jax.errors import UserError
from gen_jax.gans import progressive, stylegan
from gen_jax.gans.progressive import faded, grown

SMALL = {'channel_base': 64, 'channel_max': 6, 'num_classes': 2}
MODULES = (progressive, stylegan)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def variables(net, *args):
    shapes = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), *args)
    shapes.pop('intermediates', None)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([np.float32(rng.standard_normal(x.shape)) for x in leaves])


def small(module):
    rate = {'mapping_rate': 1.0, 'w_dim': 4, 'mapping_layers': 1} if module is stylegan else {}
    generator = module.Generator(latent_dim=5, image_size=8, channels=1, **SMALL, **rate)
    return generator, module.Discriminator(group=2, blur=module is stylegan, **SMALL)


def count(net, *args):
    shapes = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), *args)['params']
    return {k: sum(prod(x.shape) for x in jax.tree.leaves(v)) for k, v in shapes.items()}


def test_parameters_are_as_many_as_the_authors():
    """Totals and layers of StyleGAN's are those that the authors' code lists."""
    z, x = jnp.zeros((1, 512)), jnp.zeros((1, 1024, 1024, 3))
    assert sum(count(stylegan.Generator(), z).values()) == 26_219_627
    for net in (progressive.Discriminator(), stylegan.Discriminator(blur=True)):
        of_d = count(net, x)
        assert sum(of_d.values()) == 23_087_249
        assert of_d['block_1024_conv_1'] == 4_640
        assert of_d['epilogue_conv'] == 2_364_416
    of_g = count(progressive.Generator(), z)
    assert round(sum(of_g.values()) / 1e6, 1) == 23.1  # table 2, which has rounded numbers only
    assert of_g['block_64_conv_0'] == 256 * (9 * 512 + 1)
    assert of_g['block_1024_to_rgb'] == 51


@pytest.mark.slow
@pytest.mark.parametrize('module', MODULES)
def test_gradients_reach_every_parameter(module):
    """Of images of every size, half faded in."""
    g, d = small(module)
    z, label, keys = normal(1, 2, 5), jnp.int32([0, 1]), jax.random.split(jax.random.key(0), 2)
    of_g, of_d = variables(g, z, label), variables(d, normal(1, 2, 8, 8, 1), label)

    def loss(g_params, d_params):
        total = 0
        for size in (4, 8):
            variables = {**of_g, 'params': g_params}
            image = g.apply(variables, z, label, train=False, keys=keys, size=size, alpha=0.5)
            assert image.shape == (2, size, size, 1)
            logits = d.apply({'params': d_params}, image, label, train=True, alpha=0.5)
            total += jnp.square(logits).sum()
        return total

    grads = jax.jit(jax.grad(loss, (0, 1)))(of_g['params'], of_d['params'])
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert leaf.any(), path


def test_fading():
    """At 0 the larger size is unseen, at 1 the smaller; the number is traced."""
    small, large = normal(0, 1, 2, 2, 3), normal(1, 1, 4, 4, 3)
    run = jax.jit(lambda alpha: grown([normal(2, 1, 1, 1, 3), small, large], alpha))
    np.testing.assert_allclose(run(0.0), small.repeat(2, 1).repeat(2, 2), atol=1e-6)
    np.testing.assert_allclose(run(1.0), large, atol=1e-6)
    np.testing.assert_array_equal(grown([small], 0.0), small)
    np.testing.assert_allclose(faded(jnp.float32(2), jnp.float32(6), 0.25), 3)
    assert run._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize('module', MODULES)
def test_samples_keep_apart_and_sizes_agree(module):
    g, d = small(module)
    z, label = normal(1, 4, 5), jnp.int32([0, 1, 1, 0])
    keys = jax.random.split(jax.random.key(1), 4)
    of_g = variables(g, z, label)
    run = jax.jit(partial(g.apply, of_g, train=False))
    images = run(z, label, keys=keys)
    others = run(z.at[0].add(1), label.at[1].set(0), keys=keys)
    difference = np.abs(others - images).max((1, 2, 3))
    assert (difference[:2] > 1e-3).all()
    assert (difference[2:] < 1e-5).all()
    noisy = run(z, label, keys=keys.at[0].set(jax.random.key(9)))
    assert (np.abs(noisy - images)[0].max() > 1e-3) == (module is stylegan)
    np.testing.assert_allclose(noisy[1:], images[1:], atol=1e-5)
    of_d = variables(d, images, label)
    logits, sown = jax.jit(partial(d.apply, train=False, mutable='intermediates'))(
        of_d, images, label
    )
    assert logits.shape == (4,)
    assert sown['intermediates']['features'][0].shape == (4, 6)


@pytest.mark.slow
@pytest.mark.parametrize('module', MODULES)
def test_bfloat16_comes_near(module):
    g, d = small(module)
    z, label = normal(1, 2, 5), jnp.int32([0, 1])
    of_g, of_d = variables(g, z, label), variables(d, normal(1, 2, 8, 8, 1), label)

    def run(dtype):
        image = g.clone(dtype=dtype).apply(of_g, z, label, train=False)
        return image, d.clone(dtype=dtype).apply(of_d, 0.1 * image, label, train=False)

    exact, near = jax.jit(lambda: (run(jnp.float32), run(jnp.bfloat16)))()
    for a, b in zip(exact, near, strict=True):
        assert b.dtype == jnp.float32
        assert 1e-5 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


@pytest.mark.parametrize('module', MODULES)
def test_images_are_float32_not_by_name_alone(module):
    """What makes them computes in its input's dtype."""
    g, given = small(module)[0].clone(dtype=jnp.bfloat16), []

    def look(call, args, kwargs, context):
        if str(context.module.name).endswith('to_rgb'):
            given.append(args[0].dtype)
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        variables(g, normal(1, 2, 5), jnp.int32([0, 1]))
    assert given == [jnp.float32, jnp.float32]


@pytest.mark.parametrize('module', MODULES)
def test_every_field_of_the_config_matters(module):
    def build(**changes):
        config = ConfigDict({'model': module.defaults(), 'data': {'image_size': 8, 'channels': 1}})
        config.update_from_flattened_dict(changes)
        return module.from_config(config, 3)

    g, d = plain = build()
    assert (g.image_size, g.channels, g.num_classes, d.num_classes) == (8, 1, 3, 3)
    assert getattr(d, 'blur', False) == (module is stylegan)
    for name, value in module.defaults().items():
        other = 'bfloat16' if name == 'dtype' else 2 * value
        assert build(**{f'model.{name}': other}) != plain, name
    with pytest.raises(UserError, match=r'^config.data.image_size=24: expected a power of two'):
        build(**{'data.image_size': 24})
    with pytest.raises(UserError, match=r'^config.model.mbstd_group=0: expected a whole number'):
        build(**{'model.mbstd_group': 0})
