"""Resizes against what they do to ramps, constants, checkerboards and steps."""

import jax
import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.metrics.features import resize

FUNCTIONS = {name: getattr(resize, name) for name in resize.RESIZES}
BY_PIL = ('clean', 'studiogan')
every = pytest.mark.parametrize('function', FUNCTIONS.values(), ids=FUNCTIONS)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def ramp(height, width):
    """Grey image whose value is 10 times the column; linear interpolation keeps it linear."""
    return np.broadcast_to(10.0 * np.arange(width), (1, height, width))[..., None].astype(
        np.float32
    )


@pytest.mark.parametrize('width', [1, 2, 8, 20])
def test_bilinear_positions(width):
    i, scale, last = np.arange(299), width / 299, 10.0 * (width - 1)
    out = resize.tf1(ramp(5, width))
    np.testing.assert_allclose(out[0, 17, :, 1], np.minimum(10 * i * scale, last), atol=1e-4)
    out = resize.pytorch_fid(ramp(5, width))
    expected = np.clip(10 * ((i + 0.5) * scale - 0.5), 0, last)
    np.testing.assert_allclose(out[0, 17, :, 1], expected, atol=1e-4)
    out = resize.studiogan(ramp(5, width))
    np.testing.assert_allclose(out[0, 17, :, 1], expected, atol=1e-4)


def test_clean_positions():
    """Bicubic interpolation keeps a line a line, but for two pixels at its ends."""
    at = (np.arange(299) + 0.5) * 20 / 299 - 0.5
    inside = (at > 2) & (at < 17)
    out = resize.clean(ramp(5, 20))
    np.testing.assert_allclose(out[0, 100, inside, 2], 10 * at[inside], atol=1e-3)


@every
@pytest.mark.parametrize('shape', [(3, 2, 7, 3), (1, 341, 512, 3), (1, 8, 8, 1)])
def test_transposing_commutes(function, shape):
    x = pixels(*shape)
    out = np.asarray(function(x))
    assert out.dtype == np.float32
    assert out.shape == (shape[0], 299, 299, 3)
    np.testing.assert_allclose(out.swapaxes(1, 2), function(x.swapaxes(1, 2)), atol=1e-3)


@every
def test_same_size_is_identity(function):
    x = pixels(2, 299, 299, 3)
    np.testing.assert_array_equal(function(x), x)


@every
def test_grey_is_repeated(function):
    x = pixels(2, 30, 41, 1)
    np.testing.assert_array_equal(function(x), function(np.repeat(x, 3, -1)))


@every
def test_uint8_and_float_agree_and_images_do_not_mix(function):
    x = pixels(3, 33, 12, 3)
    out = np.asarray(function(x))
    np.testing.assert_array_equal(out[1:2], function(x[1:2].astype(np.float32)))


def test_pil_smooths_and_others_do_not():
    """Every fourth column white, at four times the size: each output has one value throughout."""
    stripes = np.zeros((1, 4, 4 * 299, 1), np.uint8)
    stripes[:, :, ::4] = 255
    np.testing.assert_array_equal(resize.tf1(stripes), 255)  # takes column 4 i
    np.testing.assert_array_equal(resize.pytorch_fid(stripes), 0)  # between 4 i + 1 and 4 i + 2
    for name in BY_PIL:
        np.testing.assert_allclose(FUNCTIONS[name](stripes)[:, :, 3:-3], 255 / 4, rtol=1e-3)


def test_clean_clips_but_does_not_round():
    step = np.zeros((1, 8, 8, 3), np.uint8)
    step[:, :, 4:] = 255
    out = resize.clean(step)
    assert out.min() == 0
    assert out.max() == 255
    assert np.mean(out == out.round()) < 0.9


@pytest.mark.parametrize(
    ('name', 'white'),
    [('tf1', 127 / 128), ('pytorch_fid', 1.0), ('clean', 127 / 128), ('studiogan', 1.0)],
)
def test_prepare_scales(name, white):
    entry = resize.RESIZES[name]
    x = pixels(2, 10, 9, 1)
    out = entry.prepare(x)
    assert out.shape == (2, 299, 299, 3)
    plain = np.asarray(FUNCTIONS[name](x))
    np.testing.assert_allclose(out, -1 + plain / 255 * (white + 1), atol=1e-5)
    for value, expected in ((0, -1), (255, white)):
        constant = np.full((1, 4, 4, 3), value, np.uint8)
        np.testing.assert_allclose(entry.prepare(constant), expected, atol=1e-6)


@pytest.mark.parametrize('name', resize.RESIZES)
def test_device_part_compiles(name):
    host, x = resize.RESIZES[name].host, pixels(1, 64, 48, 3)
    assert (host is None) == (name not in BY_PIL)
    given = host(x) if host else x
    out = jax.jit(resize.RESIZES[name].device)(given)
    np.testing.assert_allclose(out, resize.RESIZES[name].prepare(x), atol=1e-6)


@every
@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (np.zeros((8, 8, 3), np.uint8), 'shape'),
        (np.zeros((1, 8, 8, 4), np.uint8), 'alpha'),
        (np.zeros((1, 3, 8, 8), np.uint8), 'channels last'),
        (np.zeros((0, 8, 8, 3), np.uint8), 'shape'),
        (np.zeros((1, 0, 8, 3), np.uint8), 'shape'),
        (np.zeros((1, 8, 8, 3), np.float64), 'float64'),
        (np.zeros((1, 8, 8, 3), np.int32), 'int32'),
    ],
)
def test_bad_images(function, images, message):
    with pytest.raises(UserError, match=message) as error:
        function(images)
    assert '\n' not in str(error.value)
