"""Front ends that sample a model guided by another run: what they read, refuse and tell apart."""

import contextlib
import importlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from gen_jax import edit, evaluate, guide, sample
from gen_jax.config import create, default
from gen_jax.diffusion.adm import classifier_from_config
from gen_jax.errors import UserError
from gen_jax.interop import adm
from gen_jax.runtime import workdir
from gen_jax.runtime.checkpoint import Checkpoints, fingerprint
from gen_jax.runtime.config_file import ConfigFile
from gen_jax.runtime.program import Program

CONFIGS = Path(__file__).parents[1] / 'configs'
NOISE = {'diffusion.timesteps': 10, 'diffusion.beta_max': 0.5}
NET = {
    'model.channels': 8,
    'model.multipliers': (1,),
    'model.attention': (),
    'model.groups': 4,
    'model.dropout': 0.0,
    'batch_size': 8,
    'sample.batch_size': 4,
    'sample.n': 4,
    'sample.grid': 4,
}
CLASSIFIER = {'data.num_classes': 10, 'model.head_channels': 8}


def small(method='diffusion.gaussian', **changes):
    """A model of the digits; `data__num_classes=3` sets config.data.num_classes."""
    config = default(method)
    config.update_from_flattened_dict({**NET, 'sample.knobs.steps': 3})
    if method == 'diffusion.gaussian':
        config.update_from_flattened_dict(NOISE)
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return config


def small_classifier(time='discrete', **changes):
    config = default('diffusion.noised_classifier', time=time)
    config.update_from_flattened_dict({**NET, **CLASSIFIER})
    if time == 'discrete':
        config.update_from_flattened_dict(NOISE)
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return config


def trained(config, folder, *steps, seed=0):
    """What a training leaves of each of these steps, but that every parameter is random."""
    program, rng = Program(config, create(config)), np.random.default_rng(seed)
    workdir.claim(config, folder)
    with contextlib.closing(Checkpoints(folder / 'checkpoints', keep=9)) as checkpoints:
        for step in steps:
            state = jax.tree.map(
                lambda x: np.asarray(0.2 * rng.standard_normal(x.shape), x.dtype),
                program.state_shape,
            )
            checkpoints.save(step, state, {})


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Folders of trained runs: two classifiers, and models that know no classes or 10."""
    folder = tmp_path_factory.mktemp('runs')
    trained(small_classifier(), folder / 'classifier', 1, 2)
    trained(small(), folder / 'model', 5)
    trained(small(data__num_classes=10), folder / 'labelled', 4, 5)
    return folder


@pytest.fixture
def model(runs, tmp_path):
    """A copy of the model that knows no classes."""
    return shutil.copytree(runs / 'model', tmp_path / 'model')


def by(where, scale=3.0, **changes):
    """The unconditional model's config, guided."""
    named = {'guide__workdir': str(where), 'sample__knobs__guide': scale}
    return small(**{**named, **changes})


def settings(folder):
    (path,) = folder.glob('samples/at_step_*/settings.json')
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_classifier_gives_an_unconditional_model_its_classes(runs, model):
    config = by(runs / 'classifier')
    sample.run(config, model)
    told = settings(model)
    assert told['sample.knobs.guide'] == 3.0
    program = Program(config, guide.method(config))
    assert program.condition(np.arange(12))['label'].tolist() == [*range(10), 0, 1]
    step, state = sample.load(program, model)
    assert (step, told['state']) == (5, fingerprint(state))
    plain = Program(small(), create(small()))
    assert fingerprint(state.own) == fingerprint(sample.load(plain, model)[1])
    # Samples of another guide, such as an earlier one, and of none are not mixed with these.
    others = {'state was': by(runs / 'classifier', guide__step='1'), 'guide was 3.0': small()}
    for says, other in others.items():
        with pytest.raises(UserError, match=f'holds samples of other settings .*{says}') as error:
            sample.run(other, model)
        assert '\n' not in str(error.value)


FILE = """
from gen_jax.config import default


def get_config(variant=''):
    config = default('diffusion.noised_classifier')
    config.update_from_flattened_dict({fields})
    return config
"""


@pytest.fixture
def published(tmp_path, monkeypatch):
    """By `config.guide`: a config's file and a classifier's, as guided-diffusion writes it."""
    config, rng = small_classifier(), np.random.default_rng(3)
    net = classifier_from_config(config)
    shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 8, 8, 1)), np.zeros(1))
    params = jax.tree.map(
        lambda x: np.float32(0.2 * rng.standard_normal(x.shape)), shapes['params']
    )
    noise = {name.removeprefix('diffusion.'): value for name, value in NOISE.items()}
    known = adm.Published(net, 8, {'betas': 'linear', 'told': 'time', **noise})
    monkeypatch.setitem(adm.PUBLISHED, 'tiny', known)
    save_file(adm.to_reference(params, net, 8), tmp_path / 'tiny.pt')
    (tmp_path / 'classifier.py').write_text(FILE.format(fields={**NET, **CLASSIFIER, **NOISE}))
    files = {'config': tmp_path / 'classifier.py', 'init_from': tmp_path / 'tiny.pt'}
    return {f'guide__{name}': str(path) for name, path in files.items()}, params


@pytest.mark.slow
def test_a_published_classifier_guides_without_a_run(model, published):
    named, params = published
    config = small(**named, sample__knobs__guide=3.0)
    sample.run(config, model)
    program = Program(config, guide.method(config))
    step, state = sample.load(program, model)
    jax.tree.map(np.testing.assert_array_equal, state.guide.net.params, params)
    laid_out = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), program.state_shape)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == laid_out
    assert (step, settings(model)['state']) == (5, fingerprint(state))
    config.eval.update({'network': 'digits', 'metrics': ('accuracy',), 'n': 4})
    evaluate.run(config, model)
    told = json.loads((model / 'metrics.json').read_text())['accuracy_digits']['guide']
    assert told['init_from'] == named['guide__init_from']
    assert told['state'] == fingerprint(state.guide)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'guide__init_from': ''}, "config.guide.init_from='': expected a file or folder"),
        (
            {'guide__config': '', 'sample__knobs__guide': 0.0},
            "expected '' without config.guide.config",
        ),
        ({'guide__workdir': 'x'}, "expected '' with config.guide.workdir: one of them guides"),
        ({'guide__config': 'none.py'}, '--config=none.py: none.py is no file'),
        ({'guide__init_from': '/no/tiny.pt'}, 'no file at /no/tiny.pt'),
        ({'diffusion__timesteps': 20}, 'classifier.py'),
    ],
)
def test_what_a_published_guide_lacks_is_one_line(model, published, changes, says):
    config = small(**{**published[0], 'sample__knobs__guide': 3.0, **changes})
    with pytest.raises(UserError) as error:
        sample.run(config, model)
    assert says in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.slow
def test_a_classifier_of_the_noise_of_edm_guides_it(tmp_path):
    """Those of the digits' configs."""

    def tiny(file):
        return ConfigFile().parse(f'{CONFIGS}/{file}.py:tiny_edm')

    theirs, ours = tmp_path / 'classifier', tmp_path / 'model'
    trained(tiny('noised_classifier_digits'), theirs, 4)
    trained(tiny('ddpm_digits'), ours, 4)
    config = tiny('ddpm_digits')
    config.guide.workdir, config.sample.knobs.guide = str(theirs), 3.0
    program = Program(config, guide.method(config))
    step, state = sample.load(program, ours)
    assert (step, jax.tree.structure(state)) == (4, jax.tree.structure(program.state_shape))
    assert program.lower_sample()


@pytest.mark.slow
def test_its_step_is_the_newest_or_the_one_that_is_named(runs, model):
    states = []
    for step in ('', '2', '1'):
        config = by(runs / 'classifier', guide__step=step)
        states.append(sample.load(Program(config, guide.method(config)), model)[1])
    newest, second, first = (fingerprint(state.guide) for state in states)
    assert newest == second != first


@pytest.mark.slow
def test_numbers_of_a_guided_model_stand_apart(runs, model):
    metrics = {'eval__metrics': ('per_example', 'accuracy'), 'eval__network': 'digits'}
    config = by(runs / 'classifier', eval__n=8, **metrics)
    evaluate.run(config, model)
    rows = json.loads((model / 'metrics.json').read_text())
    assert {'vlb_bits_per_dim', 'accuracy_digits'} <= set(rows)
    told = rows['accuracy_digits']['guide']
    assert told['workdir'] == str(runs / 'classifier')
    assert rows['accuracy_digits']['knobs']['guide'] == 3.0
    # What is kept is of the same guide.
    row = {
        'x': {name: rows['accuracy_digits'].get(name) for name in ('step', 'state', 'seed', 'ema')}
    }
    row['x']['guide'] = told
    assert set(evaluate.kept(model / 'metrics.json', row)) == set(rows)
    for other in ({**told, 'state': 'another'}, None):
        row['x']['guide'] = other
        assert evaluate.kept(model / 'metrics.json', row) == {}
    # The likelihood is the model's own.
    evaluate.run(small(eval__metrics=('per_example',)), model)
    alone = json.loads((model / 'metrics.json').read_text())
    assert 'accuracy_digits' not in alone
    assert alone['vlb_bits_per_dim']['value'] == pytest.approx(
        rows['vlb_bits_per_dim']['value'], rel=1e-6
    )


@pytest.mark.slow
def test_edits_are_of_the_class_that_the_image_shows(runs, model, caplog):
    changes = {'edit__task': 'vary', 'edit__n': 2, 'edit__results': 2}
    made = {}
    for scale in (0.0, 9.0):
        config = by(runs / 'classifier', scale, **changes)
        edit.run(config, model)
        with np.load(model / 'edit' / 'vary_00000005.npz') as arrays:
            made[scale] = arrays['results']
        assert ('guides nothing while config.sample.knobs.guide=0' in caplog.text) == (not scale)
        caplog.clear()
    assert (made[0.0] != made[9.0]).any()
    program = edit.Editing(config, guide.method(config))
    labels = program.condition(np.array([0, 1, 1000]))['label']
    source = edit.sources.open_source(config.data, 'test')
    assert labels.tolist() == [source[i]['label'] for i in (0, 0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize('method', ['diffusion.gaussian', 'diffusion.continuous'])
def test_a_model_is_guided_by_an_earlier_checkpoint_of_itself(tmp_path, method):
    """Limited to the same noise as the model is, and clipped with it."""
    changes = {'data__num_classes': 10, 'diffusion__label_dropout': 0.1, 'sampler__clip': True}
    trained(small(method, **changes), tmp_path, 1, 2)
    changes |= {'sampler__guidance_interval': (0.1, 99.0), 'guide__step': '1'}
    config = small(method, **changes, guide__workdir=str(tmp_path), sample__knobs__guide=2.0)
    found = guide.read(config)
    assert tuple(found.sampler.guidance_interval) == (0.1, 99.0)
    assert not found.sampler.clip
    program = Program(config, guide.method(config))
    step, state = sample.load(program, tmp_path)
    assert step == 2
    images = program.sample(state, np.arange(4))
    plain = state.replace(guide=state.own)
    assert (images != program.sample(plain, np.arange(4))).any()


@pytest.mark.slow
def test_a_run_from_before_a_field_is_read_with_its_default(runs, tmp_path):
    folder = shutil.copytree(runs / 'labelled', tmp_path / 'old')
    flat = json.loads((folder / 'config.json').read_text())
    for name in ('guide.workdir', 'guide.step', 'sample.knobs.guide'):
        del flat[name]
    (folder / 'config.json').write_text(json.dumps(flat))
    config = by(folder, data__num_classes=10)
    assert guide.read(config).sample.knobs.guide == 0.0
    guide.method(config)


def test_a_run_from_before_a_choice_is_read_with_its_default(tmp_path):
    workdir.claim(small_classifier(), tmp_path)
    flat = json.loads((tmp_path / 'config.json').read_text())
    del flat['time']
    (tmp_path / 'config.json').write_text(json.dumps(flat))
    assert guide.read(by(tmp_path)).time == 'discrete'


# Mistakes.


@pytest.mark.parametrize(
    ('named', 'changes', 'says'),
    [
        ('nowhere', {}, "nowhere': expected the folder of a trained run"),
        ('classifier', {'data__image_size': 16}, 'data.image_size=8: expected 16'),
        ('classifier', {'data__channels': 3}, 'data.channels=1: expected 3'),
        ('classifier', {'data__num_classes': 3}, 'data.num_classes=10: expected 3'),
        ('classifier', {'diffusion__timesteps': 20}, 'diffusion.timesteps=10: expected 20'),
        ('classifier', {'diffusion__betas': 'cosine'}, "betas='linear': expected 'cosine'"),
        ('classifier', {'diffusion__beta_min': 0.01}, 'beta_min=0.0001: expected 0.01'),
        ('classifier', {'diffusion__beta_max': 0.4}, 'beta_max=0.5: expected 0.4'),
        (
            'classifier',
            {'diffusion__zero_snr': True, 'diffusion__prediction': 'v'},
            'zero_snr=False: expected True',
        ),
        ('classifier', {'sample__label': 10}, 'a class below data.num_classes=10'),
        ('labelled', {}, 'data.num_classes=10: expected 0'),
        ('model', {'sample__label': 0}, 'config.sample.label=0'),
    ],
)
def test_what_does_not_fit_is_one_line(runs, tmp_path, named, changes, says):
    for mode in (sample, evaluate, edit):
        with pytest.raises(UserError) as error:
            mode.run(by(runs / named, **changes), tmp_path)
        assert says in str(error.value)
        assert '\n' not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('method', 'theirs', 'ours'),
    [
        (
            'diffusion.gaussian',
            {'diffusion__betas': 'cosine', 'diffusion__beta_min': 0.01},
            {'diffusion__betas': 'cosine', 'diffusion__beta_max': 0.3},
        ),
        ('diffusion.continuous', {}, {'diffusion__range': (0.002, 80.0)}),
        ('diffusion.continuous', {'diffusion__levels': 10}, {}),
    ],
)
def test_what_the_process_does_not_obey_need_not_agree(tmp_path, method, theirs, ours):
    workdir.claim(small(method, **theirs), tmp_path)
    guide.read(small(method, **ours, guide__workdir=str(tmp_path)))


@pytest.mark.parametrize(
    ('theirs', 'says'),
    [
        (
            small('diffusion.continuous', diffusion__range=(0.002, 50.0)),
            r'range=\(0.002, 50.0\): expected \(0.002, 80.0\)',
        ),
        (
            small_classifier('continuous', diffusion__range=(0.002, 50.0)),
            r'range=\(0.002, 50.0\): expected \(0.002, 80.0\)',
        ),
        (
            small('diffusion.continuous', diffusion__pairing='optimal'),
            r"pairing='optimal': expected 'random'",
        ),
    ],
)
def test_processes_in_continuous_time_agree(tmp_path, theirs, says):
    workdir.claim(theirs, tmp_path)
    config = small('diffusion.continuous', guide__workdir=str(tmp_path))
    with pytest.raises(UserError, match=says):
        guide.read(config)


def test_a_classifier_is_trained_at_times_and_told_them_as_it_likes(tmp_path):
    theirs = {'diffusion__times_std': 3.0, 'diffusion__told': 'log_sigma'}
    workdir.claim(small_classifier('continuous', **theirs), tmp_path)
    found = guide.read(small('diffusion.continuous', guide__workdir=str(tmp_path)))
    assert found.diffusion.told == 'log_sigma'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('step', 'says'),
    [
        ('9', r'no checkpoint of step 9'),
        ('first', "config.guide.step='first'"),
        ('best', 'eval.best'),
    ],
)
def test_a_checkpoint_that_is_not_there_is_one_line(runs, model, step, says):
    with pytest.raises(UserError) as error:
        sample.run(by(runs / 'classifier', guide__step=step), model)
    assert says in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('method', 'theirs', 'says'),
    [
        ('diffusion.continuous', small_classifier(), "time='discrete': expected 'continuous'"),
        (
            'diffusion.gaussian',
            small_classifier('continuous'),
            "time='continuous': expected 'discrete'",
        ),
        (
            'diffusion.gaussian',
            small('diffusion.continuous'),
            "'diffusion.continuous': expected a run of diffusion.gaussian or",
        ),
    ],
)
def test_a_guide_is_of_the_same_kind_of_time(tmp_path, method, theirs, says):
    workdir.claim(theirs, tmp_path)
    with pytest.raises(UserError, match=says) as error:
        guide.method(small(method, guide__workdir=str(tmp_path)))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('{', 'is no JSON object'),
        ('[]', 'is no JSON object'),
        ('{}', 'is no config of this version'),
        ('{"method": "no.such"}', 'is not a method'),
        (
            '{"method": "autoencoders.vae", "network": "conv", "objective": "elbo"}',
            "config.method='autoencoders.vae'",
        ),
        (
            '{"method": "diffusion.noised_classifier", "stepz": 3}',
            "config.stepz, did you mean 'steps'",
        ),
        ('{"method": "diffusion.noised_classifier", "steps": "many"}', 'is no config of this'),
    ],
)
def test_a_broken_config_of_the_guide_is_one_line(tmp_path, text, says):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(UserError) as error:
        guide.method(by(tmp_path))
    assert says in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('mode', ['train', 'benchmark', 'plan', 'inspect'])
def test_nothing_else_takes_a_guide(runs, tmp_path, mode):
    with pytest.raises(UserError, match=r"guide\.workdir=.*expected '' here") as error:
        importlib.import_module(f'gen_jax.{mode}').run(by(runs / 'classifier'), tmp_path)
    assert '\n' not in str(error.value)
    assert list(tmp_path.iterdir()) == []
