"""Dense networks, by numpy and by hand: those of Goodfellow et al. and of Mirza and Osindero."""

import functools
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from games import small

from gen_jax import config as house
from gen_jax.errors import UserError
from gen_jax.gans import mlp

CONFIG = 'configs/gan_fashion_mnist.py'
LABELS = {'data__num_classes': 3, 'model__condition': 'concat'}


def count(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ('variant', 'of_generator', 'of_discriminator'),
    [
        # 100 - 1200 - 1200 - 784; 784 - 240 x 5 - 240 x 5 - 1.
        (
            'mlp',
            101 * 1200 + 1201 * 1200 + 1201 * 784,
            785 * 240 * 5 + 241 * 240 * 5 + 241,
        ),
        # z - 200 and y - 1000, together - 1200 - 784; x - 240 x 5 and y - 50 x 5, together
        # - 240 x 4 - 1.
        (
            'cgan',
            101 * 200 + 11 * 1000 + 1201 * 1200 + 1201 * 784,
            785 * 240 * 5 + 11 * 50 * 5 + 291 * 240 * 4 + 241,
        ),
    ],
)
def test_papers_layers_have_the_papers_parameters(variant, of_generator, of_discriminator):
    config = runpy.run_path(CONFIG)['get_config'](variant)
    batch = {'image': jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)}
    batch |= {'label': jax.ShapeDtypeStruct((2,), jnp.int32)} if variant == 'cgan' else {}
    state = jax.eval_shape(house.create(config).init, jax.random.key(0), batch)
    assert count(state.generator.params) == of_generator
    assert count(state.discriminator.params) == of_discriminator


def by_hand(params, x, told, pieces, last):
    """Layers by numpy; `pieces` of each layer, `told` what the label's own layer sees."""

    def layer(name, x, pieces):
        x = x @ np.asarray(params[name]['kernel'], np.float64) + params[name]['bias']
        parts = [x[:, i::pieces] for i in range(pieces)]
        return np.maximum(x, 0) if pieces == 1 else functools.reduce(np.maximum, parts)

    for i, of_layer in enumerate(pieces):
        first = i == 0 and told is not None
        meeting = [layer('label', told, of_layer)] if first else []
        x = np.concatenate([layer(f'dense_{i}', x, of_layer), *meeting], -1)
    return last(x @ params['out']['kernel'] + params['out']['bias'])


@pytest.mark.parametrize(('b', 'packing'), [(1, 1), (5, 1), (6, 2)])
@pytest.mark.parametrize('own', [(0, 0), (4, 3)])
def test_labels_beside_the_input_or_through_a_layer_of_their_own(own, b, packing):
    config = small(
        **LABELS,
        model__label_widths=own,
        model__g_widths=(6, 7),
        model__d_widths=(5, 6),
        model__pieces=(3, 2),
        model__packing=packing,
    )
    generator, discriminator = mlp.from_config(config, 3)
    rng = np.random.default_rng(0)
    z, x = rng.normal(size=(b, 3)), rng.normal(size=(b, 4, 4, 3))
    label = rng.integers(3, size=b)
    one_hot = np.eye(3)[label]

    def applied(net, x):
        params = net.init(jax.random.key(0), x, label, train=False)['params']
        # Biases begin as zeros.
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
        made = net.apply({'params': params}, x, label, train=False)
        return np.reshape(made, (len(made), -1)), params

    for net, x, m, pieces, last in (
        (generator, z, 1, (1, 1), np.tanh),
        (discriminator, x, packing, (3, 2), lambda x: x),
    ):
        made, params = applied(net, x)
        seen = x.reshape(b, -1) if any(own) else np.concatenate([x.reshape(b, -1), one_hot], -1)
        told = one_hot.reshape(b // m, -1) if any(own) else None
        expected = by_hand(params, seen.reshape(b // m, -1), told, pieces, last)
        np.testing.assert_allclose(made, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model__pieces': (1, 1)}, 'a whole number for each of model.d_widths'),
        ({'model__pieces': (0,)}, 'a whole number for each of model.d_widths'),
        ({**LABELS, 'model__label_widths': (4,)}, 'two whole numbers of 0 or more'),
        ({**LABELS, 'model__label_widths': (4, -1)}, 'two whole numbers of 0 or more'),
        ({'model__label_widths': (4, 3)}, "set model.condition='concat'"),
    ],
)
def test_wrong_layers(changes, message):
    with pytest.raises(UserError, match=message):
        house.create(small(**changes))
