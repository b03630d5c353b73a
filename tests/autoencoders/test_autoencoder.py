"""Autoencoders without a prior: plain, denoising, and VQ-VAE; their side of the contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import batch_of

from gen_jax import config as house
from gen_jax.autoencoders.autoencoder import corrupted
from gen_jax.errors import UserError

SMALL = {
    'autoencoders.autoencoder': {'model.channels': 4, 'model.hidden': 16, 'model.latent_dim': 3},
    'autoencoders.vq_vae': {
        'model.channels': 8,
        'model.hidden': 4,
        'model.blocks': 1,
        'vq.codes': 9,
        'vq.dim': 3,
    },
}
PLAIN, VQ = SMALL


def small(method, **changes):
    config = house.default(method)
    config.data.image_size = 8
    config.batch_size = 4
    config.update_from_flattened_dict({**SMALL[method], **changes})
    return config


@functools.cache
def start(name, **changes):
    method = house.create(small(name, **changes))
    return method, jax.jit(method.init)(jax.random.key(0), batch_of())


CASES = [
    (PLAIN, {}),
    (PLAIN, {'autoencoder.noise': 0.3, 'autoencoder.masked': 0.25, 'data.num_classes': 3}),
    (VQ, {}),
    (VQ, {'vq.decay': 0.0, 'pixels.likelihood': 'logistic', 'pixels.sigma': 0.0}),
    (VQ, {'vq.restart': 0.1, 'accumulate': 2}),
]


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'changes'), CASES)
def test_training_reaches_every_number_and_improves(name, changes):
    method, state = start(name, **{'optimizer.learning_rate': 3e-3, **changes})
    step, before, losses = jax.jit(method.train_step), state, []
    for i in range(40):
        state, metrics = step(jax.random.key(i), state, batch_of())
        losses.append(metrics['loss'])
    assert np.mean(losses[-5:]) < losses[0]
    kept = {'params': state.net.params, **state.net.extra}
    old = {'params': before.net.params, **before.net.extra}
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), kept, old)
    assert all(jax.tree.leaves(changed)), changed
    if name == VQ:
        assert 1 <= metrics['perplexity'] <= 9


@pytest.mark.slow
def test_averaged_codes_move_once_for_all_parts_of_a_batch():
    (whole, state), parts = start(VQ), house.create(small(VQ, accumulate=4))
    after, found = (
        jax.jit(method.train_step)(jax.random.key(1), state, batch_of())[0].net.extra
        for method in (whole, parts)
    )
    counts = np.asarray(found['codebook']['quantizer']['counts'])
    # 4 images of 4 places for 9 codes; a code that stood for none keeps 0.99 of its first 1.
    assert np.isclose(counts, 0.99, rtol=1e-6).any()
    assert counts.sum() == pytest.approx(9 * 0.99 + 16 * 0.01, rel=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found, after)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'shape'), [(PLAIN, (4, 3)), (VQ, (4, 2, 2, 3))])
def test_encode_decode_and_evaluate(name, shape):
    method, state = start(name)
    latents = jax.jit(method.encode)(state, batch_of())
    images = jax.jit(method.decode)(state, latents, {})
    assert (latents.shape, images.shape) == (shape, (4, 8, 8, 1))
    assert jnp.abs(images).max() <= 1
    keys = jax.random.split(jax.random.key(0), 4)
    terms = jax.jit(method.evaluate_step)(keys, state, batch_of())
    want = np.square(images - batch_of()['image']).mean((1, 2, 3))
    np.testing.assert_allclose(terms['squared_error'], want, rtol=1e-4)
    one = jax.tree.map(lambda x: x[2:3], batch_of())
    alone = method.evaluate_step(keys[2:3], state, one)
    for term, values in terms.items():
        np.testing.assert_allclose(alone[term][0], values[2], rtol=1e-4, err_msg=term)
    if name == VQ:  # of 9 codes at 2x2 places, as probable all
        want = terms['log_likelihood'] - 4 * np.log(9)
        np.testing.assert_allclose(terms['elbo'], want, rtol=1e-5)
        codes = np.asarray(state.net.extra['codebook']['quantizer']['codes'])  # [9, 3]
        drawn = codes.std() * np.random.default_rng(0).standard_normal(shape, np.float32)
        nearest = codes[np.square(drawn[..., None, :] - codes).sum(-1).argmin(-1)]
        images = [jax.jit(method.decode)(state, z, {}) for z in (drawn, nearest)]
        np.testing.assert_allclose(*images, atol=1e-6)
    assert method.sample_step is None
    assert method.latent_dim is None


def test_a_deviation_of_1_is_half_the_squared_error():
    method, state = start(PLAIN)
    x = batch_of()
    keys = jax.random.split(jax.random.key(0), 4)
    terms = method.evaluate_step(keys, state, x)
    z = method.encode(state, x)
    images = method.decode(state, z, {})  # a fresh net gives numbers well within [-1, 1]
    squares = np.square(images - x['image']).sum((1, 2, 3))
    want = -squares / 2 - 64 * np.log(2 * np.pi) / 2
    np.testing.assert_allclose(terms['log_likelihood'], want, rtol=1e-5)


def test_corruption_is_an_images_own():
    x = jnp.ones((500, 6, 6, 2))
    keys = jax.random.split(jax.random.key(0), 500)
    assert corrupted(keys, x, 0.0) is x
    seen = corrupted(keys, x, 0.5, 0.25)
    masked = (seen == 0).all(-1)
    assert abs(masked.mean() - 0.25) < 0.02
    assert ((seen == 0).any(-1) == masked).all()  # all channels of a pixel
    assert abs((seen[~masked] - 1).std() - 0.5) < 0.01
    np.testing.assert_array_equal(corrupted(keys[7:8], x[7:8], 0.5, 0.25)[0], seen[7])


WRONG = [
    (PLAIN, {'autoencoder.noise': -1.0}),
    (PLAIN, {'autoencoder.masked': 1.0}),
    (PLAIN, {'pixels.likelihood': 'normal'}),
    (PLAIN, {'pixels.likelihood': 'logistic_mixture', 'data.channels': 2}),
    (PLAIN, {'pixels.sigma': -1.0}),
    (PLAIN, {'pixels.sigma': 1.0, 'pixels.likelihood': 'bernoulli'}),
    (PLAIN, {'ema_decay': 1.0}),
    (VQ, {'vq.codes': 0}),
    (VQ, {'vq.codes': 10**9}),
    (VQ, {'vq.codes': 10**5, 'vq.dim': 10**5}),  # more than the table of distances takes
    (VQ, {'vq.dim': 0}),
    (VQ, {'vq.commitment': -1.0}),
    (VQ, {'vq.decay': 1.0}),
    (VQ, {'vq.restart': 1.0, 'vq.decay': 0.0}),
    (VQ, {'model.halvings': 0}),
    (VQ, {'model.halvings': -1}),
    (VQ, {'model.halvings': 9}),
    (VQ, {'data.num_classes': 10}),
    (VQ, {'model.blocks': -1}),
    (VQ, {'data.image_size': 6}),
    (VQ, {'model.dtype': 'float16'}),
]


@pytest.mark.parametrize(('name', 'changes'), WRONG)
def test_a_wrong_config_is_told_in_one_line(name, changes):
    field = next(iter(changes))
    with pytest.raises(UserError, match=field.replace('.', r'\.')) as error:
        house.create(small(name, **changes))
    assert '\n' not in str(error.value)
