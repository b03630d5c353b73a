from functools import cache, partial

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from gen_jax.diffusion.song import SongUNet, defaults, from_config
from gen_jax.errors import UserError
from gen_jax.method import Net, descend
from gen_jax.runtime.compilation import compiler_options

SMALL = {'channels': 8, 'multipliers': (1, 2), 'blocks': 1, 'attention': (4,)}
# Everything that brings parameters.
RICH = {
    'embedding': 'fourier',
    'encoder': 'skip',
    'decoder': 'skip',
    'fir': True,
    'scale_by_sigma': True,
    'num_classes': 3,
    'augment_dim': 2,
}


def small(**changes):
    return SongUNet(**{**SMALL, 'out_channels': 1, 'dropout': 0.5, **changes})


def variables(net, x):
    """Random everywhere: the initial values hide what starts near zero."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.ones(len(x)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([0.3 * rng.standard_normal(x.shape, np.float32) for x in leaves])


def image(b=2, h=8, w=8, channels=1):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((b, h, w, channels), np.float32))


def config(**changes):
    config = ml_collections.ConfigDict(
        {'model': defaults(), 'data': {'image_size': 8, 'channels': 1}}
    )
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
def test_initial_values():
    net = small(channels=32, multipliers=(1,), attention=(), embedding='fourier')
    fresh = jax.jit(net.init)(jax.random.key(0), image(), jnp.ones(2))
    params = fresh['params']
    kernel = params['down_0_block_0']['conv_1']['kernel']
    bound = np.sqrt(3 / (9 * 32))  # uniform of variance 1 / fan_avg
    assert 0.97 * bound < np.abs(kernel).max() <= bound
    query = params['mid_attention']['to_q']['kernel']
    assert 0.9 * np.sqrt(0.3 / 32) < np.abs(query).max() <= np.sqrt(0.3 / 32)
    for last in (
        params['down_0_block_0']['conv_2'],
        params['mid_attention']['to_out'],
        params['up_0_conv_out'],
    ):
        assert 0 < np.abs(last['kernel']).max() < 1e-5
        assert (last['bias'] == 0).all()
    frequencies = fresh['constants']['embedding']['frequencies']
    assert frequencies.shape == (32,)
    assert 10 < np.std(frequencies) < 24


@pytest.mark.slow
def test_frequencies_are_kept_but_not_trained():
    net, x, tx = small(multipliers=(1,), embedding='fourier'), image(h=2, w=2), optax.sgd(0.1)
    fresh = variables(net, x)
    state = Net.create(fresh, tx, ema=True)

    def loss(params, extra, batch):
        y = net.apply({'params': params, **extra}, batch, jnp.ones(2))
        return jnp.mean(jnp.tanh(y)), (extra, {})

    after, _ = jax.jit(lambda state, x: descend(state, loss, tx, 0.9, x))(state, x)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), after.extra, state.extra)
    assert same == {'constants': {'embedding': {'frequencies': True}}}
    kernel = after.params['embedding']['linear_1']['kernel']
    assert np.abs(kernel - fresh['params']['embedding']['linear_1']['kernel']).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [RICH, pytest.param({**RICH, 'encoder': 'residual'}, marks=pytest.mark.slow)],
)
def test_every_parameter_has_a_gradient(changes):
    net, x = small(**changes, dropout=0.0), image(h=4, w=4)
    fresh = variables(net, x)
    label = jnp.arange(2) if net.num_classes else None
    augment = jnp.ones((2, 2)) if net.augment_dim else None

    def loss(params):
        t = jnp.float32([0.3, 40])
        y = net.apply(fresh | {'params': params}, x, t, label, augment=augment)
        return (y**2).mean()

    grads = jax.jit(jax.grad(loss))(fresh['params'])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(grad).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_sigma_is_a_logarithm_inside_and_a_divisor_outside():
    sigma, x, net = jnp.float32([0.02, 50]), image(), partial(small, multipliers=(1,))
    net, plain = (net(embedding='fourier', scale_by_sigma=yes) for yes in (True, False))
    params = variables(net, x)
    ours = jax.jit(net.apply)(params, x, sigma)
    want = jax.jit(plain.apply)(params, x, jnp.log(sigma)) / sigma[:, None, None, None]
    np.testing.assert_allclose(ours, want, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('shape', 'changes'),
    [
        ((1, 2, 6), {'encoder': 'residual', 'fir': True}),
        ((2, 5, 3), {'multipliers': (1,), 'attention': ()}),
        ((1, 12, 4), {'multipliers': (1, 1, 2), 'decoder': 'skip', 'attention': ()}),
    ],
)
def test_sizes(shape, changes):
    net, x = small(**changes), image(*shape)
    y = jax.jit(net.apply)(variables(net, x), x, jnp.zeros(len(x)))
    assert y.shape == x.shape
    assert np.isfinite(y).all()


@pytest.mark.slow
def test_examples_do_not_mix_and_time_and_dropout_matter():
    net, x, t = small(multipliers=(1,)), image(3), jnp.float32([1, 500, 9])
    params = variables(net, x)
    apply = jax.jit(net.apply, static_argnames='train')
    plain = apply(params, x, t)
    others = apply(params, x.at[::2].add(5), t.at[::2].add(5))
    np.testing.assert_allclose(plain[1], others[1], atol=1e-5)
    assert np.abs(plain - others)[::2].max() > 1e-3
    assert np.abs(plain - apply(params, x, t + 7)).max() > 1e-3
    drops = [
        apply(params, x, t, train=True, rngs={'dropout': jax.random.key(seed)}) for seed in (0, 1)
    ]
    assert np.abs(drops[0] - plain).max() > 1e-3
    assert np.abs(drops[0] - drops[1]).max() > 1e-3


@pytest.mark.slow
def test_bfloat16_computes_roughly_the_same_in_float32_out():
    x, t = image(h=4, w=4), jnp.float32([0.3, 40])
    params = variables(small(**RICH), x)
    exact = jax.jit(small(**RICH).apply)(params, x, t)
    rough = jax.jit(small(**RICH, dtype=jnp.bfloat16).apply)(params, x, t)
    assert rough.dtype == jnp.float32
    difference = np.abs(exact - rough).max() / np.std(exact)
    assert 1e-4 < difference < 0.2
    init = jax.eval_shape(small(**RICH, dtype=jnp.bfloat16).init, jax.random.key(0), x, t)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(init))


@pytest.mark.slow
def test_what_is_computed_again_is_the_same_in_less_memory():
    x, t = image(b=16, h=16, w=16), jnp.linspace(1, 9, 16)
    net = partial(small, multipliers=(1,), attention=(), blocks=3)
    params = variables(net(), x)
    options = compiler_options(jax.make_mesh((1,), ('data',), devices=jax.devices('cpu')[:1]))

    def step(net):
        def loss(params):
            y = net.apply(params, x, t, train=True, rngs={'dropout': jax.random.key(2)})
            return jnp.sum(jnp.tanh(y))

        lowered = jax.jit(jax.value_and_grad(loss), compiler_options=options).lower(params)
        compiled = lowered.compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes

    (plain, most), (again, less) = step(net()), step(net(remat='blocks'))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()) + 1e-6)
    print('memory', less / most)
    assert less < 0.85 * most


@cache
def program(changes):
    """What a config, with these changes to the defaults, computes, as text."""
    net = from_config(config(**dict(changes)), 0)
    keys = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    run = partial(net.init_with_output, train=True)
    return str(jax.make_jaxpr(run)(keys, image(1), jnp.ones(1)))


FIELDS = {
    'channels': 16,
    'multipliers': (2, 1),
    'blocks': 2,
    'attention': (8,),
    'dropout': 0.5,
    'embedding': 'fourier',
    'encoder': 'residual',
    'decoder': 'skip',
    'fir': True,
    'remat': 'blocks',
    'dtype': 'bfloat16',
}


@pytest.mark.parametrize('field', defaults())
def test_every_field_changes_what_is_computed(field):
    assert program(()) != program(((f'model.{field}', FIELDS[field]),))


def test_config_makes_the_network_it_describes():
    made = from_config(config(**{'model.dtype': 'bfloat16', 'data.channels': 3}), 4)
    assert (made.num_classes, made.out_channels, made.dtype) == (4, 3, jnp.bfloat16)
    assert made.multipliers == (1, 2)


@pytest.mark.parametrize(
    ('field', 'value', 'says'),
    [
        ('data.image_size', 7, 'a multiple of 2'),
        ('model.channels', 6, 'a multiple of 32, or of 4'),
        ('model.channels', 36, 'a multiple of 32, or of 4'),
        ('model.channels', 0, 'a multiple of 32'),
        ('model.attention', (16,), r'sizes of feature maps, which here are \[8, 4\]'),
        ('model.dtype', 'float23', "did you mean 'float32'"),
        ('model.embedding', 'furier', "did you mean 'fourier'"),
        ('model.encoder', 'residuel', "did you mean 'residual'"),
        ('model.decoder', 'residual', 'known are: skip, standard'),
        ('model.remat', 'norms', 'known are: blocks, none'),
        ('model.multipliers', (), 'per level'),
        ('model.multipliers', (1, 0), 'at least 1 per level'),
        ('model.multipliers', (1.5, 2), 'whole number'),
        ('model.blocks', 0, 'at least 1'),
        ('model.dropout', 1.0, 'below 1'),
    ],
)
def test_mistakes_are_named(field, value, says):
    with pytest.raises(UserError, match=says) as error:
        from_config(config(**{field: value}), 0)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('channels', [4, 12, 32])
def test_widths_that_are_accepted_can_be_normalised(channels):
    made = from_config(config(**{'model.channels': channels}), 0)
    jax.eval_shape(made.init, jax.random.key(0), image(), jnp.ones(2))
