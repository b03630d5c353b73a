import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.nn.fir import downsample, normalized, upfirdn2d, upsample

SMOOTH = (1, 3, 3, 1)


def image(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def along(axis, x, taps, up, down, pad):
    """The definition, line by line: zeros between, padding or cutting, convolution, leaving out."""

    def line(x):
        wide = np.zeros(len(x) * up)
        wide[::up] = x
        wide = np.pad(wide, [max(p, 0) for p in pad])
        wide = wide[max(-pad[0], 0) : len(wide) - max(-pad[1], 0)]
        return np.convolve(wide, taps, 'valid')[::down]

    return np.apply_along_axis(line, axis, np.asarray(x, np.float64))


@pytest.mark.parametrize(
    ('taps', 'up', 'down', 'pad'),
    [
        ((1, 2, -5), 1, 1, (0, 0)),
        ((1, 2, -5, 4), 2, 1, (2, 1)),
        ((1, 2, -5, 4), 1, 2, (1, 1)),
        ((3, 1), 3, 2, (-2, 4)),
        ((3, 1, 2, 4, 5), 2, 3, (3, -1)),
        ((2,), 1, 1, (0, 0)),
    ],
)
def test_definition(taps, up, down, pad):
    x = image(2, 6, 7, 3)
    got = jax.jit(lambda x: upfirdn2d(x, taps, up, down, pad))(x)
    want = along(2, along(1, x, taps, up, down, pad), taps, up, down, pad)
    assert got.shape == want.shape
    assert got.shape[1] == (6 * up + sum(pad) - len(taps)) // down + 1
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_two_taps_are_nearest_neighbours_and_means():
    x = image(2, 4, 6, 3)
    np.testing.assert_array_equal(upsample(x, (1, 1)), x.repeat(2, 1).repeat(2, 2))
    means = x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(downsample(x, (7, 7)), means, atol=1e-6)
    thirds = upsample(x, (1, 1, 1), factor=3)
    np.testing.assert_allclose(thirds, x.repeat(3, 1).repeat(3, 2), rtol=1e-6)


@pytest.mark.parametrize(('taps', 'factor'), [(SMOOTH, 2), ((1, 4, 6, 4, 1), 2), (SMOOTH, 3)])
def test_sizes_and_brightness(taps, factor):
    ones = np.ones((1, 12, 18, 1), np.float32)
    large, small = upsample(ones, taps, factor), downsample(ones, taps, factor)
    assert large.shape == (1, 12 * factor, 18 * factor, 1)
    assert small.shape == (1, 12 // factor, 18 // factor, 1)
    np.testing.assert_allclose(small[:, 2:-2, 2:-2], 1, rtol=1e-6)
    if factor == 2:  # of four taps, every third pixel is reached by two and the others by one
        np.testing.assert_allclose(large[:, 4:-4, 4:-4], 1, rtol=1e-6)


def test_up_is_the_transpose_of_down():
    """<up(x), y> = 4 <x, down(y)>, which the borders would break first."""
    x, y = image(1, 3, 4, 2), image(1, 6, 8, 2)[..., ::-1]
    left = np.vdot(upsample(x, SMOOTH), y)
    np.testing.assert_allclose(left, 4 * np.vdot(x, downsample(y, SMOOTH)), rtol=1e-5)


@pytest.mark.slow
def test_gradient_of_a_linear_map_is_its_transpose():
    x, g = jnp.asarray(image(1, 4, 4, 2)), image(1, 8, 8, 2)
    grad = jax.grad(lambda x: jnp.vdot(upsample(x, SMOOTH), g))(x)
    np.testing.assert_allclose(grad, 4 * downsample(g, SMOOTH), atol=1e-5)


@pytest.mark.slow
def test_scale_of_taps_does_not_matter_and_dtype_stays():
    np.testing.assert_allclose(normalized((2, 6, 6, 2)), [0.125, 0.375, 0.375, 0.125])
    x = jnp.asarray(image(1, 4, 4, 1), jnp.bfloat16)
    assert downsample(x, SMOOTH).dtype == jnp.bfloat16
    exact = upsample(np.asarray(x, np.float32), SMOOTH)
    np.testing.assert_allclose(np.float32(upsample(x, SMOOTH)), exact, atol=0.05)


def test_a_filter_wider_than_the_image_is_refused():
    with pytest.raises(ValueError, match='4 taps need as many pixels, got 3 after padding'):
        upfirdn2d(jnp.ones((1, 2, 2, 1)), SMOOTH, pad=(1, 0))
