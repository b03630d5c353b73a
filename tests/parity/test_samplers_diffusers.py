"""Whole trajectories of diffusers' schedulers on a random network, given our levels and noise.

Their levels are float32 whatever is asked for, and some upcast samples to it, no further.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

from diffusers.schedulers import (  # noqa: E402
    scheduling_euler_ancestral_discrete,
    scheduling_sde_ve,
)
from sampled import SHAPE, STEPS, N, draws, network  # noqa: E402

from gen_jax.diffusion import langevin, multistep, processes, samplers  # noqa: E402
from gen_jax.diffusion.processes import Path  # noqa: E402
from gen_jax.diffusion.schedules import DiscreteProcess, Trajectory, linear_betas  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
T, ALL = 60, np.ones(N)
DDPM = DiscreteProcess.from_betas(linear_betas(T, 1e-3, 0.2))
VP = processes.vp_linear()


def path_of(kind, steps=STEPS):
    count = jnp.full(N, steps)
    return Trajectory.create(DDPM, count, 'linear') if kind == 'ddpm' else Path(VP, count, 'linear')


def levels(path, steps=STEPS):
    """(alpha, sigma) at the times visited, falling noise last, as torch has them, [steps]."""
    now = [path.at(steps - 1 - k) for k in range(steps)]
    return (
        torch.tensor(np.stack([np.asarray(x, np.float64)[0, 0, 0, 0] for x in each]))
        for each in ([s.scale for s in now], [s.noise_std for s in now])
    )


def denoiser(path):
    theirs = network(jnp)
    a, s = (jnp.asarray(x) for x in (DDPM.alpha_bar**0.5, (1 - DDPM.alpha_bar) ** 0.5))

    def denoise(x_t, t):
        alpha, sigma = (a[t], s[t]) if isinstance(path, Trajectory) else (VP.alpha(t), VP.sigma(t))
        return theirs(x_t / alpha[:, None, None, None], sigma / alpha)

    return denoise


@pytest.fixture
def ours(monkeypatch):
    """ours(kind, sampler) -> its samples, what is drawn at the i-th time being `draws`."""
    table = draws()
    monkeypatch.setattr(samplers, 'normal', lambda keys, i, shape: jnp.asarray(table)[i])

    def run(kind, sampler, steps=STEPS):
        keys, path = jax.random.split(jax.random.key(0), N), path_of(kind, steps)
        return jax.jit(lambda: sampler(denoiser(path), path, keys, SHAPE))()

    with jax.enable_x64(True):
        yield run


def theirs(scheduler, kind, scaled=False, **options):
    """Their samples. `scaled`: they walk over x_t / alpha, as if variance exploded."""
    net, noise, (alpha, sigma) = network(torch), torch.tensor(draws()), levels(path_of(kind))
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = torch.cat([sigma / alpha, torch.zeros(1)])
    scheduler.timesteps = torch.arange(STEPS, 0, -1.0)
    x = noise[0] / alpha[0] if scaled else noise[0]
    for k, t in enumerate(scheduler.timesteps):
        x_t = x * alpha[k] if scaled else x
        scheduler.scale_model_input(x, t)
        eps = (x_t - alpha[k] * net(x_t / alpha[k], sigma[k] / alpha[k])) / sigma[k]
        given = {name: of(noise[STEPS - 1 - k]) for name, of in options.items()}
        x = scheduler.step(eps, t, x, **given).prev_sample
    return x


@pytest.mark.parametrize('kind', ['vp', 'ddpm'])
@pytest.mark.parametrize('order', [1, 2, 3])
def test_unipc_agrees(kind, order, ours):
    found = ours(kind, lambda *args: multistep.unipc(*args, order))
    want = theirs(diffusers.UniPCMultistepScheduler(solver_order=order), kind)
    np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.parametrize('kind', ['vp', 'ddpm'])
def test_lms_agrees(kind, ours):
    want = theirs(diffusers.LMSDiscreteScheduler(), kind, scaled=True)
    np.testing.assert_allclose(ours(kind, multistep.lms), want, atol=1e-6)


@pytest.mark.parametrize('kind', ['vp', 'ddpm'])
@pytest.mark.parametrize('eta', [0, 1])
def test_dpmpp_2m_and_its_sde_agree(kind, eta, ours):
    found = ours(kind, lambda *args: multistep.dpmpp_2m(*args, eta * ALL))
    name = ('', 'sde-')[eta] + 'dpmsolver++'
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type=name, solver_order=2)
    want = theirs(scheduler, kind, variance_noise=lambda z: z)
    np.testing.assert_allclose(found, want, atol=5e-6)  # they round samples to float32


@pytest.mark.parametrize('kind', ['vp', 'ddpm'])
def test_euler_ancestral_is_ddim_with_eta_1(kind, ours, monkeypatch):
    found = ours(kind, lambda *args: samplers.ddim(*args, ALL))
    module = scheduling_euler_ancestral_discrete
    monkeypatch.setattr(module, 'randn_tensor', lambda *shape, generator, **kind: generator)
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    want = theirs(scheduler, kind, scaled=True, generator=lambda z: z)
    np.testing.assert_allclose(found, want, atol=2e-5)  # likewise, and these are up to 150


def test_pndm_agrees(ours):
    # Steps of six times: where theirs are odd, they call the network beside the middle.
    steps = 10
    scheduler = diffusers.PNDMScheduler(T, trained_betas=1 - DDPM.alpha_bar, set_alpha_to_one=True)
    scheduler.alphas_cumprod = torch.tensor(DDPM.alpha_bar)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    net, x = network(torch), torch.tensor(draws()[0])
    for t in scheduler.timesteps:
        a = scheduler.alphas_cumprod[t]
        x_0 = net(x / a**0.5, (1 / a - 1) ** 0.5)
        x = scheduler.step((x - a**0.5 * x_0) / (1 - a) ** 0.5, t, x).prev_sample
    np.testing.assert_allclose(ours('ddpm', multistep.pndm, steps), x, atol=1e-6)


def test_predictor_corrector_agrees_for_one_sample(monkeypatch):
    """They take norms' means over the batch, so that a batch of one shows the same."""
    steps, snr, corrections = 6, 0.16, 2
    rng = np.random.default_rng(0)
    table = rng.standard_normal((corrections + 1, steps, 1, *SHAPE))

    def normal(keys, i, shape):
        return jnp.asarray(table)[i // 65536, i % 65536]

    for module in (samplers, langevin):
        monkeypatch.setattr(module, 'normal', normal)
    process, key = processes.ve(), jax.random.split(jax.random.key(0), 1)
    with jax.enable_x64(True):
        path, net = Path(process, jnp.full(1, steps), 'log_snr'), network(jnp)
        found = langevin.predictor_corrector(
            lambda x, t: net(x, process.sigma(t)), path, key, SHAPE, jnp.full(1, snr), corrections
        )
        _, sigma = levels(path, steps)
    scheduler = diffusers.ScoreSdeVeScheduler(steps, snr=snr)
    scheduler.timesteps, scheduler.discrete_sigmas = torch.zeros(steps), sigma.flip(0)
    monkeypatch.setattr(
        scheduling_sde_ve, 'randn_tensor', lambda *shape, generator, **kind: generator
    )
    noise, net = torch.tensor(table), network(torch)
    x = sigma[0] * noise[0, 0]
    for k, s in enumerate(sigma):
        i = steps - 1 - k
        for m in range(1, corrections + 1):
            x = scheduler.step_correct((net(x, s) - x) / s**2, x, noise[m, i]).prev_sample
        t = (i + 1e-3) / (steps - 1)
        step = scheduler.step_pred((net(x, s) - x) / s**2, t, x, noise[0, i])
        x = step.prev_sample
    np.testing.assert_allclose(found, step.prev_sample_mean, atol=1e-5)  # float32 step sizes
