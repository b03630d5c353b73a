"""StyleGAN2's networks by themselves; agreement with the authors' is in tests/parity."""

from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gen_jax.errors import UserError
from gen_jax.gans.stylegan2 import Discriminator, Generator, defaults, from_config

SMALL = {'channel_base': 64, 'channel_max': 6}
MAPPED = {'latent_dim': 5, 'w_dim': 4, 'mapping_layers': 2, 'mapping_rate': 1.0, 'image_size': 8}
CIFAR = {'image_size': 32, 'mapping_layers': 2}
CLASSES = {'num_classes': 10}
ORIG = {'architecture': 'orig'}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def small(**changes):
    return Generator(**{**SMALL, **MAPPED, **changes})


def variables(net, *args):
    """Random everywhere: the initial values hide what starts at zero."""
    shapes = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), *args)
    shapes.pop('intermediates', None)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([np.float32(rng.standard_normal(x.shape)) for x in leaves])


def config(**changes):
    made = ConfigDict({'model': defaults(), 'data': {'image_size': 8, 'channels': 1}})
    made.update_from_flattened_dict(changes)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ('generator', 'discriminator', 'size', 'counts'),
    [
        ({}, {}, 1024, (30_370_060, 29_012_513)),
        (CIFAR, ORIG, 32, (19_947_539, 20_720_641)),
        (CIFAR | CLASSES, ORIG | CLASSES, 32, (20_215_315, 23_089_664)),
    ],
)
def test_parameters_are_as_many_as_the_authors(generator, discriminator, size, counts):
    label = jnp.zeros(1, jnp.int32)
    nets = Generator(**generator), Discriminator(**discriminator)
    for net, x, count in zip(nets, ((1, 512), (1, size, size, 3)), counts, strict=True):
        init = partial(net.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros(x), label)
        assert sum(prod(leaf.shape) for leaf in jax.tree.leaves(shapes['params'])) == count


@pytest.mark.slow
@pytest.mark.parametrize('architecture', ['skip', 'resnet'])
def test_gradients_reach_every_parameter(architecture):
    of_d = 'orig' if architecture == 'skip' else 'resnet'
    g = small(architecture=architecture, num_classes=2, channels=1)
    d = Discriminator(**SMALL, label_layers=1, architecture=of_d, group=2, num_classes=2)
    z, label = normal(1, 2, 5), jnp.int32([0, 1])
    keys = jax.random.split(jax.random.key(0), 2)
    of_g, of_d = variables(g, z, label), variables(d, normal(1, 2, 8, 8, 1), label)

    def loss(g_params, d_params):
        fake = g.apply({**of_g, 'params': g_params}, z, label, train=False, keys=keys)
        assert fake.shape == (2, 8, 8, 1)
        logits = d.apply({'params': d_params}, fake, label, train=True)
        assert logits.shape == (2,)
        return jnp.square(logits).sum()

    grads = jax.jit(jax.grad(loss, (0, 1)))(of_g['params'], of_d['params'])
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert leaf.any(), path


def test_a_sample_depends_on_its_own_latent_label_and_key():
    net = small(num_classes=3)
    z, label, keys = normal(1, 3, 5), jnp.int32([0, 1, 2]), jax.random.split(jax.random.key(1), 3)
    of_net = variables(net, z, label)
    run = jax.jit(lambda z, label, keys: net.apply(of_net, z, label, train=False, keys=keys))
    images = run(z, label, keys)
    others = run(z.at[0].add(1), label.at[1].set(2), keys.at[2].set(jax.random.key(7)))
    assert (np.abs(others - images).max((1, 2, 3)) > 1e-2).all()
    changed = [run(z.at[0].add(1), label, keys), run(z, label.at[0].set(1), keys)]
    changed.append(run(z, label, keys.at[0].set(jax.random.key(7))))
    for image in changed:
        assert np.abs(image - images)[0].max() > 1e-2
        np.testing.assert_allclose(image[1:], images[1:], atol=1e-5)


def test_noise():
    """The strengths scale it; without keys it is the constant; layers do not share it."""
    net, ws = small(), normal(2, 2, 4, 4)
    key = jax.random.key(3)
    of_net = variables(net, normal(1, 2, 5))
    names = [f'block_{place}' for place in ('4_conv_1', '8_conv_0', '8_conv_1')]
    synthesis = of_net['params']['synthesis_network']

    @jax.jit
    def run(strengths, constants, keys):
        params = {name: {**synthesis[name], 'noise_strength': strengths[i]} for i, name in
                  enumerate(names)}  # fmt: skip
        params = {**of_net['params'], 'synthesis_network': {**synthesis, **params}}
        changed = {**of_net, 'params': params, 'constants': constants}
        return (
            net.apply(changed, ws, method='synthesis'),
            net.apply(changed, ws, keys, method='synthesis'),
        )

    ones, zeros, keys = jnp.ones(3), jnp.zeros(3), jax.random.split(key, 2)
    constants = of_net['constants']
    silent = run(zeros, constants, keys)
    np.testing.assert_array_equal(*silent)
    # Constants that are what each layer draws for the first sample.
    drawn = {
        name: {'noise': jax.random.normal(jax.random.fold_in(keys[0], i), (size, size))}
        for i, (name, size) in enumerate(zip(names, (4, 8, 8), strict=True))
    }
    fixed, random = run(ones, {'synthesis_network': drawn}, keys)
    np.testing.assert_allclose(fixed[0], random[0], atol=1e-5)
    assert np.abs(fixed[1] - random[1]).max() > 1e-2
    assert np.abs(fixed - silent[0]).max() > 1e-2


@pytest.mark.slow
def test_mean_of_w_and_truncation():
    net, z = small(), normal(1, 6, 5)
    of_net = variables(net, z)
    start = of_net['w_avg']['w_avg']
    psi = jnp.float32([0, 0.5, 1, 1, 1, 2])

    @jax.jit
    def run():
        apply = partial(net.apply, of_net, z, method='mapping')
        stepped, still = (apply(train=t, mutable=['w_avg'])[1]['w_avg'] for t in (True, False))
        ws = apply(train=True), apply(psi=psi, cutoff=3), apply(psi=psi)
        return *ws, stepped['w_avg'], still['w_avg'], net.init(jax.random.key(0), z, train=True)

    ws, some, every, stepped, still, fresh = run()
    w = ws[:, 0]
    assert ws.shape == (6, net.num_ws, 4) == (6, 4, 4)
    np.testing.assert_array_equal(ws, jnp.broadcast_to(w[:, None], ws.shape))
    np.testing.assert_allclose(stepped, 0.998 * start + 0.002 * w.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(still, start)
    assert not fresh['w_avg']['w_avg'].any()
    np.testing.assert_array_equal(some[:, 3], w)
    for i in range(3):
        np.testing.assert_allclose(some[:, i], start + psi[:, None] * (w - start), atol=1e-5)
    np.testing.assert_array_equal(every[:, 3], some[:, 0])


def test_every_layer_has_its_w():
    net, ws = small(architecture='orig'), normal(2, 1, 4, 4)
    of_net = variables(net, normal(1, 1, 5))
    run = jax.jit(lambda ws: net.apply(of_net, ws, method='synthesis'))
    for i in range(net.num_ws):
        assert np.abs(run(ws.at[:, i].add(1)) - run(ws)).max() > 1e-3, i


def test_features_and_images_at_a_time():
    net, x = Discriminator(**SMALL, group=2), normal(1, 4, 8, 8, 3)
    of_net = variables(net, x)
    apply = jax.jit(partial(net.apply, train=False, mutable=['intermediates']))
    logits, sown = apply(of_net, x)
    (features,) = sown['intermediates']['features']
    assert features.shape == (4, 6)
    out = of_net['params']['epilogue_out']
    np.testing.assert_allclose(features @ out['kernel'] / 6**0.5 + out['bias'], logits[:, None],
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    changed, _ = apply(of_net, x.at[0].add(1))  # which is compared with image 2
    np.testing.assert_allclose(changed[jnp.array([1, 3])], logits[jnp.array([1, 3])], rtol=1e-5)
    assert (np.abs(changed - logits)[::2] > 1e-4).all()


def test_bfloat16_comes_near():
    g, d, z = small(), Discriminator(**SMALL), normal(1, 2, 5)
    of_g, of_d = variables(g, z), variables(d, normal(1, 2, 8, 8, 3))

    def run(dtype):
        image = g.clone(dtype=dtype).apply(of_g, z, train=False)
        return image, d.clone(dtype=dtype).apply(of_d, image, train=False)

    exact, near = jax.jit(lambda: (run(jnp.float32), run(jnp.bfloat16)))()
    for a, b in zip(exact, near, strict=True):
        assert b.dtype == jnp.float32
        assert 1e-5 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_config():
    g, d = from_config(config(**{'model.dtype': 'bfloat16', 'model.g_architecture': 'orig'}), 3)
    assert (g.latent_dim, g.image_size, g.channels, g.num_classes) == (64, 8, 1, 3)
    assert (g.dtype, g.architecture, d.dtype, d.architecture) == (
        *(jnp.bfloat16, 'orig'),
        *(jnp.bfloat16, 'resnet'),
    )
    changes = {
        'latent_dim': 9,
        'w_dim': 10,
        'channel_base': 99,
        'channel_max': 11,
        'mapping_layers': 5,
        'mapping_rate': 0.1,
        'label_layers': 3,
        'g_architecture': 'resnet',
        'd_architecture': 'orig',
        'mbstd_group': 7,
        'dtype': 'bfloat16',
    }
    assert changes.keys() == defaults().keys()
    plain = from_config(config(), 0)
    for name, value in changes.items():
        assert from_config(config(**{f'model.{name}': value}), 0) != plain, name


@pytest.mark.parametrize(
    ('field', 'value', 'says'),
    [
        ('data.image_size', 12, 'a power of two of at least 8'),
        ('data.image_size', 4, 'a power of two of at least 8'),
        ('model.channel_base', 7, 'at least data.image_size=8'),
        ('model.mapping_layers', 0, 'a whole number of at least 1'),
        ('model.mapping_rate', 0.0, 'a positive number'),
        ('model.mapping_rate', float('inf'), 'a positive number'),
        ('model.d_architecture', 'skip', 'a known name; known are: orig, resnet'),
        ('model.dtype', 'float16', "a known name, did you mean 'bfloat16'"),
    ],
)
def test_mistakes_are_told(field, value, says):
    with pytest.raises(UserError, match=f'^config.{field}={value!r}: expected {says}'):
        from_config(config(**{field: value}), 0)
