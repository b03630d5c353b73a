import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gen_jax.diffusion.dit import (
    SIZES,
    DiT,
    defaults,
    from_config,
    images,
    modulated,
    patches,
    positions,
)
from gen_jax.errors import UserError
from gen_jax.runtime.compilation import compiler_options

SMALL = {'width': 16, 'depth': 2, 'heads': 2, 'patch': 2, 'out_channels': 1}


def small(**changes):
    return DiT(**{**SMALL, **changes})


def variables(net, x, label=None):
    """Random everywhere: the initial values hide what starts at zero."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(len(x)), label)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([0.3 * rng.standard_normal(x.shape, np.float32) for x in leaves])


def image(b=2, h=8, w=8, channels=1):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((b, h, w, channels), np.float32))


def config(**changes):
    whole = ConfigDict({'model': defaults(), 'data': {'image_size': 8, 'channels': 1}})
    whole.update_from_flattened_dict(changes)
    return whole


@pytest.mark.slow
def test_initial_values():
    net, x, label = small(width=128, num_classes=1000, depth=1), image(), jnp.zeros(2, jnp.int32)
    params = jax.jit(net.init)(jax.random.key(0), x, jnp.zeros(2), label)['params']
    block, final = params['blocks_0'], params['final_layer']
    for layer, fan in (
        (block['attn']['qkv'], 128 + 384),
        (block['mlp']['fc1'], 128 + 512),
        (params['x_embedder'], 4 + 128),
    ):
        bound = np.sqrt(6 / fan)  # of Glorot and Bengio 2010
        assert 0.95 * bound < np.abs(layer['kernel']).max() <= bound
        assert (layer['bias'] == 0).all()
    for table in (params['y_embedder']['embedding'], params['t_embedder']['mlp_0']['kernel']):
        np.testing.assert_allclose(np.std(table), 0.02, rtol=0.02)
    for zero in (block['adaLN_modulation_1'], final['adaLN_modulation_1'], final['linear']):
        assert not any(x.any() for x in jax.tree.leaves(zero))


@pytest.mark.slow
def test_begins_as_zero():
    net, x = small(), image()
    assert not jax.jit(net.init_with_output)(jax.random.key(0), x, jnp.zeros(2))[0].any()


def test_positions():
    got = positions(3, 5, 8).reshape(3, 5, 8)
    for row in range(3):
        for column in range(5):
            x, y = ((p, p / 100) for p in (column, row))
            want = [*np.sin(x), *np.cos(x), *np.sin(y), *np.cos(y)]
            np.testing.assert_allclose(got[row, column], want, atol=1e-7)


def test_patches():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    got = patches(x, 2)
    assert got.shape == (2, 6, 12)
    np.testing.assert_array_equal(got[1, 4], x[1, 2:4, 2:4].ravel())
    np.testing.assert_array_equal(images(got, 2, 4, 6), x)


def test_modulated():
    """At a spread like the root of 1e-6, which is added to the variance."""
    rng = np.random.default_rng(0)
    x, shift, scale = (rng.standard_normal(shape) for shape in ((2, 5, 8), (2, 1, 8), (2, 1, 8)))
    x = 1 + 1e-3 * x
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    got = modulated(jnp.float32(x), jnp.float32(shift), jnp.float32(scale))
    np.testing.assert_allclose(got, normal * (1 + scale) + shift, atol=2e-3)


@pytest.mark.parametrize(
    ('size', 'changes'),
    [
        ((8, 8), {}),
        ((6, 10), {}),
        ((9, 3), {'patch': 3, 'depth': 1}),
        ((4, 4), {'patch': 4, 'width': 20, 'heads': 5}),
        ((3, 3), {'patch': 1, 'heads': 1, 'out_channels': 2}),
    ],
)
def test_sizes(size, changes):
    net, x = small(**changes), image(2, *size)
    y = jax.jit(net.apply)(variables(net, x), x, jnp.zeros(2))
    assert y.shape == (2, *size, net.out_channels)
    assert np.isfinite(y).all()


def test_images_that_cannot_be_cut_are_refused():
    with pytest.raises(UserError, match=r'images of 8x7 pixels .* patches of 2x2') as error:
        jax.eval_shape(small().init, jax.random.key(0), image(2, 8, 7), jnp.zeros(2))
    assert '\n' not in str(error.value)


def test_examples_do_not_mix():
    net, x, t = small(), image(3), jnp.float32([1, 500, 9])
    params = variables(net, x)
    apply = jax.jit(net.apply)
    np.testing.assert_allclose(apply(params, x, t)[1:2], apply(params, x[1:2], t[1:2]), atol=1e-4)


def test_every_pixel_sees_every_other():
    net, x = small(depth=1), image(1)
    params = variables(net, x)
    y = jax.jit(lambda x: net.apply(params, x, jnp.zeros(1)))
    moved = np.abs(y(x) - y(x.at[0, 0, 0, 0].add(1.0)))
    assert (moved[0, 2:, 2:] > 0).all()


def test_time_label_and_place_matter():
    net, x, zeros = small(num_classes=3), image(), jnp.zeros(2, jnp.int32)
    params = variables(net, x, zeros)
    apply = jax.jit(net.apply)
    runs = [
        apply(params, x, zeros, zeros),
        apply(params, x, zeros + 7, zeros),
        apply(params, x, zeros, zeros + 2),
        # Without positions the result would turn with the image by whole patches.
        jnp.roll(apply(params, jnp.roll(x, 2, 1), zeros, zeros), -2, 1),
        jnp.roll(apply(params, jnp.roll(x, 2, 2), zeros, zeros), -2, 2),
    ]
    for i, a in enumerate(runs):
        for b in runs[:i]:
            assert np.abs(a - b).max() > 1e-3


@pytest.mark.slow
def test_every_parameter_has_a_gradient():
    net, x, label = small(num_classes=2), image(), jnp.arange(2)
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


@pytest.mark.slow
def test_what_is_computed_again_is_the_same():
    x, t = image(), jnp.float32([3, 500])
    params = variables(small(), x)
    plain, again = (
        jax.jit(jax.value_and_grad(lambda p, net=net: jnp.sum(jnp.tanh(net.apply(p, x, t)))))(
            params
        )
        for net in (small(), small(remat='blocks'))
    )
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-7)


@pytest.mark.slow
def test_the_less_is_kept_the_less_memory():
    """With the options of compiler_options, without which a CPU's compiler keeps all."""
    x, t = image(b=16), jnp.zeros(16)
    mesh = jax.make_mesh((1,), ('data',), devices=jax.devices('cpu')[:1])
    needed = []
    for remat in ('none', 'blocks'):
        net = small(remat=remat, depth=6)
        params = jax.eval_shape(net.init, jax.random.key(0), x, t)
        step = jax.jit(
            jax.grad(lambda p, net=net: jnp.sum(net.apply(p, x, t))),
            compiler_options=compiler_options(mesh),
        )
        needed.append(step.lower(params).compile().memory_analysis().temp_size_in_bytes)
    assert needed[1] < 0.5 * needed[0]


def test_sizes_by_name():
    assert from_config(config(), 0) == DiT(**SIZES['XS'], out_channels=1)
    big = {'model.size': 'XL', 'model.patch': 4, 'model.remat': 'blocks', 'data.channels': 3}
    want = DiT(1152, 28, 16, patch=4, num_classes=11, out_channels=3, remat='blocks')
    assert from_config(config(**big), 11) == want
    own = {'model.size': 'B', 'model.depth': 3, 'model.width': 96, 'model.dtype': 'bfloat16'}
    want = DiT(96, 3, 12, out_channels=1, dtype=jnp.bfloat16)
    assert from_config(config(**own), 0) == want
    assert from_config(config(**{'model.heads': 8}), 0).heads == 8


@pytest.mark.parametrize(
    ('field', 'value', 'says'),
    [
        ('model.size', 'xl', 'known are: B, L, S, XL, XS'),
        ('model.remat', 'block', "did you mean 'blocks'"),
        ('model.dtype', 'float23', "did you mean 'float32'"),
        ('model.width', 66, 'a multiple of 4 and of the heads, which are 4'),
        ('model.heads', 3, 'heads, which are 3'),
        ('model.depth', -1, 'at least 1, or 0'),
        ('model.patch', 0, 'at least 1'),
        ('model.patch', 3, r'data.image_size=8: expected a multiple of config.model.patch=3'),
        ('data.image_size', 7, 'a multiple of config.model.patch=2'),
    ],
)
def test_mistakes_are_named(field, value, says):
    with pytest.raises(UserError, match=says) as error:
        from_config(config(**{field: value}), 0)
    assert '\n' not in str(error.value)
