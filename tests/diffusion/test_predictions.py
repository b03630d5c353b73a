"""Predictions convert there and back, and their losses weigh what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import losses, processes
from gen_jax.diffusion.predictions import PREDICTIONS, edm, noise
from gen_jax.diffusion.schedules import DiscreteProcess, linear_betas

ALL = PREDICTIONS | {'edm': edm(0.5)}
LEVELS = [(1.0, 0.01), (1.0, 40.0), (0.8, 0.6), (0.05, 0.99), (0.3, 0.7)]
each = pytest.mark.parametrize('name', ALL)


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((3, 4, 4, 2)) for _ in range(2))


@each
@pytest.mark.parametrize(('alpha', 'sigma'), LEVELS)
def test_there_and_back_is_exact(name, alpha, sigma):
    prediction, (x_0, eps) = ALL[name], drawn()
    with jax.enable_x64(True):
        alpha, sigma = jnp.float64(alpha), jnp.float64(sigma)
        x_t = alpha * x_0 + sigma * eps
        f = prediction.target(x_0, eps, alpha, sigma)
        np.testing.assert_allclose(prediction.x_0(f, x_t, alpha, sigma), x_0, atol=1e-9)
        np.testing.assert_allclose(noise(x_t, x_0, alpha, sigma), eps, atol=1e-9)


@each
@pytest.mark.parametrize(('alpha', 'sigma'), LEVELS)
def test_error_is_how_far_the_image_moves(name, alpha, sigma):
    prediction, (f, x_t) = ALL[name], drawn()
    with jax.enable_x64(True):
        alpha, sigma = jnp.float64(alpha), jnp.float64(sigma)
        moved = prediction.x_0(f + 1, x_t, alpha, sigma) - prediction.x_0(f, x_t, alpha, sigma)
        np.testing.assert_allclose(abs(moved), prediction.error(alpha, sigma), rtol=1e-8)


def test_the_score_is_the_gradient_of_a_gaussians_log_density():
    """For x_0 of N(0, v), where E[x_0 | x_t] is linear in x_t."""
    alpha, sigma, v, x = 0.6, 0.9, 0.3, 1.7
    variance = alpha**2 * v + sigma**2
    score = jax.grad(lambda x: -(x**2) / (2 * variance))(x)
    found = PREDICTIONS['score'].x_0(sigma * score, x, alpha, sigma)
    assert found == pytest.approx(alpha * v / variance * x, rel=1e-6)


def test_edm_keeps_inputs_and_targets_of_unit_variance():
    """Karras et al. 2022, appendix B.6: the three requirements that give the coefficients."""
    rng, n, std = np.random.default_rng(0), 200_000, 0.5
    x_0, eps = std * rng.standard_normal(n), rng.standard_normal(n)
    for sigma in (0.05, 0.5, 5.0, 50.0):
        prediction = edm(std)
        x_t = x_0 + sigma * eps
        assert (x_t * prediction.scale(1.0, sigma)).std() == pytest.approx(1, rel=0.01)
        assert np.std(prediction.target(x_0, eps, 1.0, sigma)) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize('prediction', ALL)
@pytest.mark.parametrize('name', losses.WEIGHTINGS)
def test_a_weight_means_the_same_for_every_prediction(name, prediction):
    process, t = processes.vp_linear(), jnp.float32([0.01, 0.2, 0.5, 0.9])
    weight = losses.weighting(name, process, ALL[prediction])(t)
    alpha, sigma = np.float64(process.alpha(t)), np.float64(process.sigma(t))
    of_x_0 = {
        'simple': 1 / np.float64(ALL[prediction].error(alpha, sigma)) ** 2,
        'eps': alpha**2 / sigma**2,
        'x_0': 1.0,
        'edm': ((sigma / alpha) ** 2 + 0.25) / (sigma / alpha * 0.5) ** 2,
        'min_snr': np.minimum(alpha**2 / sigma**2, 5),
        # |s - s_hat|^2 = (alpha / sigma^2)^2 |x_0 - x_0_hat|^2, and g^2 = beta.
        'likelihood': (0.1 + np.float64(t) * 19.9) * alpha**2 / sigma**4,
    }[name]
    want = of_x_0 * np.float64(ALL[prediction].error(alpha, sigma)) ** 2
    np.testing.assert_allclose(weight, want, rtol=2e-4)


def test_min_snr_is_the_papers_for_each_target():
    """Hang et al. 2023, table 1: min(SNR, 5) over SNR for eps, over SNR + 1 for v."""
    process, t = processes.vp_cosine(), jnp.float32([0.1, 0.4, 0.8])
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    for name, below in (('eps', snr), ('v', snr + 1)):
        weight = losses.weighting('min_snr', process, PREDICTIONS[name])(t)
        np.testing.assert_allclose(weight, jnp.minimum(snr, 5) / below, rtol=1e-4)


def test_weights_keep_their_digits_where_little_of_the_image_is_left():
    """At alpha = 1e-22, whose square and that of its inverse float32 has not."""
    process = DiscreteProcess.from_betas(linear_betas(10_000, 1e-4, 0.02))
    t = jnp.arange(10_000)
    assert process.alpha(t)[-1] < 1e-21
    snr = process.alpha_bar / (1 - process.alpha_bar)
    for prediction in ('eps', 'score'):
        for name, want in (('eps', 1.0), ('min_snr', np.minimum(1, 5 / snr))):
            weight = losses.weighting(name, process, PREDICTIONS[prediction])(t)
            np.testing.assert_allclose(weight, want, rtol=1e-5)
    x_0, eps = (x.astype(np.float32) for x in drawn())
    alpha, sigma = process.alpha(t)[-1], process.sigma(t)[-1]
    f = ALL['edm'].target(x_0, eps, alpha, sigma)
    # Nothing of the image is told: what is left to say is all of it, of deviation 1.
    np.testing.assert_allclose(f, 2 * x_0, rtol=1e-5)
    weight = losses.weighting('edm', process, ALL['edm'])(t)
    np.testing.assert_allclose(weight, 1, rtol=1e-5)


def test_times_have_the_distribution_that_they_name():
    key, n = jax.random.key(0), 100_000
    vp, vary = processes.vp_linear(), processes.edm()
    t = losses.draw_times('uniform', vp, key, n)
    assert vp.t_min <= t.min() <= t.max() <= 1
    assert abs(t.mean() - 0.5005) < 0.004
    log_sigma = jnp.log(losses.draw_times('lognormal', vary, key, n, -1.2, 1.2))
    assert abs(log_sigma.mean() + 1.2) < 0.015
    assert abs(log_sigma.std() - 1.2) < 0.015
    # The same noise in another process: at its own times.
    t = losses.draw_times('lognormal', vp, key, n, -1.2, 1.2)
    np.testing.assert_allclose(jnp.log(vp.sigma(t) / vp.alpha(t)), log_sigma, atol=0.02)
    t = losses.draw_times('logit_normal', processes.flow(), key, n, 0.5, 2.0)
    logit = jnp.log(t / (1 - t))
    assert abs(logit.mean() - 0.5) < 0.03
    assert abs(logit.std() - 2) < 0.03
