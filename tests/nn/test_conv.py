import os
import re
import subprocess
import sys
import time
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gen_jax.nn import conv as conv_module
from gen_jax.nn.conv import DOUBLING, HALVING, ConvTranspose, conv, conv3x3

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


OPTIONS = [
    {},
    {'strides': 2},
    {'strides': (2, 3), 'padding': 'SAME'},
    {'padding': 'VALID'},
    {'padding': ((0, 2), (1, 1))},
    {'kernel_dilation': 2},
    {'kernel_dilation': (2, 1), 'padding': 'SAME', 'strides': (1, 2)},
    {'input_dilation': 2, 'padding': ((2, 2), (1, 3))},
    {'input_dilation': (1, 3), 'kernel_size': (4, 2), 'strides': 2, 'kernel_dilation': (1, 2)},
    {'kernel_size': (5, 5)},
    {'kernel_size': (4, 4), 'strides': 2},
    {'kernel_size': (1, 1), 'padding': 0},
    {'kernel_size': (4, 4), 'padding': 0, 'strides': 5},  # some pixels are not seen
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('sizes', [(3, 12, 13), (1, 8, 8)])
def test_any_layer_is_flaxs_with_its_gradients_to_the_second(options, sizes):
    x = jax.random.normal(jax.random.key(1), (*sizes, 5))
    options = {'kernel_size': (3, 3), 'padding': 1, **options}
    found = []
    for more in {}, {'conv_general_dilated': conv}:
        layer = nn.Conv(4, **options, **more)
        variables = layer.init(jax.random.key(2), x)

        def first(x, variables, layer=layer):
            return jax.grad(lambda *args: jnp.sum(jnp.tanh(layer.apply(*args))), (0, 1))(
                variables, x
            )

        def second(variables, x, first=first):
            return sum(jnp.sum(jnp.square(part)) for part in jax.tree.leaves(first(x, variables)))

        gradients = jax.jit(lambda *args, f=first, s=second: (f(*args[::-1]), jax.grad(s)(*args)))
        found.append((layer.apply(variables, x), gradients(variables, x)))
    close(found[1], found[0], 1e-5)


@pytest.mark.parametrize('kind', [*HALVING, *DOUBLING])
@pytest.mark.parametrize('sizes', [(2, 8, 12), (1, 16, 18), (3, 7, 9), (1, 4, 4)])
def test_halving_and_doubling_are_the_plain_convolutions(kind, sizes):
    """Also where there are too few pixels, or no whole squares."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (*sizes, 16))
    *side, (strides, padding, spread, _) = kind
    kernel = jax.random.normal(keys[1], (*side, 16, 17)) / 16
    found = []
    for function in lax.conv_general_dilated, conv:
        call = partial(
            function,
            window_strides=strides,
            padding=padding,
            lhs_dilation=spread,
            dimension_numbers=NHWC,
        )

        def penalty(x, kernel, call=call):
            back = jax.grad(lambda *args: jnp.sum(jnp.tanh(call(*args))), (0, 1))(x, kernel)
            return sum(jnp.sum(jnp.square(part)) for part in back), back

        second = jax.jit(jax.grad(penalty, (0, 1), has_aux=True))
        found.append((call(x, kernel), second(x, kernel)))
    close(found[1], found[0], 1e-5)


def test_halving_and_doubling_multiply_no_zeros():
    """A quarter of what the same convolution over a spread image takes, and no stride."""
    x = jnp.zeros((32, 8, 8, 32))
    for *side, (strides, padding, spread, _) in [*HALVING, *DOUBLING]:
        kernel = jnp.zeros((*side, 32, 64))
        options = {'lhs_dilation': spread, 'dimension_numbers': NHWC}
        traced = jax.jit(lambda *args: conv(*args, strides, padding, **options)).trace(x, kernel)  # noqa: B023
        assert 'stablehlo.convolution' not in traced.lower(lowering_platforms=('cpu',)).as_text()
        assert 'dot_general' not in traced.lower(lowering_platforms=('tpu',)).as_text()


@pytest.mark.parametrize('options', [{'feature_group_count': 4}, {'dtype': jnp.bfloat16}], ids=str)
def test_groups_and_halves_are_left_to_xla(options, monkeypatch):
    monkeypatch.setattr(conv_module, 'conv3x3', None)  # would fail if it were called
    monkeypatch.setattr(conv_module, 'conv2d', None)
    x = jax.random.normal(jax.random.key(1), (3, 12, 12, 16))
    options = {'kernel_size': (3, 3), 'padding': 1, **options}
    layer = nn.Conv(20, conv_general_dilated=conv, **options)
    variables = layer.init(jax.random.key(2), x)
    np.testing.assert_array_equal(
        layer.apply(variables, x), nn.Conv(20, **options).apply(variables, x)
    )


@pytest.mark.parametrize(
    ('kernel', 'stride', 'padding', 'theirs'),
    [(4, 2, 1, 'SAME'), (4, 1, 0, 'VALID'), (3, 2, 0, 'VALID'), (3, 1, 1, 'SAME')],
)
def test_transposed_is_flaxs(kernel, stride, padding, theirs):
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 3))
    bias_init = nn.initializers.normal(1.0)
    args = 4, (kernel, kernel), (stride, stride)
    reference = nn.ConvTranspose(*args, theirs, transpose_kernel=True, bias_init=bias_init)
    variables = reference.init(jax.random.key(2), x)
    layer = ConvTranspose(*args, padding)
    shapes = jax.eval_shape(layer.init, jax.random.key(2), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)

    def both(layer):
        y, back = jax.vjp(layer.apply, variables, x)
        return y, back(jnp.sin(y))

    close(both(layer), both(reference), 5e-6)


def test_small_ones_are_no_products_of_tiles(monkeypatch):
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


@pytest.mark.parametrize('platform', ['cpu', 'tpu', 'cuda'])
def test_gradients_are_written_as_convolutions_for_the_cpu_only(platform):
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((4, 4, 3, 5))
    theirs = jax.jit(lambda *args: _gradients_of(lax.conv_general_dilated, *args))
    ours = jax.jit(lambda *args: _gradients_of(conv, *args))
    texts = [
        f.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text() for f in (ours, theirs)
    ]
    found = [re.findall(r'dim_numbers = (.*?),\s*window', text) for text in texts]
    forward = '[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]'
    if platform == 'cpu':
        assert set(found[0]) == {forward}
    else:
        assert set(found[0]) == set(found[1]) != {forward}


def _gradients_of(function, x, kernel):
    loss = lambda *args: jnp.sum(function(*args, (2, 2), 'SAME', dimension_numbers=NHWC) ** 2)  # noqa: E731
    return jax.grad(loss, (0, 1))(x, kernel)


@pytest.mark.slow
@pytest.mark.parametrize('inputs', [48, 8], ids=['tiles', 'convolutions'])
def test_gradients_in_a_loop_cost_what_they_cost_outside(inputs):
    """XLA's own are 40 times slower there on a CPU; other work on the machine may double a time."""
    x, kernel, _ = drawn((64, 8, 8), inputs, 48)

    # Of the kernel itself and of arguments: else one gradient serves for all ten, or the compiler
    # computes it.
    def descended(kernel, x):
        call = partial(conv, window_strides=(1, 1), padding='SAME', dimension_numbers=NHWC)
        return kernel - 1e-6 * jax.grad(lambda k: jnp.sum(call(x, k) ** 2))(kernel)

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


# Images whose rows one axis of a mesh splits, the other nothing; kernels whose outputs one splits.
SPLIT = """
import jax, numpy as np
from functools import partial
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P, use_abstract_mesh
from gen_jax.nn.conv import NHWC, conv
from gen_jax.nn.fir_conv import down_conv, up_conv
from gen_jax.runtime.compilation import spare_threads

spare_threads()
mesh = jax.make_mesh((2, 2), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
plain = partial(conv, window_strides=(1, 1), padding='SAME', dimension_numbers=NHWC)
up, down = (partial(f, taps=(1, 3, 3, 1)) for f in (up_conv, down_conv))
half = lambda x, kernel: plain(*(z.astype('bfloat16') for z in (x, kernel))).astype('float32')
normal = np.random.default_rng(0).standard_normal
x, kernel = np.float32(normal((8, 8, 8, 4))), np.float32(normal((3, 3, 4, 4)))
rows, outputs = P(None, 'b'), P(None, None, None, 'a')

def both(function, x, kernel):
    y, back = jax.vjp(function, x, kernel)
    return y, *back(y)

def on_mesh(function, x, kernel):
    with use_abstract_mesh(mesh.abstract_mesh):
        return both(function, x, kernel)

for function in (plain, up, down, half):
    where = [NamedSharding(mesh, spec) for spec in (rows, outputs)]
    found = jax.jit(partial(on_mesh, function), in_shardings=where)(x, kernel)
    want = jax.jit(partial(both, function))(x, kernel)
    print(*(float(abs(a - b).max() / abs(b).max()) for a, b in zip(found, want)))
"""


@pytest.mark.slow
def test_images_that_a_mesh_splits_by_rows_give_the_numbers_of_whole_ones():
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=4',
    }
    command = [sys.executable, '-c', SPLIT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *single, half = np.loadtxt(done.stdout.splitlines())
    assert np.shape(single) == (3, 3)
    assert np.max(single) < 1e-5
    assert np.max(half) < 0.02  # of bfloat16
