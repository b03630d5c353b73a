"""Langevin samplers on a mixture of two Gaussians, the pixels of an image being independent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import langevin, processes, samplers
from gen_jax.diffusion.processes import Path
from gen_jax.diffusion.schedules import DiscreteProcess, Trajectory, linear_betas

MEANS, STD = np.array([-0.5, 0.7]), 0.25
SHAPE = (8, 8, 1)
DDPM = DiscreteProcess.from_betas(linear_betas(200, 1e-4, 0.1))


def score(x, alpha, sigma):
    """Of x_t, in numpy or JAX."""
    xp = jnp if isinstance(x, jax.Array) else np
    variance = alpha**2 * STD**2 + sigma**2
    a, b = (-((x - alpha * m) ** 2) / (2 * variance) for m in MEANS)
    share = 1 / (1 + xp.exp(b - a))
    return (alpha * (share * MEANS[0] + (1 - share) * MEANS[1]) - x) / variance


def denoiser(path):
    def denoise(x, t):
        if isinstance(path, Trajectory):
            alpha_bar = jnp.asarray(DDPM.alpha_bar, x.dtype)[t]
            levels = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        else:
            levels = path.process.alpha(t), path.process.sigma(t)
        alpha, sigma = (level[:, None, None, None] for level in levels)
        return (x + sigma**2 * score(x, alpha, sigma)) / alpha

    return denoise


def path_of(name, n, steps):
    count = jnp.full(n, steps)
    return {
        'edm': lambda: Path(processes.edm(0.01, 50.0), count, 'log_snr'),
        'sub_vp': lambda: Path(processes.sub_vp(), count, 'linear'),
        'ddpm': lambda: Trajectory.create(DDPM, count, 'linear'),
    }[name]()


def keys(n):
    return jax.random.split(jax.random.key(1), n)


PC, ALD = langevin.predictor_corrector, langevin.annealed_langevin


@pytest.mark.slow
@pytest.mark.parametrize(
    ('sampler', 'snr', 'corrections', 'name'),
    [
        (PC, 0.0, 1, 'sub_vp'),
        (PC, 0.16, 1, 'edm'),
        (PC, 0.16, 1, 'ddpm'),
        (ALD, 0.16, 10, 'edm'),
        (ALD, 0.16, 10, 'ddpm'),
    ],
)
def test_reaches_the_moments(sampler, snr, corrections, name):
    n = 120
    path = path_of(name, n, 200)
    run = jax.jit(
        lambda: sampler(denoiser(path), path, keys(n), SHAPE, jnp.full(n, snr), corrections)
    )
    x = np.asarray(run())
    # 7,680 draws: standard errors are 0.007, 0.003 and 0.006. The samplers err, too.
    assert x.mean() == pytest.approx(MEANS.mean(), abs=0.03)
    assert x.std() == pytest.approx(np.hypot(STD, MEANS.std()), abs=0.03)
    assert np.mean(x > MEANS.mean()) == pytest.approx(0.5, abs=0.03)


def draws(steps, corrections):
    """What one sample draws: [i, m] for m = 1 .. corrections, and m = 0 for the predictor."""
    key = keys(1)
    with jax.enable_x64(True):
        table = [
            [samplers.normal(key, i + 65536 * m, SHAPE) for m in range(corrections + 1)]
            for i in range(steps)
        ]
        return np.asarray(table)[:, :, 0]


def test_annealed_langevin_is_algorithm_1():
    """Song and Ermon 2019, in numpy; what follows is the last estimate of the image."""
    steps, corrections, epsilon, sigmas = 4, 3, 0.05, np.geomspace(5, 0.5, 4)
    z, x = draws(steps, corrections), 5 * draws(1, 0)[0, 0]
    for k, sigma in enumerate(sigmas):
        alpha = epsilon * sigma**2 / sigmas[-1] ** 2
        for m in range(1, corrections + 1):
            x = x + alpha / 2 * score(x, 1.0, sigma) + np.sqrt(alpha) * z[steps - 1 - k, m]
    x = x + sigmas[-1] ** 2 * score(x, 1.0, sigmas[-1])
    snr = jnp.full(1, np.sqrt(epsilon) / sigmas[-1] / 2)
    with jax.enable_x64(True):
        path = Path(processes.edm(0.5, 5.0), jnp.full(1, steps), 'log_snr')
        found = langevin.annealed_langevin(denoiser(path), path, keys(1), SHAPE, snr, corrections)
    np.testing.assert_allclose(found[0], x, atol=1e-5)


def test_annealed_langevin_is_the_same_whatever_alpha_is():
    vp, snr, found = processes.vp_linear(), jnp.full(1, 0.2), []
    with jax.enable_x64(True):
        ends, first = jnp.float64([vp.t_min, vp.t_max]), vp.alpha(jnp.float64(vp.t_max))
        low, high = vp.sigma(ends) / vp.alpha(ends)
        for process in (vp, processes.edm(low, high)._replace(prior_std=1 / first)):
            path = Path(process, jnp.full(1, 5), 'log_snr')
            x = langevin.annealed_langevin(denoiser(path), path, keys(1), SHAPE, snr, 2)
            found.append(x)
    np.testing.assert_allclose(*found, rtol=2e-5, atol=2e-5)  # Path's ends are float32


def test_predictor_corrector_is_algorithms_3_and_5_for_ddpm():
    """Song et al. 2021, in numpy, with every time visited."""
    ddpm = DiscreteProcess.from_betas(linear_betas(6, 0.05, 0.6))
    snr, z, x = 0.16, draws(6, 1), draws(1, 0)[0, 0]
    for i in reversed(range(6)):
        beta, levels = ddpm.beta[i], (ddpm.alpha_bar[i] ** 0.5, (1 - ddpm.alpha_bar[i]) ** 0.5)
        g = score(x, *levels)
        epsilon = 2 * (1 - beta) * (snr * np.linalg.norm(z[i, 1]) / np.linalg.norm(g)) ** 2
        x = x + epsilon * g + np.sqrt(2 * epsilon) * z[i, 1]
        x = (2 - np.sqrt(1 - beta)) * x + beta * score(x, *levels)
        x = x + np.sqrt(beta) * z[i, 0] * (i > 0)

    def denoise(x, t):
        alpha_bar = jnp.asarray(ddpm.alpha_bar)[t][:, None, None, None]
        alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        return (x + sigma**2 * score(x, alpha, sigma)) / alpha

    with jax.enable_x64(True):
        path = Trajectory.create(ddpm, jnp.full(1, 6), 'linear')
        found = langevin.predictor_corrector(denoise, path, keys(1), SHAPE, jnp.full(1, snr))
    np.testing.assert_allclose(found[0], x, atol=1e-5)


def test_a_network_that_knows_no_score_yet_is_not_corrected():
    path = path_of('edm', 2, 3)
    found = langevin.predictor_corrector(lambda x, t: x, path, keys(2), SHAPE, jnp.ones(2))
    assert np.isfinite(found).all()


@pytest.mark.parametrize('sampler', [PC, ALD])
def test_a_sample_depends_on_its_own_key_and_snr_only(sampler):
    def run(n, snr):
        path = path_of('edm', n, 4)
        return sampler(denoiser(path), path, keys(3)[:n], SHAPE, jnp.float32(snr)[:n], 2)

    run = jax.jit(run, static_argnums=0)
    three = run(3, [0.2, 0.1, 0.3])
    np.testing.assert_allclose(run(1, [0.2, 0.2, 0.2])[0], three[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(3, [0.2, 0.2, 0.2])[0], three[0], rtol=1e-4, atol=1e-5)
    assert np.abs(run(3, [0.2, 0.2, 0.2])[1] - three[1]).max() > 1e-2
