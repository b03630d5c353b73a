"""The samplers on data whose exact denoiser is known: N(mu, s^2), independent pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import samplers
from gen_jax.diffusion.schedules import SPACINGS, DiscreteProcess, Trajectory, linear_betas

MU, S = 0.3, 0.5
SHAPE = (8, 8, 1)
T = 1000
PROCESS = DiscreteProcess.from_betas(linear_betas(T, 1e-4, 0.02))


def exact(process):
    """E[x_0 | x_t] for x_0 ~ N(MU, S^2)."""
    alpha_bar = jnp.float32(process.alpha_bar)

    def denoise(x_t, t):
        a = alpha_bar[t][:, None, None, None]
        gain = jnp.sqrt(a) * S**2 / (a * S**2 + 1 - a)
        return MU + gain * (x_t - jnp.sqrt(a) * MU)

    return denoise


def keys(n, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(n))


def run(sampler, steps, last, process=PROCESS, denoise=None, spacing='linear'):
    """One sample for each of `steps` [n], as one program; `last` is the sampler's last argument."""
    denoise = denoise or exact(process)

    def program(steps):
        trajectory = Trajectory.create(process, steps, spacing)
        return sampler(denoise, trajectory, keys(len(steps)), SHAPE, last)

    return jax.jit(program)(jnp.int32(steps))


def run_ancestral(n, variance='fixed_small'):
    return run(samplers.ancestral, [T] * n, variance)


def run_ddim(n, eta, steps=T, spacing='linear'):
    return run(samplers.ddim, [steps] * n, jnp.full(n, eta), spacing=spacing)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'x'),
    [
        ('ddpm, small', lambda: run_ancestral(512, 'fixed_small')),
        ('ddpm, large', lambda: run_ancestral(512, 'fixed_large')),
        ('ddim, eta 0', lambda: run_ddim(512, 0.0)),
        ('ddim, eta 0.5', lambda: run_ddim(512, 0.5)),
        ('ddim, quadratic', lambda: run_ddim(512, 0.0, 100, 'quadratic')),
    ],
)
def test_reaches_the_data(name, x):
    x = np.asarray(x())
    assert x.shape == (512, *SHAPE)
    # 32,768 draws: standard errors are 0.003 and 0.002. The samplers themselves err by O(1/T).
    assert abs(x.mean() - MU) < 0.015, name
    assert abs(x.std() - S) < 0.015, name


@pytest.mark.slow
def test_ddim_is_of_first_order():
    """Halving the steps of DDIM's ODE doubles its error, on the exact flow's answer."""
    T = 4096
    process = DiscreteProcess.from_betas(linear_betas(T, 1e-4 / 4, 0.02 / 4))
    x_T = samplers.normal(keys(4), 0, SHAPE)
    a = process.alpha_bar
    # The probability flow of Gaussians carries quantiles onto quantiles.
    std_T = np.sqrt(a[-1] * S**2 + 1 - a[-1])
    want = MU + S * (x_T - np.sqrt(a[-1]) * MU) / std_T
    errors = []
    for steps in (32, 64, 128):
        tau = np.arange(1, steps + 1) * T // steps - 1
        x_0 = run(samplers.ddim, [steps] * 4, jnp.zeros(4), process.at(tau), exact(process))
        errors.append(float(jnp.abs(x_0 - want).mean()))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 1.0, atol=0.25)


def test_ddim_with_eta_1_and_all_times_is_ancestral():
    np.testing.assert_allclose(run_ddim(4, 1.0), run_ancestral(4), atol=1e-4)


@pytest.mark.slow
def test_the_last_step_gives_the_denoiser_itself():
    for variance in samplers.VARIANCES:
        ends = PROCESS.at(np.array([0, T - 1]))
        seen = []

        def denoise(x_t, t):
            x_0 = exact(PROCESS)(x_t, t)
            jax.debug.callback(lambda x: seen.append(x), x_0, ordered=True)  # noqa: B023
            return x_0

        x = run(samplers.ancestral, [2] * 3, variance, ends, denoise)
        jax.effects_barrier()
        np.testing.assert_allclose(x, seen[-1], atol=1e-6)


def test_a_share_lies_between_the_variances_on_the_logarithm():
    """Of one step from pure noise; the last one gives what it finds."""
    ends = PROCESS.at(np.array([0, T - 1]))

    def found(variance, share=None):
        step = functools.partial(samplers.ancestral, share=share)
        return run(step, [2] * 3, variance, ends, lambda x, t: jnp.where(t[0] == 0, x, 0.0))

    small, large = found('fixed_small'), found('fixed_large')
    np.testing.assert_allclose(found('between', 0.0), small, atol=1e-6)
    np.testing.assert_allclose(found('between', 1.0), large, atol=1e-6)
    least, most = np.sqrt((ends.beta_tilde[1], ends.beta[1]))
    share = (least**0.7 * most**0.3 - least) / (most - least)
    np.testing.assert_allclose(found('between', 0.3), small + share * (large - small), atol=1e-5)


@pytest.mark.parametrize('run', [run_ancestral, lambda n: run_ddim(n, 0.7, 20)])
def test_sample_does_not_depend_on_how_many(run):
    np.testing.assert_allclose(run(5)[:1], run(1), atol=1e-5)


def test_eta_is_per_sample_and_traced():
    traces = []

    @jax.jit
    def run(eta):
        traces.append(None)
        trajectory = Trajectory.create(PROCESS, jnp.full(3, 10), 'linear')
        return samplers.ddim(exact(PROCESS), trajectory, keys(3), SHAPE, eta)

    mixed, zeros, ones = (run(jnp.float32(eta)) for eta in ([0, 1, 0], [0, 0, 0], [1, 1, 1]))
    assert len(traces) == 1
    np.testing.assert_allclose(mixed[0], zeros[0], atol=1e-6)
    np.testing.assert_allclose(mixed[1], ones[1], atol=1e-6)
    assert np.abs(zeros[1] - ones[1]).max() > 0.1


@pytest.mark.parametrize('spacing', SPACINGS)
def test_each_sample_takes_its_own_number_of_steps_in_one_program(spacing):
    traces = []

    @jax.jit
    def sample(steps):
        traces.append(None)
        trajectory = Trajectory.create(PROCESS, steps, spacing)
        return samplers.ddim(exact(PROCESS), trajectory, keys(4), SHAPE, jnp.full(4, 0.7))

    asked = (60, 1, 7, 400)  # of 400 quadratic times, some coincide
    mixed, *alike = (sample(jnp.int32(steps)) for steps in (asked, *([s] * 4 for s in asked)))
    assert len(traces) == 1
    for j in range(4):
        np.testing.assert_array_equal(mixed[j], alike[j][j])
        for k in set(range(4)) - {j}:
            assert np.abs(mixed[j] - alike[k][j]).max() > 1e-3


def test_samples_wait_at_x_T_and_the_network_is_called_no_more_than_the_most_steps():
    seen = []

    def denoise(x_t, t):
        jax.debug.callback(lambda *args: seen.append(args), x_t, t, ordered=True)
        return exact(PROCESS)(x_t, t)

    run(samplers.ancestral, [2, 4], 'fixed_large', denoise=denoise)
    jax.effects_barrier()
    assert [int(t[1]) for _, t in seen] == [750, 500, 250, 0]
    assert [int(t[0]) for _, t in seen[2:]] == [500, 0]
    x_T = samplers.normal(keys(2), 0, SHAPE)
    for x_t, _ in seen[:3]:  # the third call is its first
        np.testing.assert_array_equal(x_t[0], x_T[0])
    assert np.abs(seen[3][0][0] - x_T[0]).max() > 0.1


def test_one_step_is_the_denoiser_at_the_last_time():
    want = exact(PROCESS)(samplers.normal(keys(3), 0, SHAPE), jnp.full(3, T - 1))
    np.testing.assert_allclose(run_ddim(3, 1.0, 1), want, atol=1e-6)


def test_draws_differ_between_samples_and_steps():
    x = np.stack([samplers.normal(keys(3), i, SHAPE) for i in range(3)]).reshape(9, -1)
    assert len(np.unique(x)) == x.size
