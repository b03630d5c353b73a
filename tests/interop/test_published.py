"""`config.init_from`: which file becomes the state of which config, and what is refused."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gen_jax.config import create, default
from gen_jax.diffusion.adm import classifier_from_config
from gen_jax.errors import UserError
from gen_jax.interop import adm, dit, ncsnv2, noise, published, song
from gen_jax.runtime.config_file import ConfigFile

ROOT = Path(__file__).parents[2]
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
        ('DDPM++', {'diffusion.prediction': 'v'}, "=('v', 'time'): expected ('eps', 'time')"),
        ('DDPM++', {'model.channels': 64}, 'has other shapes'),
        ('EDM', SCORE, "expected ('edm', 'log_ratio')"),
        (
            'DDPM++',
            {'diffusion.process': 'vp_cosine'},
            "process='vp_linear', the config has 'vp_cosine'",
        ),
        (
            'DDPM++',
            {'diffusion.range': (0.1, 30.0)},
            'range=(0.1, 20.0), the config has (0.1, 30.0)',
        ),
        (
            'DDPM++ in steps',
            {'diffusion.betas': 'cosine'},
            "betas='linear', the config has 'cosine'",
        ),
        ('NCSN++', {'diffusion.process': 'edm'}, "process='ve', the config has 'edm'"),
        ('NCSN++', {'model.embedding': 'positional'}, "expected ('eps', 'time')"),
        ('NCSN++', {'model.fir': False}, 'model.fir=False: expected True'),
        ('NCSN++', {'model.fir': False, 'model.encoder': 'skip'}, 'fir=False: expected True'),
        ('DDPM++', {'model.fir': True}, 'model.fir=True: expected False'),
        ('NCSNv2', {'diffusion.prediction': 'eps'}, "expected 'score'"),
        ('DiT', {'diffusion.prediction': 'v'}, "expected ('eps', 'time')"),
        ('DiT', {'model.depth': 2}, 'lacks'),
        ('DiT', {'diffusion.betas': 'cosine'}, "betas='linear', the config has 'cosine'"),
        ('DiT', {'diffusion.timesteps': 4000}, 'timesteps=1000, the config has 4000'),
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


def test_a_published_classifier_is_of_steps(tmp_path, monkeypatch):
    written = Written('classifier', tmp_path, monkeypatch)
    config = default('diffusion.noised_classifier', time='continuous')
    told = {'diffusion.process': 'vp_linear', 'diffusion.told': 'time'}
    config.update_from_flattened_dict(CLASSES | told | {'init_from': written.config.init_from})
    with pytest.raises(
        UserError, match='is trained in 1000 steps: expected a config of discrete time'
    ):
        published.state_of(config, jax.random.key(0))


SIGMAS = np.geomspace(50, 0.01, 7)


@pytest.mark.parametrize(
    ('process', 'changes', 'says'),
    [
        ('ve', {}, 'none'),
        ('ve', {'range': (0.02, 696.0)}, r'range=\(0\.02, 100\.0\), the config has'),
        ('ve', {'process': 'edm'}, "process='ve', the config has 'edm'"),
        ('ladder', {'levels': 7}, 'none'),
        ('ladder', {'levels': 8}, 'levels=7, the config has 8'),
        ('ladder', {'levels': 7, 'range': (0.02, 180.0)}, r'range=\(0\.02, 100\.0\), the config'),
    ],
)
@pytest.mark.parametrize('name', ['sigmas', 'module.sigmas'])
def test_a_files_noise_levels_are_the_configs(process, changes, says, name):
    """Which count images in [0, 1] there, and in [-1, 1] here."""
    config = default('diffusion.continuous')
    config.diffusion.update({'process': process, 'range': (0.02, 100.0)} | changes)

    def check(tensors):
        try:
            noise.require_sigmas(config.diffusion, tensors, process, 'a.pth')
        except UserError as error:
            return str(error)
        return 'none'

    found = check({name: SIGMAS.astype(np.float32)})
    assert re.search(says, found)
    assert '\n' not in found
    assert process != config.diffusion.process or check({}) == 'none'


PAIRS = [
    ('adm_imagenet', '', '64x64_diffusion'),
    ('adm_imagenet', 'at_128', '128x128_diffusion'),
    ('adm_imagenet', 'at_256', '256x256_diffusion'),
    ('adm_imagenet', 'at_256_unconditional', '256x256_diffusion_uncond'),
    ('adm_imagenet', 'at_512', '512x512_diffusion'),
    ('adm_classifier_imagenet', '', '64x64_classifier'),
    ('adm_classifier_imagenet', 'at_128', '128x128_classifier'),
    ('adm_classifier_imagenet', 'at_256', '256x256_classifier'),
    ('adm_classifier_imagenet', 'at_512', '512x512_classifier'),
    ('improved_ddpm_cifar10', '', 'cifar10_uncond_50M_500K'),
    ('improved_ddpm_cifar10', 'vlb', 'cifar10_uncond_vlb_50M_500K'),
]


def module_of(config):
    if config.method == 'diffusion.noised_classifier':
        return classifier_from_config(config)
    return published.MODELS[config.method].from_config(config).network


@pytest.mark.slow
@pytest.mark.parametrize(('file', 'variant', 'name'), PAIRS)
def test_a_papers_config_is_that_of_its_weights(tmp_path, monkeypatch, file, variant, name):
    """All that is asked of a published file but for what it holds, of which the shapes."""
    config = ConfigFile().parse(f'{ROOT}/configs/{file}.py:{variant}')
    known, asked = adm.PUBLISHED[name], []

    def shapes(net, size):
        given = [jnp.zeros((1, size, size, 3)), jnp.zeros(1)]
        given += [jnp.zeros(1, jnp.int32)] if config.method == 'diffusion.gaussian' else []
        found = jax.eval_shape(net.init, jax.random.key(0), *given)
        return jax.tree.map(lambda x: x.shape, found)

    def read(tensors, net, size, new_order, place):
        asked.append((shapes(net, size), new_order))
        return {'conv_in': {'kernel': np.zeros((3, 3, 3, 1))}}

    monkeypatch.setattr(adm, 'read_tensors', lambda path: {})
    monkeypatch.setattr(adm, 'from_reference', read)
    config.init_from = f'{tmp_path}/{name}.pt'
    adm.variables_of(config, module_of(config))
    assert asked == [(shapes(known.net, known.image_size), known.new_order)]
