import itertools

import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.metrics.diversity import dissimilarity, diversity, draw_pairs, over_batches
from gen_jax.metrics.ssim import ms_ssim


def images(n, side=3, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, side, side, 1)).astype(np.float32)


def squared(x, y):
    return ((x - y) ** 2).sum((1, 2, 3))


@pytest.mark.parametrize('n', [2, 3, 8])
def test_all_pairs(n):
    x = images(n)
    each = [np.sum((a - b) ** 2) for a, b in itertools.combinations(x, 2)]
    np.testing.assert_allclose(diversity(x, squared)['diversity'], np.mean(each), rtol=1e-6)


def test_variance():
    """The mean squared distance is twice the variance of unbiased estimate."""
    x = images(10)
    want = 2 * x.reshape(10, -1).var(0, ddof=1).sum()
    np.testing.assert_allclose(diversity(x, squared)['diversity'], want, rtol=1e-5)


def test_any_batch_size():
    x = images(9)  # 36 pairs
    values = [diversity(x, squared, batch_size=size)['diversity'] for size in (1, 7, 36, 100)]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_batches_have_one_size():
    sizes = []

    def count(at):
        sizes.append(len(at))
        return at * 2.0

    np.testing.assert_array_equal(over_batches(count, 10, 4), 2.0 * np.arange(10))
    assert sizes == [4, 4, 4]


def test_collapse():
    same = np.repeat(images(1), 6, 0)
    real = diversity(images(6), squared)['diversity']
    assert diversity(same, squared, reference=real) == {'diversity': 0.0, 'diversity_ratio': 0.0}
    half = diversity(images(6) * 0.5, squared, reference=real)
    np.testing.assert_allclose(half['diversity_ratio'], 0.25, rtol=1e-6)


@pytest.mark.parametrize('n', [2, 3, 50, 401])
def test_pairs_are_all_of_them_once(n):
    i, j = draw_pairs(n, None, seed=0)
    assert {*zip(i.tolist(), j.tolist(), strict=True)} == {*itertools.combinations(range(n), 2)}
    assert len(i) == n * (n - 1) // 2


def test_drawn_pairs():
    n = 100_000
    i, j = draw_pairs(n, 5000, seed=1)
    assert len({*zip(i.tolist(), j.tolist(), strict=True)}) == 5000
    assert (i >= 0).all()
    assert (i < j).all()
    assert (j < n).all()
    # Of a uniform pair i < j, the smaller is n / 3 on average, the larger 2 n / 3.
    np.testing.assert_allclose([i.mean() / n, j.mean() / n], [1 / 3, 2 / 3], atol=0.015)
    assert (draw_pairs(n, 5000, seed=1)[0] == i).all()
    assert (draw_pairs(n, 5000, seed=2)[0] != i).any()


def test_last_pairs_of_many_images(monkeypatch):
    """Square roots of large numbers still give whole indices."""
    n = 3_000_001
    total = n * (n - 1) // 2

    class Rng:
        def choice(self, *args, **kwargs):
            return np.array([0, total - n, total - 1])

    monkeypatch.setattr(np.random, 'default_rng', lambda seed: Rng())
    i, j = draw_pairs(n, 3, seed=0)
    assert i.tolist() == [0, n - 3, n - 2]
    assert j.tolist() == [1, n - 2, n - 1]


def test_drawing_estimates_the_mean():
    x = images(60)
    every, some = diversity(x, squared), diversity(x, squared, pairs=600, seed=3)
    assert some != every
    np.testing.assert_allclose(some['diversity'], every['diversity'], rtol=0.05)
    assert diversity(x, squared, pairs=10**6) == every


@pytest.mark.parametrize(('side', 'scales'), [(11, 1), (28, 2), (32, 2), (64, 3), (161, 5)])
def test_dissimilarity(side, scales):
    x, y = images(1, side), images(1, side, seed=1)
    y = 0.7 * x + 0.3 * y
    np.testing.assert_array_equal(dissimilarity(x, y), 1 - ms_ssim(x, y, scales))
    np.testing.assert_allclose(dissimilarity(x, x), 0, atol=1e-6)


def test_refuses():
    with pytest.raises(UserError, match='at least 11x11'):
        dissimilarity(images(1, 10), images(1, 10))
    with pytest.raises(UserError, match='1 images, expected at least 2'):
        diversity(images(1), squared)
    with pytest.raises(UserError, match='pairs=0'):
        diversity(images(3), squared, pairs=0)
    with pytest.raises(UserError, match='batch_size=0'):
        diversity(images(3), squared, batch_size=0)
    for reference in (0.0, -1.0, float('nan'), float('inf')):
        with pytest.raises(UserError, match='positive'):
            diversity(images(3), squared, reference=reference)
