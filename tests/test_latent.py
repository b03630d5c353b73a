"""Latent diffusion by its commands: a first stage, a model of its latents, and images of both."""

import contextlib
import json
import re
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import adam
from safetensors.numpy import save_file

from gen_jax import benchmark, edit, evaluate, inspect, latent, sample, train
from gen_jax.autoencoders import first_stage
from gen_jax.config import create, default
from gen_jax.diffusion import dit
from gen_jax.diffusion.staged import frozen
from gen_jax.errors import UserError
from gen_jax.interop.diffusers_first_stage import torch_name
from gen_jax.interop.dit import to_reference
from gen_jax.interop.tensors import to_tensors
from gen_jax.method import Net
from gen_jax.metrics import lpips
from gen_jax.runtime import workdir
from gen_jax.runtime.checkpoint import Checkpoints
from gen_jax.runtime.program import Program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures('small_network'),
]

SHARED = {
    'steps': 4,
    'batch_size': 8,
    'log_every': 1,
    'sample_every': 0,
    'checkpoint_every': 2,
    'tensorboard': False,
    'data.source': 'shapes',
    'data.image_size': 16,
    'data.channels': 3,
}
STAGE = {
    'model.channels': 4,
    'model.multipliers': (1, 2, 2),
    'model.blocks': 1,
    'model.groups': 2,
    'model.latent_channels': 2,
    'first_stage.judge_weight': 0.0,
    'eval.metrics': ('per_example',),
}
MODEL = {
    'sampler.clip': False,
    'sample.knobs.steps': 3,
    'sample.n': 4,
    'sample.grid': 4,
    'sample.batch_size': 4,
    'eval.network': 'inception',
    'eval.metrics': ('diversity',),
    'eval.n': 4,
}
NOISE = {'diffusion.timesteps': 10, 'diffusion.beta_max': 0.5, 'diffusion.prediction': 'x_0'}
INF, NAN = float('inf'), float('nan')
FINGERPRINT = re.compile(r'state fingerprint (\w+)')


def first(**changes):
    config = default('autoencoders.first_stage')
    config.update_from_flattened_dict({**SHARED, **STAGE, **changes})
    return config


def model(place, method='diffusion.gaussian', **changes):
    config = default(method, network='small')
    noise = NOISE if method == 'diffusion.gaussian' else {}
    given = {**SHARED, **MODEL, **noise, 'latent.workdir': str(place), **changes}
    config.update_from_flattened_dict(given)
    return config


@pytest.fixture(scope='module')
def stage(tmp_path_factory):
    """The folder of a first stage with random parameters, as training leaves it."""
    folder = tmp_path_factory.mktemp('stage')
    leave_trained(first(), folder)
    return folder


def leave_trained(config, folder):
    """Leaves a run with random parameters in a folder; returns its state."""
    program, random = Program(config, create(config)), np.random.default_rng(0)
    workdir.claim(config, folder)
    state = jax.tree.map(
        lambda x: np.asarray(0.3 * random.standard_normal(x.shape), x.dtype), program.state_shape
    )
    leave(state, 7, folder)
    return state


def leave(state, step, folder):
    with contextlib.closing(Checkpoints(folder / 'checkpoints', keep=3)) as checkpoints:
        checkpoints.save(step, state, {})


def restored(program, folder):
    return sample.load(program, folder)[1]


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_training_learns_the_latents_and_leaves_the_stage(stage, tmp_path, capsys):
    config = model(stage)
    train.run(config, tmp_path / 'whole')
    said = FINGERPRINT.search(capsys.readouterr().out)[1]
    program = Program(config, latent.method(config))
    state = restored(program, tmp_path / 'whole')
    first_program = Program(first(), create(first()))
    whole = restored(first_program, stage)
    equal(state.stage, frozen(whole))
    assert state.stage.net.opt_state == ()
    assert jax.tree.leaves(whole.net.opt_state)
    # Latents of the images that were measured, from all of the source, have deviation 1.
    source = train.sources.open_source(config.data, 'train')
    measured = [source[int(i * (len(source) - 1) / 255)] for i in range(256)]
    z = first_program.encode(whole, first_program.given(measured))
    np.testing.assert_allclose(state.factor * np.std(z), 1, rtol=1e-4)
    assert state.own.net.params['conv_out']['kernel'].shape[-1] == 2

    # Stopped after two steps and gone on, also where the first stage's run is gone since.
    stopped = model(stage, steps=2)
    train.run(stopped, tmp_path / 'stopped')
    train.run(config, tmp_path / 'stopped')
    capsys.readouterr()
    inspect.run(config, tmp_path / 'stopped')
    out = capsys.readouterr().out
    assert FINGERPRINT.search(out)[1] == said
    for name, net in (('own.net', state.own.net), ('stage.net', state.stage.net)):
        assert f'{name}: {inspect.count(net.params):,} parameters' in out


def leave_published(folder, **changes):
    """The folder of an `AutoencoderKL` of diffusers, as `first()` has it; returns its variables."""
    program, random = Program(first(), create(first())), np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: np.asarray(0.3 * random.standard_normal(x.shape), np.float32),
        program.state_shape.net.params,
    )
    named = to_tensors({'params': params}, torch_name, lambda path: 0)
    folder.mkdir()
    save_file(named, folder / 'diffusion_pytorch_model.safetensors')
    fields = {
        '_class_name': 'AutoencoderKL',
        'block_out_channels': [4, 8, 8],
        'down_block_types': ['DownEncoderBlock2D'] * 3,
        'up_block_types': ['UpDecoderBlock2D'] * 3,
        'layers_per_block': 1,
        'norm_num_groups': 2,
        'latent_channels': 2,
    }
    (folder / 'config.json').write_text(json.dumps(fields | changes))
    return {'params': params}


def test_a_published_first_stage_needs_no_run(tmp_path):
    variables = leave_published(tmp_path / 'vae')
    config = model(tmp_path, **{'latent.factor': 0.5, 'data.num_classes': 6})
    program = Program(config, latent.method(config))
    state = latent.begun(program, program.state_shape, None, None)
    equal(state.stage.net.params, variables['params'])
    assert (state.stage.judge, state.stage.perceptual, state.factor) == (None, None, 0.5)
    # What it encodes is what the networks of a run with these weights would.
    image = jax.random.uniform(jax.random.key(1), (4, 16, 16, 3), minval=-1.0)
    batch = {'image': image, 'label': jnp.zeros(4, jnp.int32)}
    plain = first_stage.State(Net(variables['params'], None, (), {}), None, None)
    z = jax.jit(create(first()).encode)(plain, batch)
    found = jax.jit(latent.method(config).encode)(state.replace(own=None), batch)
    np.testing.assert_allclose(found, z, atol=1e-5)


def test_published_weights_of_both_stages_need_no_training(tmp_path):
    """A DiT's file and an autoencoder's folder, as they lie, are a state to sample from."""
    variables = leave_published(tmp_path / 'vae')
    config = default('diffusion.gaussian', network='dit')
    given = {'latent.factor': 0.5, 'latent.workdir': str(tmp_path), 'model.depth': 1}
    given |= {'init_from': str(tmp_path / 'dit.safetensors')}
    config.update_from_flattened_dict(SHARED | MODEL | given)
    program = Program(config, latent.method(config))
    random, own = np.random.default_rng(2), program.state_shape.own
    params = jax.tree.map(
        lambda x: random.standard_normal(x.shape).astype(np.float32), own.net.params
    )
    net = dit.from_config(latent.of_latents(config), 0)
    save_file(to_reference(params, net, 4), tmp_path / 'dit.safetensors')
    step, state = sample.load(program, tmp_path / 'run')
    assert (step, state.factor) == (0, 0.5)
    equal(state.own.net.ema, params)
    equal(state.stage.net.params, variables['params'])
    laid_out = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), program.state_shape)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == laid_out
    path = tmp_path / 'vae/config.json'
    fields = json.loads(path.read_text())
    for told, says in (
        ({'scaling_factor': 0.25}, r'scaling_factor=0\.25, expected config\.latent\.factor=0\.5'),
        ({'scaling_factor': 0.5, 'shift_factor': 0.1}, r'shift_factor=0\.1, expected 0'),
    ):
        path.write_text(json.dumps(fields | told))
        with pytest.raises(UserError, match=says):
            sample.load(program, tmp_path / 'run')
    path.write_text(json.dumps(fields | {'scaling_factor': 0.5, 'shift_factor': None}))
    sample.load(program, tmp_path / 'run')
    config.latent.factor = 0.0
    with pytest.raises(UserError, match=r'latent\.factor=0\.0: expected a number with') as error:
        sample.load(program, tmp_path / 'run')
    assert '\n' not in str(error.value)


def test_frozen_nets_are_the_averaged_ones():
    net = Net.create({'params': {'w': jnp.ones(2)}, 'stats': {'m': jnp.ones(1)}}, adam(1.0), True)
    net = net.replace(ema={'w': jnp.zeros(2)})
    kept = frozen({'net': net, 'other': jnp.ones(3), 'plain': net.replace(ema=None)})
    equal(kept['net'], Net({'w': jnp.zeros(2)}, None, (), {'stats': {'m': jnp.ones(1)}}))
    equal(kept['plain'].params, {'w': jnp.ones(2)})
    equal(kept['net'].variables(ema=True), net.variables(ema=True))
    equal(kept['other'], jnp.ones(3))


def test_what_judged_the_stage_is_left_behind(tmp_path, monkeypatch):
    judged = {'first_stage.judge_weight': 0.5, 'judge.width': 4, 'judge.layers': 1}
    judged |= {'first_stage.perceptual': 'vgg', 'ema_decay': 0.9}
    monkeypatch.setattr(lpips, 'load', lambda *_: {'params': np.ones(3, np.float32)})
    trained = leave_trained(first(**judged), tmp_path / 'first')
    # Its weights are not looked for again.
    monkeypatch.setattr(lpips, 'load', None)
    config = model(tmp_path / 'first', steps=1)
    train.run(config, tmp_path / 'run')
    program = Program(config, latent.method(config))
    assert (program.state_shape.stage.judge, program.state_shape.stage.perceptual) == (None, None)
    state = restored(program, tmp_path / 'run')
    equal(state.stage.net.params, trained.net.ema)
    assert (state.stage.net.ema, state.stage.net.opt_state) == (None, ())
    # Checkpoints that have these, as earlier ones do, are read all the same.
    leave(state.replace(stage=frozen(trained)), 9, tmp_path / 'run')
    equal(restored(program, tmp_path / 'run'), state)


def test_samples_are_decoded_latents(stage, tmp_path):
    config = model(stage, **{'latent.factor': 2.0, 'latent.step': '7'})
    train.run(config, tmp_path)
    method = latent.method(config)
    program = Program(config, method)
    state = restored(program, tmp_path)
    assert state.factor == 2.0
    keys, condition = jax.random.split(jax.random.key(0), 3), {}
    inner, below = create(latent.of_latents(config)), create(first())
    z = inner.sample_step(keys, state.own, condition)
    assert z.shape == (3, 4, 4, 2)
    want = below.decode(state.stage, z / 2, condition)
    np.testing.assert_allclose(method.sample_step(keys, state, condition), want, atol=1e-5)
    sample.run(config, tmp_path)
    assert len(list((tmp_path / 'samples').glob('at_step_*/*.png'))) == 4
    evaluate.run(config, tmp_path)
    row = json.loads((tmp_path / 'metrics.json').read_text())['diversity_ssim']
    assert row['latent']['workdir'] == str(stage)


def test_the_loss_is_that_of_the_latents(stage):
    config = model(stage)
    method, inner = latent.method(config), create(latent.of_latents(config))
    below = create(first())
    image = jax.random.uniform(jax.random.key(1), (8, 16, 16, 3), minval=-1.0)
    batch, key = {'image': image, 'label': jnp.zeros(8, jnp.int32)}, jax.random.key(2)
    state = method.init(key, batch).replace(factor=jnp.float32(3))
    z = 3 * below.encode(state.stage, batch)
    _, want = inner.train_step(key, state.own, batch | {'image': z})
    after, metrics = jax.jit(method.train_step)(key, state, batch)
    np.testing.assert_allclose(metrics['loss'], want['loss'], rtol=1e-4)
    equal(after.stage, state.stage)
    assert after.factor == 3
    np.testing.assert_allclose(method.encode(state, batch), z / 3, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['diffusion.gaussian', 'diffusion.continuous'])
def test_latents_have_no_bounds(stage, name):
    """A model whose estimate is far outside of [-1, 1] draws it, of latents only."""
    for place in (str(stage), ''):
        config = model(place, name)
        config.data.image_size, config.data.channels = 4, 2
        inner = create(config)
        batch = {'image': jnp.zeros((2, 4, 4, 2)), 'label': jnp.zeros(2, jnp.int32)}
        state = inner.init(jax.random.key(0), batch)
        params = state.net.ema
        bias = params['conv_out']['bias'] + 50.0
        params = params | {'conv_out': params['conv_out'] | {'bias': bias}}
        state = state.replace(net=state.net.replace(ema=params))
        x = inner.sample_step(jax.random.split(jax.random.key(1), 2), state, {})
        assert (jnp.abs(x).max() > 1.5) == bool(place)


def configured(name, variant, **changes):
    config = runpy.run_path(f'configs/{name}.py')['get_config'](variant)
    config.update_from_flattened_dict(changes)
    return config


def test_a_config_has_both_stages(tmp_path, capsys):
    def run(mode, variant, folder, **changes):
        mode.run(configured('vq_vae_fashion_mnist', variant, **changes), tmp_path / folder)
        return capsys.readouterr().out

    assert FINGERPRINT.search(run(train, 'tiny', 'first'))
    place = {'latent.workdir': str(tmp_path / 'first')}
    said = FINGERPRINT.search(run(train, 'tiny_diffusion', 'second', **place))[1]
    run(sample, 'tiny_diffusion', 'second', **place)
    assert list((tmp_path / 'second/samples').glob('at_step_*/*.png'))
    assert said in run(inspect, 'tiny_diffusion', 'second', **place)


def test_another_config_has_them_too(tmp_path):
    workdir.claim(configured('ldm_fashion_mnist', 'tiny'), tmp_path)
    config = configured('ldm_fashion_mnist', 'tiny_diffusion', **{'latent.workdir': str(tmp_path)})
    program = Program(config, latent.method(config))
    assert program.lower_train()
    assert program.lower_sample()
    assert program.lower_call()


@pytest.mark.slow
def test_a_call_of_the_network_is_timed_on_latents(stage, tmp_path, monkeypatch):
    for name, value in (('LEAST', 0.01), ('REPEATS', 3), ('SIZES', {'cpu': (128, 1, 8)})):
        monkeypatch.setattr(benchmark, name, value)
    benchmark.run(model(stage), tmp_path)
    report = json.loads((tmp_path / 'benchmark.json').read_text())
    assert list(report['parts']) == ['train_step', 'network_call', 'sample_step']


def test_what_does_not_fit_is_told_in_one_line(stage, tmp_path):
    vae = default('autoencoders.vae')
    vae.update_from_flattened_dict({**SHARED, 'model.channels': 4, 'model.hidden': 8})
    workdir.claim(vae, tmp_path / 'vae')
    gan = default('gans.adversarial')
    gan.update_from_flattened_dict({**SHARED, 'model.width': 4})
    workdir.claim(gan, tmp_path / 'gan')
    leave_published(tmp_path / 'grey', in_channels=1, out_channels=1)
    bare = {'use_quant_conv': False, 'use_post_quant_conv': False}
    leave_published(tmp_path / 'bare', **bare)
    for config, says in (
        (
            model(tmp_path / 'nowhere'),
            'expected the folder of a trained run, with config.json: train',
        ),
        (model(stage, **{'data.image_size': 32}), 'image_size=16: expected 32'),
        (model(stage, **{'data.channels': 1}), 'channels=3: expected 1'),
        (model(stage, **{'data.fit': 'pad'}), "fit='resize': expected 'pad'"),
        (model(stage, **{'sampler.clip': True}), 'sampler.clip'),
        *((model(stage, **{'latent.factor': x}), f'latent.factor={x}') for x in (-1.0, INF, NAN)),
        (model(stage, **{'guide.workdir': str(stage)}), 'guide.workdir'),
        (
            model(stage, 'diffusion.continuous', **{'likelihood.divergence': 'rademacher'}),
            "likelihood.divergence='rademacher': expected '' with config.latent.workdir",
        ),
        (model(tmp_path / 'vae'), 'expected a square map'),
        (model(tmp_path / 'gan'), 'does not encode and decode'),
        (model(tmp_path / 'grey', **{'latent.step': '7'}), "latent.step='7': expected ''"),
        (model(tmp_path / 'grey'), 'channels=1: expected 3'),
        (model(tmp_path / 'bare'), 'expected networks that autoencoders.first_stage has'),
    ):
        with pytest.raises(UserError, match=re.escape(says)) as error:
            latent.method(config, guided=True)
        assert '\n' not in str(error.value)
    with pytest.raises(UserError, match="expected '' with --mode=edit: a model of") as error:
        edit.run(model(stage), tmp_path / 'run')
    assert '\n' not in str(error.value)
    shutil.copytree(stage, tmp_path / 'empty')
    shutil.rmtree(tmp_path / 'empty/checkpoints')
    with pytest.raises(UserError, match='no checkpoints in'):
        train.run(model(tmp_path / 'empty'), tmp_path / 'run')
