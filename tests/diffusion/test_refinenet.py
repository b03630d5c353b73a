"""NCSNv2's network by itself; agreement with the authors' is in tests/parity."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gen_jax.diffusion.refinenet import (
    InstanceNormPlus,
    RefineNet,
    ResBlock,
    defaults,
    enlarge,
    from_config,
)
from gen_jax.errors import UserError
from gen_jax.runtime.compilation import compiler_options


def small(**changes):
    return RefineNet(**{'channels': 4, 'multipliers': (1, 2, 2), 'out_channels': 1, **changes})


def variables(net, *args):
    """Random everywhere: the initial values hide what starts at zero."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([0.3 * rng.standard_normal(x.shape, np.float32) for x in leaves])


def image(b=2, size=8, channels=1):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((b, size, size, channels), np.float32))


def config(**changes):
    made = ConfigDict({'model': defaults(), 'data': {'image_size': 8, 'channels': 1}})
    made.data.num_classes = 0
    made.update_from_flattened_dict(changes)
    return made


def test_instance_norm_plus():
    """Against NumPy, on channels of quite different means."""
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 4)) + np.array([0, 1, -3, 20])
    alpha, gamma, beta = np.random.default_rng(1).standard_normal((3, 4))
    params = {'alpha': alpha, 'gamma': gamma, 'beta': beta}
    mean = x.mean((1, 2), keepdims=True)
    within = (x - mean) / x.std((1, 2), keepdims=True)
    apart = (mean - mean.mean(-1, keepdims=True)) / mean.std(-1, ddof=1, keepdims=True)
    want = gamma * (within + alpha * apart) + beta
    got = jax.jit(InstanceNormPlus().apply)({'params': params}, jnp.float32(x))
    np.testing.assert_allclose(got, want, atol=2e-4)  # epsilon is 1e-5


@pytest.mark.slow
def test_a_constant_image_is_not_divided_by_zero():
    norm, x = InstanceNormPlus(), jnp.full((1, 2, 2, 3), 7.0)
    grad = jax.grad(lambda x: norm.apply(variables(norm, x), x).sum())(x)
    assert np.isfinite(grad).all()


def test_enlarging():
    x = jnp.float32([[0, 3], [6, 9]])[None, :, :, None]
    got = enlarge(x, 3, 4)[0, ..., 0]
    np.testing.assert_allclose(got, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]], atol=1e-6)
    np.testing.assert_array_equal(enlarge(x[:, :1, :1] + 2, 2, 3), jnp.full((1, 2, 3, 1), 2.0))
    assert enlarge(x.astype(jnp.bfloat16), 4, 4).dtype == jnp.bfloat16


def test_initial_values():
    block, x = ResBlock(64, 1, begins=True), image(1, channels=32)
    params = jax.jit(block.init)(jax.random.key(0), x)['params']
    for name, fan_in in (('conv1', 9 * 32), ('conv2', 9 * 32), ('conv_shortcut', 32)):
        bound = fan_in**-0.5
        for leaf in params[name].values():  # conv1's bias has 32 numbers
            assert 0.85 * bound < np.abs(leaf).max() <= bound
            assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.2)
    for name in ('alpha', 'gamma'):
        scales = np.concatenate([params[norm][name] for norm in ('norm1', 'norm2')])
        assert np.mean(scales) == pytest.approx(1, abs=0.01)
        assert np.std(scales) == pytest.approx(0.02, rel=0.3)
    assert not params['norm1']['beta'].any()


@pytest.mark.slow
def test_what_is_looked_at():
    """Every example by itself, and neither time, label nor mode."""
    net, x, t = small(), image(3), jnp.float32([1, 500, 9])
    params, apply = variables(net, x, t), jax.jit(net.apply, static_argnames='train')
    y = apply(params, x, t)
    difference = np.abs(y - apply(params, x.at[0].add(image(3)[1]), t)).reshape(3, -1).max(1)
    assert max(difference[1:]) < 1e-5 < 1e-3 < difference[0]
    again = apply(params, x, t + 1, jnp.arange(3), train=True, rngs={'dropout': jax.random.key(0)})
    np.testing.assert_allclose(y, again, atol=1e-6)


@pytest.mark.slow
def test_every_parameter_has_a_gradient():
    net, x, t = small(multipliers=(1, 2, 2, 2)), image(size=12), jnp.zeros(2)

    def loss(params):
        return (net.apply(params, x, t) ** 2).mean()

    grads = jax.jit(jax.grad(loss))(variables(net, x, t))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(grad).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_bfloat16_computes_roughly_the_same_in_float32_out():
    net, x, t = small(multipliers=(1, 1, 1)), image(), jnp.zeros(2)
    params = variables(net, x, t)
    exact = jax.jit(net.apply)(params, x, t)
    rough = jax.jit(net.clone(dtype=jnp.bfloat16).apply)(params, x, t)
    assert rough.dtype == jnp.float32
    difference = np.std(exact - rough) / np.std(exact)
    print(difference)
    assert 1e-4 < difference < 0.2
    net = net.clone(dtype=jnp.bfloat16)
    init = jax.eval_shape(net.init, jax.random.key(0), x, t)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(init))


@pytest.mark.slow
def test_what_is_computed_again_is_the_same_and_needs_less_memory():
    """With the options of compiler_options, without which a CPU's compiler keeps all."""
    x, t = image(b=8, size=32), jnp.zeros(8)
    mesh = jax.make_mesh((1,), ('data',), devices=jax.devices('cpu')[:1])

    def loss(params, net):
        return jnp.sum(jnp.tanh(net.apply(params, x, t)))

    found = []
    for remat in ('none', 'blocks'):
        net = small(remat=remat)
        params = variables(net, x, t)
        step = jax.jit(jax.grad(partial(loss, net=net)), compiler_options=compiler_options(mesh))
        compiled = step.lower(params).compile()
        found.append((compiled(params), compiled.memory_analysis().temp_size_in_bytes))
    (kept, much), (again, less) = found
    print(much, less)
    assert less < 0.7 * much
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * float(jnp.abs(a).max()))


def test_every_field_of_the_config_reaches_the_network():
    changes = {'channels': 6, 'multipliers': (1, 3, 2), 'remat': 'blocks', 'dtype': 'bfloat16'}
    assert changes.keys() == defaults().keys()
    made = from_config(config(**{f'model.{name}': x for name, x in changes.items()}), 0)
    assert made == RefineNet(**changes | {'dtype': jnp.bfloat16, 'out_channels': 1})
    assert from_config(config(), 0) == RefineNet(
        **defaults() | {'dtype': jnp.float32}, out_channels=1
    )


@pytest.mark.parametrize(
    ('field', 'value', 'says'),
    [
        ('data.image_size', 7, 'a multiple of 2, as the 4 stages'),
        ('model.channels', 1, 'at least 2'),
        ('model.multipliers', (1, 2), 'three whole numbers or more'),
        ('model.multipliers', (1, 0, 2), 'three whole numbers or more'),
        ('model.multipliers', (1.5, 2, 2), 'three whole numbers or more'),
        ('model.dtype', 'float23', "did you mean 'float32'"),
        ('model.remat', 'block', "did you mean 'blocks'"),
        ('data.num_classes', 10, "0, because config.network='refinenet' takes no label"),
    ],
)
def test_mistakes_are_named(field, value, says):
    made = config(**{field: value})
    with pytest.raises(UserError, match=says) as error:
        from_config(made, made.data.num_classes)
    assert '\n' not in str(error.value)
