"""The noise ladder and its loss against ncsnv2's, which record/ncsnv2.py wrote."""

import numpy as np
from golden import load

from gen_jax.diffusion import losses, predictions
from gen_jax.diffusion.ladder import ladder

GOLDEN = load('ncsnv2')


def test_sigmas():
    want = GOLDEN['sigmas'][::-1]
    np.testing.assert_allclose(ladder().sigma(np.arange(232, dtype=np.float32)), want, rtol=1e-5)


def test_denoising_score_matching():
    process, score = ladder(), predictions.SCORE
    t = np.float32(231 - GOLDEN['levels'])
    sigma = process.sigma(t)[:, None, None, None]
    x_t = GOLDEN['x_0'] + sigma * GOLDEN['eps']
    f = GOLDEN['said'] - 0.5 * x_t / sigma
    weight = losses.weighting('eps', process, score)(t)
    error = f - score.target(GOLDEN['x_0'], GOLDEN['eps'], np.ones_like(sigma), sigma)
    # Theirs is half of a sum, ours a mean.
    got = weight * (error**2).sum((1, 2, 3)) / 2
    np.testing.assert_allclose(got, GOLDEN['loss'], rtol=1e-5)
