"""The ODE's likelihood against the authors' code (record/score_sde_likelihood.py has run it)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import filled, load
from record.score_sde_likelihood import CASES, SHAPES, network

from gen_jax.diffusion import predictions, processes
from gen_jax.diffusion.likelihood import CELL, log_likelihood
from gen_jax.metrics.bits_per_dim import from_nats

T_MIN = 1e-5
PROCESSES = {
    'VPSDE': processes.vp_linear(t_min=T_MIN),
    'subVPSDE': processes.sub_vp(t_min=T_MIN),
    'VESDE': processes.ve(t_min=T_MIN),
}


def denoiser(name):
    """The recorded network as an estimate of x_0."""
    process = PROCESSES[name]
    weights = filled(SHAPES, outputs_first=False)

    def denoise(x_t, t):
        alpha, sigma = process.alpha(t)[:, None, None, None], process.sigma(t)[:, None, None, None]
        if name == 'VESDE':
            eps = network(weights, x_t / jnp.sqrt(1 + sigma**2), jnp.log(sigma.ravel()) / 4)
        else:
            eps = network(weights, x_t, t)
        return predictions.EPS.x_0(eps, x_t, alpha, sigma)

    return denoise


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_agrees_with_score_sde(case):
    name, _, b = CASES[case]
    arrays, process = load('score_sde_likelihood'), PROCESSES[name]
    x, probe, bpd, z, nfe = (arrays[f'{case}.{key}'] for key in ('x', 'probe', 'bpd', 'z', 'nfe'))
    args = denoiser(name), process, x, probe[:, None]
    log_p, x_T, calls = jax.jit(lambda: log_likelihood(*args))()
    bits = from_nats(-log_p, x[0].size, CELL)
    print('bits per dimension', bits, 'max diff', np.abs(bits - bpd).max())
    print('x_T: max diff', np.abs(x_T - z).max(), 'calls', calls, nfe)
    assert bits.shape == (b,)
    # The Gaussian's larger divergences leave larger errors within the same tolerance.
    np.testing.assert_allclose(bits, bpd, atol=5e-4 if case == 'vp_gaussian' else 3e-5)
    np.testing.assert_allclose(x_T, z, atol=1e-3 * process.prior_std)
    assert (np.abs(calls / nfe - 1) < 0.4).all()
