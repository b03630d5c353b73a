import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.nn.dropout import Dropout

X = jnp.ones((200, 1000))


def dropped(rate, seed=0, x=X):
    return Dropout(rate, deterministic=False).apply({}, x, rngs={'dropout': jax.random.key(seed)})


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_the_share_is_the_rate_and_the_mean_stays(rate):
    y = dropped(rate)
    n = X.size
    assert abs(float((y == 0).mean()) - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=2**-15 / (1 - rate))
    assert abs(float(y.mean()) - 1) < 5 * np.sqrt(rate / (1 - rate) / n)


def test_values_fall_independently():
    kept = np.asarray(dropped(0.3) != 0, np.float64) - 0.7
    for shift in (1, 2, 32):
        neighbours = (kept[:, :-shift] * kept[:, shift:]).mean() / 0.21
        assert abs(neighbours) < 5 / np.sqrt(X.size)


def test_another_key_drops_others_and_the_same_key_the_same():
    np.testing.assert_array_equal(dropped(0.5, 1), dropped(0.5, 1))
    assert 0.4 < float((dropped(0.5, 1) == dropped(0.5, 2)).mean()) < 0.6


def test_nothing_to_drop_needs_no_key():
    np.testing.assert_array_equal(Dropout(0.0, deterministic=False).apply({}, X), X)
    np.testing.assert_array_equal(Dropout(0.5, deterministic=True).apply({}, X), X)


def test_gradients_are_those_of_the_kept():
    y, back = jax.vjp(lambda x: dropped(0.5, x=x), X)
    np.testing.assert_array_equal(back(X)[0], y)


def test_bfloat16_stays():
    assert dropped(0.1, x=X.astype(jnp.bfloat16)).dtype == jnp.bfloat16
