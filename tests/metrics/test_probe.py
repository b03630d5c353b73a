"""The linear probe, on features whose answer is known."""

import tracemalloc

import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.metrics.probe import flat, probe


def clouds(n, seed, apart=8.0):
    """Points around three corners of a triangle, apart in units of their deviation."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n)
    corners = apart * np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.87]])
    return corners[labels] + random.standard_normal((n, 2)), labels


def test_classes_that_lie_apart_are_named():
    found = probe(clouds(300, 0), clouds(200, 1))
    assert found.right.value == 1
    assert found.right.n == 200
    assert found.converged


def test_two_clouds_are_named_as_often_as_they_can_be():
    """Deviation 1 and distance 2: the best line is right on Phi(1) = 84.1%."""

    def two(n, seed):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 2, n)
        return random.standard_normal((n, 1)) + 2.0 * labels[:, None], labels

    right = probe(two(2_000, 0), two(20_000, 1)).right
    assert right.value == pytest.approx(0.841, abs=3 * right.standard_error)


def test_labels_that_features_do_not_tell_are_guessed():
    (x, y), (x_held, y_held) = clouds(600, 0), clouds(3_000, 1)
    y, y_held = (np.random.default_rng(2).permutation(labels) for labels in (y, y_held))
    assert abs(probe((x, y), (x_held, y_held)).right.value - 1 / 3) < 0.04


def test_scale_and_place_of_a_feature_change_nothing():
    (x, y), (x_held, y_held) = clouds(300, 0, 2.0), clouds(400, 1, 2.0)
    scale, place = np.array([1e-3, 50.0]), np.array([7.0, -3.0])
    plain = probe((x, y), (x_held, y_held)).right
    moved = probe((scale * x + place, y), (scale * x_held + place, y_held)).right
    assert moved == plain
    assert 0.6 < plain.value < 0.95


def test_much_is_held_once_beside_what_is_given():
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (1_000, 64, 64), np.uint8), random.integers(0, 2, 1_000)
    x[:, :8] = 100 * y[:, None, None]  # so that fitting ends soon
    tracemalloc.start()
    found = probe((x, y), (x, y))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.right.value == 1
    assert most < 8 * x.nbytes  # four are those of float32; 17 at first


def test_numbers_of_any_size_are_standardised():
    (x, y), (x_held, y_held) = clouds(300, 0, 2.0), clouds(400, 1, 2.0)
    plain = probe((x, y), (x_held, y_held)).right
    # Of float32 nothing would be left; a feature that never varies tells nothing.
    x, x_held = (np.pad(z + 1e9, ((0, 0), (0, 1)), constant_values=0.1) for z in (x, x_held))
    assert probe((x, y), (x_held, y_held)).right.value == pytest.approx(plain.value, abs=0.01)


def test_maps_are_flattened():
    x = np.arange(24.0).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(flat(x), x.reshape(2, 12))


def test_what_cannot_be_probed_is_told():
    x, y = clouds(10, 0)
    with pytest.raises(UserError, match='expected two classes or more'):
        probe((x, np.zeros(10, int)), (x, y))
    x[3, 1] = np.nan
    with pytest.raises(UserError, match='not finite'):
        probe((x, y), clouds(10, 1))
