import jax
import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.metrics import ssim as module
from gen_jax.metrics.ssim import ms_ssim, smallest_side, ssim


def images(n=2, height=16, width=13, channels=3, seed=0):
    shape = (n, height, width, channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def noisy(x, scale=0.3, seed=1):
    noise = np.random.default_rng(seed).normal(0, scale, x.shape)
    return np.clip(x + noise, -1, 1).astype(np.float32)


def windowed(x, y, weights, factor):
    """Eq. 13 of Wang et al. 2004 on 0..255, window by window; and its last two terms alone."""
    side = len(weights)
    window = np.outer(weights, weights)
    x, y = (127.5 * (np.float64(image) + 1) for image in (x, y))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    whole, contrasts = [], []
    for i in range(x.shape[0] - side + 1):
        for j in range(x.shape[1] - side + 1):
            a, b = x[i : i + side, j : j + side], y[i : i + side, j : j + side]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a = factor * (window * (a - mean_a) ** 2).sum()
            var_b = factor * (window * (b - mean_b) ** 2).sum()
            covariance = factor * (window * (a - mean_a) * (b - mean_b)).sum()
            contrasts.append((2 * covariance + c2) / (var_a + var_b + c2))
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            whole.append(luminance * contrasts[-1])
    return np.mean(whole), np.mean(contrasts)


def gaussian(side=11, sigma=1.5):
    weights = np.exp(-0.5 * ((np.arange(side) - side // 2) / sigma) ** 2)
    return weights / weights.sum()


WINDOWS = {'gaussian': (gaussian(), 1.0), 'uniform': (np.ones(7) / 7, 49 / 48)}


@pytest.mark.parametrize('window', ['gaussian', 'uniform'])
@pytest.mark.parametrize('channels', [1, 3])
def test_window_by_window(window, channels):
    x = images(channels=channels)
    y = noisy(x)
    each = [
        np.mean([windowed(a[..., c], b[..., c], *WINDOWS[window])[0] for c in range(channels)])
        for a, b in zip(x, y, strict=True)
    ]
    value = jax.jit(ssim, static_argnames='window')(x, y, window=window)
    np.testing.assert_allclose(value, each, atol=1e-5)
    with jax.enable_x64(True):
        value = ssim(np.float64(x), np.float64(y), window)
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, each, rtol=0, atol=1e-12)


def test_flat_images_differ_in_luminance_only():
    """Black against white: c1 / (1 + c1); grey against white: (1 + c1) / (1.25 + c1)."""
    black, grey, white = (np.full((1, 12, 12, 1), v, np.float32) for v in (-1, 0, 1))
    c1 = 0.01**2
    np.testing.assert_allclose(ssim(black, white), c1 / (1 + c1), rtol=1e-3)
    np.testing.assert_allclose(ssim(grey, white), (1 + c1) / (1.25 + c1), rtol=1e-5)


def test_range():
    x = images()
    y = noisy(x)
    scaled = ssim((x + 1) * 127.5, (y + 1) * 127.5, data_range=(0, 255))
    np.testing.assert_allclose(scaled, ssim(x, y), atol=1e-5)


def test_identical_and_opposed():
    x = images(seed=3)
    np.testing.assert_array_equal(ssim(x, x), 1)
    assert (ssim(x, -x) < 0).all()
    large = images(1, 24, 24)
    np.testing.assert_allclose(ms_ssim(large, large, scales=2), 1, rtol=1e-6)
    np.testing.assert_array_equal(ms_ssim(large, -large, scales=2), 0)


@pytest.mark.parametrize(('height', 'width'), [(24, 30), (21, 27)])
def test_two_scales(height, width):
    """Weights .0448 and .2856 made to sum to 1; an odd side gets a black frame, then 2x2 means."""
    x = images(1, height, width, 1)
    y = noisy(x)
    contrast = windowed(x[0, ..., 0], y[0, ..., 0], gaussian(), 1.0)[1]

    def half(image):
        rows, columns = image.shape[0] % 2, image.shape[1] % 2
        framed = np.pad(image, ((rows, rows), (columns, columns)), constant_values=-1)
        h, w = framed.shape[0] // 2 * 2, framed.shape[1] // 2 * 2
        return framed[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3))

    whole = windowed(half(x[0, ..., 0]), half(y[0, ..., 0]), gaussian(), 1.0)[0]
    weight = 0.0448 / (0.0448 + 0.2856)
    value = jax.jit(ms_ssim, static_argnames='scales')(x, y, scales=2)
    np.testing.assert_allclose(value, contrast**weight * whole ** (1 - weight), rtol=1e-5)


def test_one_scale_is_ssim():
    x = images()
    np.testing.assert_allclose(ms_ssim(x, noisy(x), scales=1), ssim(x, noisy(x)), rtol=1e-6)


def test_each_image_by_itself():
    x = images(3, 21, 23)
    y = noisy(x)
    np.testing.assert_allclose(ms_ssim(x, y, 2)[1:2], ms_ssim(x[1:2], y[1:2], 2), rtol=1e-6)
    np.testing.assert_allclose(ssim(x, y)[1:2], ssim(x[1:2], y[1:2]), rtol=1e-6)


def test_weights_of_the_paper():
    np.testing.assert_allclose(sum(module.SCALE_WEIGHTS), 1, atol=2e-4)
    assert [smallest_side(k) for k in range(1, 6)] == [11, 21, 41, 81, 161]


@pytest.mark.parametrize('scales', range(1, 6))
def test_smallest_images(scales):
    side = smallest_side(scales)
    x = images(1, side, side, 1)
    assert 0 <= ms_ssim(x, noisy(x), scales)[0] <= 1
    with pytest.raises(UserError, match=f'at least {side}x{side}'):
        ms_ssim(x[:, 1:], x[:, 1:], scales)


@pytest.mark.parametrize(('window', 'side'), [('gaussian', 11), ('uniform', 7)])
def test_smallest_window(window, side):
    x = images(1, side, side)
    np.testing.assert_allclose(ssim(x, x, window), 1)
    with pytest.raises(UserError, match=f'at least {side}x{side}'):
        ssim(x[:, :, 1:], x[:, :, 1:], window)


def test_refuses():
    x = images()
    with pytest.raises(UserError, match='expected one of gaussian, uniform'):
        ssim(x, x, 'hann')
    with pytest.raises(UserError, match='expected 1 to 5'):
        ms_ssim(x, x, 6)
    with pytest.raises(UserError, match='one shape'):
        ssim(x, x[:1])
    with pytest.raises(UserError, match='lowest, highest'):
        ssim(x, x, data_range=(1, 0))
