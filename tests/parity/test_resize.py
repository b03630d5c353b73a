"""Resizes against torch-fidelity's, PyTorch's, clean-fid's and TensorFlow's own."""

import numpy as np
import pytest

from gen_jax.metrics.features import resize

torch = pytest.importorskip('torch')
pytest.importorskip('cleanfid')
pytest.importorskip('torch_fidelity')

from cleanfid.resize import build_resizer, make_resizer  # noqa: E402
from torch_fidelity.interpolate_compat_tensorflow import (  # noqa: E402
    interpolate_bilinear_2d_like_tensorflow1x,
)

SHAPES = [
    (2, 32, 32, 3),
    (1, 8, 8, 1),
    (3, 75, 120, 3),
    (1, 341, 512, 3),
    (1, 1000, 700, 1),
    (1, 299, 299, 3),
    (1, 1, 5, 3),
]
shapes = pytest.mark.parametrize('shape', SHAPES, ids=str)


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def nchw(images):
    """What the oracles' data loaders make of images: grey is converted to colour."""
    images = np.repeat(images, 3 // images.shape[3], 3)
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float()


def nhwc(tensor):
    return tensor.permute(0, 2, 3, 1).numpy()


@shapes
def test_tf1_is_torch_fidelity(shape):
    x = pixels(shape)
    theirs = interpolate_bilinear_2d_like_tensorflow1x(nchw(x), (299, 299), align_corners=False)
    np.testing.assert_allclose(resize.tf1(x), nhwc(theirs), rtol=0, atol=1e-4)
    ours = resize.RESIZES['tf1'].prepare(x)
    np.testing.assert_allclose(ours, (nhwc(theirs) - 128) / 128, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_tf1_is_tensorflow():
    tf = pytest.importorskip('tensorflow')
    for shape in SHAPES:
        x = pixels(shape)
        theirs = tf.compat.v1.image.resize_bilinear(
            np.repeat(x, 3 // shape[3], 3), (299, 299), align_corners=False
        )
        np.testing.assert_allclose(resize.tf1(x), theirs, rtol=0, atol=1e-4)


@shapes
def test_pytorch_fid_is_interpolate(shape):
    """In pytorch-fid images are scaled to [0, 1] before, and to [-1, 1] after."""
    x = pixels(shape)
    options = {'size': (299, 299), 'mode': 'bilinear', 'align_corners': False}
    theirs = nhwc(torch.nn.functional.interpolate(nchw(x) / 255, **options))
    np.testing.assert_allclose(resize.pytorch_fid(x), 255 * theirs, rtol=0, atol=2e-4)
    ours = resize.RESIZES['pytorch_fid'].prepare(x)
    np.testing.assert_allclose(ours, 2 * theirs - 1, rtol=0, atol=2e-6)


@shapes
def test_clean_is_clean_fid(shape):
    x = pixels(shape)
    theirs = np.stack([build_resizer('clean')(np.repeat(y, 3 // shape[3], 2)) for y in x])
    np.testing.assert_array_equal(resize.clean(x), theirs)
    ours = resize.RESIZES['clean'].prepare(x)
    np.testing.assert_allclose(ours, (theirs - 128) / 128, rtol=0, atol=1e-6)


@shapes
def test_studiogan_is_clean_fids_resizer_with_a_bilinear_filter(shape):
    """StudioGAN (src/utils/resize.py) took it from there; it scales by (x / 255 - 0.5) / 0.5."""
    x = pixels(shape)
    resizer = make_resizer('PIL', False, 'bilinear', (299, 299))
    theirs = np.stack([resizer(np.repeat(y, 3 // shape[3], 2)) for y in x])
    np.testing.assert_array_equal(resize.studiogan(x), theirs)
    ours = resize.RESIZES['studiogan'].prepare(x)
    np.testing.assert_allclose(ours, (theirs / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)
