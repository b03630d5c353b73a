"""ADM's networks by themselves; agreement with the authors' is in tests/parity."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gen_jax.diffusion.adm import (
    ADMClassifier,
    ADMUNet,
    attend,
    defaults,
    from_config,
    number_of_heads,
    sinusoids,
)
from gen_jax.errors import UserError
from gen_jax.runtime.compilation import compiler_options

SMALL = {
    'channels': 8,
    'multipliers': (1, 2),
    'blocks': 1,
    'attention': (4,),
    'groups': 4,
    'head_channels': 8,
}


def small(**changes):
    return ADMUNet(**{**SMALL, 'out_channels': 1, 'dropout': 0.5, **changes})


def small_classifier(**changes):
    return ADMClassifier(**{**SMALL, 'num_classes': 3, **changes})


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
    made.update_from_flattened_dict(changes)
    return made


def test_sinusoids():
    got = sinusoids(jnp.float32([0, 1, 2.5]), 4)
    angles = np.array([0, 1, 2.5])[:, None] * np.array([1, 0.01])
    np.testing.assert_allclose(got, np.hstack([np.cos(angles), np.sin(angles)]), rtol=1e-5)


def test_heads_attend_each_by_itself():
    """Against softmax(q k^T / sqrt(d)) v, written out for each head."""
    qkv = np.random.default_rng(0).standard_normal((2, 5, 3 * 6))
    want = np.zeros((2, 5, 6))
    for b in range(2):
        for head in range(2):
            q, k, v = (qkv[b, :, 6 * i + 3 * head : 6 * i + 3 * head + 3] for i in range(3))
            weights = np.exp(q @ k.T / np.sqrt(3))
            weights /= weights.sum(1, keepdims=True)
            want[b, :, 3 * head : 3 * head + 3] = weights @ v
    np.testing.assert_allclose(attend(jnp.float32(qkv), 2), want, atol=1e-5)


@pytest.mark.slow
def test_initial_values():
    net = small(channels=32, multipliers=(1,), attention=(), num_classes=20)
    label = jnp.zeros(1, jnp.int32)
    params = jax.jit(net.init)(jax.random.key(0), image(1), jnp.zeros(1), label)['params']
    block, bound = params['up_0_resnet_0'], (9 * 64) ** -0.5
    for leaf in block['conv1'].values():  # the bias has 32 numbers
        assert 0.9 * bound < np.abs(leaf).max() <= bound
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.2)
    bound = (4 * 32) ** -0.5
    assert 0.97 * bound < np.abs(block['emb_proj']['kernel']).max() <= bound
    assert np.std(params['class_embedding']['embedding']) == pytest.approx(1, rel=0.1)
    for last in (block['conv2'], params['mid_attention_0']['proj_out'], params['conv_out']):
        assert not any(leaf.any() for leaf in last.values())


@pytest.mark.slow
def test_initial_values_of_the_classifier():
    net = small_classifier(channels=32, multipliers=(1,), attention=())
    params = jax.jit(net.init)(jax.random.key(0), image(1), jnp.zeros(1))['params']
    positions = params['pool']['positional_embedding']
    assert positions.shape == (65, 32)
    assert np.std(positions) == pytest.approx(32**-0.5, rel=0.1)
    assert params['pool']['c_proj']['kernel'].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('size', 'changes'),
    [
        (12, {'multipliers': (1, 1.5, 2), 'attention': (3,), 'head_channels': 4}),
        (5, {'multipliers': (1,), 'attention': (), 'blocks': 2, 'out_channels': 2}),
    ],
)
def test_sizes(size, changes):
    net, x = small(**changes), image(size=size)
    y = jax.jit(net.apply)(variables(net, x, jnp.zeros(2)), x, jnp.zeros(2))
    assert y.shape == (2, size, size, net.out_channels)
    assert np.isfinite(y).all()


@pytest.mark.slow
@pytest.mark.parametrize('make', [small, small_classifier])
def test_examples_do_not_mix(make):
    net, x, t = make(), image(3), jnp.float32([1, 500, 9])
    params, apply = variables(net, x, t), jax.jit(net.apply)
    others = apply(params, x.at[0].add(1), t.at[2].add(50))
    difference = np.abs(apply(params, x, t) - others).reshape(3, -1).max(1)
    assert difference[1] < 1e-5
    assert min(difference[0], difference[2]) > 1e-3


@pytest.mark.slow
def test_time_label_and_dropout_matter():
    net, x, zeros = small(num_classes=3, multipliers=(1,)), image(), jnp.zeros(2, jnp.int32)
    params = variables(net, x, zeros, zeros)
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


def gradients(net, *args):
    def loss(params):
        return (net.apply(params, *args) ** 2).mean()

    return jax.jit(jax.grad(loss))(variables(net, *args))


@pytest.mark.slow
@pytest.mark.parametrize(
    'net',
    [
        small(num_classes=2, scale_shift=False, resample_in_blocks=False),
        small_classifier(),
    ],
)
def test_every_parameter_has_a_gradient(net):
    label = [jnp.arange(2)] if isinstance(net, ADMUNet) else []
    grads = gradients(net, image(), jnp.float32([3, 700]), *label)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(grad).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_a_classifier_can_guide():
    """The gradient of log p(label | x_t) by x_t (section 4.1) is an image and not zero."""
    net, x, t = small_classifier(), image(), jnp.float32([3, 700])
    params = variables(net, x, t)

    def log_p(x):
        return jax.nn.log_softmax(net.apply(params, x, t))[jnp.arange(2), jnp.arange(2)].sum()

    got = jax.jit(jax.grad(log_p))(x)
    assert got.shape == x.shape
    direction = got / jnp.linalg.norm(got)
    ahead, behind = jax.jit(log_p)(x + 0.01 * direction), jax.jit(log_p)(x - 0.01 * direction)
    assert (ahead - behind) / 0.02 == pytest.approx(float(jnp.linalg.norm(got)), rel=0.02)


@pytest.mark.slow
def test_bfloat16_computes_roughly_the_same_in_float32_out():
    x, t = image(), jnp.float32([3, 700])
    net = small(multipliers=(1,))
    params = variables(net, x, t)
    exact = jax.jit(net.apply)(params, x, t)
    rough = jax.jit(net.clone(dtype=jnp.bfloat16).apply)(params, x, t)
    assert rough.dtype == jnp.float32
    difference = np.abs(exact - rough).max() / np.std(exact)
    assert 1e-4 < difference < 0.2
    for made in (net, small_classifier()):
        net = made.clone(dtype=jnp.bfloat16)
        y, init = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((y, init)))


@pytest.mark.slow
def test_what_is_computed_again_is_the_same():
    x, t = image(size=2), jnp.float32([3, 500])
    net = small(multipliers=(1,), attention=())
    params = variables(net, x, t)

    def loss(params, net):
        y = net.apply(params, x, t, train=True, rngs={'dropout': jax.random.key(2)})
        return jnp.sum(jnp.tanh(y))

    def gradient(remat):
        step = jax.value_and_grad(partial(loss, net=net.clone(remat=remat)))
        return jax.tree.leaves(jax.jit(step)(params))

    # What 'norms' computes again, 'blocks' does as well.
    for a, b in zip(gradient('blocks'), gradient('none'), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-7)


@pytest.mark.slow
def test_the_less_is_kept_the_less_memory():
    """With the options of compiler_options, without which a CPU's compiler keeps all."""
    x, t = image(b=16, size=32), jnp.zeros(16)
    mesh = jax.make_mesh((1,), ('data',), devices=jax.devices('cpu')[:1])
    needed = []
    for remat in ('none', 'norms', 'blocks'):
        net = small_classifier(remat=remat, dropout=0.5, multipliers=(1, 1), blocks=2, attention=())
        params = jax.eval_shape(net.init, jax.random.key(0), x, t)

        def loss(params, net=net):
            return jnp.sum(net.apply(params, x, t, train=True, rngs={'dropout': jax.random.key(2)}))

        step = jax.jit(jax.grad(loss), compiler_options=compiler_options(mesh))
        needed.append(step.lower(params).compile().memory_analysis().temp_size_in_bytes)
    print(needed)
    assert needed[1] < 0.8 * needed[0]
    assert needed[2] < 0.95 * needed[1]


def test_number_of_heads():
    assert number_of_heads(192, 0, 64) == 3
    assert number_of_heads(192, 4, 0) == 4
    for heads, head_channels in ((0, 0), (4, 64), (0, 48), (5, 0)):
        with pytest.raises(UserError, match=r'over 128 channels, .*expected one of both to be 0'):
            number_of_heads(128, heads, head_channels)
    with pytest.raises(UserError, match='over 16 channels'):
        jax.eval_shape(small(head_channels=5).init, jax.random.key(0), image(), jnp.zeros(2))


def test_every_field_of_the_config_reaches_the_network():
    changes = {
        'channels': 64,
        'multipliers': (0.5, 1),
        'blocks': 2,
        'attention': (8, 4),
        'dropout': 0.2,
        'groups': 4,
        'heads': 2,
        'head_channels': 0,
        'scale_shift': False,
        'resample_in_blocks': False,
        'remat': 'blocks',
        'dtype': 'bfloat16',
    }
    assert changes.keys() == defaults().keys()
    made = from_config(config(**{f'model.{name}': x for name, x in changes.items()}), 7)
    want = {**changes, 'dtype': jnp.bfloat16, 'num_classes': 7, 'out_channels': 1}
    assert made == ADMUNet(**want)
    assert from_config(config(), 0) == ADMUNet(
        **defaults() | {'dtype': jnp.float32}, out_channels=1
    )


@pytest.mark.parametrize(
    ('field', 'value', 'says'),
    [
        ('data.image_size', 7, 'a multiple of 2'),
        ('model.groups', 5, 'divides the width of each level'),
        ('model.attention', (16,), r'sizes of feature maps, which here are \[8, 4\]'),
        ('model.dtype', 'float23', "did you mean 'float32'"),
        ('model.remat', 'block', "did you mean 'blocks'"),
        ('model.channels', 33, 'even'),
        ('model.multipliers', (1, 1.3), 'divides the width of each level'),
        ('model.multipliers', ('a', 'b'), 'one number above 0 per level'),
        ('model.blocks', 0, 'at least 1'),
        ('model.dropout', 1.0, 'below 1'),
        ('model.heads', -1, '0 or more'),
        ('model.heads', 4, 'expected one of both to be 0'),
        ('model.head_channels', 48, 'to divide 64'),
        ('model.head_channels', 0, 'expected one of both to be 0'),
    ],
)
def test_mistakes_are_named(field, value, says):
    with pytest.raises(UserError, match=says) as error:
        from_config(config(**{field: value}), 0)
    assert '\n' not in str(error.value)
