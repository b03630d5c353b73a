"""`config.init_from`: which file becomes the state of which config, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gen_jax.config import create, default
from gen_jax.diffusion.adm import classifier_from_config
from gen_jax.errors import UserError
from gen_jax.interop import adm, dit, ncsnv2, published, song

CLASSES = {'data.num_classes': 10}
BOUND = {
    'diffusion.learned_variance': True,
    'diffusion.loss': 'hybrid',
    'sampler.variance': 'learned_range',
}
NCSNPP = {
    'model.embedding': 'fourier',
    'model.encoder': 'residual',
    'model.fir': True,
    'diffusion.process': 've',
    'diffusion.prediction': 'score',
    'diffusion.told': 'log_sigma',
}
LADDER = {
    'model.channels': 4,
    'diffusion.process': 'ladder',
    'diffusion.prediction': 'score',
    'diffusion.told': 'level',
    'diffusion.times': 'levels',
}
# By whose file it is: the method, its network (None: no choice), more, and what writes tensors.
FAMILIES = {
    'guided-diffusion': (
        'diffusion.gaussian',
        'adm',
        CLASSES | BOUND,
        lambda x, net: adm.to_reference(x['params'], net, 8),
    ),
    'classifier': (
        'diffusion.noised_classifier',
        None,
        CLASSES,
        lambda x, net: adm.to_reference(x['params'], net, 8),
    ),
    'DDPM++': (
        'diffusion.continuous',
        'song',
        {
            'diffusion.process': 'vp_linear',
            'diffusion.prediction': 'eps',
            'diffusion.told': 'time',
        },
        lambda x, net: song.to_score_sde(x, net, 8),
    ),
    'DDPM++ in steps': (
        'diffusion.gaussian',
        'song',
        {},
        lambda x, net: song.to_score_sde(x, net, 8),
    ),
    'NCSN++': (
        'diffusion.continuous',
        'song',
        NCSNPP,
        lambda x, net: song.to_score_sde(x, net, 8),
    ),
    'EDM': (
        'diffusion.continuous',
        'song',
        CLASSES | {'diffusion.augment': 0.1},
        lambda x, net: song.to_edm(x, net, 8),
    ),
    'NCSNv2': (
        'diffusion.continuous',
        'refinenet',
        LADDER,
        lambda x, net: ncsnv2.to_reference(x['params'], net),
    ),
    'DiT': (
        'diffusion.gaussian',
        'dit',
        CLASSES | BOUND | {'diffusion.label_dropout': 0.1, 'model.depth': 1},
        lambda x, net: dit.to_reference(x['params'], net, 8),
    ),
}


class Written:
    """One family's file of random weights, and the config that starts from it.

    Attributes:
      config: valid, with `init_from`.
      variables: of its network.
    """

    def __init__(self, family, folder, monkeypatch, **changes):
        method, network, more, write = FAMILIES[family]
        self.config = default(method, **{'network': network} if network else {})
        self.config.update_from_flattened_dict(more)
        net, described = self._network(), []
        if network is None:
            net = classifier_from_config(self.config)
        elif CLASSES.items() <= more.items():
            described = [jnp.zeros(1, jnp.int32)]
        shapes = jax.eval_shape(
            net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.ones(1), *described
        )
        random = np.random.default_rng(0)
        self.variables = jax.tree.map(
            lambda x: random.standard_normal(x.shape).astype(np.float32), shapes
        )
        noise = {'timesteps': 1000, 'betas': 'linear', 'told': 'time'}
        monkeypatch.setitem(adm.PUBLISHED, 'tiny', adm.Published(net, 8, noise))
        save_file(write(self.variables, net), folder / 'tiny.pt')
        self.config.init_from = str(folder / 'tiny.pt')
        self.config.update_from_flattened_dict(changes)

    def _network(self):
        if self.config.method not in published.MODELS:
            return None
        return published.MODELS[self.config.method].from_config(self.config).network

    def state(self):
        create(self.config)
        return published.state_of(self.config, jax.random.key(0))


@pytest.mark.parametrize('family', FAMILIES)
def test_a_config_starts_from_its_papers_file(tmp_path, monkeypatch, family):
    written = Written(family, tmp_path, monkeypatch)
    state = written.state()
    net = state.net
    want = dict(written.variables)
    jax.tree.map(np.testing.assert_array_equal, net.params, want.pop('params'))
    jax.tree.map(np.testing.assert_array_equal, net.extra, want)
    if family != 'classifier':  # which keeps no average
        jax.tree.map(np.testing.assert_array_equal, net.ema, net.params)
    data = written.config.data
    batch = {'image': jnp.zeros((2, 8, 8, data.channels)), 'label': jnp.zeros(2, jnp.int32)}
    shape = jax.eval_shape(create(written.config).init, jax.random.key(0), batch)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(lambda x: x.shape, shape)


SCORE = {'diffusion.prediction': 'score', 'diffusion.told': 'log_sigma'}


@pytest.mark.parametrize(
    ('family', 'changes', 'says'),
    [
        ('guided-diffusion', {'model.head_channels': 16}, 'head_channels=32, the config makes 16'),
        ('guided-diffusion', {'model.groups': 4}, 'groups=8, the config makes 4'),
        ('guided-diffusion', {'diffusion.betas': 'cosine'}, "betas='linear', the config makes"),
        ('guided-diffusion', {'diffusion.timesteps': 500}, 'timesteps=1000, the config makes 500'),
        ('guided-diffusion', {'diffusion.prediction': 'v'}, "prediction='eps', the config makes"),
        ('guided-diffusion', {'data.num_classes': 9}, 'label_emb.weight becomes'),
        ('classifier', {'diffusion.told': 'thousandths'}, "told='time', the config makes"),
        ('DDPM++', {'diffusion.prediction': 'v'}, "=('v', 'time'): expected ('eps', 'time') or"),
        ('DDPM++', {'model.channels': 64}, 'has other shapes'),
        ('EDM', SCORE, "expected ('edm', 'log_ratio')"),
        ('NCSN++', {'model.embedding': 'positional'}, 'all_modules.0.W'),
        ('NCSNv2', {'diffusion.prediction': 'eps'}, "expected 'score'"),
        ('DiT', {'diffusion.prediction': 'v'}, "expected ('eps', 'time')"),
        ('DiT', {'model.depth': 2}, 'lacks'),
        ('DiT', {'diffusion.label_dropout': 0.0}, 'y_embedder.embedding_table'),
    ],
)
def test_other_weights_are_refused_in_one_line(tmp_path, monkeypatch, family, changes, says):
    written = Written(family, tmp_path, monkeypatch, **changes)
    with pytest.raises(UserError, match=re.escape(says)) as error:
        written.state()
    assert '\n' not in str(error.value)
    assert 'tiny.pt' in str(error.value)


@pytest.mark.parametrize(
    ('method', 'choices', 'says'),
    [
        ('autoencoders.vae', {}, "config.method='autoencoders.vae' starts from ''"),
        ('diffusion.gaussian', {'network': 'unet'}, 'x/config.json not found'),
        ('diffusion.continuous', {'network': 'unet'}, "expected '' with config.method="),
        ('diffusion.gaussian', {'network': 'adm'}, 'no file at x'),
        ('diffusion.gaussian', {'network': 'dit'}, 'no file at x'),
        ('diffusion.continuous', {'network': 'song'}, 'no file at x'),
        ('autoencoders.first_stage', {}, 'x/config.json not found'),
    ],
)
def test_what_cannot_be_started_from_is_told_in_one_line(method, choices, says):
    config = default(method, **choices)
    config.init_from = 'x'
    with pytest.raises(UserError, match=re.escape(says)) as error:
        published.state_of(config, jax.random.key(0))
    assert '\n' not in str(error.value)


def test_an_unknown_name_of_adms_is_told(tmp_path, monkeypatch):
    written = Written('guided-diffusion', tmp_path, monkeypatch)
    (tmp_path / 'tiny.pt').rename(tmp_path / 'ema_0.9999.pt')
    written.config.init_from = str(tmp_path / 'ema_0.9999.pt')
    with pytest.raises(UserError, match=r"'ema_0\.9999' is not the name of one of the authors'"):
        written.state()
