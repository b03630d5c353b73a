"""Losses of continuous time against the authors' code, of which record/losses_*.py tell.

The configs of those papers, whose loss is what `continuous.make_squares` makes of them, of the same
images, noise and times, and one network.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import load
from trained import SIZE, inputs, network, normals, shares

from gen_jax.diffusion import continuous
from gen_jax.runtime.config_file import ConfigFile

CONFIGS = Path(__file__).parents[2] / 'configs'
SONG, LIU = 'score_sde_cifar10.py', 'rectified_flow_cifar10.py'
SIGMA = np.exp(-1.2 + 1.2 * normals())
T = 1e-5 + (1 - 1e-5) * shares()
# Golden file and its case, the config and its weighting (some name one loss twice), and the times.
CASES = [
    ('edm', 'edm', 'edm_cifar10.py', 'simple', SIGMA),
    ('edm', 'edm', 'edm_cifar10.py', 'edm', SIGMA),
    ('edm', 'vp', SONG, 'simple', T[::-1]),
    ('edm', 've', f'{SONG}:ve', 'simple', shares()),
    ('edm', 've', f'{SONG}:ve', 'eps', shares()),
    ('score_sde', 'vp', SONG, 'simple', T),
    ('score_sde', 'vp', SONG, 'eps', T),
    ('score_sde', 'sub_vp', f'{SONG}:sub_vp', 'simple', T),
    ('score_sde', 've', f'{SONG}:ve', 'simple', T),
    ('score_sde', 'vp_likelihood', SONG, 'likelihood', T),
    ('score_sde', 'sub_vp_likelihood', f'{SONG}:sub_vp', 'likelihood', T),
    ('score_sde', 've_likelihood', f'{SONG}:ve', 'likelihood', T),
    ('cfm', 'icfm', f'{LIU}:icfm', 'simple', 1 - shares()),
    ('rectified_flow', 'flow', LIU, 'simple', 0.999 * (1 - shares())),
]


class Network:
    """trained.py's, told numbers near 1."""

    def __init__(self, told):
        self._says, self._unit = network(jnp), 999 if told == 'time' else 1

    def apply(self, variables, x, told, label):
        """What `Model.raw` asks of a flax module."""
        return self._says(x, told / self._unit)


@pytest.mark.parametrize('case', CASES, ids=lambda case: '-'.join((*case[:2], case[3])))
def test_losses_are_the_authors(case):
    golden, name, file, weighting, t = case
    config = ConfigFile().parse(str(CONFIGS / file))
    config.diffusion.update(weighting=weighting, augment=0.0)
    model = continuous.Model.from_config(config)._replace(network=Network(config.diffusion.told))
    squares = continuous.make_squares(config.diffusion, model)
    x_0, eps, t = (jnp.asarray(x, jnp.float32) for x in (*inputs(), t))
    found = jax.jit(lambda: squares({}, x_0, t, eps, None))()
    want = load(f'losses_{golden}')
    np.testing.assert_allclose(found, want[name], rtol=1e-5)
    # Where theirs may be half the sums over values, not means.
    if (summed := f'{name}_sum') in want:
        np.testing.assert_allclose(SIZE / 2 * found, want[summed], rtol=1e-5)
