"""Which times are drawn, and which noise goes with which image. Weightings: test_predictions.py."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from gen_jax.diffusion.losses import no_losses, optimal_pairing, remember, second_moment


def test_a_history_keeps_the_last_losses():
    history = no_losses(3, kept=2)
    history = remember(history, jnp.int32([1, 1, 0]), jnp.float32([5, 6, 1]))
    np.testing.assert_array_equal(history['losses'], [[1, 0], [5, 6], [0, 0]])
    history = remember(history, jnp.int32([1, 2, 1, 1, 2]), jnp.float32([7, 2, 8, 9, 3]))
    np.testing.assert_array_equal(np.sort(history['losses']), [[0, 1], [8, 9], [2, 3]])
    np.testing.assert_array_equal(history['count'], [1, 5, 2])


def test_second_moment_by_hand():
    history = no_losses(3, kept=2)
    np.testing.assert_allclose(second_moment(history), 1 / 3)
    full = {'losses': jnp.float32([[3, 4], [0, 0], [1, 1]]), 'count': jnp.int32([2, 7, 1])}
    np.testing.assert_allclose(second_moment(full), 1 / 3)  # one is missing
    full['count'] = jnp.int32([2, 7, 2])
    root = np.array([np.sqrt(12.5), 0, 1])
    want = 0.999 * root / root.sum() + 0.001 / 3
    np.testing.assert_allclose(second_moment(full), want, rtol=1e-6)
    full['losses'] = jnp.zeros((3, 2))
    assert np.isfinite(second_moment(full)).all()


def cost(x_0, eps, pairing):
    return float(((x_0 - eps[np.asarray(pairing)]) ** 2).sum())


def test_optimal_pairing_of_few_by_trying_all():
    rng = np.random.default_rng(0)
    x_0, eps = rng.standard_normal((2, 5, 2, 3, 1), np.float32)
    best = min(permutations(range(5)), key=lambda p: cost(x_0, eps, p))
    np.testing.assert_array_equal(optimal_pairing(x_0, eps), best)


@pytest.mark.parametrize('b', [1, 2, 64])
def test_optimal_pairing_is_scipys(b):
    rng = np.random.default_rng(b)
    x_0 = rng.standard_normal((b, 4, 4, 1), np.float32) + 3
    eps = rng.standard_normal((b, 4, 4, 1), np.float32)
    got = jax.jit(optimal_pairing)(x_0, eps)
    assert got.dtype == jnp.int32
    assert sorted(got.tolist()) == list(range(b))
    squares = ((x_0[:, None] - eps[None]) ** 2).sum((2, 3, 4))
    rows, columns = linear_sum_assignment(squares)
    np.testing.assert_allclose(cost(x_0, eps, got), squares[rows, columns].sum(), rtol=1e-5)


def test_optimal_pairing_undoes_a_shuffle():
    rng = np.random.default_rng(0)
    x_0 = rng.standard_normal((32, 10), np.float32)
    order = rng.permutation(32)
    pairing = optimal_pairing(x_0, 0.1 * x_0[order] + 5)
    np.testing.assert_array_equal(order[np.asarray(pairing)], np.arange(32))
