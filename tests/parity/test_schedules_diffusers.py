"""Discrete schedules against diffusers'."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('diffusers')

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler  # noqa: E402

from gen_jax.diffusion.schedules import (  # noqa: E402
    DiscreteProcess,
    make_betas,
    spaced_times,
    zero_terminal_snr,
)

NAMES = {'linear': 'linear', 'scaled_linear': 'scaled_linear', 'cosine': 'squaredcos_cap_v2'}


@pytest.mark.parametrize('zero_snr', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_alpha_bar(name, zero_snr, monkeypatch):
    monkeypatch.setattr(torch, 'float32', torch.float64)  # else theirs is rounded to it
    theirs = DDIMScheduler(
        1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=NAMES[name],
        rescale_betas_zero_snr=zero_snr,
    )
    betas = make_betas(name, 1000, 0.00085, 0.012)
    betas = zero_terminal_snr(betas) if zero_snr else betas
    got = DiscreteProcess.from_betas(betas).alpha_bar
    assert theirs.alphas_cumprod.dtype == torch.float64
    # What is 0 at the end is not quite there.
    np.testing.assert_allclose(got, theirs.alphas_cumprod, rtol=1e-10, atol=1e-15)


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
@pytest.mark.parametrize(
    ('spacing', 'option'), [('karras', 'use_karras_sigmas'), ('log_snr', 'use_lu_lambdas')]
)
@pytest.mark.parametrize('steps', [2, 10, 25, 50])
def test_times_of_noise_levels(steps, spacing, option):
    theirs = DPMSolverMultistepScheduler(1000, 0.00085, 0.012, 'scaled_linear', **{option: True})
    theirs.set_timesteps(steps)
    process = DiscreteProcess.from_betas(make_betas('scaled_linear', 1000, 0.00085, 0.012))
    visited = np.unique(theirs.timesteps.numpy())  # theirs come again where many are near
    np.testing.assert_array_equal(process.visited(steps, spacing), visited)


@pytest.mark.parametrize('steps', [1, 2, 10, 25, 50, 333, 999, 1000])
def test_trailing_times(steps):
    theirs = DDIMScheduler(1000, timestep_spacing='trailing')
    theirs.set_timesteps(steps)
    np.testing.assert_array_equal(
        spaced_times(1000, steps, 'trailing'), theirs.timesteps.numpy()[::-1]
    )
