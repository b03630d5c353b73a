import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion.schedules import (
    BETAS,
    EVEN,
    SPACINGS,
    DiscreteProcess,
    Trajectory,
    cosine_betas,
    linear_betas,
    make_betas,
    scaled_linear_betas,
    spaced_times,
    zero_terminal_snr,
)

PROCESS = DiscreteProcess.from_betas(linear_betas(1000, 1e-4, 0.02))


def test_linear_betas():
    betas = linear_betas(1000, 1e-4, 0.02)
    assert betas.dtype == np.float64
    assert betas.shape == (1000,)
    np.testing.assert_allclose([betas[0], betas[-1]], [1e-4, 0.02])
    np.testing.assert_allclose(np.diff(betas), 0.0199 / 999)


def test_scaled_linear_betas():
    betas = scaled_linear_betas(1000, 0.00085, 0.012)  # latent diffusion's numbers
    np.testing.assert_allclose([betas[0], betas[-1]], [0.00085, 0.012])
    np.testing.assert_allclose(np.diff(np.sqrt(betas), 2), 0, atol=1e-15)


def test_cosine_betas_make_a_squared_cosine():
    T = 4000
    process = DiscreteProcess.from_betas(cosine_betas(T))
    t = np.arange(1, T) / T  # but for the last, which is clipped
    angles = (np.array([0, *t]) + 0.008) / 1.008 * np.pi / 2
    want = np.cos(angles[1:]) ** 2 / np.cos(angles[0]) ** 2
    np.testing.assert_allclose(process.alpha_bar[:-1], want, rtol=1e-9)
    np.testing.assert_allclose(process.beta[-1], 0.999)


@pytest.mark.parametrize('name', BETAS)
def test_betas_by_name(name):
    betas = make_betas(name, 100, 1e-3, 0.2)
    assert betas.shape == (100,)
    assert betas.dtype == np.float64
    assert (np.diff(betas) > 0).all()
    assert ((betas > 0) & (betas < 1)).all()


@pytest.mark.parametrize('name', BETAS)
def test_zero_terminal_snr(name):
    betas = make_betas(name, 100, 1e-3, 0.1)
    old, new = (DiscreteProcess.from_betas(x) for x in (betas, zero_terminal_snr(betas)))
    assert new.alpha_bar[-1] == 0
    assert new.beta[-1] == 1
    np.testing.assert_allclose(new.alpha_bar[0], old.alpha_bar[0], rtol=1e-12)
    # An affine map of the root of alpha_bar.
    ratio = np.diff(np.sqrt(new.alpha_bar)) / np.diff(np.sqrt(old.alpha_bar))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
    step = Trajectory.create(new, jnp.int32([100]), 'linear').at(99)
    assert [float(x.squeeze()) for x in (step.scale, step.noise_std, step.beta)] == [0, 1, 1]
    np.testing.assert_allclose(np.squeeze(step.beta_tilde), new.beta_tilde[-1], rtol=1e-6)


def test_process_by_simulating_its_definition():
    variance, scale = 0.0, 1.0
    for t, beta in enumerate(linear_betas(1000, 1e-4, 0.02)):
        variance, scale = (1 - beta) * variance + beta, np.sqrt(1 - beta) * scale
        if t in (0, 1, 500, 999):
            np.testing.assert_allclose(PROCESS.alpha_bar[t], scale**2, rtol=1e-12)
            np.testing.assert_allclose(1 - PROCESS.alpha_bar[t], variance, rtol=1e-10)
    # The prior's distance is what the paper says: about 1e-5 bits per dimension (section 4).
    a = PROCESS.alpha_bar[-1]
    bits = 0.5 * (a * 0.25 - a - np.log1p(-a)) / np.log(2)
    assert 0 < bits < 1e-4


def test_posterior_is_bayes():
    """q(x_{t-1} | x_t, x_0), from products of Gaussian densities."""
    t, x_0, x_t = 321, 0.4, -1.3
    beta, prev = PROCESS.beta[t], PROCESS.alpha_bar_prev[t]
    precision = (1 - beta) / beta + 1 / (1 - prev)
    mean = (np.sqrt(1 - beta) / beta * x_t + np.sqrt(prev) / (1 - prev) * x_0) / precision
    c_0, c_t = PROCESS.posterior_mean()
    np.testing.assert_allclose(PROCESS.beta_tilde[t], 1 / precision, rtol=1e-10)
    np.testing.assert_allclose(c_0[t] * x_0 + c_t[t] * x_t, mean, rtol=1e-10)


def test_first_step_ends_at_the_image():
    c_0, c_t = PROCESS.posterior_mean()
    assert PROCESS.beta_tilde[0] == 0
    np.testing.assert_allclose([c_0[0], c_t[0]], [1, 0], atol=1e-12)


def test_part_of_a_process_keeps_its_marginals():
    tau = np.array([0, 10, 500])
    part = PROCESS.at(tau)
    np.testing.assert_array_equal(part.tau, tau)
    np.testing.assert_array_equal(part.alpha_bar, PROCESS.alpha_bar[tau])
    np.testing.assert_allclose(np.cumprod(1 - part.beta), part.alpha_bar)
    np.testing.assert_allclose(PROCESS.at(np.arange(1000)), PROCESS, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ('steps', 'spacing', 'want'),
    [
        (4, 'linear', [0, 250, 500, 750]),
        (3, 'linear', [0, 333, 666]),
        (1, 'linear', [999]),
        (1, 'quadratic', [999]),
        (2, 'quadratic', [0, 800]),
        (5, 'quadratic', [0, 50, 200, 450, 800]),
        (4, 'linspace', [0, 333, 666, 999]),
        (3, 'linspace', [0, 500, 999]),  # of the tie 499.5 the even one
        (1, 'linspace', [999]),
        (4, 'trailing', [249, 499, 749, 999]),
        (3, 'trailing', [332, 666, 999]),
        (1, 'trailing', [999]),
    ],
)
def test_spaced_times(steps, spacing, want):
    got = spaced_times(1000, steps, spacing)
    np.testing.assert_allclose(got, want, atol=1 if spacing == 'quadratic' else 0)


def levels(steps, spacing, rho, ends):
    """Noise levels from the most to the least, as the papers write them."""
    i = np.arange(steps) / max(steps - 1, 1)
    if spacing == 'log_snr':
        return ends[1] * (ends[0] / ends[1]) ** i
    return (ends[1] ** (1 / rho) + i * (ends[0] ** (1 / rho) - ends[1] ** (1 / rho))) ** rho


@pytest.mark.parametrize(('spacing', 'rho'), [('karras', 7.0), ('karras', 2.0), ('log_snr', 7.0)])
@pytest.mark.parametrize('steps', [1, 2, 10, 50])
def test_times_of_noise_levels_are_the_nearest(steps, spacing, rho):
    ratio = np.sqrt(1 / PROCESS.alpha_bar - 1)
    want = [
        np.abs(np.log(ratio) - np.log(level)).argmin()
        for level in levels(steps, spacing, rho, ratio[[0, -1]])
    ]
    got = PROCESS.visited(steps, spacing, rho)
    np.testing.assert_array_equal(got, sorted(set(want)))
    assert got[-1] == 999
    assert got[0] == (0 if steps > 1 else 999)


@pytest.mark.parametrize('spacing', SPACINGS)
@pytest.mark.parametrize('T', [2, 7, 1000])
def test_spaced_times_rise_within_range(T, spacing):
    process = DiscreteProcess.from_betas(linear_betas(T, 1e-4, 0.02))
    for steps in {1, 2, T // 2 + 1, T - 1, T}:
        tau = process.visited(steps, spacing)
        assert 1 <= len(tau) <= steps
        assert tau[0] >= 0
        assert tau[-1] < T
        assert (np.diff(tau) > 0).all()
    np.testing.assert_array_equal(spaced_times(T, T, 'linear'), np.arange(T))


@pytest.mark.parametrize('spacing', SPACINGS)
@pytest.mark.parametrize('T', [2, 20, 100, 1000])
def test_a_trajectory_visits_the_spaced_times_for_every_number_of_steps(T, spacing):
    process = DiscreteProcess.from_betas(linear_betas(T, 1e-4, 0.02))
    steps = jnp.arange(1, T + 1)
    got = jax.jit(lambda x: Trajectory.create(process, x, spacing))(steps)
    index, count = np.asarray(got.index), np.asarray(got.count)
    assert (index[:, 0] == 0).all()
    for j in range(T):
        want = process.visited(j + 1, spacing)
        assert count[j] == len(want)
        np.testing.assert_array_equal(index[j, 1 : 1 + len(want)] - 1, want)


def expected_step(process, i):
    """What Trajectory.at gives, in float64, from a process seen at the visited times."""
    c_0, _ = process.posterior_mean()
    # Not by 1 - beta, which has lost its digits where beta is near 1.
    ratio = process.alpha_bar / process.alpha_bar_prev
    c_t = np.sqrt(ratio) * (1 - process.alpha_bar_prev) / (1 - process.alpha_bar)
    return {
        't': process.tau[i],
        'scale': np.sqrt(process.alpha_bar[i]),
        'noise_std': np.sqrt(1 - process.alpha_bar[i]),
        'scale_prev': np.sqrt(process.alpha_bar_prev[i]),
        'noise_std_prev': np.sqrt(1 - process.alpha_bar_prev[i]),
        'beta': process.beta[i],
        'beta_tilde': process.beta_tilde[i],
        'c_0': c_0[i],
        'c_t': c_t[i],
    }


BETAS_OF = {
    'ddpm': linear_betas(1000, 1e-4, 0.02),
    'wide': linear_betas(1000, 1e-6, 0.2),
    'few': linear_betas(20, 1e-4, 0.5),
    'cosine': cosine_betas(1000),
    'zero_snr': zero_terminal_snr(cosine_betas(20)),
}


@pytest.mark.parametrize(
    ('betas', 'spacing'),
    [
        pytest.param(betas, spacing, id=f'{name}-{spacing}')
        for name, betas in BETAS_OF.items()
        for spacing in (EVEN if name == 'zero_snr' else SPACINGS)
    ],
)
def test_coefficients_of_a_trajectory_are_those_of_the_process(betas, spacing):
    T = len(betas)
    process = DiscreteProcess.from_betas(betas)
    grid = [s for s in (1, 2, 3, 10, 50, 51, 250, 333, 999, 1000) if s <= T]
    trajectory = Trajectory.create(process, jnp.int32(grid), spacing)

    @jax.jit
    @jax.vmap
    def table(i):
        step = trajectory.at(i)
        c_0, c_t = step.posterior_mean()
        return {**step._asdict(), 'beta_tilde': step.beta_tilde, 'c_0': c_0, 'c_t': c_t}

    got = {name: np.asarray(x).squeeze() for name, x in table(jnp.arange(T)).items()}  # [T, n]
    for j, steps in enumerate(grid):
        seen = process.at(process.visited(steps, spacing))
        count = len(seen.tau)
        for name, want in expected_step(seen, np.arange(count)).items():
            np.testing.assert_allclose(got[name][:count, j], want, rtol=1e-6, err_msg=name)


def test_a_trajectory_through_part_of_a_process_tells_the_network_its_times():
    tau = np.array([3, 10, 500, 999])
    trajectory = Trajectory.create(PROCESS.at(tau), jnp.int32([4, 2, 1]), 'linear')
    np.testing.assert_array_equal(trajectory.count, [4, 2, 1])
    told = [trajectory.at(i).t.tolist() for i in range(4)]
    assert [t[0] for t in told] == [3, 10, 500, 999]
    assert [t[1] for t in told[:2]] == [3, 500]
    assert told[0][2] == 999
    step = trajectory.at(0)
    assert step.scale.shape == (3, 1, 1, 1)
    np.testing.assert_array_equal(step.scale_prev.squeeze(), [1, 1, 1])
    np.testing.assert_allclose(step.beta.squeeze(), 1 - PROCESS.alpha_bar[[3, 3, 999]], rtol=1e-6)


def test_learned_variance_lies_between_the_two():
    trajectory = Trajectory.create(PROCESS, jnp.int32([10]), 'linear')
    seen = PROCESS.at(spaced_times(1000, 10, 'linear'))
    share = jnp.float32([0, 1, 0.25, -0.5])[None, None, None]
    for i in (1, 5, 9):
        low, high = seen.beta_tilde[i], seen.beta[i]
        want = [low, high, low**0.75 * high**0.25, low**1.5 * high**-0.5]
        got = trajectory.at(i).learned_variance(share).squeeze()
        np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_array_equal(trajectory.at(0).learned_variance(share).squeeze(), 0)
