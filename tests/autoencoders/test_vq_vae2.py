"""VQ-VAE-2: who knows of whom, both codebooks' averages, bounds, and its side of the contract."""

import functools
import runpy

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import same
from flax.traverse_util import flatten_dict

from gen_jax import config as house
from gen_jax.autoencoders import vq_vae2
from gen_jax.autoencoders.quantizer import moved
from gen_jax.errors import UserError

SMALL = {
    'batch_size': 4,
    'data.image_size': 16,
    'model.channels': 6,
    'model.hidden': 4,
    'model.blocks': 1,
    'vq.codes': 9,
    'vq.dim': 3,
    'optimizer.learning_rate': 3e-3,
}
LEVELS = 'top_quantizer', 'quantizer'

batch_of = functools.partial(batches.batch_of, size=16)


def small(**changes):
    config = house.default('autoencoders.vq_vae2')
    config.update_from_flattened_dict(SMALL | changes)
    return config


@functools.cache
def start(**changes):
    method = house.create(small(**changes))
    return method, jax.jit(method.init)(jax.random.key(0), batch_of())


@functools.cache
def stepper(**changes):
    return jax.jit(start(**changes)[0].train_step)


@functools.cache
def setup():
    """Our module and variables whose codes are normal, so that many are used."""
    module, (_, state) = vq_vae2.module_of(small()), start()
    random = np.random.default_rng(0)
    codebook = {
        level: kept | {'codes': jnp.float32(0.1 * random.normal(size=(9, 3)))}
        for level, kept in state.net.extra['codebook'].items()
    }
    return module, {'params': state.net.params, 'codebook': codebook}


# --- two levels ----------------------------------------------------------------------------------


@pytest.mark.parametrize('shape', [(2, 3, 2, 5), (1, 1, 1, 4)])
def test_joined_are_a_code_and_the_four_below(shape):
    b, h, w, d = shape
    random = np.random.default_rng(0)
    top, bottom = random.normal(size=shape), random.normal(size=(b, 2 * h, 2 * w, d))
    z = vq_vae2.joined(jnp.float32(top), jnp.float32(bottom))
    for i, j in np.ndindex(h, w):
        below = bottom[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(b, -1)
        np.testing.assert_allclose(z[:, i, j], np.concatenate([top[:, i, j], below], 1), rtol=1e-6)
    for ours, want in zip(vq_vae2.apart(z), (top, bottom), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-6)


@pytest.mark.slow
def test_the_bottom_knows_the_top_and_the_decoder_both():
    module, variables = setup()
    run = jax.jit(lambda variables, x: module.apply(variables, x, method='codes'))
    x = batch_of()['image']
    top, bottom = run(variables, x)
    assert (top.indices.shape, bottom.indices.shape) == ((4, 2, 2), (4, 4, 4))
    # Other codes of the top: other vectors, and so other distances, of the bottom; not the reverse.
    for level, told in zip(LEVELS, (True, False), strict=True):
        kept = variables['codebook'][level]
        codebook = variables['codebook'] | {level: kept | {'codes': kept['codes'] + 0.1}}
        other_top, other_bottom = run(variables | {'codebook': codebook}, x)
        assert jnp.abs(other_bottom.commitment - bottom.commitment).max() > 1e-5
        assert (jnp.abs(other_top.commitment - top.commitment).max() > 1e-5) == told
    z = module.latents((top, bottom))
    mean = jax.jit(lambda z: module.apply(variables, z, method='mean'))
    for part in (slice(0, 3), slice(3, None)):
        assert jnp.abs(mean(z.at[..., part].add(0.5)) - mean(z)).max() > 1e-3


@pytest.mark.slow
def test_both_codebooks_move_as_a_loop_says():
    """Van den Oord et al. 2017, equations 6 to 8, from the vectors that each level was given."""
    module, variables = setup()
    x = batch_of()['image']
    (_, found), changed = module.apply(
        variables,
        x,
        True,
        mutable=['assigned', 'intermediates'],
        capture_intermediates=True,
        rngs={'restart': jax.random.key(0)},
    )
    codebook = moved(variables['codebook'], changed['assigned'], 0.99)
    sown = changed['intermediates']
    given = sown['top_encoder']['__call__'][0], sown['to_bottom']['__call__'][0]
    for level, vectors, quantized in zip(LEVELS, given, found, strict=True):
        kept, after = variables['codebook'][level], codebook[level]
        vectors, codes = np.float64(vectors).reshape(-1, 3), np.float64(kept['codes'])
        counts, sums = 0.99 * np.float64(kept['counts']), 0.99 * np.float64(kept['sums'])
        used = []
        for vector in vectors:
            nearest = ((codes - vector) ** 2).sum(1).argmin()
            counts[nearest] += 0.01
            sums[nearest] += 0.01 * vector
            used.append(nearest)
        np.testing.assert_array_equal(np.ravel(quantized.indices), used)
        assert len(set(used)) > 2
        np.testing.assert_allclose(after['counts'], counts, rtol=1e-5)
        np.testing.assert_allclose(after['sums'], sums, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(after['codes'], sums / counts[:, None], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_the_loss_is_written_out():
    """The squared error, a constant, and a quarter of both commitments."""
    _, state = start()
    _, metrics = stepper()(jax.random.key(0), state, batch_of())
    module, x = vq_vae2.module_of(small()), batch_of()['image']

    @jax.jit
    def run(variables):
        top, bottom = module.apply(variables, x, method='codes')
        back = module.apply(variables, module.latents((top, bottom)), method='mean')
        return jnp.square(back - x).mean() + (top.commitment + bottom.commitment).mean() / 4

    want = run(state.net.variables()) + np.log(np.pi) / 2
    np.testing.assert_allclose(metrics['loss'], want, rtol=1e-5)


# --- the contract --------------------------------------------------------------------------------

CASES = [
    {},
    {'vq.decay': 0.0, 'pixels.likelihood': 'logistic', 'pixels.sigma': 0.0},
    {'vq.restart': 0.1, 'accumulate': 2, 'ema_decay': 0.9},
]


@pytest.mark.slow
@pytest.mark.parametrize('changes', CASES)
def test_training_reaches_every_number_and_improves(changes):
    (_, state), step = start(**changes), stepper(**changes)
    before, losses = state, []
    for i in range(40):
        state, metrics = step(jax.random.key(i), state, batch_of())
        losses.append(metrics['loss'])
    assert np.mean(losses[-5:]) < losses[0]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.net, before.net)
    # A code that no vector was nearest to has neither gradient nor count: whole leaves are asked.
    assert all(jax.tree.leaves(changed)), changed
    for level in ('top', 'bottom'):
        assert 1 <= metrics[f'perplexity_{level}'] <= 9


@pytest.mark.slow
def test_gradients_reach_every_parameter():
    module, variables = setup()

    @jax.jit
    @jax.grad
    def gradient(params):
        given = variables | {'params': params}
        log_likelihood, found = module.apply(given, batch_of()['image'])
        return sum(level.commitment.mean() for level in found) - log_likelihood.mean()

    found = flatten_dict(gradient(variables['params']))
    assert all(jnp.abs(leaf).max() > 0 for leaf in found.values())
    # Of the top, by what the bottom and the decoder are told.
    assert {'top_encoder', 'top_decoder', 'to_bottom'} <= {path[0] for path in found}


@pytest.mark.slow
def test_resumed_from_the_state_alone():
    (_, state), step = start(), stepper()
    state, _ = step(jax.random.key(0), state, batch_of())
    leaves, tree = jax.tree.flatten(state)
    copied = jax.tree.unflatten(tree, [jnp.asarray(np.asarray(leaf)) for leaf in leaves])
    theirs, _ = jax.jit(house.create(small()).train_step)(jax.random.key(1), copied, batch_of())
    assert same(step(jax.random.key(1), state, batch_of())[0], theirs)


@pytest.mark.slow
@pytest.mark.parametrize('likelihood', ['gaussian', 'logistic'])
def test_encode_decode_and_evaluate(likelihood):
    method, state = start(**{'pixels.likelihood': likelihood, 'pixels.sigma': 0.0})
    z = jax.jit(method.encode)(state, batch_of())
    images = jax.jit(method.decode)(state, z, {})
    assert (z.shape, images.shape) == ((4, 2, 2, 15), (4, 16, 16, 1))
    keys, evaluate = jax.random.split(jax.random.key(0), 4), jax.jit(method.evaluate_step)
    terms = evaluate(keys, state, batch_of())
    want = np.square(images - batch_of()['image']).mean((1, 2, 3))
    np.testing.assert_allclose(terms['squared_error'], want, rtol=1e-4)
    alone = evaluate(keys[2:3], state, jax.tree.map(lambda x: x[2:3], batch_of()))
    for name, values in terms.items():
        np.testing.assert_allclose(alone[name][0], values[2], rtol=1e-4, err_msg=name)
    # Of 9 codes, as probable all, at 2x2 and at 4x4 places.
    want = terms['log_likelihood'] - 20 * np.log(9)
    np.testing.assert_allclose(terms['elbo'], want, rtol=1e-5)
    assert ('elbo_bits_per_dim' in terms) == (likelihood == 'logistic')
    # Each level's codes nearest to any latents.
    codebook = state.net.extra['codebook']
    drawn = 0.1 * np.random.default_rng(0).standard_normal(z.shape, np.float32)
    levels = zip(vq_vae2.apart(drawn), ('top_quantizer', 'quantizer'), strict=True)
    nearest = [
        (codes := np.asarray(codebook[name]['codes']))[
            np.square(level[..., None, :] - codes).sum(-1).argmin(-1)
        ]
        for level, name in levels
    ]
    images = [jax.jit(method.decode)(state, x, {}) for x in (drawn, vq_vae2.joined(*nearest))]
    np.testing.assert_allclose(*images, atol=1e-6)
    assert method.sample_step is None


@pytest.mark.slow
def test_one_image():
    _, state = start()
    state, metrics = stepper()(jax.random.key(0), state, batch_of(1))
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


SHAPES = {
    'model.channels': 8,
    'model.hidden': 5,
    'model.blocks': 2,
    'model.halvings': 1,
    'vq.codes': 8,
    'vq.dim': 4,
    'vq.decay': 0.0,
    'pixels.sigma': 0.0,
    'ema_decay': 0.9,
}


@pytest.mark.parametrize('field', SHAPES)
def test_fields_that_change_the_state(field):
    assert shapes(**{field: SHAPES[field]}) != shapes()


def shapes(**changes):
    method = house.create(small(**changes))
    return str(jax.eval_shape(method.init, jax.random.key(0), batch_of(2)))


WRONG = [
    {'data.image_size': 12},
    {'data.image_size': 10},
    {'vq.codes': 0},
    {'vq.codes': 10**9},
    {'vq.dim': 0},
    {'vq.commitment': -1.0},
    {'vq.decay': 1.0},
    {'vq.restart': 1.0, 'vq.decay': 0.0},
    {'model.halvings': 0},
    {'model.halvings': 9},
    {'data.num_classes': 10},
    {'model.channels': 1},
    {'model.dtype': 'float16'},
    {'pixels.likelihood': 'normal'},
    {'ema_decay': 1.0},
]


@pytest.mark.parametrize('changes', WRONG)
def test_a_wrong_config_is_told_in_one_line(changes):
    field = next(iter(changes))
    with pytest.raises(UserError, match=field.replace('.', r'\.')) as error:
        house.create(small(**changes))
    assert '\n' not in str(error.value)


def test_a_wrong_image_is_told():
    method = house.create(small())
    for call in (
        lambda batch: method.init(jax.random.key(0), batch),
        lambda batch: method.train_step(jax.random.key(0), None, batch),
        lambda batch: method.evaluate_step(None, None, batch),
        lambda batch: method.encode(None, batch),
    ):
        with pytest.raises(UserError, match='has shape'):
            call(batch_of(2, channels=3))


@pytest.mark.parametrize(
    ('name', 'variant'),
    [('256', ''), ('256', 'tiny'), *(('fashion_mnist', x) for x in ('', 'logistic', 'tiny'))],
)
def test_configs(name, variant):
    config = runpy.run_path(f'configs/vq_vae2_{name}.py')['get_config'](variant)
    method, data = house.create(config), config.data
    batch = batches.batch_of(2, data.image_size, data.channels)
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    side = data.image_size // 8
    want = (2, side, side, 5 * config.vq.dim)
    assert jax.eval_shape(method.encode, state, batch).shape == want
