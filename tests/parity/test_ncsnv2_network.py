"""NCSNv2's networks and its sampler against the authors', which record/ncsnv2.py ran."""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import difference, filled, load

from gen_jax.config import default
from gen_jax.diffusion import continuous, langevin, samplers
from gen_jax.diffusion.ladder import ladder
from gen_jax.diffusion.processes import Path
from gen_jax.diffusion.refinenet import RefineNet
from gen_jax.errors import UserError
from gen_jax.interop import ncsnv2

MULTIPLIERS = {'four': (1, 2, 2, 2), 'five': (1, 2, 2, 4, 4), 'six': (1, 2, 2, 2, 4, 4)}
GOLDEN = load('ncsnv2')
# Theirs of CIFAR-10, for images in [-1, 1]: all is twice as large.
PROCESS = ladder(232, 2 * 0.01, 2 * 50.0)


class Recorded:
    """One case of golden/ncsnv2.npz: all that went into a network of theirs, and came out.

    Attributes:
      net: ours of the same shape.
      tensors: the weights by their names.
      x: what it saw, images in [-1, 1] with noise.
      sigma: of this noise, [n, 1, 1, 1].
      result: their score, the gradient by images in [0, 1].
    """

    def __init__(self, name):
        case = json.loads(str(GOLDEN[f'{name}.case']))
        self.x, self.result = GOLDEN[f'{name}.x'], GOLDEN[f'{name}.result']
        images = self.x.shape[-1]
        self.net = RefineNet(case['channels'], MULTIPLIERS[name], images)
        self.tensors = filled(case['shapes'])
        t = np.float32(231 - GOLDEN[f'{name}.levels'])
        self.sigma = PROCESS.sigma(t)[:, None, None, None]

    def params(self, **changes):
        return ncsnv2.from_reference(self.tensors, self.net, **changes)

    def run(self):
        return jax.jit(self.net.apply)({'params': self.params()}, self.x, jnp.zeros(len(self.x)))


@pytest.mark.slow
@pytest.mark.parametrize('name', MULTIPLIERS)
def test_agrees_with_the_reference(name):
    case = Recorded(name)
    # A step in images in [0, 1] is two in ours.
    score = 2 * case.run() / case.sigma
    for ours, theirs in zip(score, case.result, strict=True):
        far = difference(ours, theirs)
        print('max diff / scale', far)
        assert far < 1e-4


@pytest.mark.parametrize('name', MULTIPLIERS)
def test_parameters_of_the_published_networks(name):
    net = RefineNet(multipliers=MULTIPLIERS[name])
    x = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1))
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert found == json.loads(str(GOLDEN['counts']))[name]
    assert found == {'four': 29_694_083, 'five': 83_445_379, 'six': 94_132_611}[name]


@pytest.fixture
def model():
    """The case 'four' as the method has it, told of the ladder that was walked."""
    config = default('diffusion.continuous', network='refinenet')
    config.data.channels = 3
    config.model.channels = 16
    config.diffusion.process = 'ladder'
    config.diffusion.levels = 4
    config.diffusion.range = (0.2, 2.0)  # 0.1 and 1 for images in [0, 1]
    config.diffusion.prediction = 'score'
    config.diffusion.told = 'level'
    config.diffusion.times = 'levels'
    continuous.check(config)
    return continuous.Model.from_config(config)


@pytest.mark.slow
def test_annealed_langevin_dynamics_agree(model, monkeypatch):
    x, noise, step_lr = (GOLDEN[f'walk.{key}'] for key in ('x', 'noise', 'step_lr'))
    rising = jnp.asarray(noise[::-1])  # [levels, steps, n, h, w, c]
    begin = (2 * x - 1) / model.process.prior_std
    monkeypatch.setattr(samplers, 'normal', lambda keys, i, shape: begin)
    monkeypatch.setattr(langevin, '_langevin_noise', lambda keys, i, m, shape: rising[i, m - 1])
    variables = {'params': Recorded('four').params()}

    def denoise(x_t, t):
        f = model.raw(variables, x_t, t, None)
        return model.prediction.x_0(f, x_t, *model.process.level(t))

    n, steps = len(x), noise.shape[1]
    snr = jnp.full(n, (step_lr / 2) ** 0.5 / 0.1)  # 0.1: their sigma_L
    path = Path(model.process, jnp.full(n, 4), 'linear')
    run = partial(langevin.annealed_langevin, corrections=steps)
    keys = jax.random.split(jax.random.key(0), n)
    found = jax.jit(lambda: run(denoise, path, keys, x.shape[1:], snr))()
    far = difference((found + 1) / 2, GOLDEN['walk.result'])
    print('max diff / scale', far)
    assert far < 1e-4


@pytest.mark.parametrize('name', MULTIPLIERS)
def test_weights_return_as_they_came(name):
    case = Recorded(name)
    around = {f'module.{key}': x for key, x in case.tensors.items()}
    params = ncsnv2.from_reference(around | {'module.sigmas': np.ones(232)}, case.net)
    again = ncsnv2.to_reference(params, case.net)
    assert again.keys() == case.tensors.keys()
    for key, x in case.tensors.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key)


def checkpoint(path, tensors, averages):
    """As the authors' runner writes it."""
    torch = pytest.importorskip('torch')
    state = {f'module.{name}': torch.tensor(x) for name, x in tensors.items()}
    optimizer = torch.optim.Adam([torch.nn.Parameter(x) for x in state.values()]).state_dict()
    state['module.sigmas'] = torch.logspace(math.log10(50), -2, 232)
    parts = [state, optimizer, 7, 300_000]
    parts += [{name: torch.tensor(x) for name, x in averages.items()}] if averages else []
    torch.save(parts, path)
    return path


@pytest.mark.parametrize('name', MULTIPLIERS)
def test_a_checkpoint_tells_its_network_and_its_averages_are_read(tmp_path, name):
    case = Recorded(name)
    averages = {key: x + 1 for key, x in case.tensors.items()}
    net, params = ncsnv2.load(checkpoint(tmp_path / 'a.pth', case.tensors, averages))
    assert net == case.net
    config = default('diffusion.continuous', network='refinenet')
    config.diffusion.update({'process': 'ladder', 'range': (0.02, 100.0), 'prediction': 'score'})
    config.init_from = str(tmp_path / 'a.pth')
    found = ncsnv2.variables_of(config, net)
    jax.tree.map(np.testing.assert_array_equal, found, {'params': params})
    same = jax.tree.map(np.array_equal, params, ncsnv2.from_reference(averages, net))
    assert all(jax.tree.leaves(same))


def test_a_checkpoint_without_averages_has_its_parameters(tmp_path):
    case = Recorded('five')
    _, params = ncsnv2.load(checkpoint(tmp_path / 'a.pth', case.tensors, {}))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, case.params())))


@pytest.mark.parametrize('tree', [{'model': 3}, 1, [{}, {}, 1], [[], {}, 1, 2], [{}, {}, 1, 2, 3]])
def test_what_is_no_checkpoint_is_refused(tmp_path, tree):
    torch = pytest.importorskip('torch')
    torch.save(tree, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='no checkpoint of ncsnv2') as error:
        ncsnv2.load(tmp_path / 'a.pth')
    assert '\n' not in str(error.value)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path = checkpoint(tmp_path / 'a.pth', {'conv.weight': np.zeros((3, 2, 3, 3))}, {})
    with pytest.raises(UserError, match=r"a\.pth lacks 'begin_conv.weight'"):
        ncsnv2.load(path)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda x: x.pop('res2.0.shortcut.conv.bias'), 'lacks 1 tensors: res2.0.shortcut.conv'),
        (lambda x: x.pop('refine1.crp.convs.1.weight'), 'lacks 1 tensors: refine1.crp.convs.1'),
        (lambda x: x.update(extra=np.zeros(3)), 'beyond what the network has, 1 tensors: extra'),
        (
            lambda x: x.update({'normalizer.alpha': np.zeros(17)}),
            r'other shapes .*normalizer.alpha becomes \(17,\) where the network has \(16,\)',
        ),
    ],
)
def test_other_weights_are_refused(change, says):
    case = Recorded('four')
    change(case.tensors)
    with pytest.raises(UserError, match=says) as error:
        case.params(place='a.pth')
    assert str(error.value).startswith('a.pth ')
    assert '\n' not in str(error.value)


def test_a_network_that_the_authors_have_not_is_named():
    net = RefineNet(channels=8, multipliers=(1, 1, 1))
    with pytest.raises(UserError, match='4, 5 or 6 stages, as ncsnv2 has, got 3'):
        ncsnv2.from_reference({}, net)
