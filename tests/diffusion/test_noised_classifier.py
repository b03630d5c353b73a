import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.config import create, default
from gen_jax.diffusion import adm
from gen_jax.diffusion.schedules import make_betas
from gen_jax.errors import UserError

B, T = 6, 20


def small(time='discrete', **changes):
    """A net of a few thousand parameters; `data__num_classes=2` sets config.data.num_classes."""
    config = default('diffusion.noised_classifier', time=time)
    if time == 'discrete':
        config.update_from_flattened_dict({'diffusion.timesteps': T, 'diffusion.beta_max': 0.4})
    config.update_from_flattened_dict(
        {
            'data.image_size': 4,
            'data.num_classes': 3,
            'model.channels': 8,
            'model.multipliers': (1, 1),
            'model.attention': (4,),
            'model.groups': 4,
            'model.head_channels': 8,
            **{k.replace('__', '.'): v for k, v in changes.items()},
        }
    )
    return config


def batch():
    image = np.random.default_rng(0).uniform(-1, 1, (B, 4, 4, 1)).astype(np.float32)
    return {'image': jnp.asarray(image), 'label': jnp.arange(B, dtype=jnp.int32) % 3}


def randomised(method):
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch())
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes.net.params
    )
    return shapes.replace(net=shapes.net.replace(params=params))


def keys(n):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(n))


@functools.cache
def method():
    return create(small())


@pytest.mark.slow
def test_probabilities_of_the_labels_sum_to_1():
    state, x_t, t = randomised(method()), batch()['image'], jnp.arange(B, dtype=jnp.int32)
    each = [method().log_prob(state, x_t, t, jnp.full(B, label)) for label in range(3)]
    np.testing.assert_allclose(np.exp(each).sum(0), np.ones(B), rtol=1e-5)
    assert np.ptp(each, axis=0).min() > 1e-3
    assert method().num_classes == 3
    assert method().sample_step is method().denoise is None


@pytest.mark.slow
def test_the_gradient_that_guides_is_each_samples_own():
    state, t = randomised(method()), jnp.arange(B, dtype=jnp.int32)

    def first(x_t):
        return method().log_prob(state, x_t, t, batch()['label'])[0]

    gradient = jax.grad(first)(batch()['image'])
    assert np.abs(gradient[0]).min() > 0
    assert np.abs(gradient[1:]).max() == 0


@pytest.mark.slow
def test_evaluate_judges_what_was_noised_by_its_own_keys():
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, at a t of 0 .. T - 1."""
    state = randomised(method())
    found = jax.jit(method().evaluate_step)(keys(B), state, batch())
    assert set(found) == {'accuracy', 'cross_entropy'}
    alpha_bar = np.cumprod(1 - make_betas('linear', T, 1e-4, 0.4))
    for i in range(B):
        t = jax.random.randint(jax.random.fold_in(keys(B)[i], 0), (), 0, T)
        eps = jax.random.normal(jax.random.fold_in(keys(B)[i], 1), (4, 4, 1))
        x_t = np.sqrt(alpha_bar[t]) * batch()['image'][i] + np.sqrt(1 - alpha_bar[t]) * eps
        each = [method().log_prob(state, x_t[None], t[None], jnp.full(1, k)) for k in range(3)]
        label = int(batch()['label'][i])
        np.testing.assert_allclose(found['cross_entropy'][i], -each[label][0], rtol=1e-4)
        assert found['accuracy'][i] == (np.argmax(np.ravel(each)) == label)


@pytest.mark.slow
def test_a_step_learns_the_labels_of_noised_images():
    state = method().init(jax.random.key(0), batch())
    after, metrics = jax.jit(method().train_step)(jax.random.key(1), state, batch())
    assert set(metrics) == {'loss', 'accuracy', 'grad_norm'}
    assert 0.5 * np.log(3) < metrics['loss'] < 2 * np.log(3)
    assert after.net.ema is None
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.net.params, state.net.params)
    assert max(jax.tree.leaves(moved)) == pytest.approx(3e-4, rel=0.1)  # Adam's first step


@pytest.mark.slow
def test_training_finds_bayes_classifier():
    """Of images that are +m or -m throughout: log odds 2 alpha m sum(x_t) / sigma^2."""
    one_level = {'model__multipliers': (1,), 'model__attention': ()}
    made = create(small(data__num_classes=2, optimizer__learning_rate=3e-3, **one_level))
    m, n = 0.3, 64
    sign = jnp.tile(jnp.float32([1, -1]), n // 2)
    images = jnp.broadcast_to(m * sign[:, None, None, None], (n, 4, 4, 1))
    given = {'image': images, 'label': (sign > 0).astype(jnp.int32)}
    state = jax.jit(made.init)(jax.random.key(0), given)

    @jax.jit
    def train(state):
        def step(state, key):
            return made.train_step(key, state, given)

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 200))

    state, metrics = train(state)
    assert metrics['loss'][0] == pytest.approx(np.log(2), abs=0.3)
    alpha_bar = np.cumprod(1 - make_betas('linear', T, 1e-4, 0.4))
    t = np.arange(n) % T
    alpha, sigma = np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t])
    eps = np.random.default_rng(0).standard_normal((n, 4, 4, 1))
    x_t = np.float32(alpha[:, None, None, None] * images + sigma[:, None, None, None] * eps)
    odds = 2 * alpha * m * x_t.sum((1, 2, 3)) / sigma**2
    wanted = np.logaddexp(0, -odds)  # -log p(label 1 | x_t, t)
    found = -made.log_prob(state, x_t, jnp.asarray(t), jnp.ones(n, jnp.int32))
    noisy = t > 4  # earlier all is plain, and odds are huge
    p = np.exp(-np.stack([found, wanted])[:, noisy])
    assert np.abs(p[0] - p[1]).mean() < 0.08
    assert np.corrcoef(p)[0, 1] > 0.95


class Plain(nn.Module):
    """Of an image's mean, and of what it is told."""

    @nn.compact
    def __call__(self, x, t, train=False):
        h = jnp.stack([x.mean((1, 2, 3)), t], -1)
        for _ in range(2):
            h = jnp.tanh(nn.Dense(24)(h))
        return nn.Dense(3)(h)


@pytest.fixture
def plain(monkeypatch):
    """In place of ADM's: it compiles in no time."""
    monkeypatch.setattr(adm, 'classifier_from_config', lambda config: Plain())


# Fields, and written out: x_t's (alpha, sigma), what the network is told, and the times drawn.
CONTINUOUS = {
    'edm': (
        {},
        lambda t: (jnp.ones_like(t), t),
        lambda t: jnp.log(t) / 4,
        lambda key, n: jnp.exp(-1.2 + 2.4 * jax.random.normal(key, n)),
    ),
    'flow': (
        {
            'diffusion__process': 'flow',
            'diffusion__told': 'time',
            'diffusion__times': 'uniform',
            'diffusion__sigma_data': 0.3,
        },
        lambda t: (1 - t, t),
        lambda t: 999 * t,
        lambda key, n: 1e-3 + (1 - 1e-3) * jax.random.uniform(key, n),
    ),
}


LADDER = {
    'diffusion__process': 'ladder',
    'diffusion__told': 'level',
    'diffusion__times': 'levels',
}


@pytest.mark.slow
@pytest.mark.usefixtures('plain')
@pytest.mark.parametrize('kind', CONTINUOUS)
def test_in_continuous_time_it_learns_and_is_judged_of_what_models_see(kind):
    """Cross-entropy of alpha x_0 + sigma eps, which the network sees with unit variance."""
    changes, level, told, draw = CONTINUOUS[kind]
    made = create(config := small('continuous', **changes))
    state, given = jax.jit(made.init)(jax.random.key(0), batch()), batch()

    @jax.jit
    def terms(state, t, eps):
        """Written out, and by `log_prob`."""
        alpha, sigma = (x[:, None, None, None] for x in level(t))
        x_t = alpha * given['image'] + sigma * eps
        scaled = x_t / jnp.sqrt((alpha * config.diffusion.sigma_data) ** 2 + sigma**2)
        said = jax.nn.log_softmax(Plain().apply(state.net.variables(), scaled, told(t)))
        want = -said[jnp.arange(B), given['label']]
        return want, -made.log_prob(state, x_t, t, given['label'])

    @jax.jit
    def drawn(keys):
        """As `evaluate_step` draws a time and noise for each image."""
        each = jax.vmap(jax.random.fold_in, (0, None))
        t = jnp.concatenate([draw(key, 1) for key in each(keys, 0)])
        return t, jnp.stack([jax.random.normal(key, (4, 4, 1)) for key in each(keys, 1)])

    found = jax.jit(made.evaluate_step)(keys(B), state, given)
    for want in terms(state, *drawn(keys(B))):
        np.testing.assert_allclose(found['cross_entropy'], want, rtol=1e-4)
    key_t, key_eps, _ = jax.random.split(jax.random.key(1), 3)
    _, metrics = jax.jit(made.train_step)(jax.random.key(1), state, given)
    want, _ = terms(state, draw(key_t, B), jax.random.normal(key_eps, given['image'].shape))
    assert metrics['loss'] == pytest.approx(float(want.mean()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures('plain')
def test_in_continuous_time_training_finds_bayes_classifier():
    """Of images that are +m or -m throughout: log odds 2 m sum(x_t) / sigma^2."""
    made = create(small('continuous', optimizer__learning_rate=1e-2))
    m, n = 0.3, 256
    sign = np.tile(np.float32([1, -1]), n // 2)
    images = np.broadcast_to(m * sign[:, None, None, None], (n, 4, 4, 1))
    given = {'image': jnp.asarray(images), 'label': jnp.int32(sign > 0)}
    state = jax.jit(made.init)(jax.random.key(0), given)

    @jax.jit
    def train(state):
        def step(state, key):
            return made.train_step(key, state, given)

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 500))

    state, _ = train(state)
    sigma = np.geomspace(0.3, 20, n)
    eps = np.random.default_rng(0).standard_normal((n, 4, 4, 1))
    x_t = jnp.float32(images + sigma[:, None, None, None] * eps)
    wanted = np.logaddexp(0, -2 * m * np.sum(x_t, (1, 2, 3)) / sigma**2)
    label, t = jnp.ones(n, jnp.int32), jnp.float32(sigma)
    p = np.exp([made.log_prob(state, x_t, t, label), -wanted])
    assert np.abs(p[0] - p[1]).mean() < 0.03
    assert np.corrcoef(p)[0, 1] > 0.99


@pytest.mark.usefixtures('plain')
@pytest.mark.parametrize(
    ('change', 'rest'),
    [
        ({'diffusion__process': 've'}, {}),
        ({'diffusion__range': (0.01, 80.0)}, {'diffusion__times': 'uniform'}),
        ({'diffusion__levels': 10}, LADDER),
        ({'diffusion__told': 'log_sigma'}, {}),
        ({'diffusion__times': 'uniform'}, {}),
        ({'diffusion__times_mean': 0.0}, {}),
        ({'diffusion__times_std': 1.2}, {}),
        ({'diffusion__sigma_data': 1.0}, {}),
    ],
    ids=str,
)
def test_every_field_of_continuous_time_changes_something(change, rest):
    def program(**changes):
        made = create(small('continuous', **changes))
        state = jax.eval_shape(made.init, jax.random.key(0), batch())
        jaxpr = jax.make_jaxpr(made.train_step)(jax.random.key(0), state, batch())
        return str(jaxpr), str(jaxpr.consts)

    assert program(**rest | change) != program(**rest)


@pytest.mark.slow
def test_gradients_reach_every_parameter():
    state = randomised(method())
    t, label = jnp.arange(B, dtype=jnp.int32), batch()['label']

    def loss(params):
        changed = state.replace(net=state.net.replace(params=params))
        return -method().log_prob(changed, batch()['image'], t, label).mean()

    for path, gradient in jax.tree.leaves_with_path(jax.grad(loss)(state.net.params)):
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    'change',
    [
        {'diffusion__betas': 'cosine'},
        {'diffusion__beta_min': 0.01},
        {'diffusion__beta_max': 0.3},
        {'diffusion__timesteps': 21},
        {'diffusion__zero_snr': True},
        {'diffusion__told': 'thousandths'},
        {'model__heads': 1, 'model__head_channels': 0, 'model__channels': 16},
        {'model__scale_shift': False},
        {'model__resample_in_blocks': False},
        {'model__dtype': 'bfloat16'},
        {'model__dropout': 0.5},
        {'optimizer__weight_decay': 0.0},
    ],
    ids=str,
)
def test_every_field_changes_something(change):
    def program(**changes):
        made = create(small(**changes))
        state = jax.eval_shape(made.init, jax.random.key(0), batch())
        jaxpr = jax.make_jaxpr(made.train_step)(jax.random.key(0), state, batch())
        return str(jaxpr), str(jaxpr.consts)

    assert program(**change) != program()


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'data__num_classes': 1}, r'data\.num_classes=1: expected the number of classes'),
        ({'data__num_classes': 0}, r'data\.num_classes=0'),
        ({'data__image_size': 5}, 'multiple of 2'),
        ({'model__head_channels': 3}, 'attention over 8 channels'),
        ({'model__groups': 3}, 'groups'),
        ({'model__heads': -1}, r'model\.heads=-1'),
        ({'diffusion__betas': 'cosin'}, "did you mean 'cosine'"),
        ({'diffusion__told': 'times'}, "did you mean 'time'"),
        ({'diffusion__timesteps': 1}, '2 to 10000'),
        ({'diffusion__beta_min': 0.5}, 'beta_min <= beta_max=0.4'),
        ({'diffusion__beta_max': 1.0}, 'less than 1'),
        ({'diffusion__timesteps': 1000, 'diffusion__beta_max': 0.9}, 'fewer than timesteps=1000'),
    ],
)
def test_mistakes_are_named(changes, says):
    with pytest.raises(UserError, match=says) as error:
        create(small(**changes))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'diffusion__process': 'emd'}, "did you mean 'edm'"),
        ({'diffusion__range': (2.0, 1.0)}, '0 < least < most'),
        ({'diffusion__process': 'flow'}, "told='log_ratio': expected 'time' with process='flow'"),
        ({'diffusion__process': 'ladder'}, "'level' with process='ladder'"),
        ({'diffusion__times_std': 0.0}, 'times_std=0.0: expected a number, more than 0'),
        ({'diffusion__sigma_data': 0.0}, 'sigma_data=0.0: expected a number, more than 0'),
    ],
)
def test_mistakes_of_continuous_time_are_named(changes, says):
    with pytest.raises(UserError, match=says) as error:
        create(small('continuous', **changes))
    assert '\n' not in str(error.value)


def test_a_time_that_there_is_not_and_fields_of_the_other_are_told():
    with pytest.raises(UserError, match=r"config\.time='continuos'.*did you mean 'continuous'"):
        default('diffusion.noised_classifier', time='continuos')
    config = small()
    config.time = 'continuous'
    with pytest.raises(UserError, match=r'diffusion\.\w+.* default\(METHOD, time=') as error:
        create(config)
    assert '\n' not in str(error.value)


def test_missing_labels_and_wrong_images_are_named():
    state = randomised(method())
    with pytest.raises(UserError, match="no 'label'"):
        method().train_step(jax.random.key(0), state, {'image': batch()['image']})
    with pytest.raises(UserError, match='shape'):
        method().init(jax.random.key(0), {'image': jnp.zeros((2, 5, 5, 1))})
