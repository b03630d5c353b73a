"""With exact denoisers of Gaussian mixtures, for which the guided density can be written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

from gen_jax.diffusion import guidance
from gen_jax.errors import UserError

MEANS = jnp.float32([[-1.0, 0.5], [2.0, -0.5], [0.0, 1.5]])  # of the classes, in the plane
STDS = jnp.float32([0.5, 0.8, 0.3])
PRIOR = jnp.float32([0.2, 0.5, 0.3])
ALPHA, SIGMA = np.float32([0.9, 0.6, 0.2]), np.float32([0.4, 0.8, 1.1])  # of three samples
WEIGHTS = jnp.float32([0.0, 1.0, 3.5])
LABEL = jnp.int32([2, 0, 1])


def log_each(x, alpha, sigma):
    """Log densities [3] of the classes' x_t at one x [2]."""
    std = jnp.sqrt((alpha * STDS) ** 2 + sigma**2)
    return norm.logpdf(x, alpha * MEANS, std[:, None]).sum(-1)


def log_null(x, alpha, sigma):
    return logsumexp(log_each(x, alpha, sigma), b=PRIOR)


def log_label(x, label, alpha, sigma):
    return log_each(x, alpha, sigma)[label]


def log_classifier(x, label, alpha, sigma):
    """Log p(label | x_t), by Bayes."""
    return log_label(x, label, alpha, sigma) + jnp.log(PRIOR)[label] - log_null(x, alpha, sigma)


def denoised(x, label, alpha, sigma):
    """E[x_0 | x_t] of one class, from the joint Gaussian of x_0 and x_t, not by Tweedie."""
    gain = alpha * STDS[label] ** 2 / ((alpha * STDS[label]) ** 2 + sigma**2)
    return MEANS[label] + gain * (x - alpha * MEANS[label])


def denoised_null(x, alpha, sigma):
    """E[x_0 | x_t] of all classes: the mean of theirs, weighted by how probable each is."""
    posterior = jax.nn.softmax(log_each(x, alpha, sigma) + jnp.log(PRIOR))
    each = [denoised(x, label, alpha, sigma) for label in range(3)]
    return posterior @ jnp.stack(each)


def score(x_0, x_t):
    """By Tweedie's formula."""
    return (ALPHA[:, None] * x_0 - x_t) / SIGMA[:, None] ** 2


@pytest.fixture
def x_t():
    return jnp.asarray(np.random.default_rng(0).standard_normal((3, 2), np.float32))


@pytest.mark.slow
def test_classifier_free_samples_the_guided_density(x_t):
    def log_guided(x, label, w, *at):
        return (1 - w) * log_null(x, *at) + w * log_label(x, label, *at)

    want = jax.vmap(jax.grad(log_guided))(x_t, LABEL, WEIGHTS, ALPHA, SIGMA)
    x0_label = jax.vmap(denoised)(x_t, LABEL, ALPHA, SIGMA)
    x0_null = jax.vmap(denoised_null)(x_t, ALPHA, SIGMA)
    got = guidance.classifier_free(x0_label, x0_null, WEIGHTS)
    np.testing.assert_allclose(score(got, x_t), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got[0], x0_null[0])
    np.testing.assert_allclose(got[1], x0_label[1], atol=1e-6)


@pytest.mark.slow
def test_an_exact_classifier_guides_as_no_classifier(x_t):
    """p(x) p(label | x)^w is proportional to p(x)^(1 - w) p(x | label)^w."""
    x0_label = jax.vmap(denoised)(x_t, LABEL, ALPHA, SIGMA)
    x0_null = jax.vmap(denoised_null)(x_t, ALPHA, SIGMA)
    gradient = jax.vmap(jax.grad(log_classifier))(x_t, LABEL, ALPHA, SIGMA)
    got = guidance.classifier(x0_null, gradient, WEIGHTS, ALPHA, SIGMA)
    want = guidance.classifier_free(x0_label, x0_null, WEIGHTS)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_classifier_is_the_papers_on_noise(x_t):
    """Dhariwal and Nichol 2021, Algorithm 2: eps - sqrt(1 - alpha_bar) gradient."""
    eps, gradient = x_t[::-1], 0.3 * x_t**2
    alpha, sigma = ALPHA[:, None], np.sqrt(1 - ALPHA**2)[:, None]
    x_0 = (x_t - sigma * eps) / alpha
    got = guidance.classifier(x_0, gradient, jnp.ones(3), ALPHA, sigma[:, 0])
    want = (x_t - sigma * (eps - sigma * gradient)) / alpha
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_classifier_free_is_that_of_noise():
    rng = np.random.default_rng(0)
    x_t, *eps = (jnp.asarray(rng.standard_normal((3, 4, 4, 2)), jnp.float32) for _ in range(3))
    alpha, sigma = ALPHA[:, None, None, None], SIGMA[:, None, None, None]

    def eps_theta(x_t, t, label):
        here = (jnp.tile(e, (len(x_t) // 3, 1, 1, 1)) for e in eps)
        return jnp.where((label == 9)[:, None, None, None], *here)

    null, phi = jnp.full(3, 9), jnp.zeros(3)
    guided = guidance.by_label(eps_theta, x_t, jnp.zeros(3), LABEL, null, WEIGHTS, phi)
    x0_null, x0_label, want = ((x_t - sigma * e) / alpha for e in (*eps, guided))
    got = guidance.classifier_free(x0_label, x0_null, WEIGHTS)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_autoguidance_of_gaussians():
    """N(0, 1) guided by N(0, 4): the precision is w / v_good - (w - 1) / v_bad."""
    x_t, w = jnp.float32([[0.7], [-2.0], [1.0]]), np.float32([1.0, 2.0, 4.0])
    good, bad = ((ALPHA * std) ** 2 + SIGMA**2 for std in (1.0, 2.0))
    x0_good, x0_bad = (
        (ALPHA * std**2 / variance)[:, None] * x_t for std, variance in ((1.0, good), (2.0, bad))
    )
    got = guidance.autoguidance(x0_good, x0_bad, w)
    want = -x_t * (w / good - (w - 1) / bad)[:, None]
    np.testing.assert_allclose(score(got, x_t), want, rtol=1e-4)


def test_outside_its_interval_guidance_is_none(x_t):
    sigma = jnp.float32([0.1, 0.2, 0.3, 2.0, 2.1])
    got = guidance.interval(jnp.full(5, 3.0), sigma, 0.2, 2.0)
    np.testing.assert_array_equal(got, [1, 1, 3, 3, 1])
    got = guidance.interval(jnp.float32([0, 2, 5]), jnp.full(3, 1.5), 1.0, jnp.inf)
    np.testing.assert_array_equal(got, [0, 2, 5])
    none = guidance.interval(WEIGHTS, SIGMA, 5.0, 9.0)
    np.testing.assert_allclose(guidance.classifier_free(x_t, 2 * x_t, none), x_t, atol=1e-6)


def test_rescale():
    rng = np.random.default_rng(0)
    conditional = jnp.asarray(rng.standard_normal((3, 4, 4, 2)), jnp.float32)
    guided = 3 * conditional + jnp.float32([0, 1, 2])[:, None, None, None]
    got = guidance.rescale(guided, conditional, jnp.float32([0, 1, 0.7]))
    np.testing.assert_allclose(got[0], guided[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], guided[1] / 3, rtol=1e-5)
    np.testing.assert_allclose(got[2], guided[2] * (0.7 / 3 + 0.3), rtol=1e-5)


def test_rescale_of_a_constant_leaves_it():
    zero = jnp.zeros((2, 4, 4, 1))
    for phi in (0.0, 1.0):
        np.testing.assert_array_equal(guidance.rescale(zero, zero, jnp.full(2, phi)), zero)
        np.testing.assert_array_equal(guidance.rescale(zero + 1, zero, jnp.full(2, phi)), zero + 1)


@pytest.mark.parametrize(
    'call',
    [
        lambda x, number: guidance.classifier_free(x, x, number),
        lambda x, number: guidance.autoguidance(x, x, number),
        lambda x, number: guidance.rescale(x, x, number),
        lambda x, number: guidance.classifier(x, x, number, ALPHA, SIGMA),
        lambda x, number: guidance.classifier(x, x, SIGMA, ALPHA, number),
    ],
)
def test_numbers_are_one_per_sample(x_t, call):
    for number in (2.0, jnp.ones(2), jnp.ones((3, 1))):
        with pytest.raises(UserError, match=r'expected one per sample, \[3\]') as error:
            call(x_t, number)
        assert '\n' not in str(error.value)


def test_samples_do_not_mix_and_numbers_can_be_traced(x_t):
    def guided(x, gradient, w, alpha, sigma):
        w = guidance.interval(w, sigma / alpha, 0.5, 3.0)
        x = guidance.classifier(x, gradient, w, alpha, sigma)
        return guidance.rescale(guidance.classifier_free(x, gradient, w), x, w / 4)

    args = x_t, x_t[::-1] ** 2, WEIGHTS, jnp.asarray(ALPHA), jnp.asarray(SIGMA)
    whole = jax.jit(guided)(*args)
    for i in range(3):
        alone = guided(*(x[i : i + 1] for x in args))
        np.testing.assert_allclose(alone, whole[i : i + 1], rtol=1e-5, atol=1e-6)


def test_by_label_is_guidance_and_rescale_of_one_call(x_t):
    other, phi, calls = jnp.int32([1, 2, 0]), jnp.float32([0.0, 0.5, 1.0]), []

    def said(x, t, label):
        calls.append(len(x))
        return x * t[:, None] + label[:, None] * x**2

    t = jnp.float32([0.1, 0.5, 2.0])
    got = guidance.by_label(said, x_t, t, LABEL, other, WEIGHTS, phi)
    given, instead = said(x_t, t, LABEL), said(x_t, t, other)
    want = instead + WEIGHTS[:, None] * (given - instead)
    ratio = jnp.std(given, 1) / jnp.std(want, 1)
    np.testing.assert_allclose(got, want * (phi * ratio + 1 - phi)[:, None], rtol=1e-5)
    assert sorted(calls[:2]) == [3, 6]


@pytest.mark.parametrize('weight', [1.0, 2.0])
def test_who_is_not_guided_is_asked_once(x_t, weight):
    asked = []

    def said(x, t, label):
        jax.debug.callback(lambda n: asked.append(int(n)), len(x))
        return label[:, None] * x

    weights = jnp.float32([1.0, weight, 1.0])
    got = jax.jit(
        lambda: guidance.by_label(
            said, x_t, jnp.zeros(3), LABEL, jnp.zeros(3, jnp.int32), weights, jnp.zeros(3)
        )
    )()
    jax.effects_barrier()
    np.testing.assert_allclose(got, weights[:, None] * LABEL[:, None] * x_t, rtol=1e-6)
    assert asked == [3 if weight == 1 else 6]


def test_rescale_has_a_gradient_where_nothing_varies():
    x = jnp.zeros((2, 3, 3, 1))
    for phi in (0.0, 0.7):
        gradient = jax.grad(lambda x, y, phi=phi: guidance.rescale(x, y, jnp.full(2, phi)).sum())
        for y in (x, x.at[0, 0, 0, 0].set(1.0)):
            assert np.isfinite(gradient(x, y)).all()
            assert np.isfinite(gradient(y, x)).all()


def levels(t):
    return jnp.asarray(ALPHA), jnp.asarray(SIGMA) + 0 * t


@pytest.mark.slow
def test_a_classified_denoiser_samples_the_guided_density(x_t):
    """As `classifier`, whose gradient it takes itself."""

    def log_prob(x, t):
        return jax.vmap(log_classifier)(x, LABEL, ALPHA, SIGMA)

    def null(x, t):
        return jax.vmap(denoised_null)(x, ALPHA, SIGMA)

    denoise = jax.jit(guidance.classified(null, log_prob, levels, WEIGHTS))
    want = guidance.classifier_free(
        jax.vmap(denoised)(x_t, LABEL, ALPHA, SIGMA), null(x_t, None), WEIGHTS
    )
    np.testing.assert_allclose(denoise(x_t, jnp.zeros(3)), want, atol=1e-5)
