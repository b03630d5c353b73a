import numpy as np
import pytest
from PIL import Image

from gen_jax.runtime import images


def test_grid_puts_every_image_in_its_place_with_a_line_between():
    pictures = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 3, 2, 1), np.uint8)
    page = images.grid(pictures, columns=2, smallest=1)
    assert page.shape == (3 * 3 + 2, 2 * 2 + 1, 1)
    assert (page[4:7, 3:5] == 3).all()
    assert (page[8:, 3:] == 255).all()  # the place that is left over
    assert (page[3] == 255).all()
    assert (page[:, 2] == 255).all()


def test_small_images_are_enlarged_by_a_whole_factor():
    picture = np.array([[0, 255], [255, 0]], np.uint8)[None, :, :, None]
    page = images.grid(picture, smallest=5)
    assert page.shape == (6, 6, 1)
    assert (page[:3, :3] == 0).all()
    assert (page[:3, 3:] == 255).all()


@pytest.mark.parametrize('channels', [1, 3])
def test_a_png_reads_back_exactly(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 4, channels), np.uint8)
    images.save_png(tmp_path / 'new' / 'a.png', image)
    back = np.asarray(Image.open(tmp_path / 'new' / 'a.png')).reshape(image.shape)
    np.testing.assert_array_equal(back, image)
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['a.png']
