from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.config import default
from gen_jax.diffusion.unet import UNet, from_config, sinusoids
from gen_jax.errors import UserError
from gen_jax.runtime.compilation import compiler_options

SMALL = {'channels': 8, 'multipliers': (1, 2), 'blocks': 1, 'attention': (4,), 'groups': 4}


def small(**changes):
    return UNet(**{**SMALL, 'out_channels': 1, 'dropout': 0.5, **changes})


def variables(unet, x, label=None):
    """Random everywhere: the initial values hide what starts near zero."""
    shapes = jax.eval_shape(unet.init, jax.random.key(0), x, jnp.zeros(len(x)), label)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([0.3 * rng.standard_normal(x.shape, np.float32) for x in leaves])


def image(b=2, size=8, channels=1):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((b, size, size, channels), np.float32))


@pytest.mark.slow
def test_paper_net_has_the_papers_parameters():
    init = UNet().init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 35_746_307


@pytest.mark.slow
def test_initial_values():
    net = small(channels=32, multipliers=(1,), attention=())
    params = jax.jit(net.init)(jax.random.key(0), image(), jnp.zeros(2))['params']
    kernel = params['down_0_resnet_0']['conv1']['kernel']
    bound = np.sqrt(3 / (9 * 32))  # uniform of variance 1 / fan_avg
    assert 0.97 * bound < np.abs(kernel).max() <= bound
    for last in (
        params['down_0_resnet_0']['conv2'],
        params['mid_attention_0']['to_out'],
        params['conv_out'],
    ):
        assert 0 < np.abs(last['kernel']).max() < 1e-5
        assert (last['bias'] == 0).all()


def test_sinusoids():
    got = sinusoids(jnp.float32([0, 1, 2.5]), 6)
    frequencies = np.array([1, 0.01, 0.0001])
    angles = np.array([0, 1, 2.5])[:, None] * frequencies
    np.testing.assert_allclose(got, np.hstack([np.sin(angles), np.cos(angles)]), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('size', 'changes'),
    [
        (8, {}),
        (28, {'multipliers': (1, 2, 3), 'attention': (14,)}),
        (5, {'multipliers': (1,), 'attention': ()}),
        (8, {'blocks': 3, 'attention': (8, 4)}),
    ],
)
def test_sizes(size, changes):
    net, x = small(**changes), image(size=size)
    y = jax.jit(net.apply)(variables(net, x), x, jnp.zeros(2))
    assert y.shape == x.shape
    assert np.isfinite(y).all()


@pytest.mark.slow
def test_examples_do_not_mix():
    net, x, t = small(), image(3), jnp.float32([1, 500, 9])
    params = variables(net, x)
    apply = jax.jit(net.apply)
    np.testing.assert_allclose(apply(params, x, t)[1:2], apply(params, x[1:2], t[1:2]), atol=1e-4)


@pytest.mark.slow
def test_time_label_and_dropout_matter():
    net, x, zeros = small(num_classes=3), image(), jnp.zeros(2, jnp.int32)
    params = variables(net, x, zeros)
    key = {'dropout': jax.random.key(3)}
    apply = jax.jit(net.apply, static_argnames='train')
    runs = [
        apply(params, x, zeros, zeros),
        apply(params, x, zeros + 7, zeros),
        apply(params, x, zeros, zeros + 2),
        apply(params, x, zeros, zeros, train=True, rngs=key),
    ]
    for i, a in enumerate(runs):
        for b in runs[:i]:
            assert np.abs(a - b).max() > 1e-3
    np.testing.assert_allclose(runs[0], apply(params, x, jnp.zeros(2), zeros), atol=1e-6)


@pytest.mark.slow
def test_every_parameter_has_a_gradient():
    net, x, label = small(num_classes=2, dropout=0.0), image(), jnp.arange(2)
    params = variables(net, x, label)
    grads = jax.jit(
        jax.grad(lambda p: (net.apply(p, x, jnp.float32([3, 700]), label) ** 2).mean())
    )(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(grad).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_bfloat16_computes_roughly_the_same_in_float32_out():
    x, t = image(), jnp.float32([3, 700])
    params = variables(small(), x)
    exact = jax.jit(small().apply)(params, x, t)
    rough = jax.jit(small(dtype=jnp.bfloat16).apply)(params, x, t)
    assert rough.dtype == jnp.float32
    difference = np.abs(exact - rough).max() / np.std(exact)
    assert 1e-4 < difference < 0.2
    init = jax.eval_shape(small(dtype=jnp.bfloat16).init, jax.random.key(0), x, t)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(init))


@pytest.mark.parametrize(
    ('field', 'value', 'says'),
    [
        ('data.image_size', 7, 'a multiple of 2'),
        ('model.groups', 5, r'divides the width of each level, which are \[32, 64\]'),
        ('model.groups', 0, 'divides'),
        ('model.attention', (16,), r'sizes of feature maps, which here are \[8, 4\]'),
        ('model.dtype', 'float23', "did you mean 'float32'"),
        ('model.channels', 3, 'even'),
        ('model.multipliers', (), 'one number above 0 per level'),
        ('model.multipliers', (1, 0), 'one whole number of at least 1 per level'),
        ('model.multipliers', (0.5, 1), 'one whole number of at least 1 per level'),
        ('model.multipliers', ('a', 'b'), 'one whole number of at least 1 per level'),
        ('model.blocks', 0, 'at least 1'),
        ('model.dropout', 1.0, 'below 1'),
    ],
)
def test_mistakes_are_named(field, value, says):
    config = default('diffusion.gaussian')
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=says) as error:
        from_config(config, 0)
    assert '\n' not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['norms', 'blocks'])
def test_what_is_computed_again_is_the_same(remat):
    x, t = image(size=4), jnp.float32([3, 500])
    net = partial(small, multipliers=(1,))
    params = variables(net(), x)

    def loss(net, params):
        y = net.apply(params, x, t, train=True, rngs={'dropout': jax.random.key(2)})
        return jnp.sum(jnp.tanh(y))

    plain, again = (
        jax.jit(jax.value_and_grad(lambda p, net=net: loss(net, p)))(params)
        for net in (net(), net(remat=remat))
    )
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-7)


@pytest.mark.slow
def test_the_less_is_kept_the_less_memory():
    """With the options of compiler_options, without which a CPU's compiler keeps all."""
    x, t = image(b=16, size=32), jnp.zeros(16)
    mesh = jax.make_mesh((1,), ('data',), devices=jax.devices('cpu')[:1])
    needed = []
    for remat in ('none', 'norms', 'blocks'):
        net = small(remat=remat, channels=12, multipliers=(1, 1), blocks=2, attention=())
        params = jax.eval_shape(net.init, jax.random.key(0), x, t)

        def loss(params, net=net):
            return jnp.sum(net.apply(params, x, t, train=True, rngs={'dropout': jax.random.key(2)}))

        step = jax.jit(jax.grad(loss), compiler_options=compiler_options(mesh))
        needed.append(step.lower(params).compile().memory_analysis().temp_size_in_bytes)
    assert needed[1] < 0.7 * needed[0]
    assert needed[2] < 0.95 * needed[1]


def test_remat_of_an_unknown_name_is_refused():
    config = default('diffusion.gaussian')
    config.model.remat = 'norm'
    with pytest.raises(UserError, match="did you mean 'norms'"):
        from_config(config, 0)
