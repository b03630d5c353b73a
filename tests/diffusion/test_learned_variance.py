"""Variances as a perfect network would learn them, on data N(0, S^2): all is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gen_jax.diffusion import bound, samplers
from gen_jax.diffusion.schedules import DiscreteProcess, Trajectory, linear_betas

S = 0.3
SHAPE = (4, 24, 24, 1)
QUANTILES = stats.norm.ppf((np.arange(np.prod(SHAPE)) + 0.5) / np.prod(SHAPE)).reshape(SHAPE)


def vp(T):
    return DiscreteProcess.from_betas(linear_betas(T, 0.1 / T, 20 / T))


def posterior(process):
    """(gain, share) [T]: E[x_0 | x_t] = gain x_t, and where the best variance lies.

    That of p(x_{t-1} | x_t) is beta_tilde, and what x_t leaves open of x_0 beside.
    """
    a = process.alpha_bar
    gain = np.sqrt(a) * S**2 / (a * S**2 + 1 - a)
    left = S**2 * (1 - a) / (a * S**2 + 1 - a)
    c_0, _ = process.posterior_mean()
    best = process.beta_tilde + c_0**2 * left
    least = np.append(process.beta_tilde[1], process.beta_tilde[1:])
    return jnp.float32(gain), jnp.float32(np.log(best / least) / np.log(process.beta / least))


def perfect(process):
    gain, share = (table[:, None, None, None] for table in posterior(process))

    def says(x_t, t):
        x_0 = gain[t] * x_t
        return bound.Estimate(x_t, x_0, jnp.broadcast_to(share[t], x_0.shape))

    return says


@pytest.mark.slow
@pytest.mark.parametrize('T', [50, 400])
def test_the_bound_is_the_likelihood(T, monkeypatch):
    def stratified(keys, t, shape):
        """Normal quantiles in an order that is drawn: without their variance of their own."""
        return jax.random.permutation(jax.random.fold_in(keys[0], t), flat).reshape(SHAPE)

    flat = jnp.float32(QUANTILES.ravel())
    monkeypatch.setattr(bound, 'normal', stratified)
    x_0 = np.float32(np.round((np.clip(S * QUANTILES, -1, 1) + 1) * 127.5) / 127.5 - 1)
    # Of each pixel, its bin's mass.
    edges = (
        np.where(x_0 < -0.999, -np.inf, x_0 - 1 / 255),
        np.where(x_0 > 0.999, np.inf, x_0 + 1 / 255),
    )
    want = -np.log2(stats.norm.cdf(edges[1], 0, S) - stats.norm.cdf(edges[0], 0, S)).mean()

    process, keys = vp(T), jax.random.split(jax.random.key(0), len(x_0))

    @jax.jit
    def bits(x_0):
        got = bound.evaluate(perfect(process), process, keys, x_0, 'learned_range')
        return {name: x.mean() for name, x in got.items()}

    got = bits(x_0)
    np.testing.assert_allclose(got['vlb_bits_per_dim'], want, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize('steps', [5, 20])
def test_few_steps_reach_the_right_moments(steps):
    """With the best variance p(x_{t-1} | x_t) is exact; with a fixed one it is off."""
    process = vp(1000)
    n, shape = 64, (16, 16, 1)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(n))
    tau = np.arange(1, steps + 1) * 1000 // steps - 1
    tau[0] = 10  # whose last step, which draws no noise, loses little
    seen = process.at(tau)
    gain, share = posterior(seen)
    index = jnp.zeros(1000, jnp.int32).at[tau].set(jnp.arange(steps))

    def denoise(x_t, t):
        x_0 = gain[index[t]][:, None, None, None] * x_t
        return x_0, jnp.broadcast_to(share[index[t]][:, None, None, None], x_0.shape)

    @jax.jit
    def deviation():
        trajectory = Trajectory.create(seen, jnp.full(n, steps), 'linear')
        fixed = [
            samplers.ancestral(lambda *args: denoise(*args)[0], trajectory, keys, shape, variance)
            for variance in samplers.VARIANCES
        ]
        learned = samplers.ancestral(denoise, trajectory, keys, shape, 'learned_range')
        return [x.std() for x in (learned, *fixed)]

    learned, large, small = deviation()
    want = float(gain[0]) * np.sqrt(seen.alpha_bar[0] * S**2 + 1 - seen.alpha_bar[0])
    np.testing.assert_allclose(learned, want, rtol=0.02)
    assert large > 1.05 * want
    assert small < 0.95 * want
