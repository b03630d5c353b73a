"""Guidance against diffusers', which is written for noise: on x_0 as on any other quantity."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('diffusers')
guiders = pytest.importorskip('diffusers.guiders')

from diffusers.guiders.guider_utils import rescale_noise_cfg  # noqa: E402

from gen_jax.diffusion import guidance  # noqa: E402


@pytest.fixture
def pair():
    """Two estimates, of another mean and spread in each sample."""
    rng = np.random.default_rng(0)
    scale = np.float32([0.1, 1, 5])[:, None, None, None]
    return [rng.standard_normal((3, 5, 4, 2), np.float32) * scale + scale for _ in range(2)]


@pytest.mark.parametrize('phi', [0.0, 0.7, 1.0])
def test_rescale_agrees(pair, phi):
    guided, conditional = pair
    want = rescale_noise_cfg(*map(torch.tensor, pair), phi)
    got = guidance.rescale(guided, conditional, np.full(3, phi, np.float32))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('weight', 'phi'), [(1.5, 0.0), (7.5, 0.0), (7.5, 0.6)])
def test_classifier_free_agrees(pair, weight, phi):
    label, null = pair
    theirs = guiders.ClassifierFreeGuidance(guidance_scale=weight, guidance_rescale=phi)
    want = theirs.forward(*map(torch.tensor, pair)).pred
    got = guidance.classifier_free(label, null, np.full(3, weight, np.float32))
    got = guidance.rescale(got, label, np.full(3, phi, np.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
