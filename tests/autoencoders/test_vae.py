"""The VAE: its terms against SciPy and against exact integrals, and its side of the contract."""

import functools
import itertools
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from batches import batch_of
from flax import linen as nn

from gen_jax import config as house
from gen_jax.autoencoders import factor, vae
from gen_jax.autoencoders.likelihoods import LIKELIHOODS
from gen_jax.autoencoders.posterior import decomposition
from gen_jax.errors import UserError
from gen_jax.method import Net, descend


def small(network='conv', objective='elbo', **changes):
    config = house.default('autoencoders.vae', network=network, objective=objective)
    if network == 'mlp':
        config.data.image_size = 8
        config.model.update({'widths': (16, 12), 'latent_dim': 3})
        config.update_from_flattened_dict(changes)
        return config
    config.update_from_flattened_dict(
        {
            'data.image_size': 8,
            'model.channels': 4,
            'model.hidden': 16,
            'model.latent_dim': 3,
        }
    )
    config.update_from_flattened_dict(changes)
    return config


@functools.cache
def start(**changes):
    """(method, fresh state) of a small model."""
    method = vae.create(small(**changes))
    return method, jax.jit(method.init)(jax.random.key(0), batch_of(2))


# --- bounds of a known model ---------------------------------------------------------------------

SIGMA = 0.5
W = np.array([[0.6, 0.4, 0.0, -0.2], [0.4, -0.6, 0.2, 0.0]])  # orthogonal rows


class ExactPosterior(nn.Module):
    """q(z|x) = p(z|x) of the linear-Gaussian model x = z W + SIGMA * noise, off by `offset`."""

    offset: float

    def __call__(self, x, told=None):
        precision = (W**2).sum(axis=1) / SIGMA**2 + 1
        mu = x.reshape(len(x), -1) @ W.T / SIGMA**2 / precision
        log_var = jnp.broadcast_to(-jnp.log(precision), mu.shape)
        return jnp.concatenate([mu + self.offset, log_var], axis=-1)


class Linear(nn.Module):
    def __call__(self, z, told=None):
        return (z @ W).reshape(-1, 2, 2, 1)


X = np.array([0.9, -0.4, 0.3, 0.1])
EVIDENCE = scipy.stats.multivariate_normal(cov=W.T @ W + SIGMA**2 * np.eye(4)).logpdf(X)


def question(n):
    """The same image n times, with keys of its own each."""
    images = jnp.broadcast_to(jnp.float32(X).reshape(1, 2, 2, 1), (n, 2, 2, 1))
    return vae.Question(jax.random.split(jax.random.key(1), n), images)


@pytest.mark.parametrize('offset', [0.0, 0.3])
def test_elbo_is_tight_at_the_exact_posterior_only(offset):
    """log p(x) - ELBO = KL(q(z|x) || p(z|x)), zero or what the offset makes it."""
    gap = 0.5 * offset**2 * ((W**2).sum(axis=1) / SIGMA**2 + 1).sum()
    module, n = vae.VAE(ExactPosterior(offset), Linear(), 'gaussian', SIGMA), 50_000
    terms, z, posterior = vae.bounded(question(n), module, {})
    standard_error = terms['elbo'].std() / np.sqrt(n)
    assert abs(terms['elbo'].mean() - (EVIDENCE - gap)) < 4 * standard_error
    np.testing.assert_allclose(terms['elbo'], terms['log_likelihood'] - terms['kl'], rtol=1e-5)
    assert (z.shape, posterior[0].shape) == ((n, 2), (n, 2))


def test_the_weighed_bound_rises_to_the_exact_evidence():
    """Burda et al. 2016, theorem 1; from a posterior that is off."""
    module = vae.VAE(ExactPosterior(0.3), Linear(), 'gaussian', SIGMA)
    found = []
    for k, n in ((1, 20_000), (5, 4_000), (50, 1_000), (500, 200)):
        bound = jax.jit(lambda q, k=k: vae.weighed(q, module, {}, k))(question(n))
        found.append((bound.mean(), bound.std() / np.sqrt(n)))
    for (low, low_error), (high, high_error) in itertools.pairwise(found):
        assert high > low - 3 * np.hypot(low_error, high_error)
    assert found[0][0] < EVIDENCE - 0.1
    assert abs(found[-1][0] - EVIDENCE) < 0.01
    exact = vae.VAE(ExactPosterior(0.0), Linear(), 'gaussian', SIGMA)
    np.testing.assert_allclose(vae.weighed(question(3), exact, {}, 7), EVIDENCE, rtol=1e-5)


def test_weighed_samples_are_an_images_own():
    module = vae.VAE(ExactPosterior(0.3), Linear(), 'gaussian', SIGMA)
    whole = question(4)
    one = jax.tree.map(lambda x: x[2:3], whole)
    found = [vae.weighed(q, module, {}, 13) for q in (whole, one)]
    np.testing.assert_allclose(found[0][2:3], found[1], rtol=1e-5)
    assert len({float(x) for x in found[0]}) == 4


def test_weighing_one_is_the_elbo_with_its_kl_drawn():
    module, n = vae.VAE(ExactPosterior(0.3), Linear(), 'gaussian', SIGMA), 50_000
    bound, terms = vae.weighed(question(n), module, {}, 1), vae.bounded(question(n), module, {})[0]
    error = np.hypot(bound.std(), terms['elbo'].std()) / np.sqrt(n)
    assert abs(bound.mean() - terms['elbo'].mean()) < 4 * error


# --- objectives ----------------------------------------------------------------------------------

TERMS = {'log_likelihood': jnp.float32([-10.0, -20.0]), 'kl': jnp.float32([3.0, 9.0])}


def losses(objective, step, **changes):
    config = house.default('autoencoders.vae', objective=objective)
    config.vae.update(changes)
    return vae.objective(config, TERMS, None, None, jnp.int32(step)).tolist()


def test_beta_weighs_the_kl_and_may_grow():
    assert losses('elbo', 0) == [13, 29]
    assert losses('elbo', 0, beta=4.0) == [22, 56]
    assert losses('elbo', 0, beta=4.0, warmup=10) == [10, 20]
    assert losses('elbo', 5, beta=4.0, warmup=10) == [16, 38]
    assert losses('elbo', 99, beta=4.0, warmup=10) == [22, 56]


def test_capacity_grows_and_is_wanted():
    options = {'gamma': 10.0, 'capacity': 6.0, 'capacity_steps': 10}
    # KLs of 3 and 9 are 6 on average, and 6 from C although each is 3 from it.
    assert losses('capacity', 0, **options) == [70, 80]
    assert losses('capacity', 5, **options) == [40, 50]
    assert losses('capacity', 99, **options) == [10, 20]


def test_total_correlation_weighs_by_beta():
    config = house.default('autoencoders.vae', objective='beta_tc')
    config.vae.data_size = 9
    keys = jax.random.split(jax.random.key(0), 3)
    z, mu, log_var = (jax.random.normal(key, (4, 2)) for key in keys)
    parts = decomposition(z, mu, log_var, 9, 'weighted')
    terms = {'log_likelihood': jnp.zeros(4), 'kl': None}
    for beta in (1.0, 6.0):
        config.vae.beta = beta
        found = vae.objective(config, terms, z, (mu, log_var), jnp.int32(0))
        np.testing.assert_allclose(found, parts[0] + beta * parts[1] + parts[2], rtol=1e-5)


def test_shuffling_keeps_each_numbers_values_and_parts_them():
    z = jnp.arange(60.0).reshape(20, 3)
    found = vae.shuffled(jax.random.key(0), z)
    np.testing.assert_array_equal(jnp.sort(found, 0), z)
    rows = {tuple(row) for row in np.asarray(z)}
    assert sum(tuple(row) in rows for row in np.asarray(found)) < 5


@pytest.mark.slow
def test_factor_vaes_judge_finds_the_total_correlation():
    """Of a Gaussian with correlation r: -log(1 - r^2) / 2, which is the mean log ratio."""
    r, judge, tx = 0.8, factor.Judge(4, 64), optax.adam(1e-3)
    cov = np.array([[1, r], [r, 1]])
    half = jnp.float32(np.linalg.cholesky(cov).T)

    @jax.jit
    def step(key, net):
        def loss_fn(params, extra, key):
            z, other = jax.random.normal(key, (2, 256, 2)) @ half
            shuffled = factor.shuffled(jax.random.fold_in(key, 1), other)
            return factor.judged(judge, {'params': params}, z, shuffled), (extra, {})

        return descend(net, loss_fn, tx, None, key)[0]

    net = Net.create(judge.init(jax.random.key(0), jnp.zeros((1, 2))), tx, False)
    for i in range(600):
        net = step(jax.random.key(i), net)
    z = jax.random.normal(jax.random.key(9), (20_000, 2)) @ half
    found = factor.correlation(judge, net.variables(), z).mean()
    assert found == pytest.approx(-0.5 * np.log(1 - r**2), abs=0.1)


@pytest.mark.slow
def test_factor_trains_the_model_on_one_half_and_the_judge_on_both():
    method, state = start(objective='factor', **{'vae.gamma': 5.0})
    before = state
    state, metrics = jax.jit(method.train_step)(jax.random.key(0), state, batch_of(8))
    assert {'total_correlation', 'judge_loss', 'elbo', 'kl'} <= metrics.keys()
    for net, old in ((state.net, before.net), (state.judge, before.judge)):
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), net.params, old.params)
        assert all(jax.tree.leaves(moved))
    other = batch_of(8)
    other['image'] = other['image'].at[4:].set(0.3)
    again, _ = jax.jit(method.train_step)(jax.random.key(0), before, other)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), again.net.params, state.net.params)
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_accumulated_factor_is_a_step_too():
    method, state = start(objective='factor', accumulate=2, batch_size=8)
    _, metrics = jax.jit(method.train_step)(jax.random.key(0), state, batch_of(8))
    assert np.isfinite(metrics['judge_loss'])


# --- what is asked -------------------------------------------------------------------------------


def test_binarize():
    image = jnp.full((400, 8, 8, 1), 0.5)  # 3/4 bright
    keys = jax.random.split(jax.random.key(0), 400)
    assert vae.binarize(keys, image, 'none') is image
    assert (vae.binarize(keys, image, 'threshold') == 1).all()
    drawn = vae.binarize(keys, image, 'stochastic')
    assert set(np.unique(drawn)) == {-1, 1}
    assert abs(drawn.mean() - 0.5) < 0.03
    np.testing.assert_array_equal(vae.binarize(keys[3:5], image[3:5], 'stochastic'), drawn[3:5])


# --- the contract --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ('network', 'likelihood'), [('mlp', 'bernoulli'), *(('conv', name) for name in LIKELIHOODS)]
)
def test_training_reaches_every_parameter_and_improves(network, likelihood):
    method, state = start(network=network, **{'pixels.likelihood': likelihood})
    step, batch, before = jax.jit(method.train_step), batch_of(4), state.net.params
    losses = []
    for i in range(20):
        state, metrics = step(jax.random.key(i), state, batch)
        losses.append(metrics['loss'])
    assert losses[-1] < losses[0]
    assert metrics.keys() == {'loss', 'elbo', 'reconstruction', 'kl', 'grad_norm'}
    np.testing.assert_allclose(
        metrics['loss'], metrics['kl'] - metrics['reconstruction'], rtol=1e-5
    )
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.net.params)
    assert all(jax.tree.leaves(changed)), changed
    assert ('log_sigma' in state.net.params) == (likelihood == 'gaussian')


OBJECTIVES = {
    'capacity': {'vae.gamma': 1.0, 'vae.capacity': 1.0, 'vae.capacity_steps': 5},
    'beta_tc': {'vae.data_size': 100},
    'iwae': {'vae.samples': 12},
}


@pytest.mark.slow
@pytest.mark.parametrize('objective', OBJECTIVES)
def test_objectives_train(objective):
    method, state = start(objective=objective, **OBJECTIVES[objective])
    step, losses = jax.jit(method.train_step), []
    for i in range(20):
        state, metrics = step(jax.random.key(i), state, batch_of(8))
        losses.append(metrics['loss'])
    assert losses[-1] < losses[5]  # the capacity has grown
    assert ('iw_bound' in metrics) == (objective == 'iwae')


@pytest.mark.slow
@pytest.mark.parametrize('network', ['conv', 'mlp'])
def test_both_nets_are_told_the_class(network):
    method, state = start(network=network, **{'data.num_classes': 3})
    batch, keys = batch_of(2), jax.random.split(jax.random.key(0), 2)
    other = batch | {'label': batch['label'] + 1}
    assert jnp.abs(method.encode(state, batch) - method.encode(state, other)).max() > 1e-4
    z = jnp.zeros((2, 3))
    images = [method.decode(state, z, x) for x in (batch, other)]
    assert jnp.abs(images[0] - images[1]).max() > 1e-4
    drawn = [method.sample_step(keys, state, {'label': x['label']}) for x in (batch, other)]
    assert jnp.abs(drawn[0] - drawn[1]).max() > 1e-4
    assert method.latent_dim is None
    with pytest.raises(UserError, match="no 'label'"):
        method.encode(state, {'image': batch['image']})


@pytest.mark.slow
def test_noise_is_for_training_only_and_for_the_encoder():
    changes = {'pixels.likelihood': 'gaussian', 'vae.noise': 0.5}
    (method, state), (plain, _) = start(**changes), start(**{'pixels.likelihood': 'gaussian'})
    keys, batch = jax.random.split(jax.random.key(0), 2), batch_of(2)
    for name in ('encode', 'evaluate_step'):
        args = (keys,) * (name == 'evaluate_step') + (state, batch)
        jax.tree.map(
            np.testing.assert_array_equal, getattr(method, name)(*args), getattr(plain, name)(*args)
        )
    noisy, clean = (m.train_step(keys[0], state, batch)[1] for m in (method, plain))
    assert noisy['kl'] != clean['kl']


@pytest.mark.slow
def test_bits_are_told_of_probabilities_of_levels_only():
    keys, batch = jax.random.split(jax.random.key(2), 2), batch_of(2)
    for name in ('bernoulli', 'logistic_mixture'):
        method, state = start(**{'pixels.likelihood': name, 'vae.weighed': 3})
        terms = jax.jit(method.evaluate_step)(keys, state, batch)
        if name == 'bernoulli':
            assert set(terms) == {'elbo', 'log_likelihood', 'kl', 'iw_bound'}
        else:
            for bound, bits in (('elbo', 'elbo_bits_per_dim'), ('iw_bound', 'iw_bits_per_dim')):
                np.testing.assert_allclose(terms[bits], -terms[bound] / 64 / np.log(2), rtol=1e-6)


@pytest.mark.slow
def test_samples_do_not_depend_on_how_many_there_are():
    method, state = start()
    keys, sample = jax.random.split(jax.random.key(2), 5), jax.jit(method.sample_step)
    together = sample(keys, state, {})
    assert (together.shape, together.dtype) == ((5, 8, 8, 1), jnp.float32)
    assert jnp.abs(together).max() <= 1
    np.testing.assert_allclose(sample(keys[3:4], state, {})[0], together[3], atol=1e-6)


@pytest.mark.slow
def test_drawn_samples_are_draws_of_the_likelihood():
    method = vae.create(small(**{'vae.drawn': True}))
    state, n = start()[1], 2000
    keys, cold = jax.random.split(jax.random.key(2), n), {'temperature': jnp.zeros(n)}
    drawn = jax.jit(method.sample_step)(keys, state, cold)  # all of z = 0
    assert set(np.unique(drawn)) == {-1, 1}
    mean = method.decode(state, jnp.zeros((1, 3)), {})[0]
    error = np.sqrt((1 - mean**2) / n)
    assert (np.abs(drawn.mean(0) - mean) < 5 * error).all()
    one = method.sample_step(keys[7:8], state, {'temperature': jnp.ones(1)})
    np.testing.assert_array_equal(one, method.sample_step(keys[5:9], state, {})[2:3])


@pytest.mark.slow
def test_a_tables_vae_learns():
    config = small(
        'mlp',
        **{
            'data.image_size': 1,
            'data.channels': 5,
            'pixels.likelihood': 'table',
            'pixels.columns': (1, 3, 1),
            'vae.drawn': True,
        },
    )
    method = vae.create(config)
    kind = np.arange(64) % 3
    rows = np.full((64, 5), -1.0)
    rows[:, 0] = rows[:, 4] = kind / 2 - 0.5
    rows[np.arange(64), 1 + kind] = 1
    batch = {'image': jnp.float32(rows).reshape(64, 1, 1, 5)}
    state, step = method.init(jax.random.key(0), batch), jax.jit(method.train_step)
    first, last = [], []
    for i in range(200):
        state, metrics = step(jax.random.key(i), state, batch)
        (first if i < 5 else last).append(metrics['elbo'])
    assert np.mean(last[-5:]) > np.mean(first) + 3
    assert method.sample_step(jax.random.split(jax.random.key(1), 4), state, {}).shape == (
        4,
        1,
        1,
        5,
    )


@pytest.mark.slow
def test_temperature_is_per_sample_and_traced():
    method, state = start()
    keys, warm = jax.random.split(jax.random.key(2), 2), {'temperature': jnp.ones(2)}
    sample = jax.jit(method.sample_step).lower(keys, state, warm).compile()
    ones = sample(keys, state, warm)
    mixed = sample(keys, state, {'temperature': jnp.array([0.0, 1.0])})
    np.testing.assert_allclose(mixed[0], method.decode(state, jnp.zeros((1, 3)), {})[0], atol=1e-6)
    np.testing.assert_allclose(mixed[1], ones[1], atol=1e-6)
    assert jnp.abs(mixed[0] - ones[0]).max() > 1e-3
    cold = vae.create(small(**{'sample.knobs.temperature': 0.0}))
    np.testing.assert_allclose(cold.sample_step(keys, state, {})[1], mixed[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('binarize', ['none', 'stochastic'])
def test_evaluation_is_per_example(binarize):
    method, state = start(**{'vae.binarize': binarize})
    keys, batch = jax.random.split(jax.random.key(2), 4), batch_of(4)
    evaluate = jax.jit(method.evaluate_step)
    terms = evaluate(keys, state, batch)
    alone = evaluate(keys[2:3], state, {'image': batch['image'][2:3]})
    for name in ('elbo', 'log_likelihood', 'kl'):
        assert terms[name].shape == (4,)
        np.testing.assert_allclose(alone[name][0], terms[name][2], rtol=1e-5)


@pytest.mark.slow
def test_encode_and_decode():
    method, state = start(**{'pixels.likelihood': 'gaussian', 'data.channels': 1})
    z = jax.jit(method.encode)(state, batch_of(4))
    images = jax.jit(method.decode)(state, 100 * z, {})
    assert (z.shape, images.shape) == ((4, 3), (4, 8, 8, 1))
    assert jnp.abs(images).max() <= 1


@pytest.mark.slow
def test_averaged_parameters_are_what_samples():
    method, state = start()
    keys = jax.random.split(jax.random.key(2), 2)
    changed = state.replace(
        net=state.net.replace(params=jax.tree.map(jnp.zeros_like, state.net.ema))
    )
    np.testing.assert_array_equal(
        method.sample_step(keys, changed, {}), method.sample_step(keys, state, {})
    )
    assert start(ema_decay=0.0)[1].net.ema is None


SHAPES = {
    'model.channels': 6,
    'model.multipliers': (1,),
    'model.hidden': 8,
    'model.latent_dim': 2,
    'pixels.likelihood': 'gaussian',
    'ema_decay': 0.0,
}


@pytest.mark.parametrize('field', SHAPES)
def test_fields_that_change_the_state(field):
    assert shapes(**{field: SHAPES[field]}) != shapes()


def shapes(**changes):
    method = vae.create(small(**changes))
    return str(jax.eval_shape(method.init, jax.random.key(0), batch_of(2)))


NUMBERS = [
    ({}, {'model.dtype': 'bfloat16'}),
    ({}, {'vae.binarize': 'threshold'}),
    ({'vae.binarize': 'threshold'}, {'vae.binarize': 'stochastic'}),
    ({'pixels.likelihood': 'gaussian'}, {'pixels.likelihood': 'gaussian', 'pixels.sigma': 0.5}),
]


@pytest.mark.slow
@pytest.mark.parametrize(('before', 'after'), NUMBERS)
def test_fields_that_change_the_numbers(before, after):
    assert elbo_of(**before) != elbo_of(**after)


def elbo_of(**changes):
    method, state = start(**changes)
    terms = method.evaluate_step(jax.random.split(jax.random.key(0), 2), state, batch_of(2))
    assert terms['elbo'].dtype == jnp.float32
    return terms['elbo'].tolist()


WRONG = [
    {'data.image_size': 6},
    {'model.multipliers': ()},
    {'model.multipliers': (1, 0)},
    {'model.latent_dim': 0},
    {'model.dtype': 'float16'},
    {'pixels.likelihood': 'normal'},
    {'pixels.sigma': 0.5},
    {'pixels.columns': (1,)},
    {'pixels.sigma': float('inf'), 'pixels.likelihood': 'gaussian'},
    {'vae.beta': float('inf')},
    {'pixels.columns': (2,), 'pixels.likelihood': 'table'},
    {'pixels.columns': (1, 0), 'pixels.likelihood': 'table'},
    {'pixels.columns': (0.5, 0.5), 'pixels.likelihood': 'table'},
    {'pixels.columns': (), 'pixels.likelihood': 'table'},
    {'pixels.sigma': -1.0, 'pixels.likelihood': 'gaussian'},
    {'vae.binarize': 'yes'},
    {'vae.binarize': 'threshold', 'pixels.likelihood': 'gaussian'},
    {'pixels.likelihood': 'logistic_mixture', 'data.channels': 2},
    {'vae.beta': -1.0},
    {'vae.warmup': -1},
    {'vae.noise': -0.1},
    {'vae.weighed': -1},
    {'vae.capacity': -1.0, 'objective': 'capacity'},
    {'vae.capacity_steps': 0, 'objective': 'capacity'},
    {'vae.samples': 0, 'objective': 'iwae'},
    {'vae.judge_layers': 0, 'objective': 'factor'},
    {'vae.judge_width': 0, 'objective': 'factor'},
    {'vae.judge_rate': 0.0, 'objective': 'factor'},
    {'vae.judge_rate': float('inf'), 'objective': 'factor'},
    {'vae.data_size': 0, 'objective': 'beta_tc'},
    {'vae.estimator': 'mean', 'objective': 'beta_tc', 'vae.data_size': 999},
    {'batch_size': 2, 'objective': 'factor'},
    {'model.widths': (), 'network': 'mlp'},
    {'model.activation': 'gelu', 'network': 'mlp'},
    {'ema_decay': 1.0},
    {'sample.knobs.temperature': -1.0},
    {'sample.knobs.temperature': float('inf')},
]


@pytest.mark.parametrize('changes', WRONG)
def test_a_wrong_config_is_told_in_one_line(changes):
    with pytest.raises(UserError, match=next(iter(changes))) as error:
        vae.create(small(**changes))  # of the first field
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('choice', ['network', 'objective'])
def test_an_unknown_choice_is_told(choice):
    with pytest.raises(UserError, match=choice):
        house.default('autoencoders.vae', **{choice: 'elbow'})


def test_a_wrong_image_is_told():
    method, state = start()
    for call in (
        lambda batch: method.init(jax.random.key(0), batch),
        lambda batch: method.train_step(jax.random.key(0), state, batch),
        lambda batch: method.evaluate_step(jax.random.split(jax.random.key(0), 2), state, batch),
        lambda batch: method.encode(state, batch),
    ):
        with pytest.raises(UserError, match='has shape'):
            call(batch_of(2, channels=3))


@pytest.mark.slow
def test_config_of_fashion_mnist():
    get_config = runpy.run_path('configs/vae_fashion_mnist.py')['get_config']
    house.validate(get_config())
    vae.create(get_config())
    tiny = get_config('tiny')
    house.validate(tiny)
    method = vae.create(tiny)
    batch = batch_of(tiny.batch_size, tiny.data.image_size, tiny.data.channels)
    state = method.init(jax.random.key(0), batch)
    _, metrics = jax.jit(method.train_step)(jax.random.key(0), state, batch)
    assert np.isfinite(metrics['loss'])
