"""Solvers of the probability flow in continuous time, on a mixture of two Gaussians.

Its denoiser is exact, and SciPy integrates the same equation to ten digits, in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from gen_jax.diffusion import langevin, multistep, ode, processes, samplers
from gen_jax.diffusion.processes import Path

MEANS, STD = (-0.5, 0.7), 0.25
PROCESSES = {
    # The least noise is far below the mixture's own: the last step, of first order, does not count.
    'edm': (processes.edm(1e-4, 80.0), 'karras'),
    'vp_linear': (processes.vp_linear(t_min=1e-7), 'log_snr'),
    'flow': (processes.flow(), 'trailing'),
}
SHAPE = (1, 1, 1)


def estimate(x, alpha, sigma):
    """E[x_0 | x_t] and the score, of arrays that broadcast; numpy's or JAX's."""
    xp = jnp if isinstance(x, jax.Array) else np
    variance = alpha**2 * STD**2 + sigma**2
    a, b = (-((x - alpha * m) ** 2) / (2 * variance) for m in MEANS)
    share = 1 / (1 + xp.exp(b - a))
    mean = share * MEANS[0] + (1 - share) * MEANS[1]
    score = -(x - alpha * mean) / variance
    return mean + alpha * STD**2 / variance * (x - alpha * mean), score


def denoiser(process):
    def denoise(x_t, t):
        alpha, sigma = process.alpha(t)[:, None, None, None], process.sigma(t)[:, None, None, None]
        return estimate(x_t, alpha, sigma)[0]

    return denoise


def keys():
    return jax.random.split(jax.random.key(0), 6)


@functools.cache
def exact(name):
    """Where SciPy arrives from the samplers' x_T, [6]."""
    process, _ = PROCESSES[name]
    with jax.enable_x64(True):
        x_T = np.asarray(process.prior_std * samplers.normal(keys(), 0, SHAPE)).ravel()
        rates = jax.jit(jax.jacfwd(lambda t: jnp.stack([process.alpha(t), process.sigma(t)])))
        levels = jax.jit(lambda t: jnp.stack([process.alpha(t), process.sigma(t)]))

        def slope(t, x):
            (alpha, sigma), (by_alpha, by_sigma) = (np.asarray(f(t)) for f in (levels, rates))
            x_0, score = estimate(x, alpha, sigma)
            return by_alpha * x_0 - by_sigma * sigma * score

        span = process.t_max, 1e-12
        return solve_ivp(slope, span, x_T, rtol=1e-10, atol=1e-12, method='DOP853').y[:, -1]


def errors(name, sampler, *steps):
    """The largest error of six samples, for each of some numbers of steps."""
    process, spacing = PROCESSES[name]

    @jax.jit
    def run(steps):
        path = Path(process, jnp.full(6, steps), spacing)
        return sampler(denoiser(process), path, keys(), SHAPE)

    with jax.enable_x64(True):
        found = [np.asarray(run(n)) for n in steps]
        assert all(x.dtype == np.float64 for x in found)
        return [np.abs(x.ravel() - exact(name)).max() for x in found]


def euler(*args):
    return samplers.ddim(*args, jnp.zeros(len(args[2])))


def dpmpp_2m(*args):
    return multistep.dpmpp_2m(*args, jnp.zeros(len(args[2])))


def unipc(order):
    return functools.partial(multistep.unipc, order=order)


# A flow is not for those whose steps are of lambda or sigma / alpha, infinite where it begins.
FINITE = ('edm', 'vp_linear')
ORDERS = [
    *((euler, 1, 48, name) for name in PROCESSES),
    *((samplers.heun, 2, 48, name) for name in PROCESSES),
    *((dpmpp_2m, 2, 48, name) for name in FINITE),
    *((unipc(1), 2, 48, name) for name in FINITE),
    *((unipc(2), 3, 48, name) for name in FINITE),
    *((unipc(3), 4, 192, name) for name in FINITE),
    *((multistep.lms, 4, 192, name) for name in FINITE),
    *((multistep.pndm, 2, 48, name) for name in FINITE),
]


@pytest.mark.parametrize(('sampler', 'order', 'few', 'name'), ORDERS)
def test_the_order_is_the_papers(sampler, order, few, name):
    coarse, fine = errors(name, sampler, few, 2 * few)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.35)
    assert fine < (0.05 if order == 1 else 0.005)


def heun_by_hand(sigmas, x, noise, churn, low, high, s_noise):
    """Algorithm 2 of Karras et al. 2022, in numpy float64; sigmas fall, and end in 0."""
    n = len(sigmas) - 1
    for i in range(n):
        gamma = min(churn / n, np.sqrt(2) - 1) if low <= sigmas[i] <= high else 0
        raised = sigmas[i] * (1 + gamma)
        x = x + np.sqrt(raised**2 - sigmas[i] ** 2) * s_noise * noise[i]
        d = (x - estimate(x, 1.0, raised)[0]) / raised
        following = x + (sigmas[i + 1] - raised) * d
        if sigmas[i + 1]:
            then = (following - estimate(following, 1.0, sigmas[i + 1])[0]) / sigmas[i + 1]
            following = x + (sigmas[i + 1] - raised) * (d + then) / 2
        x = following
    return x


def karras(steps):
    """EDM's noise levels (Karras et al. 2022, eq. 5) in float64, falling, and 0."""
    ends, i = (80 ** (1 / 7), 0.002 ** (1 / 7)), np.arange(steps)
    return np.append((ends[0] + i / (steps - 1) * (ends[1] - ends[0])) ** 7, 0.0)


def test_dpmpp_2m_is_algorithm_2_for_uneven_steps():
    """Lu et al. 2022b, Algorithm 2, with alpha = 1, in numpy; few steps differ in length."""
    steps, process = 6, processes.edm()
    with jax.enable_x64(True):
        path = Path(process, jnp.full(6, steps), 'karras')
        found = dpmpp_2m(denoiser(process), path, keys(), SHAPE)
        x = 80 * np.asarray(samplers.normal(keys(), 0, SHAPE))
    sigmas, before = karras(steps), None
    for i in range(steps):
        x_0 = estimate(x, 1.0, sigmas[i])[0]
        if i in (0, steps - 1):
            d = x_0
        else:
            h, h_before = np.log(sigmas[i] / sigmas[i + 1]), np.log(sigmas[i - 1] / sigmas[i])
            r = h_before / h
            d = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * before
        ratio = sigmas[i + 1] / sigmas[i]
        x, before = ratio * x - (ratio - 1) * d, x_0
    np.testing.assert_allclose(found, x, atol=1e-6)


@pytest.mark.parametrize('settings', [(0, 0, np.inf, 1.0), (40, 0.05, 50, 1.003), (5, 1.0, 10, 1)])
def test_churn_is_algorithm_2(settings):
    steps, process = 12, processes.edm()
    with jax.enable_x64(True):
        path = Path(process, jnp.full(6, steps), 'karras')
        churn = samplers.Churn(*(jnp.float64(s) for s in settings))
        found = samplers.heun(denoiser(process), path, keys(), SHAPE, churn)
        sigmas = karras(steps)
        noise = [samplers.normal(keys(), steps - k, SHAPE) for k in range(steps)]
        x = 80 * np.asarray(samplers.normal(keys(), 0, SHAPE))
        want = heun_by_hand(sigmas, x, [np.asarray(z) for z in noise], *settings)
    np.testing.assert_allclose(found, want, atol=1e-6)


NOISY = {
    'ancestral_small': lambda *args: samplers.ancestral(*args, 'fixed_small'),
    'ancestral_large': lambda *args: samplers.ancestral(*args, 'fixed_large'),
    'ddim_eta_0.5': lambda *args: samplers.ddim(*args, jnp.full(6, 0.5)),
    'ddim_eta_1': lambda *args: samplers.ddim(*args, jnp.ones(6)),
    'heun_churn': lambda *args: samplers.heun(*args, samplers.Churn(jnp.full(6, 40.0))),
    'dpmpp_2m_sde': lambda *args: multistep.dpmpp_2m(*args, jnp.ones(6)),
}
EXACT = {
    'ddim': lambda *args: samplers.ddim(*args, jnp.zeros(6)),
    'heun': samplers.heun,
    'dpmpp_2m': dpmpp_2m,
    'unipc': unipc(3),
    'lms': multistep.lms,
    'pndm': multistep.pndm,
    'adaptive': lambda *args: ode.sample(*args, jnp.full(6, 1e-4))[0],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('process', 'sampler'),
    [
        *(pytest.param('edm', sampler, id=f'edm-{name}') for name, sampler in NOISY.items()),
        *(
            pytest.param('vp_linear', sampler, id=f'vp-{name}')
            for name, sampler in (NOISY | EXACT).items()
            if name not in ('ddim_eta_0.5', 'heun_churn')
        ),
    ],
)
def test_every_sampler_comes_to_the_mixtures_moments(process, sampler):
    """Of 24,576 numbers: standard errors are 0.004 of the mean, and 0.002 of the deviation.

    In 400 steps; those of first order are up to 0.0044 from the deviation, in 100 up to 0.019.
    """
    process = getattr(processes, process)()
    path = Path(process, jnp.full(6, 400), 'karras')
    x = jax.jit(lambda: sampler(denoiser(process), path, keys(), (64, 64, 1)))()
    assert x.mean() == pytest.approx(np.mean(MEANS), abs=0.016)
    assert x.std() == pytest.approx(np.hypot(STD, (MEANS[1] - MEANS[0]) / 2), abs=0.012)


@pytest.mark.slow
def test_churn_in_another_process_is_that_of_edm():
    """A flow's x_t over alpha is EDM's, and the same noise enters at the same ratio."""
    flow, vary = processes.flow(t_min=0.002 / 1.002), processes.edm(0.002, 999.0)
    with jax.enable_x64(True):
        flow = flow._replace(t_max=0.999, prior_std=0.999)
        churn, found = samplers.Churn(jnp.float64(20), 0.05, 50.0, 1.003), []
        for process in (flow, vary):
            path = Path(process, jnp.full(6, 400), 'karras')
            found.append(samplers.heun(denoiser(process), path, keys(), SHAPE, churn))
    # Heun's rule is along another line in each: they agree to its error only.
    np.testing.assert_allclose(*found, atol=0.015)


EVERY = {
    'heun': samplers.heun,
    'dpmpp_2m': dpmpp_2m,
    'dpmpp_2m_sde': lambda *args: multistep.dpmpp_2m(*args, jnp.ones(6)),
    'unipc': unipc(3),
    'lms': multistep.lms,
    'pndm': multistep.pndm,
    'predictor_corrector': lambda *args: langevin.predictor_corrector(*args, jnp.full(6, 0.1)),
    'annealed_langevin': lambda *args: langevin.annealed_langevin(*args, jnp.full(6, 0.1), 2),
}


@pytest.mark.parametrize('sampler', EVERY.values(), ids=EVERY)
def test_samples_of_other_steps_go_together_in_one_program(sampler):
    process, asked, traced = processes.edm(), jnp.int32([3, 9, 1, 9, 5, 2]), []

    @jax.jit
    def run(steps):
        traced.append(1)
        return sampler(denoiser(process), Path(process, steps, 'karras'), keys(), SHAPE)

    together = run(asked)
    for j, n in enumerate(asked):
        alone = run(jnp.full(6, n))
        np.testing.assert_allclose(together[j], alone[j], atol=1e-5)
    assert len(traced) == 1
