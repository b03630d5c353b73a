"""Continuous processes: closed forms of the papers in float64, inverses, and the times visited."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import processes, samplers
from gen_jax.diffusion.processes import Path
from gen_jax.diffusion.schedules import DiscreteProcess, linear_betas

T = np.linspace(0.02, 0.98, 13)
PROCESSES = {
    'vp_linear': processes.vp_linear(),
    'vp_cosine': processes.vp_cosine(),
    'vp_angle': processes.vp_angle(),
    'sub_vp': processes.sub_vp(),
    've': processes.ve(),
    'edm': processes.edm(),
    'flow': processes.flow(),
}
each = pytest.mark.parametrize('name', PROCESSES)


def times(process, n=13):
    """Times inside the process, float32 [n]."""
    return jnp.linspace(process.t_min, process.t_max, n + 2, dtype=jnp.float32)[1:-1]


def test_vp_is_the_papers():
    process, integral = processes.vp_linear(0.1, 20), 0.1 * T + 0.5 * T**2 * 19.9
    np.testing.assert_allclose(process.alpha(T), np.exp(-integral / 2), rtol=2e-6)
    np.testing.assert_allclose(process.sigma(T), np.sqrt(1 - np.exp(-integral)), rtol=2e-6)
    beta = 0.1 + T * 19.9
    np.testing.assert_allclose(process.drift(jnp.float32(T)), -beta / 2, rtol=1e-5)
    np.testing.assert_allclose(process.diffusion2(jnp.float32(T)), beta, rtol=1e-4)


def test_vp_is_the_limit_of_ddpm():
    N = 1000
    ddpm = DiscreteProcess.from_betas(linear_betas(N, 0.1 / N, 20 / N))
    alpha = processes.vp_linear().alpha(jnp.float32((np.arange(N) + 1) / N))
    np.testing.assert_allclose(np.sqrt(ddpm.alpha_bar)[:800], alpha[:800], rtol=0.02)


def test_sub_vp_is_the_papers():
    process, integral = processes.sub_vp(0.1, 20), 0.1 * T + 0.5 * T**2 * 19.9
    np.testing.assert_allclose(process.sigma(T), 1 - np.exp(-integral), rtol=4e-6)
    beta = 0.1 + T * 19.9
    found = process.diffusion2(jnp.float32(T))
    np.testing.assert_allclose(found, beta * (1 - np.exp(-2 * integral)), rtol=1e-4)


def test_ve_is_the_papers():
    process = processes.ve(0.01, 50)
    sigma = 0.01 * 5000.0**T
    np.testing.assert_allclose(process.sigma(jnp.float32(T)), sigma, rtol=1e-5)
    found = process.diffusion2(jnp.float32(T))
    np.testing.assert_allclose(found, sigma**2 * 2 * np.log(5000), rtol=1e-4)


def test_cosine_is_the_papers():
    f = np.cos((T + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(processes.vp_cosine().alpha(T) ** 2, f, rtol=1e-5, atol=1e-6)


def test_angle_is_the_papers():
    """Ho and Salimans 2022: lambda = -2 log tan(a u + b), from u = 0 at 20 to u = 1 at -20."""
    process, u = processes.vp_angle(), np.float64([0, 1e-4, 0.01, 0.3, 0.7, 0.99, 0.9999, 1])
    b = np.arctan(np.exp(-20 / 2))
    a = np.arctan(np.exp(20 / 2)) - b
    snr = -2 * np.log(np.tan(a * u + b))
    sigma = np.sqrt(1 / (1 + np.exp(snr)))
    np.testing.assert_allclose(process.sigma(jnp.float32(u)), sigma, rtol=2e-5)
    np.testing.assert_allclose(process.alpha(jnp.float32(u)), np.exp(snr / 2) * sigma, rtol=2e-3)
    ends = process.alpha(jnp.float32([0, 1])) / process.sigma(jnp.float32([0, 1]))
    np.testing.assert_allclose(ends, np.exp([10, -10]), rtol=1e-5)


def cosine(t):
    """(alpha, sigma) of the cosine schedule in float64, which has digits to spare."""
    angle_0, angle = (np.pi / 2 * x / 1.008 for x in (0.008, t + 0.008))
    sigma2 = np.sin(angle - angle_0) * np.sin(angle + angle_0)  # as 1 - alpha^2 loses some too
    return np.cos(angle) / np.cos(angle_0), np.sqrt(sigma2) / np.cos(angle_0)


def test_cosine_keeps_its_digits_near_the_image_and_near_the_noise():
    process = processes.vp_cosine()
    t = np.float32([1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.1, 0.5, 0.9, process.t_max, 0.999])
    alpha, sigma = cosine(np.float64(t))
    np.testing.assert_allclose(process.alpha(t), alpha, rtol=1e-5)
    np.testing.assert_allclose(process.sigma(t), sigma, rtol=1e-5)
    np.testing.assert_allclose(process.time(process.sigma(t) / process.alpha(t)), t, rtol=1e-5)
    ratio = np.float32(10.0 ** np.arange(-7, 4))
    alpha, sigma = cosine(np.float64(process.time(ratio)))
    np.testing.assert_allclose(sigma / alpha, ratio, rtol=2e-3)  # t near 1 has few digits of 1 - t
    np.testing.assert_allclose((sigma / alpha)[:-3], ratio[:-3], rtol=1e-5)


def test_flow_is_straight():
    process, t = processes.flow(), jnp.float32(T)
    np.testing.assert_allclose(process.alpha(t) + process.sigma(t), 1, rtol=1e-6)
    # The SDE of the same marginals: d sigma^2 / dt + 2 sigma^2 / (1 - t).
    np.testing.assert_allclose(process.diffusion2(t), 2 * T + 2 * T**2 / (1 - T), rtol=1e-5)
    assert process.time(jnp.inf) == 1.0


@each
def test_time_is_the_inverse_of_the_ratio(name):
    process = PROCESSES[name]
    t = times(process)
    ratio = process.sigma(t) / process.alpha(t)
    assert (jnp.diff(ratio) > 0).all()
    np.testing.assert_allclose(process.time(ratio), t, rtol=2e-4)


@pytest.mark.parametrize('name', ['vp_linear', 'vp_cosine', 'sub_vp', 'flow'])
def test_it_is_near_the_image_too(name):
    process, t = PROCESSES[name], jnp.float32([1e-7, 1e-6, 1e-5, 1e-4])
    np.testing.assert_allclose(process.time(process.sigma(t) / process.alpha(t)), t, rtol=1e-5)


@pytest.mark.parametrize(('steps', 'rho'), [(2, 7), (7, 7), (18, 7), (7, 3), (7, 1), (7, 100)])
def test_karras_times_are_the_papers(steps, rho):
    i = np.arange(steps)
    s = (80 ** (1 / rho) + i / (steps - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    path = Path(processes.edm(), jnp.int32([steps]), 'karras', rho)
    found = [path.time(jnp.int32(k))[0] for k in range(steps, 0, -1)]
    np.testing.assert_allclose(found, s, rtol=2e-5)


def test_trailing_times_of_a_flow_end_at_the_image():
    path = Path(processes.flow(), jnp.int32([4]), 'trailing')
    steps = [path.at(jnp.int32(i)) for i in range(4)]
    np.testing.assert_allclose([s.t[0] for s in steps], [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose([s.noise_std_prev.item() for s in steps], [0, 0.25, 0.5, 0.75])
    assert steps[0].scale_prev.item() == 1


def test_log_snr_times_are_even_in_it():
    process = processes.vp_linear()
    path = Path(process, jnp.int32([6]), 'log_snr')
    t = jnp.stack([path.time(jnp.int32(k))[0] for k in range(1, 7)])
    steps = jnp.diff(jnp.log(process.sigma(t) / process.alpha(t)))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-3)


@pytest.mark.parametrize('spacing', processes.SPACINGS)
def test_every_spacing_falls_from_the_most_noise_and_one_step_starts_there(spacing):
    process = processes.vp_linear()
    path = Path(process, jnp.int32([1, 5]), spacing)
    t = jnp.stack([path.time(jnp.int32(k)) for k in range(1, 6)])  # [5, 2]
    assert (jnp.diff(t[:, 1]) > 0).all()
    np.testing.assert_allclose((t[0, 0], t[4, 1]), process.t_max, rtol=1e-4)


def test_a_step_is_bayes_rule():
    """Mean and variance of q(x_s | x_t, x_0), from the joint Gaussian of x_s and x_t."""
    path = Path(processes.sub_vp(), jnp.int32([5]), 'linear')
    step = jax.tree.map(lambda x: np.float64(x).item(), path.at(jnp.int32(3)))
    s, t = (path.time(jnp.int32(k)).item() for k in (3, 4))
    alpha, sigma = (
        {u: np.float64(f(jnp.float32(u))) for u in (s, t)}
        for f in (path.process.alpha, path.process.sigma)
    )
    carry = alpha[t] / alpha[s]
    gain = carry * sigma[s] ** 2 / sigma[t] ** 2
    variance = sigma[s] ** 2 - gain * carry * sigma[s] ** 2
    assert step.beta == pytest.approx(sigma[t] ** 2 - carry**2 * sigma[s] ** 2, rel=1e-4)
    assert step.beta_tilde == pytest.approx(variance, rel=1e-4)
    c_0, c_t = step.posterior_mean()
    assert c_t == pytest.approx(gain, rel=1e-4)
    assert c_0 == pytest.approx(alpha[s] - gain * alpha[t], rel=1e-3)


@each
def test_ddim_has_order_one_for_a_gaussian(name):
    """For x_0 of N(m, v), an ODE's path keeps (x - alpha m) / sqrt(alpha^2 v + sigma^2)."""
    process, m, v = PROCESSES[name], 0.3, 0.25
    keys = jax.random.split(jax.random.key(0), 4)

    def denoise(x_t, t):
        alpha, sigma = process.alpha(t)[:, None, None, None], process.sigma(t)[:, None, None, None]
        return m + alpha * v / (alpha**2 * v + sigma**2) * (x_t - alpha * m)

    spacing = 'karras' if name in ('edm', 've') else 'trailing'
    high = jnp.float32(process.t_max)
    alpha, sigma = process.alpha(high), process.sigma(high)
    x_T = sigma * samplers.normal(keys, 0, (1, 1, 1))
    exact = m + (x_T - alpha * m) * jnp.sqrt(v / (alpha**2 * v + sigma**2))

    @jax.jit
    def error(steps):
        path = Path(process, jnp.full(4, steps), spacing)
        found = samplers.ddim(denoise, path, keys, (1, 1, 1), jnp.zeros(4))
        return jnp.abs(found - exact).max()

    coarse, fine = error(64), error(128)
    assert 0.8 < np.log2(coarse / fine) < 1.25
    assert fine < 0.02
