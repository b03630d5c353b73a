"""Discrete time against guided-diffusion's numbers, which record/improved_diffusion.py wrote."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import load

from gen_jax.config import default
from gen_jax.diffusion import bound, gaussian, losses, samplers
from gen_jax.diffusion.schedules import Trajectory, cosine_betas, spaced_times

GOLDEN = load('improved_diffusion')
X_0, NOISE, TABLE = (GOLDEN[name] for name in ('x_0', 'noise', 'table'))
T, STEPS = len(NOISE), 10
C = X_0.shape[-1]
ROUNDING = 3e-7  # in bits: theirs subtracts float32 numbers near 1
CASES = ('hybrid', 'of_x_0', 'large', 'small')


class Network:
    """What stood for a network in the recording."""

    def __init__(self, learned):
        self.table = jnp.asarray(TABLE[..., : C * (1 + learned)])

    def apply(self, variables, x, told, label):
        """A table's row for the time, and 0.3 of the input."""
        t = jnp.round(told * (T / 1000)).astype(int)
        return 0.3 * jnp.tile(x, 2)[..., : self.table.shape[-1]] + self.table[t[0]]


class Case:
    """One recorded case: its numbers, the config that describes it, and the model."""

    def __init__(self, name):
        self.name = name
        betas, prediction, self.variance = json.loads(str(self['told']))
        learned = self.variance == 'learned_range'
        self.config = default('diffusion.gaussian')
        self.config.data.channels = C
        self.config.diffusion.update(
            timesteps=T,
            betas=betas,
            # Theirs is scaled so that it means the same for any number of steps.
            beta_min=1e-4 * 1000 / T,
            beta_max=0.02 * 1000 / T,
            prediction=prediction,
            told='thousandths',
            learned_variance=learned,
        )
        self.model = gaussian.Model.from_config(self.config)._replace(network=Network(learned))

    def __getitem__(self, name):
        return GOLDEN[f'{self.name}.{name}']

    def estimate(self, x_t, t):
        """What the bound and the sampler are told."""
        return self.model.estimate(self.model.raw({}, x_t, t, None), x_t, t, clip=True)


@pytest.fixture(params=CASES, scope='module')
def case(request):
    return Case(request.param)


@pytest.fixture
def same_noise(monkeypatch):
    """The recorded draws, for the bound and for samplers."""

    def normal(keys, i, shape):
        return jnp.asarray(NOISE)[i]

    monkeypatch.setattr(bound, 'normal', normal)
    monkeypatch.setattr(samplers, 'normal', normal)


@pytest.mark.parametrize('n', [50, 1000, 4000])
def test_cosine_betas(n):
    np.testing.assert_allclose(cosine_betas(n), GOLDEN[f'betas.cosine_{n}'], rtol=1e-12)


@pytest.mark.parametrize('name', [name for name in GOLDEN if name.startswith('spaced.')])
def test_respaced_times(name):
    total, steps = map(int, name.removeprefix('spaced.').split('_'))
    np.testing.assert_array_equal(spaced_times(total, steps, 'linspace'), GOLDEN[name])


def test_coefficients(case):
    process = case.model.process
    c_0, c_t = process.posterior_mean()
    log_variance = np.log(np.append(process.beta_tilde[1], process.beta_tilde[1:]))
    ours = {
        'sqrt_alphas_cumprod': np.sqrt(process.alpha_bar),
        'posterior_mean_coef1': c_0,
        'posterior_mean_coef2': c_t,
        'posterior_log_variance_clipped': log_variance,
    }
    for name, x in ours.items():
        np.testing.assert_allclose(x, case[name], rtol=1e-10, atol=1e-14, err_msg=name)


@pytest.mark.parametrize(
    ('name', 'loss'),
    [
        ('hybrid', 'hybrid'),
        ('hybrid', 'vlb'),
        ('of_x_0', 'hybrid'),
        ('of_x_0', 'vlb'),
        ('large', 'simple'),
        ('large', 'vlb'),
        ('small', 'simple'),
    ],
)
def test_losses_and_their_gradients(name, loss):
    case = Case(name)
    case.config.diffusion.loss = loss
    objective = gaussian.make_objective(case.config.diffusion, case.model)

    @jax.jit
    @jax.vmap
    def each(t, eps):
        times = jnp.full(len(X_0), t)
        alpha, sigma = case.model.process.level(times)
        x_t = alpha * X_0 + sigma * eps

        def total(raw):
            values = objective(raw, X_0, x_t, times, eps).mean((1, 2, 3))
            return values.sum(), values

        raw = case.model.raw({}, x_t, times, None)
        return jax.grad(total, has_aux=True)(raw)

    slopes, values = each(jnp.arange(T), NOISE)
    np.testing.assert_allclose(values, case[f'loss_{loss}'], rtol=1e-5, atol=T * ROUNDING)
    for got, want in zip(slopes[np.array([0, 1, 20, 49])], case[f'slope_{loss}'], strict=True):
        np.testing.assert_allclose(got, want, atol=5e-5 * np.abs(want).max())


def test_terms_of_the_bound(case, same_noise):
    args = case.estimate, case.model.process, jnp.zeros(len(X_0)), X_0, case.variance
    bits = jax.jit(lambda: bound.terms(*args))()
    np.testing.assert_allclose(bits[:, :T], case['bits'], rtol=1e-5, atol=ROUNDING)
    np.testing.assert_allclose(bits[:, T], case['prior'], rtol=1e-5, atol=ROUNDING)
    sums = jax.jit(lambda: bound.evaluate(*args))()
    want = {
        'vlb': case['bits'].sum(1) + case['prior'],
        'vlb_middle': case['bits'][:, 1:].sum(1),
        'vlb_decoder': case['bits'][:, 0],
    }
    for name, x in want.items():
        np.testing.assert_allclose(sums[f'{name}_bits_per_dim'], x, rtol=1e-5)


def test_respaced_sample(case, same_noise):
    def denoise(x_t, t):
        said = case.estimate(x_t, t)
        return said[1:] if case.variance == 'learned_range' else said.x_0

    steps = jnp.full(len(X_0), STEPS)
    trajectory = Trajectory.create(case.model.process, steps, 'linspace')
    args = denoise, trajectory, steps, X_0.shape[1:], case.variance
    got = jax.jit(lambda: samplers.ancestral(*args))()
    np.testing.assert_allclose(got, case['sample'], atol=1e-5)


def test_loss_second_moment():
    history = losses.no_losses(GOLDEN['resampled.p'].shape[1])
    step = jax.jit(losses.remember)
    for t, each, want in zip(
        *(GOLDEN[f'resampled.{x}'] for x in ('t', 'losses', 'p')), strict=True
    ):
        history = step(history, jnp.int32(t), each)
        np.testing.assert_allclose(losses.second_moment(history), want, rtol=1e-5)
    assert (want.max() > 2 * want.min()).all()
