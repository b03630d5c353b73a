"""The variational bound against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gen_jax.diffusion import bound
from gen_jax.diffusion.samplers import VARIANCES
from gen_jax.diffusion.schedules import DiscreteProcess, cosine_betas, linear_betas

PROCESS = DiscreteProcess.from_betas(linear_betas(1000, 1e-4, 0.02))
S = 0.3


def keys(n):
    return jax.random.split(jax.random.key(0), n)


def levels(x):
    """The nearest of the 256 levels of an image in [-1, 1]."""
    return np.float32(np.round((np.clip(x, -1, 1) + 1) * 127.5) / 127.5 - 1)


def normal_kl(m1, v1, m2, v2):
    return 0.5 * (np.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / v2 - 1)


def test_prior_closed_form():
    process = DiscreteProcess.from_betas(linear_betas(50, 1e-3, 0.05))
    x, a = np.float32([-1, 0, 0.5]), process.alpha_bar[-1]
    np.testing.assert_allclose(
        bound.prior(process, x), normal_kl(np.sqrt(a) * x, 1 - a, 0.0, 1.0), rtol=1e-5
    )


@pytest.mark.parametrize('variance', VARIANCES)
def test_gaussian_terms_are_the_divergence(variance):
    constant, weight, sigma = bound.gaussian_terms(PROCESS, variance)
    c_0, c_t = PROCESS.posterior_mean()
    x_0, x_0_hat, x_t = 0.2, -0.4, 0.9
    for t in (1, 2, 500, 999):
        want = normal_kl(
            c_0[t] * x_0 + c_t[t] * x_t,
            PROCESS.beta_tilde[t],
            c_0[t] * x_0_hat + c_t[t] * x_t,
            PROCESS.beta[t] if variance == 'fixed_large' else PROCESS.beta_tilde[t],
        )
        np.testing.assert_allclose(constant[t] + weight[t] * (x_0 - x_0_hat) ** 2, want, rtol=1e-6)
    np.testing.assert_allclose(sigma[0] ** 2, PROCESS.beta_tilde[1])


@pytest.mark.parametrize(('mean', 'sigma'), [(0.0, 0.01), (0.97, 0.05), (-3.0, 1.0), (0.2, 2.0)])
def test_decoder_is_a_distribution_over_levels(mean, sigma):
    x = levels(np.linspace(-1, 1, 256))
    log_prob = np.asarray(bound.decoder_log_prob(x, mean, sigma))
    edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(
        np.exp(log_prob), np.diff(stats.norm.cdf(edges, mean, sigma)), atol=1e-5
    )


@pytest.mark.slow
def test_decoder_stays_finite_and_keeps_gradients_far_away():
    x = jnp.float32([-1, -0.5, 0, 0.5, 1])
    for mean in (-1.0, 1.0):
        value, grad = jax.value_and_grad(lambda m: bound.decoder_log_prob(x, m, 0.005).sum())(mean)
        assert np.isfinite(value)
        assert value < -1e4
        assert np.sign(grad) == -np.sign(mean)


@pytest.mark.slow
@pytest.mark.parametrize(('variance', 'gap'), [('fixed_large', 0.2), ('fixed_small', 1.0)])
def test_exact_denoiser_of_gaussian_data(variance, gap, monkeypatch):
    """With E[x_0 | x_t] of N(0, S^2) data every term is known, and all are near the entropy."""
    shape = (8, 32, 32, 3)
    quantiles = stats.norm.ppf((np.arange(np.prod(shape)) + 0.5) / np.prod(shape))
    x_0 = levels(S * quantiles.reshape(shape))

    def stratified(keys, t, shape):
        """Quantiles, turned by what is drawn: without a variance of their own, of 0.015 bits."""
        by = jax.random.randint(jax.random.fold_in(keys[0], t), (), 0, len(mixed))
        return jnp.roll(mixed, by).reshape(-1, *shape)

    mixed = jnp.float32(np.random.default_rng(0).permutation(quantiles))

    monkeypatch.setattr(bound, 'normal', stratified)
    scale, noise_std = jnp.float32((np.sqrt(PROCESS.alpha_bar), np.sqrt(1 - PROCESS.alpha_bar)))

    def predict(x_t, t):
        a, s = scale[t][:, None, None, None], noise_std[t][:, None, None, None]
        x_0_hat = a * S**2 / (a**2 * S**2 + s**2) * x_t
        return bound.Estimate((x_t - a * x_0_hat) / s, x_0_hat)

    got = bound.evaluate(predict, PROCESS, keys(8), jnp.asarray(x_0), variance)
    bits = got['vlb_bits_per_dim'].mean()
    # -log2 of the density times the bin's width: the entropy of these very pixels.
    entropy = (-stats.norm.logpdf(x_0, 0, S) - np.log(2 / 255)).mean() / np.log(2)
    assert entropy < bits < entropy + gap

    a = PROCESS.alpha_bar
    error = S**2 * (1 - a) / (a * S**2 + 1 - a)  # E (x_0 - x_0_hat)^2
    model = PROCESS.beta if variance == 'fixed_large' else PROCESS.beta_tilde
    c_0, _ = PROCESS.posterior_mean()
    means = c_0[1:] ** 2 * error[1:]
    kl = normal_kl(np.sqrt(means), PROCESS.beta_tilde[1:], 0.0, model[1:]).sum()
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    cdf, miss = stats.norm(0, np.sqrt(PROCESS.beta_tilde[1])).cdf, nodes * np.sqrt(error[0])
    decoder = -weights @ np.log(cdf(miss + 1 / 255) - cdf(miss - 1 / 255)) / weights.sum()
    prior = normal_kl(np.sqrt(a[-1]) * S, 1 - a[-1], 0.0, 1.0)
    np.testing.assert_allclose(bits, (kl + decoder + prior) / np.log(2), atol=0.01)

    # E (eps - eps_hat)^2 = alpha_bar S^2 / (alpha_bar S^2 + 1 - alpha_bar).
    assert got['simple_loss'].shape == (8,)
    want = (a * S**2 / (a * S**2 + 1 - a)).mean()
    np.testing.assert_allclose(got['simple_loss'].mean(), want, rtol=0.01)


@pytest.mark.slow
def test_ignorant_predictor():
    """x_0_hat = 0 and the pixels 0: every term is known."""
    x_0 = levels(np.zeros((2, 4, 4, 1)))  # the level nearest to 0 is 1/255

    def predict(x_t, t):
        return bound.Estimate(jnp.zeros_like(x_t), jnp.zeros_like(x_t))

    got = bound.evaluate(predict, PROCESS, keys(2), jnp.asarray(x_0), 'fixed_small')
    c_0, _ = PROCESS.posterior_mean()
    x = float(x_0[0, 0, 0, 0])
    terms = c_0[1:] ** 2 / (2 * PROCESS.beta_tilde[1:]) * x**2
    cdf = stats.norm(0, np.sqrt(PROCESS.beta_tilde[1])).cdf
    decoder = -np.log(cdf(x + 1 / 255) - cdf(x - 1 / 255))
    a = PROCESS.alpha_bar[-1]
    nats = terms.sum() + decoder + normal_kl(np.sqrt(a) * x, 1 - a, 0, 1)
    np.testing.assert_allclose(got['vlb_bits_per_dim'], nats / np.log(2), rtol=1e-4)
    each = bound.terms(predict, PROCESS, keys(2), jnp.asarray(x_0), 'fixed_small')
    assert each.shape == (2, 1001)
    np.testing.assert_allclose(each[:, 0] * np.log(2), decoder, rtol=1e-4)
    np.testing.assert_allclose(each[:, 1:1000] * np.log(2), [terms] * 2, rtol=1e-4)
    np.testing.assert_allclose(each[:, 1000], got['vlb_prior_bits_per_dim'])
    parts = [got[f'vlb_{name}_bits_per_dim'] for name in ('decoder', 'middle', 'prior')]
    np.testing.assert_allclose(sum(parts), got['vlb_bits_per_dim'], rtol=1e-5)


@pytest.mark.slow
def test_a_learned_variance_is_the_fixed_one_at_the_ends():
    rng = np.random.default_rng(0)
    x_0, x_0_hat = (levels(rng.uniform(-1, 1, (5, 2, 2, 1))) for _ in range(2))
    t = jnp.int32([1, 2, 30, 500, 999])
    learned = bound.make_term(PROCESS, 'learned_range')
    for variance, share in (('fixed_small', 0.0), ('fixed_large', 1.0)):
        want = bound.make_term(PROCESS, variance)(t, x_0, x_0_hat)
        got = learned(t, x_0, x_0_hat, jnp.full_like(x_0, share))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize('variance', ['fixed_large', 'learned_range'])
def test_terms_have_gradients_wherever_the_estimate_is(variance):
    """Of x_T the cosine schedule leaves 1e-5 of the image: what is said there is far off."""
    process = DiscreteProcess.from_betas(cosine_betas(4000))
    t, x_0 = jnp.int32([0, 1, 2000, 3999]), jnp.zeros((4, 1, 1, 1))
    term = bound.make_term(process, variance)
    for far in (0.1, 10.0, -1e6):
        slope = jax.grad(lambda x: term(t, x_0, x, jnp.full_like(x, 0.4)).sum())
        # The first is the decoder's.
        at = jnp.float32([0.01 * np.sign(far), far, far, far])[:, None, None, None]
        got = slope(at)
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(np.sign(got), np.sign(far))
