"""Latent diffusion's first stage: its losses, who learns when, and its side of the contract."""

import functools

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import config as house
from gen_jax.autoencoders import first_stage
from gen_jax.autoencoders.ldm import Decoder, Encoder, KLAutoencoder
from gen_jax.errors import UserError
from gen_jax.metrics import lpips

SMALL = {
    'batch_size': 4,
    'data.image_size': 8,
    'data.channels': 3,
    'model.channels': 8,
    'model.multipliers': (1, 2),
    'model.blocks': 1,
    'model.groups': 4,
    'model.latent_channels': 2,
    'judge.width': 4,
    'judge.layers': 1,
    'first_stage.judged_from': 0,
    'optimizer.learning_rate': 1e-3,
}

batch_of = functools.partial(batches.batch_of, channels=3)


def small(kind='kl', **changes):
    config = house.default('autoencoders.first_stage', kind=kind)
    more = {'first_stage.codes': 13} if kind == 'vq' else {}
    config.update_from_flattened_dict({**SMALL, **more, **changes})
    return config


@functools.cache
def start(kind='kl', **changes):
    method = house.create(small(kind, **changes))
    return method, jax.jit(method.init)(jax.random.key(0), batch_of())


def moved(new, old):
    return jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), new, old))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['kl', 'vq'])
def test_training_reaches_every_parameter_and_improves(kind):
    method, before = start(kind)
    step, state, found = jax.jit(method.train_step), before, []
    for i in range(30):
        state, metrics = step(jax.random.key(i), state, batch_of())
        found.append(metrics['reconstruction'])
    assert np.mean(found[-3:]) < 0.9 * found[0]
    assert all(moved(state.net.params, before.net.params))
    assert all(moved(state.judge.params, before.judge.params))
    assert metrics['balance'] > 0
    assert {'judge_loss', 'judge_real_accuracy', 'judge_fake_accuracy'} <= metrics.keys()
    assert ('kl' in metrics, 'perplexity' in metrics) == (kind == 'kl', kind == 'vq')


@pytest.mark.slow
def test_the_discriminator_counts_from_its_step_on():
    # Of gradients that are rounding only, Adam would else make whole steps.
    steady = {'optimizer.eps': 1e-2}
    method, state = start(**steady, **{'first_stage.judged_from': 1})
    none, alone = start(**steady, **{'first_stage.judge_weight': 0.0})
    assert alone.judge is None
    step, plainly = jax.jit(method.train_step), jax.jit(none.train_step)
    for i in range(2):
        key, before = jax.random.key(i), state
        state, _ = step(key, before, batch_of())
        plain, _ = plainly(key, before.replace(judge=None), batch_of())
        apart = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()), state.net.params, plain.net.params
        )
        assert (max(jax.tree.leaves(apart)) > 1e-5) == (i == 1)
        assert any(moved(state.judge.params, before.judge.params)) == (i == 1)


def module_and_latents():
    nets = [net((8), (1, 2), 1, 4, features) for net, features in ((Encoder, 4), (Decoder, 3))]
    module = KLAutoencoder(*nets, 2)
    variables = module.init(jax.random.key(0), batch_of()['image'])
    return module, variables, jax.random.normal(jax.random.key(1), (4, 4, 4, 2))


@pytest.mark.slow
def test_balance_is_the_ratio_of_gradients_by_the_last_kernel():
    module, variables, z = module_and_latents()
    weights = jax.random.normal(jax.random.key(2), (4, 8, 8, 3))
    apart = lambda images: jnp.abs(images - weights).sum()  # noqa: E731
    fooled = lambda images: jnp.tanh(images * weights).mean()  # noqa: E731
    found = first_stage.balance(module, variables, z, apart, fooled)

    def by_hand(loss):
        def of(params):
            return loss(module.apply({'params': params}, z, method='decode'))

        kernel = jax.grad(of)(variables['params'])['decoder']['conv_out']['kernel']
        return jnp.linalg.norm(kernel)

    np.testing.assert_allclose(found, by_hand(apart) / (by_hand(fooled) + 1e-4), rtol=1e-4)
    nothing = first_stage.balance(module, variables, z, apart, lambda images: 0 * images.sum())
    assert nothing == 1e4


@pytest.mark.slow
def test_the_loss_of_kl_is_written_out():
    method, state = start(**{'first_stage.kl_weight': 0.3, 'first_stage.judge_weight': 0.0})
    _, metrics = jax.jit(method.train_step)(jax.random.key(0), state, batch_of())
    want = metrics['reconstruction'] + 0.3 * metrics['kl']
    np.testing.assert_allclose(metrics['loss'], want, rtol=1e-6)


@pytest.mark.slow
def test_the_loss_of_vq_is_written_out():
    """It draws nothing, so that all of it can be."""
    config = small('vq', **{'first_stage.codebook_weight': 0.7, 'first_stage.judge_weight': 0.4})
    method, (_, state) = house.create(config), start('vq')
    x, variables = batch_of()['image'], state.net.variables()
    _, metrics = jax.jit(method.train_step)(jax.random.key(0), state, batch_of())
    back, found = first_stage.module_of(config).apply(variables, x)
    apart = jnp.abs(back - x).mean()
    np.testing.assert_allclose(metrics['reconstruction'], apart, rtol=1e-5)
    judge = first_stage._judge(config)
    logits, _ = judge.apply(state.judge.variables(), back, train=True, mutable=['batch_stats'])
    want = apart + 0.7 * (found.codebook + 0.25 * found.commitment).mean()
    want -= 0.4 * metrics['balance'] * logits.mean()
    np.testing.assert_allclose(metrics['loss'], want, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['kl', 'vq'])
def test_encode_decode_and_evaluate(kind):
    method, state = start(kind)
    latents = jax.jit(method.encode)(state, batch_of())
    images = jax.jit(method.decode)(state, latents, {})
    assert (latents.shape, images.shape) == ((4, 4, 4, 2), (4, 8, 8, 3))
    assert jnp.abs(images).max() <= 1
    keys = jax.random.split(jax.random.key(0), 4)
    terms = jax.jit(method.evaluate_step)(keys, state, batch_of())
    want = jnp.square(images - batch_of()['image']).mean((1, 2, 3))
    np.testing.assert_allclose(terms['squared_error'], want, rtol=1e-4)
    assert terms.keys() == {'squared_error', 'kl' if kind == 'kl' else 'commitment'}
    if kind == 'vq':  # the codes nearest to any latents
        codes = np.asarray(state.net.params['quantizer']['codes'])  # [13, 2]
        drawn = codes.std() * np.random.default_rng(0).standard_normal((4, 4, 4, 2), np.float32)
        nearest = codes[np.square(drawn[..., None, :] - codes).sum(-1).argmin(-1)]
        images = [jax.jit(method.decode)(state, z, {}) for z in (drawn, nearest)]
        np.testing.assert_allclose(*images, atol=1e-5)
        # What is encoded is no code yet: latent diffusion learns that.
        apart = np.square(np.asarray(latents)[..., None, :] - codes).sum(-1).min(-1)
        assert apart.min() > 1e-6
    assert method.sample_step is None


@pytest.mark.slow
def test_lpips_counts(monkeypatch):
    """With random weights, of which distances may be below 0."""
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lpips.LPIPS('squeeze').init, jax.random.key(7), image, image)
    random = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda x: jnp.float32(
            random.normal(size=x.shape) * (2 / max(x.size // x.shape[-1], 1)) ** 0.5
        ),
        shapes,
    )
    monkeypatch.setattr(lpips, 'load', lambda net, *places: weights)
    changes = {'data.image_size': 32, 'first_stage.judge_weight': 0.0}
    changes |= {'first_stage.perceptual': 'squeeze', 'first_stage.perceptual_weight': 2.0}
    batch, key = batch_of(2, size=32), jax.random.key(0)
    method = house.create(config := small('vq', **changes))
    state = jax.jit(method.init)(key, batch)
    after, metrics = jax.jit(method.train_step)(key, state, batch)
    assert not any(moved(after.perceptual, state.perceptual))
    x = batch['image']
    back, _ = first_stage.module_of(config).apply(state.net.variables(), x)
    distance = lpips.lpips(weights, back, x, 'squeeze').mean()
    assert jnp.abs(distance) > 1e-3
    want = jnp.abs(back - x).mean() + 2 * distance
    np.testing.assert_allclose(metrics['reconstruction'], want, rtol=1e-4)


WRONG = [
    {'data.num_classes': 10},
    {'model.channels': 0},
    {'model.multipliers': ()},
    {'model.groups': 3},
    {'data.image_size': 7},
    {'model.dtype': 'float16'},
    {'judge.layers': 3},
    {'judge.width': 0},
    {'first_stage.perceptual': 'vgg19'},
    {'data.image_size': 8, 'first_stage.perceptual': 'vgg'},
    {'first_stage.kl_weight': -1.0},
    {'ema_decay': 1.0},
]


@pytest.mark.parametrize('codes', [0, 10**9, 10**12])
def test_more_codes_than_memory_holds_are_refused(codes):
    with pytest.raises(UserError, match=r'first_stage\.codes=\d+: expected .*at (least|most)'):
        house.create(small('vq', **{'first_stage.codes': codes}))


@pytest.mark.parametrize('changes', WRONG, ids=str)
def test_a_wrong_config_is_told_in_one_line(changes):
    with pytest.raises(UserError, match=next(iter(changes)).replace('.', r'\.')) as error:
        house.create(small(**changes))
    assert '\n' not in str(error.value)


def test_missing_weights_are_told_with_the_field_that_names_them(monkeypatch, tmp_path):
    def offline(url):
        raise OSError('no network')

    monkeypatch.setenv('GEN_JAX_WEIGHTS', str(tmp_path))
    monkeypatch.setattr('gen_jax.interop.weights._open', offline)
    config = small(**{'data.image_size': 32, 'first_stage.perceptual': 'squeeze'})
    with pytest.raises(UserError, match=r'--config\.first_stage\.perceptual_weights=FILE'):
        jax.eval_shape(house.create(config).init, jax.random.key(0), batch_of(size=32))


def test_an_unknown_kind_is_told():
    with pytest.raises(UserError, match="did you mean 'kl'"):
        house.default('autoencoders.first_stage', kind='kll')
