import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from gen_jax.errors import UserError
from gen_jax.method import Net, check_batch, descend, optimizer, ramped_decay, steps_taken

SETTINGS = {
    'learning_rate': 0.1,
    'warmup': 0,
    'decay': 'cosine',
    'decay_steps': 0,
    'b1': 0.9,
    'b2': 0.999,
    'eps': 1e-8,
    'weight_decay': 0.0,
    'clip': 0.0,
}


def settings(**changes):
    return ml_collections.ConfigDict({**SETTINGS, **changes})


def quadratic(params, extra, batch):
    return 0.5 * jnp.sum(params['w'] ** 2), (extra, {'norm': jnp.linalg.norm(params['w'])})


def net(tx, ema=True):
    return Net.create({'params': {'w': jnp.array([3.0, 4.0])}}, tx, ema)


def test_descend_takes_a_gradient_step_and_averages():
    tx = optax.sgd(0.1)
    after, metrics = jax.jit(lambda n: descend(n, quadratic, tx, 0.9, None))(net(tx))
    np.testing.assert_allclose(after.params['w'], [2.7, 3.6], rtol=1e-6)
    # 0.9 * old + 0.1 * new
    np.testing.assert_allclose(after.ema['w'], [2.97, 3.96], rtol=1e-6)
    assert float(metrics['loss']) == pytest.approx(12.5)
    assert float(metrics['grad_norm']) == pytest.approx(5.0)
    assert float(metrics['norm']) == pytest.approx(5.0)


@pytest.mark.parametrize('schedule', [{}, {'warmup': 1}])
def test_the_averages_half_life_grows_with_the_steps(schedule):
    """Karras et al. 2022, training_loop: 0.5 ** (batch / min(half_life, seen * ratio)), images."""
    tx, half_life, ratio, batch_size = optimizer(settings(**schedule)), 500, 0.05, 64
    config = ml_collections.ConfigDict(
        {'ema_decay': 0.5 ** (batch_size / half_life), 'ema_rampup': ratio}
    )
    count = jax.jit(lambda n: ramped_decay(config, steps_taken(n)))
    step = jax.jit(
        lambda n: descend(n, quadratic, tx, ramped_decay(config, steps_taken(n)), None)[0]
    )
    state, found = net(tx), []
    for _ in range(200):
        found.append(float(count(state)))
        state = step(state)
    seen = batch_size * np.arange(200)
    want = 0.5 ** (batch_size / np.maximum(np.minimum(half_life, seen * ratio), 1e-8))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert found[0] == 0
    assert found[-1] == pytest.approx(config.ema_decay)
    config.ema_rampup = 0.0
    assert ramped_decay(config, steps_taken(state)) == config.ema_decay


def test_a_net_without_average_keeps_none_and_samples_from_its_parameters():
    tx = optax.sgd(0.1)
    after, _ = descend(net(tx, ema=False), quadratic, tx, None, None)
    assert after.ema is None
    assert after.variables(ema=True)['params'] is after.params


def test_extra_is_replaced_by_what_the_loss_returns():
    tx = optax.sgd(0.1)
    start = Net.create({'params': {'w': jnp.ones(2)}, 'batch_stats': {'m': jnp.zeros(2)}}, tx, True)

    def loss_fn(params, extra, batch):
        return jnp.sum(params['w']), ({'batch_stats': {'m': jnp.full(2, 7.0)}}, {})

    after, _ = descend(start, loss_fn, tx, 0.5, None)
    np.testing.assert_array_equal(after.variables()['batch_stats']['m'], [7.0, 7.0])


def test_grad_norm_is_reported_before_clipping_and_the_step_after_it():
    # Adam divides the gradient's scale away, so clipping is seen through its first moment.
    tx = optimizer(settings(clip=1.0, b1=0.0))
    after, metrics = descend(net(tx), quadratic, tx, 0.9, None)
    assert float(metrics['grad_norm']) == pytest.approx(5.0)
    moments = next(s.mu for s in jax.tree.leaves(after.opt_state, is_leaf=_adam) if _adam(s))
    np.testing.assert_allclose(moments['w'], [0.6, 0.8], rtol=1e-6)


def regression(params, extra, batch):
    """Mean squared error of w . x, which counts its examples and the parts they came in."""
    x, y = batch
    error = x @ params['w'] - y
    extra = {'seen': {'parts': extra['seen']['parts'] + 1, 'sum': extra['seen']['sum'] + y.sum()}}
    return jnp.mean(error**2), (extra, {'bias': error.mean()})


def regression_net(tx):
    seen = {'parts': jnp.zeros((), jnp.int32), 'sum': jnp.zeros(())}
    return Net.create({'params': {'w': jnp.array([3.0, 4.0])}, 'seen': seen}, tx, True)


@pytest.mark.parametrize('parts', [1, 2, 3, 6])
def test_parts_of_a_batch_make_the_step_of_the_whole(parts):
    rng, tx = np.random.default_rng(0), optax.adam(0.1)
    x, y = rng.normal(size=(6, 2)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    step = jax.jit(lambda n, batch: descend(n, regression, tx, 0.9, batch, parts))
    after, metrics = step(regression_net(tx), (x, y))
    # The gradient of the mean over all six, in closed form.
    error = x @ [3.0, 4.0] - y
    gradient = 2 * x.T @ error / 6
    np.testing.assert_allclose(after.opt_state[0].mu['w'], 0.1 * gradient, rtol=1e-5)
    assert float(metrics['grad_norm']) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert float(metrics['loss']) == pytest.approx(np.mean(error**2), rel=1e-5)
    assert float(metrics['bias']) == pytest.approx(np.mean(error), rel=1e-5)
    # One step of the optimiser and of the average; every example once, each part after the last.
    assert int(after.opt_state[0].count) == 1
    np.testing.assert_allclose(after.ema['w'], 0.9 * np.array([3, 4]) + 0.1 * after.params['w'])
    assert int(after.extra['seen']['parts']) == parts
    assert float(after.extra['seen']['sum']) == pytest.approx(y.sum(), rel=1e-5)


def test_every_part_has_draws_of_its_own_and_one_part_those_of_the_whole():
    tx, key = optax.sgd(1.0), jax.random.key(3)
    start = Net.create({'params': {'w': jnp.zeros(())}}, tx, False)

    def loss_fn(params, extra, batch):
        x, key = batch
        draw = jax.random.normal(key)
        return params['w'] * draw * x.mean(), (extra, {'draw': draw, 'square': draw**2})

    whole, parts = (descend(start, loss_fn, tx, None, (jnp.ones(4), key), k)[1] for k in (1, 2))
    assert float(whole['draw']) == float(jax.random.normal(key))
    # The variance of the two draws is not 0.
    assert float(parts['square']) > float(parts['draw']) ** 2 + 1e-3


def _adam(x):
    return isinstance(x, optax.ScaleByAdamState)


def test_first_adam_step_has_the_size_of_the_learning_rate():
    tx = optimizer(settings())
    after, _ = descend(net(tx), quadratic, tx, 0.9, None)
    np.testing.assert_allclose(after.params['w'], [2.9, 3.9], rtol=1e-5)


def test_weight_decay_is_decoupled():
    tx = optimizer(settings(weight_decay=0.5))
    after, _ = descend(net(tx), quadratic, tx, 0.9, None)
    # Adam's step of 0.1, and 0.1 * 0.5 * w on top.
    np.testing.assert_allclose(after.params['w'], [2.9 - 0.15, 3.9 - 0.2], rtol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'warmup': 4}, [0.0, 0.025, 0.05, 0.075, 0.1, 0.1]),
        # A cosine from 0.1 to 0 over the 2 steps that the warm-up leaves.
        ({'warmup': 2, 'decay_steps': 4}, [0.0, 0.05, 0.1, 0.05, 0.0]),
        ({'decay_steps': 4, 'decay': 'linear'}, [0.1, 0.075, 0.05, 0.025, 0.0, 0.0]),
        ({'warmup': 1, 'decay_steps': 3, 'decay': 'linear'}, [0.0, 0.1, 0.05, 0.0]),
    ],
)
def test_learning_rate_over_steps(changes, expected):
    tx = optimizer(settings(**changes))
    now = net(tx)
    for rate in expected:
        before = now.params['w']
        # A constant gradient makes every Adam step exactly the learning rate.
        now, _ = descend(now, lambda p, *_: (jnp.sum(p['w']), ({}, {})), tx, 0.9, None)
        np.testing.assert_allclose(before - now.params['w'], rate, atol=1e-5)


@pytest.mark.parametrize(
    ('image', 'says'),
    [
        (np.zeros((2, 8, 8, 1), np.uint8), 'uint8'),
        (np.zeros((2, 8, 8, 3), np.float32), 'channels'),
        (np.zeros((2, 9, 8, 1), np.float32), r'\(2, 9, 8, 1\)'),
        (np.zeros((8, 8, 1), np.float32), 'shape'),
    ],
)
def test_a_batch_that_breaks_the_contract_is_refused(image, says):
    with pytest.raises(UserError, match=says) as error:
        check_batch({'image': image}, 8, 1)
    assert '\n' not in str(error.value)


def test_a_good_batch_passes():
    check_batch({'image': np.zeros((2, 8, 8, 1), np.float32)}, 8, 1)
