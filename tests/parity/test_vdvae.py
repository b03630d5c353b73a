"""VDVAE against the authors', which record/vdvae.py has run in float64."""

import json
import math
from functools import cache, partial

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deep import filled_vdvae, noise_of
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from gen_jax import config as house
from gen_jax.autoencoders import vdvae
from gen_jax.autoencoders.likelihoods import logistic_mixture
from gen_jax.errors import UserError
from gen_jax.interop import published
from gen_jax.interop.vdvae import from_reference
from gen_jax.method import Net, optimizer

TOLERANCE = 1e-4
CASES = 'ladder', 'odd'
FIELDS = {  # ours and theirs, of hps.py
    'data.image_size': 'image_size',
    'model.encoder': 'enc_blocks',
    'model.decoder': 'dec_blocks',
    'model.width': 'width',
    'model.widths': 'custom_width_str',
    'model.bottleneck': 'bottleneck_multiple',
    'model.latents': 'zdim',
    'model.start_up_to': 'no_bias_above',
}
TRAINED = {
    'optimizer.learning_rate': 'lr',
    'optimizer.weight_decay': 'wd',
    'optimizer.warmup': 'warmup_iters',
    'optimizer.b1': 'adam_beta1',
    'optimizer.b2': 'adam_beta2',
    'optimizer.clip': 'grad_clip',
    'optimizer.skip_above': 'skip_threshold',
    'ema_decay': 'ema_rate',
}


@cache
def recorded(case):
    """The arrays of one case, and what was told of it."""
    arrays = golden.load('vdvae').items()
    found = {k.removeprefix(f'{case}.'): x for k, x in arrays if k.startswith(f'{case}.')}
    return found, json.loads(str(found['told']))


def config_of(told, fields, **changes):
    config = house.default('autoencoders.vdvae')
    config.update_from_flattened_dict({ours: told[theirs] for ours, theirs in fields.items()})
    more = {'data.channels': 3, 'model.mean': 120.63838, 'model.deviation': 64.16736}
    config.update_from_flattened_dict(more | changes)
    return config


def params_of(module, tensors, told):
    size = told['image_size']
    return from_reference(tensors, module, (size, size, 3))


def starting_with(arrays, prefix):
    return {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}


def setup(case):
    """Their arrays; our module and its parameters; theirs as ours, by a prefix of their names."""
    arrays, told = recorded(case)
    module = vdvae.module_of(config_of(told, FIELDS))
    params = params_of(module, filled_vdvae(told['shapes']), told)
    return arrays, module, params, lambda p: params_of(module, starting_with(arrays, p), told)


def noise(module, seed, b):
    parts = [noise_of(seed, i, (b, *shape)) for i, shape in enumerate(module.layers.shapes)]
    return jnp.concatenate([x.reshape(b, -1) for x in parts], 1)


def assert_close(ours, want, name=''):
    """At the scale of the largest value."""
    assert np.shape(ours) == np.shape(want), name
    found = np.abs(np.asarray(ours, np.float64) - want).max() / np.abs(want).max()
    print(name, 'max diff / scale', found)
    assert found < TOLERANCE, name


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_values_and_gradients(case):
    """Activations, latents, every divergence, the terms, and the gradient of the loss."""
    arrays, module, params, theirs = setup(case)
    x = jnp.float32(arrays['x']) / 127.5 - 1

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def run(params):
        variables = {'params': params}
        log_likelihood, found = module.apply(variables, x, noise(module, 1, len(x)))
        activations = module.apply(variables, x, method='encode')
        terms = {
            'distortion': -log_likelihood.mean() / x[0].size,
            'rate': found.kl.sum(1).mean() / x[0].size,
            'z': found.z,
            'kl': found.kl,
            **{f'activation_{r}': a for r, a in activations.items()},
        }
        return terms['distortion'] + terms['rate'], terms

    (loss, terms), grads = run(params)
    assert_close(loss, arrays['elbo'], 'elbo')
    for name, found in terms.items():
        assert_close(found, arrays[name], name)
    for layer, of_layer in enumerate(arrays['kl'].T):
        assert_close(terms['kl'][:, layer], of_layer, f'kl of layer {layer}')
    want = flatten_dict(theirs('grad.'))
    for path, found in flatten_dict(grads).items():
        assert_close(found, want[path], path)


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_the_maps_of_noise_and_of_given_latents(case):
    arrays, module, params, _ = setup(case)
    b, head = len(arrays['x']), params['decoder']

    @partial(jax.jit, static_argnums=1)
    def final(given, fixed):
        def y(module, given):
            return module.layers(given, fixed=fixed).y

        found = module.apply({'params': params}, given, method=y)
        return found * head['gain'] + head['bias']

    drawn = noise(module, 2, b)
    assert_close(final(drawn, False), arrays['drawn'], 'drawn')
    assert_close(final(0.7 * drawn, False), arrays['cold'], 'cold')  # the deviation, in theirs too
    assert_close(final(arrays['z'], True), arrays['given'], 'given')
    # z of the posterior leads to the same map as in training.
    np.testing.assert_allclose(arrays['given'], arrays['y'], rtol=1e-5)


@pytest.mark.slow
def test_mixture_of_logistics():
    """The order of its numbers is the same; where no mass is below 1e-5, so is the value."""
    arrays = {k: golden.load('vdvae')[f'mixture.{k}'] for k in ('x', 'numbers', 'loss')}
    x = jnp.float32(arrays['x']) / 127.5 - 1
    found = -logistic_mixture(x, arrays['numbers']) / x[0].size
    np.testing.assert_allclose(found, arrays['loss'], rtol=1e-5)


@pytest.mark.slow
def test_training_skips_what_the_authors_skip(monkeypatch):
    """Warm-up, clipping, AdamW, the average; one update of five is left out."""
    arrays, told = recorded('training')
    config = config_of(told, FIELDS | TRAINED)
    module, method = vdvae.module_of(config), vdvae.create(config)
    images = jnp.float32(arrays['x']) / 127.5 - 1  # [steps, b, h, w, c]

    @jax.jit
    def step(state, image, noise):
        monkeypatch.setattr(vdvae, 'normal', lambda keys, dim: noise)
        return method.train_step(jax.random.key(0), state, {'image': image})

    params = params_of(module, filled_vdvae(told['shapes']), told)
    tx = optimizer(config.optimizer)
    state = vdvae.State(Net.create({'params': params}, tx, ema=True))
    for i, x in enumerate(images):
        state, metrics = step(state, x, noise(module, 10 + i, len(x)))
        assert metrics['skipped'] == arrays['skipped'][i]
        np.testing.assert_allclose(metrics['grad_norm'], arrays['norms'][i], rtol=1e-4)
    assert arrays['skipped'].tolist() == [0, 0, 0, 1, 0]
    before = flatten_dict(params)
    for prefix, tree in (('after.', state.net.params), ('average.', state.net.ema)):
        want = flatten_dict(params_of(module, starting_with(arrays, prefix), told))
        for path, found in flatten_dict(tree).items():
            moved = np.abs(want[path] - before[path]).max()
            assert np.abs(found - want[path]).max() < 1e-3 * moved, (prefix, path)


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda t: t | {'decoder.more': np.zeros(1)}, 'holds, beyond'),
        (lambda t: {k: x for k, x in t.items() if 'bias_xs.1' not in k}, 'lacks'),
        (lambda t: t | {'decoder.gain': np.zeros((1, 4, 1, 1))}, 'other shapes'),
    ],
)
def test_other_weights_are_told_in_one_line(change, says):
    _, told = recorded('odd')
    module = vdvae.module_of(config_of(told, FIELDS))
    with pytest.raises(UserError, match=says) as error:
        params_of(module, change(filled_vdvae(told['shapes'])), told)
    assert '\n' not in str(error.value)


@pytest.mark.slow
def test_names_of_a_distributed_run():
    _, told = recorded('odd')
    module, tensors = vdvae.module_of(config_of(told, FIELDS)), filled_vdvae(told['shapes'])
    wrapped = {f'module.{name}': x for name, x in tensors.items()}
    found = (params_of(module, x, told) for x in (tensors, wrapped))
    jax.tree.map(np.testing.assert_array_equal, *found)
    total = sum(math.prod(shape) for shape in told['shapes'].values())
    assert sum(x.size for x in jax.tree.leaves(params_of(module, tensors, told))) == total


def test_a_run_starts_from_a_published_file(tmp_path):
    _, told = recorded('odd')
    config, tensors = config_of(told, FIELDS), filled_vdvae(told['shapes'])
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, tmp_path / 'a.th')
    config.init_from = str(tmp_path / 'a.th')
    state = published.state_of(config, jax.random.key(0))
    want = params_of(vdvae.module_of(config), tensors, told)
    jax.tree.map(np.testing.assert_array_equal, state.net.params, want)
    jax.tree.map(np.testing.assert_array_equal, state.net.ema, want)
