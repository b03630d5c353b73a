import io

import numpy as np
import pytest
from PIL import Image

from gen_jax.data import fitting
from gen_jax.errors import UserError


def decoded(image, channels, **options):
    file = io.BytesIO()
    image.save(file, **{'format': 'png', **options})
    return fitting.decode(file.getvalue(), 'it', channels)


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    grey = decoded(Image.fromarray(values), 1)
    # v / 257: 0, 0.498, 0.502, 1, 127.502, 255.
    np.testing.assert_array_equal(grey[0, :, 0], [0, 0, 1, 1, 128, 255])
    np.testing.assert_array_equal(decoded(Image.fromarray(values), 3), np.repeat(grey, 3, 2))


def test_transparency_is_composited_on_white():
    image = Image.new('RGBA', (3, 1))
    for x, alpha in enumerate((0, 255, 51)):  # 51 / 255 = 0.2
        image.putpixel((x, 0), (10, 20, 30, alpha))
    expected = [[255, 255, 255], [10, 20, 30], [206, 208, 210]]
    np.testing.assert_allclose(decoded(image, 3)[0], expected, atol=1)


def test_the_one_value_that_a_png_calls_transparent_is_white():
    grey = decoded(Image.fromarray(np.array([[257, 999, 1000]], np.uint16)), 1, transparency=1000)
    assert grey[0, :, 0].tolist() == [1, 4, 255]
    grey = decoded(Image.fromarray(np.array([[0, 99, 100]], np.uint8)), 1, transparency=100)
    assert grey[0, :, 0].tolist() == [0, 99, 255]
    colours = np.array([[[10, 20, 30], [10, 20, 31]]], np.uint8)
    colours = decoded(Image.fromarray(colours), 3, transparency=(10, 20, 30))
    assert colours[0].tolist() == [[255, 255, 255], [10, 20, 31]]


def test_floats_are_refused_not_clipped():
    pixels = Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
    with pytest.raises(UserError, match=r'it cannot be read as an image .its pixels are floats'):
        decoded(pixels, 1, format='tiff')


def test_inks_become_colours():
    """Cyan takes red away, magenta green, yellow blue, and black all of them."""
    inks = {(0, 255, 255, 0): (255, 0, 0), (255, 0, 0, 0): (0, 255, 255)}
    inks |= {(0, 0, 0, 255): (0, 0, 0), (0, 0, 0, 0): (255, 255, 255), (0, 0, 0, 51): (204,) * 3}
    for ink, colour in inks.items():
        image = decoded(Image.new('CMYK', (8, 8), ink), 3, format='jpeg')
        np.testing.assert_allclose(image, np.broadcast_to(colour, (8, 8, 3)), atol=3)


def test_palette_with_and_without_transparency():
    image = Image.new('P', (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decoded(image, 3)[0], [[200, 0, 0], [0, 0, 200]])
    see_through = decoded(image, 3, transparency=1)
    np.testing.assert_array_equal(see_through[0], [[200, 0, 0], [255, 255, 255]])


def test_colour_to_grey_is_itu_601_luma_and_grey_to_colour_repeats():
    grey = decoded(Image.new('RGB', (1, 1), (255, 100, 0)), 1)
    assert grey.shape == (1, 1, 1)
    assert abs(int(grey[0, 0, 0]) - (0.299 * 255 + 0.587 * 100)) <= 1
    colour = decoded(Image.new('L', (1, 1), 77), 3)
    np.testing.assert_array_equal(colour, np.full((1, 1, 3), 77))


def test_exif_orientation_is_applied():
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to view": left becomes top
    image = decoded(Image.fromarray(pixels), 3, format='jpeg', exif=exif)
    assert image.shape == (32, 16, 3)
    assert image[:14].min() > 240
    assert image[18:].max() < 15


@pytest.mark.parametrize('content', [b'', b'not an image', None])
def test_a_broken_image_is_named(content):
    if content is None:
        file = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(file, 'png')
        content = file.getvalue()[:1000]
    with pytest.raises(UserError, match=r'cat\.png cannot be read') as error:
        fitting.decode(content, 'cat.png', 3)
    assert '\n' not in str(error.value)


def test_pad_puts_28_in_32_untouched_and_the_odd_pixel_last():
    image = np.random.default_rng(0).integers(1, 256, (28, 28, 1), np.uint8)
    padded = fitting.fit_image(image, 32, 'pad')
    np.testing.assert_array_equal(padded[2:30, 2:30], image)
    assert np.count_nonzero(padded) == image.size
    padded = fitting.fit_image(np.ones((2, 3, 3), np.uint8), 4, 'pad')
    expected = [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(padded[:, :, 0], expected)


def test_pad_shrinks_what_is_too_large_in_proportion():
    padded = fitting.fit_image(np.full((20, 40, 3), 9, np.uint8), 8, 'pad')
    expected = np.zeros((8, 8, 3))
    expected[2:6] = 9
    np.testing.assert_array_equal(padded, expected)


@pytest.mark.parametrize('channels', [1, 3])
def test_resize_crops_the_centre(channels):
    image = np.zeros((8, 24, channels), np.uint8)
    image[:, 8:16] = 200  # what the centre crop keeps
    np.testing.assert_array_equal(fitting.fit_image(image, 8, 'resize'), image[:, 8:16])
    # Where all is constant but for what the crop cuts off, only BICUBIC's overshoot is left.
    halved = fitting.fit_image(image, 4, 'resize')
    assert halved.shape == (4, 4, channels)
    assert abs(halved[:, 1:3].astype(int) - 200).max() <= 2


def test_resize_is_antialiased():
    # A checkerboard finer than the new pixels is grey; point sampling would give 0 or 255.
    image = np.indices((64, 64)).sum(0) % 2 * 255
    small = fitting.fit_image(image.astype(np.uint8)[..., None], 8, 'resize')
    assert abs(small[2:-2, 2:-2].astype(float) - 127.5).max() < 3


def test_the_right_size_is_returned_as_it_is():
    image = np.ones((5, 5, 1), np.uint8)
    assert fitting.fit_image(image, 5, 'resize') is image
    assert fitting.fit_image(image, 5, 'pad') is image


@pytest.mark.parametrize('share', [0.0, 0.3])
def test_a_crop_of_the_whole_side_is_what_is_fitted(share):
    image = np.random.default_rng(0).integers(0, 256, (10, 16, 3), np.uint8)
    # Of sizes 8, 9 and 10 the first; 13 pixels wide, so that the middle is at 2 of 0 to 5.
    crop = fitting.Crop(share, 0.9, 2 / 6)
    cropped = fitting.crop_image(image, 8, 0.8, crop)
    np.testing.assert_array_equal(cropped, fitting.fit_image(image, 8, 'resize'))


def test_a_crop_lies_anywhere_in_any_of_the_sizes():
    image = np.random.default_rng(0).integers(0, 256, (10, 16, 1), np.uint8)
    # Of 8 to ceil(8 / 0.8) = 10 the last, at which nothing is scaled.
    for top in range(3):
        for left in range(9):
            crop = fitting.Crop(0.99, (top + 0.5) / 3, (left + 0.5) / 9)
            cropped = fitting.crop_image(image, 8, 0.8, crop)
            np.testing.assert_array_equal(cropped, image[top : top + 8, left : left + 8])
    last = fitting.Crop(*[1 - 2**-53] * 3)
    np.testing.assert_array_equal(fitting.crop_image(image, 8, 0.8, last), image[2:, 8:])
    assert fitting.crop_image(image, 8, 0.8, fitting.Crop(0.5, 0, 0)).shape == (8, 8, 1)


def test_small_images_are_enlarged_before_they_are_cropped():
    image = np.full((3, 5, 1), 7, np.uint8)
    np.testing.assert_array_equal(fitting.crop_image(image, 8, 0.8, fitting.Crop(0.9, 0, 0)), 7)
