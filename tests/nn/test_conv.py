import time
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gen_jax.nn import conv as conv_module
from gen_jax.nn.conv import conv, conv3x3

NHWC = ('NHWC', 'HWIO', 'NHWC')
# (batch, height, width), in, out: even, odd, one image, one row
SHAPES = [((4, 8, 8), 16, 24), ((2, 7, 9), 32, 16), ((1, 5, 16), 16, 16), ((70, 1, 1), 16, 17)]


def plain(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=NHWC)


def drawn(sizes, inputs, outputs):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (*sizes, inputs))
    kernel = jax.random.normal(keys[1], (3, 3, inputs, outputs)) / np.sqrt(9 * inputs)
    return x, kernel, jax.random.normal(keys[2], (*sizes, outputs))


def close(ours, theirs, tolerance=2e-6):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()), rtol=0)


@pytest.mark.parametrize('shape', SHAPES)
def test_value_and_gradients_are_the_plain_convolutions(shape):
    x, kernel, g = drawn(*shape)

    def both(function):
        y, back = jax.vjp(function, x, kernel)
        return y, back(g)

    close(jax.jit(partial(both, conv3x3))(), jax.jit(partial(both, plain))())


def test_second_derivatives_are_the_plain_convolutions():
    x, kernel, g = drawn(*SHAPES[1])

    def penalty(function, x, kernel):  # as gradient penalties have it
        back = jax.grad(lambda x, k: jnp.sum(jnp.tanh(function(x, k)) * g), (0, 1))(x, kernel)
        return sum(jnp.sum(jnp.square(part)) for part in back)

    ours = jax.jit(jax.grad(partial(penalty, conv3x3), (0, 1)))(x, kernel)
    close(ours, jax.jit(jax.grad(partial(penalty, plain), (0, 1)))(x, kernel), 1e-5)


def test_under_vmap():
    x, kernel, _ = drawn(*SHAPES[0])
    each = jax.vmap(lambda image: conv3x3(image[None], kernel)[0])(x)
    close(each, plain(x, kernel))


def test_a_layer_keeps_its_parameters_and_result():
    x = jax.random.normal(jax.random.key(1), (3, 12, 12, 16))
    layer = nn.Conv(20, (3, 3), padding=1, conv_general_dilated=conv)
    variables = layer.init(jax.random.key(2), x)
    reference = nn.Conv(20, (3, 3), padding=1)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, reference.init(jax.random.key(2), x)
    )
    close(layer.apply(variables, x), reference.apply(variables, x))


@pytest.mark.parametrize(
    'options',
    [
        {'strides': 2},
        {'padding': 'VALID'},
        {'padding': ((0, 2), (1, 1))},
        {'kernel_dilation': 2},
        {'feature_group_count': 4},
        {'kernel_size': (5, 5)},
        {'dtype': jnp.bfloat16},
    ],
)
def test_other_convolutions_are_left_to_xla(options, monkeypatch):
    monkeypatch.setattr(conv_module, 'conv3x3', None)  # would fail if it were called
    x = jax.random.normal(jax.random.key(1), (3, 12, 12, 16))
    options = {'kernel_size': (3, 3), 'padding': 1, **options}
    layer = nn.Conv(20, conv_general_dilated=conv, **options)
    variables = layer.init(jax.random.key(2), x)
    np.testing.assert_array_equal(
        layer.apply(variables, x), nn.Conv(20, **options).apply(variables, x)
    )


def test_small_ones_are_left_to_xla(monkeypatch):
    monkeypatch.setattr(conv_module, 'conv3x3', None)
    for sizes, inputs, outputs in [((4, 8, 8), 3, 32), ((4, 8, 8), 32, 3), ((1, 8, 8), 32, 32)]:
        x, kernel, _ = drawn(sizes, inputs, outputs)
        np.testing.assert_array_equal(
            conv(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=NHWC), plain(x, kernel)
        )


def test_only_the_cpu_takes_the_detour():
    x, kernel, g = drawn(*SHAPES[0])
    step = jax.jit(lambda x, kernel: jax.vjp(conv3x3, x, kernel)[1](g)).trace(x, kernel)
    products = step.lower(lowering_platforms=('cpu',)).as_text()
    assert 'dot_general' in products
    assert 'stablehlo.convolution' not in products
    for platform in ('tpu', 'cuda'):
        text = step.lower(lowering_platforms=(platform,)).as_text()
        assert 'stablehlo.convolution' in text
        assert 'dot_general' not in text


@pytest.mark.slow
def test_gradients_in_a_loop_cost_what_they_cost_outside():
    """XLA's own are 40 times slower there on a CPU; other work on the machine may double a time."""
    x, kernel, _ = drawn((64, 8, 8), 48, 48)

    # Of the kernel itself and of arguments: else one gradient serves for all ten, or the compiler
    # computes it.
    def descended(kernel, x):
        return kernel - 1e-6 * jax.grad(lambda k: jnp.sum(conv3x3(x, k) ** 2))(kernel)

    def seconds(function):
        run = jax.jit(function).lower(kernel, x).compile()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(run(kernel, x))
            times.append(time.perf_counter() - start)
        return min(times)

    def looped(kernel, x):
        return lax.fori_loop(0, 10, lambda _, k: descended(k, x), kernel)

    def unrolled(kernel, x):
        for _ in range(10):
            kernel = descended(kernel, x)
        return kernel

    assert seconds(looped) < 5 * seconds(unrolled)
