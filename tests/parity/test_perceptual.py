"""LPIPS, SSIM, MS-SSIM, PSNR and Perceptual Path Length against the packages that define them.

The backbones' real weights cannot be shipped: random ones go through torch files to both. LPIPS's
linear heads are the published ones, from the lpips package.
"""

import hashlib
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.metrics import lpips as module
from gen_jax.metrics.path_length import path_length, resize
from gen_jax.metrics.psnr import psnr
from gen_jax.metrics.ssim import SCALE_WEIGHTS, ms_ssim, ssim

torch = pytest.importorskip('torch')
lpips = pytest.importorskip('lpips')
pytorch_msssim = pytest.importorskip('pytorch_msssim')
skimage = pytest.importorskip('skimage.metrics')
torch_fidelity = pytest.importorskip('torch_fidelity')

from torch_fidelity.metric_ppl import calculate_ppl  # noqa: E402
from torch_fidelity.noise import random_normal  # noqa: E402
from torch_fidelity.sample_similarity_base import SampleSimilarityBase  # noqa: E402
from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS  # noqa: E402

HEADS = Path(lpips.__file__).parent / 'weights' / 'v0.1'


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def noisy(x, scale=40, seed=1):
    noise = np.random.default_rng(seed).normal(0, scale, x.shape)
    return np.clip(x + noise, 0, 255).astype(np.uint8)


def to_float(x):
    return np.float32(x) / np.float32(127.5) - 1


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


class Pair:
    """One network with random weights, as the lpips package's and as ours."""

    def __init__(self, net, folder):
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torchvision's, about the old name of an argument
            self.theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        for p in self.theirs.net.parameters():
            # torchvision's own initial values leave the deep layers all but alike.
            p.data.normal_(0, 0.1 if p.ndim == 1 else (2 / p[0].numel()) ** 0.5)
        # slice3.5.squeeze.weight is layer 5's, wherever it was sliced.
        state = {
            'features.' + name.split('.', 1)[1]: x
            for name, x in self.theirs.net.state_dict().items()
        }
        torch.save(state | {'classifier.1.weight': torch.zeros(2, 3)}, folder / 'backbone.pth')
        self.variables = module.load(net, folder / 'backbone.pth', HEADS / f'{net}.pth')
        self.ours = jax.jit(lambda v, x, y: module.lpips(v, x, y, net))


@pytest.fixture(scope='module', params=['alex', 'vgg', 'squeeze'])
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(3, 64, 64, 3), (1, 70, 91, 3)])
def test_lpips(pair, shape):
    x = to_float(pixels(shape))
    for y in (to_float(pixels(shape, seed=1)), to_float(noisy(pixels(shape), 10))):
        with torch.no_grad():
            theirs = pair.theirs(nchw(x), nchw(y)).numpy()[:, 0, 0, 0]
        assert theirs.min() > 1e-3
        np.testing.assert_allclose(pair.ours(pair.variables, x, y), theirs, rtol=1e-5)


@pytest.mark.parametrize('net', module.NETS)
def test_heads_of_the_package(net):
    digest = hashlib.sha256((HEADS / f'{net}.pth').read_bytes()).hexdigest()
    assert digest == module.NETS[net].heads.sha256


SHAPES = [(2, 64, 64, 3), (1, 11, 37, 1), (2, 45, 70, 3)]
TOLERANCES = [(False, 1e-6), (True, 1e-12)]


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(('double', 'tolerance'), TOLERANCES)
@pytest.mark.parametrize('window', ['gaussian', 'uniform'])
def test_ssim(shape, double, tolerance, window):
    options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False}
    options = options if window == 'gaussian' else {}
    x = pixels(shape)
    y = noisy(x)
    theirs = [
        skimage.structural_similarity(
            np.float64(a), np.float64(b), data_range=255, channel_axis=-1, **options
        )
        for a, b in zip(x, y, strict=True)
    ]
    with jax.enable_x64(double):
        pair = [z / 127.5 - 1 if double else to_float(z) for z in (x, y)]
        np.testing.assert_allclose(ssim(*pair, window), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ('shape', 'scales'),
    [((2, 161, 176, 3), 5), ((1, 163, 161, 1), 5), ((1, 170, 181, 3), 2), ((1, 164, 162, 1), 1)],
)
def test_ms_ssim(shape, scales):
    x = pixels(shape)
    y = noisy(x)
    weights = np.array(SCALE_WEIGHTS[:scales])
    options = {} if scales == 5 else {'weights': (weights / weights.sum()).tolist()}
    theirs = pytorch_msssim.ms_ssim(
        nchw(np.float64(x)),
        nchw(np.float64(y)),
        data_range=255,
        size_average=False,
        **options,
    )
    np.testing.assert_allclose(ms_ssim(to_float(x), to_float(y), scales), theirs, rtol=0, atol=1e-6)
    with jax.enable_x64(True):
        ours = ms_ssim(x / 127.5 - 1, y / 127.5 - 1, scales)
    # The package's window is float32 even then.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize('shape', SHAPES)
def test_psnr(shape):
    x = pixels(shape)
    y = noisy(x)
    theirs = [skimage.peak_signal_noise_ratio(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(psnr(to_float(x), to_float(y)), theirs, rtol=1e-5)


@pytest.mark.parametrize(
    'shape', [(2, 128, 128, 3), (1, 70, 91, 3), (1, 40, 50, 1), (1, 90, 64, 3)]
)
def test_resize(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    theirs = SampleSimilarityLPIPS.resize(nchw(x), 64).permute(0, 2, 3, 1)
    np.testing.assert_allclose(resize(x, 64), theirs, atol=1e-5)


class Generator(torch.nn.Module):
    """Two layers, float64 within, so that what is compared is the metric."""

    def __init__(self, side=8, channels=3):
        super().__init__()
        rng = np.random.default_rng(0)
        self.first, self.second = (
            rng.normal(size=(8, 16)),
            rng.normal(size=(16, side**2 * channels)),
        )
        self.shape = (side, side, channels)

    def forward(self, z):
        hidden = torch.tanh(z.double() @ torch.from_numpy(self.first))
        images = torch.tanh(hidden @ torch.from_numpy(self.second)).reshape(-1, *self.shape)
        return (127.5 * (images + 1)).permute(0, 3, 1, 2)

    def ours(self, z, index):
        del index
        images = jnp.tanh(jnp.tanh(z @ self.first) @ self.second)
        return images.reshape(-1, *self.shape)


class Squared(SampleSimilarityBase):
    def forward(self, x, y):
        return ((x - y) ** 2).sum((1, 2, 3)) / 127.5**2


def theirs_path_length(generator, similarity, path, epsilon, n):
    percentile = np.percentile
    with pytest.MonkeyPatch.context() as patch:
        place = 'torch_fidelity.metric_ppl.'
        patch.setattr(place + 'create_sample_similarity', lambda *a, **k: similarity)
        # It calls the argument by its old name, which NumPy 2.4 no longer knows.
        patch.setattr(
            place + 'np.percentile',
            lambda x, q, interpolation: percentile(x, q, method=interpolation),
        )
        model = torch_fidelity.GenerativeModelModuleWrapper(generator, 8, 'normal', 0)
        found = calculate_ppl(
            1,
            input1=model,
            input1_model_num_samples=n,
            ppl_epsilon=epsilon,
            ppl_z_interp_mode=path,
            rng_seed=11,
            batch_size=64,
            cuda=False,
            verbose=False,
        )
    return found['perceptual_path_length_mean'], found['perceptual_path_length_std']


def latents(n):
    rng = np.random.RandomState(11)
    return random_normal(rng, (n, 8)).numpy(), random_normal(rng, (n, 8)).numpy(), np.zeros(n)


def squared(x, y):
    return ((x - y) ** 2).sum((1, 2, 3))


@pytest.mark.parametrize(('path', 'theirs'), [('slerp', 'slerp_any'), ('lerp', 'lerp')])
@pytest.mark.parametrize(('epsilon', 'tolerance'), [(1e-1, 1e-6), (1e-4, 1e-4)])
def test_path_length(path, theirs, epsilon, tolerance):
    """Their latents are interpolated in float32, which shows at the smaller epsilon."""
    generator, n = Generator(), 300
    mean, std = theirs_path_length(generator, Squared('squared'), theirs, epsilon, n)
    with jax.enable_x64(True):
        found = path_length(generator.ours, squared, *latents(n), path, epsilon, batch_size=70)
    np.testing.assert_allclose(found['path_length'], mean, rtol=tolerance)
    np.testing.assert_allclose(found['path_length_std'], std, rtol=tolerance)


@pytest.mark.slow
def test_path_length_by_lpips(tmp_path):
    """Their LPIPS over VGG-16 at 32x32 with our weights, of images that are shrunk to that."""
    pair, n, epsilon = Pair('vgg', tmp_path), 12, 0.1
    with pytest.MonkeyPatch.context() as patch:
        place = 'torch_fidelity.sample_similarity_lpips.'
        patch.setattr(
            place + 'load_state_dict_from_url', lambda *a, **k: torch.load(HEADS / 'vgg.pth', 'cpu')
        )
        patch.setattr(place + 'VGG16features', lambda: pair.theirs.net)
        similarity = SampleSimilarityLPIPS('lpips', sample_similarity_resize=32)
    generator = Generator(side=48)
    mean, std = theirs_path_length(generator, similarity, 'lerp', epsilon, n)
    generate = jax.jit(lambda z, index: resize(generator.ours(z, index), 32))
    distance = lambda x, y: pair.ours(pair.variables, x, y)  # noqa: E731
    found = path_length(generate, distance, *latents(n), 'lerp', epsilon, batch_size=5)
    np.testing.assert_allclose(found['path_length'], mean, rtol=1e-4)
    np.testing.assert_allclose(found['path_length_std'], std, rtol=1e-3)
