"""The adaptive solver on Gaussians, whose flow carries quantiles onto quantiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import ode, processes, samplers
from gen_jax.diffusion.processes import Path

MU, S = 0.3, 0.5
SHAPE = (2, 2, 1)
PROCESSES = {
    'edm': processes.edm(1e-4),
    'vp_linear': processes.vp_linear(t_min=1e-7),
    'flow': processes.flow(t_min=1e-5),
}


def denoiser(process, s=S):
    """`s` may be [n], one for each sample, as a condition is."""

    def denoise(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        gain = (alpha * s**2 / (alpha**2 * s**2 + sigma**2))[:, None, None, None]
        return MU + gain * (x - MU * alpha[:, None, None, None])

    return denoise


def keys(n):
    return jax.random.split(jax.random.key(0), n)


@functools.partial(jax.jit, static_argnames=('name', 'solver'))
def solve(name, tolerance, solver='tsit5', s=S):
    n, process = len(tolerance), PROCESSES[name]
    path = Path(process, jnp.zeros(n, jnp.int32), 'linear')
    return ode.sample(denoiser(process, s), path, keys(n), SHAPE, tolerance, solver)


def exact(process, n, s=S):
    x_T = process.prior_std * samplers.normal(keys(n), 0, SHAPE)
    t = jnp.full(n, process.t_max)
    alpha, sigma = (f(t)[:, None, None, None] for f in (process.alpha, process.sigma))
    s = jnp.broadcast_to(jnp.asarray(s), n)[:, None, None, None]
    return MU + s * (x_T - alpha * MU) / jnp.sqrt(alpha**2 * s**2 + sigma**2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'solver'), [*((name, 'tsit5') for name in PROCESSES), ('edm', 'dopri5')]
)
def test_errors_follow_the_tolerance(name, solver):
    with jax.enable_x64(True):
        # One program: the tolerances are traced.
        both = solve(name, np.array([1e-4] * 3 + [1e-8] * 3), solver)[0]
        away = np.abs(both - exact(PROCESSES[name], 6)).reshape(2, -1).max(1)
    assert away[0] < 0.01
    assert away[1] < 1e-5
    assert away[0] > 10 * away[1]


@pytest.mark.slow
def test_samples_take_steps_of_their_own_and_conditions_stay_with_theirs():
    tolerances = np.float32([1e-2, 1e-5, 1e-3])
    s = jnp.float32([0.2, 0.5, 1.0])
    x, steps = solve('edm', tolerances, s=s)
    np.testing.assert_allclose(x[1], exact(PROCESSES['edm'], 3, s)[1], atol=1e-3)
    assert len(set(np.asarray(steps).tolist())) == 3
    alike = solve('edm', np.full(3, tolerances[0]), s=s)
    np.testing.assert_allclose(x[0], alike[0][0], atol=1e-6)
    assert alike[1][0] == steps[0]


@pytest.mark.slow
@pytest.mark.parametrize('solver', ode.SOLVERS)
def test_the_network_is_called_for_all_samples_at_once_as_often_as_told(solver):
    process, seen = PROCESSES['flow'], []
    path = Path(process, jnp.zeros(2, jnp.int32), 'linear')

    def denoise(x, t):
        jax.debug.callback(lambda t: seen.append(t.shape), t)
        return denoiser(process)(x, t)

    _, steps = ode.sample(denoise, path, keys(2), SHAPE, jnp.full(2, 1e-3), solver)
    jax.effects_barrier()
    assert set(seen) == {(2,)}
    assert len(seen) == ode.calls(max(steps)) == 6 * max(steps) + 2


@pytest.mark.slow
def test_who_does_not_arrive_is_not_a_number(monkeypatch):
    monkeypatch.setattr(ode, 'MOST_STEPS', 3)
    assert np.isnan(solve('edm', np.float32([1e-5]))[0]).all()
