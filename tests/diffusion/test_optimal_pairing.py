"""OT-CFM where the best pairing is known: of N(MU, S^2) and N(0, 1), x_0 = MU + S eps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.config import default
from gen_jax.diffusion import continuous, processes, samplers, solvers
from gen_jax.diffusion.processes import Path
from gen_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('small_network')
MU, S = 0.3, 0.5
SHAPE, N = (32, 32, 1), 2
FLOW = {
    'data.image_size': 4,
    'diffusion.process': 'flow',
    'diffusion.prediction': 'velocity',
    'diffusion.told': 'time',
    'diffusion.times': 'uniform',
    'diffusion.pairing': 'optimal',
    'sampler.name': 'ddim',
    'sampler.spacing': 'trailing',
    'sample.knobs.steps': 50,
}
ADAPTIVE = {'sampler.name': 'adaptive', 'sample.knobs.steps': 0, 'sample.knobs.tolerance': 1e-4}


def config(**changes):
    config = default('diffusion.continuous', network='small')
    changes = {name.replace('__', '.'): value for name, value in changes.items()}
    config.update_from_flattened_dict(FLOW | changes)
    return config


def keys():
    return jax.random.split(jax.random.key(0), N)


def randomised(method):
    """A state whose every parameter is random: the first one says 0, whatever it is asked."""
    shapes = jax.eval_shape(method.init, jax.random.key(0), {'image': jnp.zeros((N, 4, 4, 1))})
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape, np.float32), shapes)


def drawn(chosen):
    """By a network that has learned all there is to learn: on the line from x_0 to its noise."""

    def denoise(x, t):
        t = t[:, None, None, None]
        eps = (x - (1 - t) * MU) / ((1 - t) * S + t)
        return MU + S * eps

    @jax.jit
    def run():
        knobs, n = chosen.sample.knobs, len(keys())
        path = Path(processes.flow(), jnp.full(n, knobs.steps), chosen.sampler.spacing)
        number = {name: jnp.full(n, knobs[name], jnp.float32) for name in solvers.KNOBS}
        return solvers.run(chosen, denoise, path, keys(), SHAPE, number.get)

    return run()


@pytest.mark.parametrize(
    ('changes', 'refused'),
    [
        ({}, ''),
        ({'sampler.name': 'heun'}, ''),
        pytest.param(ADAPTIVE, '', marks=pytest.mark.slow),
        ({'sampler.name': 'ancestral'}, 'sampler.name'),
        ({'sample.knobs.eta': 1.0}, 'sample.knobs.eta'),
        ({'sampler.name': 'heun', 'sample.knobs.churn': 40.0}, 'sample.knobs.churn'),
    ],
    ids=lambda x: str(x) or 'allowed',
)
def test_samplers_that_add_no_noise_are_right_and_the_others_are_refused(changes, refused):
    chosen = config(**changes)
    found, x_T = drawn(chosen), samplers.normal(keys(), 0, SHAPE)
    if not refused:
        continuous.create(chosen)
        np.testing.assert_allclose(found, MU + S * x_T, atol=1e-4)
        return
    # Without the score the noise that is added is no part of p(x_t): what is drawn is too narrow.
    assert found.std() < 0.8 * S
    with pytest.raises(UserError, match=rf'config\.{refused}=.*does not tell') as error:
        continuous.create(chosen)
    assert '\n' not in str(error.value)
    chosen.diffusion.pairing = 'random'
    continuous.create(chosen)


def test_of_what_is_asked_for_per_sample_noise_is_left_alone():
    found = {}
    for pairing in ('random', 'optimal'):
        method = continuous.create(config(sample__knobs__steps=2, diffusion__pairing=pairing))
        state, sample = randomised(method), jax.jit(method.sample_step)
        one, other = (sample(keys(), state, {'eta': jnp.full(N, eta)}) for eta in (0.0, 1.0))
        found[pairing] = float(jnp.abs(one - other).max())
        assert set(method.edits) >= {'reconstruct', 'interpolate'}
        assert ('vary' in method.edits) == (pairing == 'random')
    assert found['optimal'] == 0 < found['random']


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        (
            {'diffusion.process': 'edm', 'diffusion.told': 'log_ratio'},
            "'random' with process='edm'",
        ),
        ({'data.num_classes': 3}, r'config\.data\.num_classes=3: noise of images'),
        ({'guide.workdir': 'runs/worse'}, "guide of 'runs/worse': guidance is by the score"),
    ],
)
def test_what_it_cannot_do_is_told_in_one_line(changes, says):
    with pytest.raises(UserError, match=says) as error:
        continuous.create(config(**changes))
    assert '\n' not in str(error.value)


def test_what_is_told_of_augmentation_tells_of_the_noise():
    chosen = default('diffusion.continuous', network='song')
    chosen.update_from_flattened_dict(FLOW | {'diffusion.augment': 0.1})
    with pytest.raises(UserError, match=r"pairing='optimal': expected 'random' with augment=0\.1"):
        continuous.create(chosen)
