import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gen_jax.nn import fir_conv
from gen_jax.nn.conv import NHWC
from gen_jax.nn.fir import normalized, upfirdn2d

TAPS = (1, 3, 4, 2)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def by_steps(x, kernel, way):
    """Filter and convolution one after the other, with all zeros padded before both."""
    if way == 'up':
        x = upfirdn2d(x, 2 * normalized(TAPS), up=2, pad=(3, 2))
    else:
        x = upfirdn2d(x, normalized(TAPS), pad=(2, 2))
    strides = (1, 1) if way == 'up' else (2, 2)
    return lax.conv_general_dilated(x, kernel, strides, 'VALID', dimension_numbers=NHWC)


@pytest.mark.parametrize('way', ['up', 'down'])
def test_every_way_is_filter_and_convolution(way):
    """Values and both gradients, on every platform's path."""
    x, kernel = normal(0, 2, 6, 4, 3), normal(1, 3, 3, 3, 5)
    g = normal(2, *((2, 12, 8, 5) if way == 'up' else (2, 3, 2, 5)))

    def value_and_gradients(f):
        y, pull = jax.vjp(f, x, kernel)
        return y, *pull(g)

    public = {'up': fir_conv.up_conv, 'down': fir_conv.down_conv}[way]
    plain = {'up': fir_conv._up_as_plain, 'down': fir_conv._down_as_plain}[way]
    elsewhere = {'up': fir_conv._up_transposed, 'down': fir_conv._down_strided}[way]
    ways = [lambda x, k: by_steps(x, k, way)]
    ways += [lambda x, k, f=f: f(x, k, TAPS) for f in (public, plain, elsewhere)]
    want, *others = jax.jit(lambda: [value_and_gradients(f) for f in ways])()
    assert want[0].shape == g.shape
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), other, want)


def test_a_cpu_takes_the_plain_way_and_others_do_not():
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    for f in (fir_conv.up_conv, fir_conv.down_conv):
        call = jax.jit(lambda x, kernel, f=f: f(x, kernel, TAPS))
        on_cpu, elsewhere = (
            call.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
            for platform in ('cpu', 'tpu')
        )
        assert ('lhs_dilate = [2, 2]' in elsewhere) or ('stride = [2, 2]' in elsewhere)
        assert 'lhs_dilate = [2, 2]' not in on_cpu
        assert 'stride = [2, 2]' not in on_cpu


def test_dtype_stays_and_two_taps_are_nearest_neighbours():
    x, kernel = jnp.asarray(normal(0, 1, 4, 4, 2)), jnp.asarray(normal(1, 3, 3, 2, 3))
    got = fir_conv.up_conv(x, kernel, (0, 1, 1, 0))
    doubled = x.repeat(2, 1).repeat(2, 2)
    same = ((1, 1), (1, 1))
    want = lax.conv_general_dilated(doubled, kernel, (1, 1), same, dimension_numbers=NHWC)
    np.testing.assert_allclose(got, want, atol=1e-5)
    half = fir_conv.up_conv(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), (0, 1, 1, 0))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), want, atol=0.3)
