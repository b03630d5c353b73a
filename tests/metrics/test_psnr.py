import jax
import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.metrics.psnr import psnr


def images(shape=(3, 8, 9, 3), seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize('error', [1.0, 0.1, 0.001])
def test_constant_error(error):
    """L = 2: 20 log10(2 / error)."""
    x = np.zeros((2, 4, 5, 1), np.float32)
    np.testing.assert_allclose(psnr(x, x + np.float32(error)), 20 * np.log10(2 / error), rtol=1e-6)


def test_each_image_by_itself():
    x, y = images(), images(seed=1)
    mse = [np.mean((a - b) ** 2, dtype=np.float64) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(jax.jit(psnr)(x, y), 10 * np.log10(4 / np.array(mse)), rtol=1e-6)


def test_identical_images_give_inf():
    x = images()
    y = x.copy()
    y[1] = images(seed=1)[1]
    assert np.isinf(psnr(x, y)).tolist() == [True, False, True]


def test_same_in_any_range():
    x, y = images(), images(seed=1)
    scaled = psnr((x + 1) * 127.5, (y + 1) * 127.5, data_range=(0, 255))
    np.testing.assert_allclose(scaled, psnr(x, y), rtol=1e-5)


def test_float64_where_enabled():
    x = np.zeros((1, 4, 4, 1))
    with jax.enable_x64(True):
        value = psnr(x, x + 1e-9)
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, 20 * np.log10(2e9), rtol=1e-14)


@pytest.mark.parametrize(
    ('x', 'y', 'match'),
    [
        (images(), images((3, 8, 9, 1)), 'one shape'),
        (images((8, 9, 3)), images((8, 9, 3)), 'one shape'),
        (images((0, 8, 9, 3)), images((0, 8, 9, 3)), 'one shape'),
        (np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 8, 8, 1), np.uint8), 'uint8.*to_float'),
    ],
)
def test_refuses_what_is_no_pair(x, y, match):
    with pytest.raises(UserError, match=match):
        psnr(x, y)


@pytest.mark.parametrize('data_range', [(1, 1), (1, -1)])
def test_refuses_an_empty_range(data_range):
    with pytest.raises(UserError, match='lowest, highest'):
        psnr(images(), images(), data_range)
