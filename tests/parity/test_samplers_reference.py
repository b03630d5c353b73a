"""Whole trajectories of k-diffusion's and EDM's samplers, given the same noise, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import load
from sampled import CHURN, SHAPE, STEPS, N, draws, network

from gen_jax.diffusion import multistep, processes, samplers
from gen_jax.diffusion.processes import Path

ALL = np.ones(N)
CASES = {
    'lms': lambda *args: multistep.lms(*args),
    'dpmpp_2m': lambda *args: multistep.dpmpp_2m(*args, 0 * ALL),
    'dpmpp_2m_sde': lambda *args: multistep.dpmpp_2m(*args, ALL),
    'dpmpp_2m_sde_half': lambda *args: multistep.dpmpp_2m(*args, 0.5 * ALL),
    'euler': lambda *args: samplers.ddim(*args, 0 * ALL),
    'euler_ancestral': lambda *args: samplers.ddim(*args, ALL),
    'euler_ancestral_part': lambda *args: samplers.ddim(*args, 0.6 * ALL),
    'heun_churn': lambda *args: samplers.heun(*args, churn(CHURN['churn'])),
}


def churn(much):
    return samplers.Churn(much * ALL, CHURN['low'], CHURN['high'], CHURN['noise'])


@pytest.fixture
def run(monkeypatch):
    """run(sampler) -> its samples, what is drawn at the i-th time being `draws`."""
    table = draws()
    monkeypatch.setattr(samplers, 'normal', lambda keys, i, shape: jnp.asarray(table)[i])

    def run(sampler):
        with jax.enable_x64(True):
            theirs, keys = network(jnp), jax.random.split(jax.random.key(0), N)
            path = Path(processes.edm(), jnp.full(N, STEPS), 'karras')
            return jax.jit(lambda: sampler(theirs, path, keys, SHAPE))()

    return run


@pytest.mark.parametrize('name', CASES)
def test_k_diffusion_agrees(name, run):
    want = load('samplers_k_diffusion')[name]
    np.testing.assert_allclose(run(CASES[name]), want, atol=1e-6)


@pytest.mark.parametrize(('name', 'much'), [('plain', 0.0), ('churn', CHURN['churn'])])
def test_edm_agrees(name, much, run):
    found = run(lambda *args: samplers.heun(*args, churn(much)))
    np.testing.assert_allclose(found, load('samplers_edm')[name], atol=1e-6)


def test_the_cases_differ():
    known = {**load('samplers_k_diffusion'), 'edm': load('samplers_edm')['plain']}
    flat = np.stack([x.ravel() for x in known.values()])
    apart = np.abs(flat[:, None] - flat[None]).max(-1) + np.eye(len(flat))
    assert apart.min() > 1e-3
