"""BigGAN's networks and their options; agreement with the authors' is in tests/parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gen_jax.errors import UserError
from gen_jax.gans.biggan import DeepDiscriminator, DeepGenerator, Generator, defaults, from_config
from gen_jax.gans.resnet import Discriminator

SMALL = {'channels': 8, 'multipliers': (2, 2, 1), 'latent_dim': 6, 'shared_dim': 3}
Z, LABEL = np.random.default_rng(0).standard_normal((2, 6), np.float32), jnp.int32([0, 2])


def test_each_part_of_z_comes_in_at_its_place(random_variables):
    """Statistics before a block know nothing of the parts of z that come later."""
    net = Generator(**SMALL, num_classes=3)
    given = random_variables(net, Z, LABEL)

    @jax.jit
    def means(z):
        stats = net.apply(given, z, LABEL, train=True, mutable=['batch_stats'])[1]['batch_stats']
        norms = ('block_0', 'norm1'), ('block_0', 'norm2'), ('block_1', 'norm2')
        return [stats[block][norm]['bn']['mean'] for block, norm in norms]

    before = means(Z)
    for part, changed in enumerate(([True] * 3, [False, True, True], [False, False, True])):
        z = Z.copy()
        z[:, 2 * part] += 1
        for a, b, differs in zip(before, means(z), changed, strict=True):
            assert (np.abs(a - b).max() > 1e-4) == differs


def test_norms_share_what_they_are_told_of_a_class():
    def shapes(**changes):
        net = Generator(**SMALL, num_classes=3).clone(**changes)
        made = jax.eval_shape(lambda: net.init(jax.random.key(0), Z, LABEL, train=False))
        return made, made['params']['block_0']['norm1']['gain']['kernel'].shape

    made, gain = shapes()
    assert made['params']['shared']['embedding'].shape == (3, 3)
    assert gain == (3 + 2, 16)
    made, gain = shapes(hierarchical=False, shared_dim=0)
    assert 'shared' not in made['params']
    assert gain == (3, 16)
    # Its gains are tables, which nothing divides.
    assert 'norm1' not in made['spectral']['block_0']
    made, gain = shapes(num_classes=0)
    assert 'shared' not in made['params']
    assert gain == (2, 16)


NETS = [
    Generator(**SMALL, num_classes=3),
    Generator(**SMALL, num_classes=3).clone(hierarchical=False, shared_dim=0, multipliers=(2, 1)),
    DeepGenerator(**SMALL, num_classes=3).clone(multipliers=(4, 2)),
    DeepDiscriminator(channels=16, multipliers=(1, 2, 4), halvings=1, num_classes=3),
]


@pytest.mark.slow
@pytest.mark.parametrize('net', NETS)
def test_every_parameter_has_a_gradient_and_examples_do_not_mix(net, random_variables):
    x = Z if isinstance(net, Generator) else np.tanh(np.resize(Z, (2, 4, 4, 3)))
    given = random_variables(net, x, LABEL)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, x):
        y = net.apply({**given, 'params': params}, x, LABEL, train=False)
        return (y**2).mean(), y

    run = jax.jit(run)
    (_, y), grads = run(given['params'], x)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(grad).max() > 1e-7, jax.tree_util.keystr(path)
    moved = x.copy()
    moved[0] += 1
    difference = np.abs(run(given['params'], moved)[0][1] - y).reshape(2, -1).max(1)
    assert difference[1] < 1e-6 < 1e-3 < difference[0]


def config(**changes):
    made = ConfigDict({'model': defaults(), 'data': {'image_size': 32, 'channels': 3}})
    made.update_from_flattened_dict(changes)
    return made


def test_every_field_of_the_config_reaches_the_networks():
    changes = {
        'latent_dim': 8,
        'channels': 16,
        'g_multipliers': (4, 2),
        'd_multipliers': (1, 2, 3),
        'd_halvings': 1,
        'attention': (),
        'condition': 'auxiliary',
        'norm_epsilon': 1e-3,
        'weight_init': 'normal',
        'dtype': 'bfloat16',
        'deep': True,
        'shared_dim': 5,
        'hierarchical': False,
    }
    assert changes.keys() == defaults().keys()
    both = {'channels': 16, 'num_classes': 9, 'epsilon': 1e-3}
    both |= {'weight_init': 'normal', 'dtype': jnp.bfloat16}
    g_fields = {'latent_dim': 8, 'multipliers': (4, 2), 'base_size': 16, 'shared_dim': 5, **both}
    d_fields = {'multipliers': (1, 2, 3), 'halvings': 1, 'head': 'auxiliary', **both}
    made = config(**{f'model.{name}': x for name, x in (changes | {'hierarchical': True}).items()})
    assert from_config(made, 9) == (DeepGenerator(**g_fields), DeepDiscriminator(**d_fields))
    made.model.update(deep=False, hierarchical=False)
    want = Generator(**g_fields, hierarchical=False), Discriminator(**d_fields)
    assert from_config(made, 9) == want
    plain = {'channels': 96, 'attention': (16,)}
    assert from_config(config(), 0) == (Generator(**plain), Discriminator(**plain))


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'latent_dim': 81}, 'latent_dim=81: expected a multiple of 4'),
        ({'shared_dim': -1}, '0 or more'),
        ({'deep': True, 'hierarchical': False}, 'True where config.model.deep is'),
        ({'deep': True, 'channels': 33}, 'a multiple of 4 where deep'),
        ({'deep': True, 'g_multipliers': (2, 2, 4)}, 'do not rise where deep'),
        ({'deep': True, 'd_multipliers': (2, 4, 1)}, 'do not fall where deep'),
        ({'deep': True, 'd_halvings': 4}, 'd_halvings=4: expected a number from 0 to 3'),
        ({'deep': True, 'd_multipliers': (2,), 'd_halvings': 0}, '2 or more'),
        ({'weight_init': 'ortho'}, "did you mean 'orthogonal'"),
    ],
)
def test_mistakes_are_named(changes, says):
    made = config(**{f'model.{name}': x for name, x in changes.items()})
    with pytest.raises(UserError, match=says) as error:
        from_config(made, 0)
    assert '\n' not in str(error.value)
