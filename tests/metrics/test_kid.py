import itertools

import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.metrics.kid import kid, polynomial_mmd2


def draw(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def by_hand(x, y, degree, gamma, coef0):
    """Sums over pairs, one at a time."""
    k = lambda a, b: (gamma * sum(p * q for p, q in zip(a, b, strict=True)) + coef0) ** degree  # noqa: E731
    within = [np.mean([k(a, b) for a, b in itertools.permutations(z, 2)]) for z in (x, y)]
    return sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])


@pytest.mark.parametrize(('degree', 'gamma', 'coef0'), [(3, None, 1.0), (2, 0.7, 0.0), (1, 1, 5)])
@pytest.mark.parametrize(('m', 'n'), [(2, 2), (5, 8)])
def test_mmd_is_a_mean_over_pairs(m, n, degree, gamma, coef0):
    x, y = draw(m, 4), draw(n, 4, seed=1) + 1
    want = by_hand(x, y, degree, 1 / 4 if gamma is None else gamma, coef0)
    assert polynomial_mmd2(x, y, degree, gamma, coef0) == pytest.approx(want, rel=1e-12)


def cubic(mean, deviation):
    """E[z], E[z^2], E[z^3] of a Gaussian."""
    m, v = mean, deviation**2
    return np.array([m, m**2 + v, m**3 + 3 * m * v])


def test_converges_to_the_gaussians_distance():
    """In one dimension (x y + 1)^3 has the features sqrt(3) z, sqrt(3) z^2, z^3 and 1.

    So the squared MMD is 3 (dE[z])^2 + 3 (dE[z^2])^2 + (dE[z^3])^2.
    """
    want = [3, 3, 1] @ (cubic(0.5, 1.0) - cubic(0.0, 1.2)) ** 2
    errors = []
    for n in (300, 3000):
        x, y = draw(n, 1, seed=5) + 0.5, draw(n, 1, seed=6) * 1.2
        errors.append(abs(polynomial_mmd2(x, y) - want) / want)
    assert errors[0] < 0.5
    assert errors[1] < 0.1


def test_unbiased_at_five_samples():
    """The mean over many small draws is the closed form; the biased estimate would be far off."""
    want = [3, 3, 1] @ (cubic(0.5, 1.0) - cubic(0.0, 1.2)) ** 2
    x, y = draw(20_000, 1, seed=7) + 0.5, draw(20_000, 1, seed=8) * 1.2
    values = [polynomial_mmd2(x[i : i + 5], y[i : i + 5]) for i in range(0, 20_000, 5)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - want) < 4 * error
    assert error < 0.3 * want


def test_spread_over_subsets():
    """The subsets are those of a RandomState, first set first; spread and error are theirs."""
    a, b, random = draw(40, 3), draw(30, 3, seed=1), np.random.RandomState(7)
    values = []
    for _ in range(6):
        i, j = random.permutation(40)[:10], random.permutation(30)[:10]
        values.append(polynomial_mmd2(a[i], b[j]))
    got = kid(a, b, subsets=6, subset_size=10, seed=7)
    assert got['mean'] == pytest.approx(np.mean(values), rel=1e-12)
    assert got['std'] == pytest.approx(np.std(values), rel=1e-12)
    assert got['standard_error'] == pytest.approx(np.std(values, ddof=1) / 6**0.5, rel=1e-12)
    assert kid(a, b, subsets=6, subset_size=10, seed=8)['mean'] != got['mean']
    assert all(type(value) is float for value in got.values())


def test_kernel_reaches_the_subsets():
    a, b = draw(20, 3), draw(20, 3, seed=1) + 1
    for kernel in ({'degree': 2}, {'gamma': 1.0}, {'coef0': 0.0}):
        got = kid(a, b, subsets=2, subset_size=20, **kernel)['mean']
        assert got == pytest.approx(polynomial_mmd2(a, b, **kernel), rel=1e-10)


def test_whole_sets_have_no_spread():
    a, b = draw(20, 3), draw(20, 3, seed=1) + 1
    got = kid(a, b, subsets=3, subset_size=20)
    assert got['mean'] == pytest.approx(polynomial_mmd2(a, b), rel=1e-12)
    assert got['std'] < 1e-12


def test_same_distribution_scatters_around_zero():
    a = draw(400, 8)
    got = kid(a[:200], a[200:], subsets=50, subset_size=50)
    assert abs(got['mean']) < got['std']
    assert kid(a, a, subsets=20, subset_size=400)['mean'] < 0  # the diagonal is left out of K_XX


def test_float32_is_computed_in_float64():
    a, b = draw(50, 16).astype(np.float32) + 100, draw(50, 16, seed=1).astype(np.float32) + 100
    want = polynomial_mmd2(a.astype(np.float64), b.astype(np.float64))
    assert polynomial_mmd2(a, b) == want


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'subset_size': 11}, 'needs 11 samples in each set, found 10 and 12.*subset_size=10'),
        ({'subsets': 1}, 'expected at least 2 of each'),
        ({'subset_size': 1}, 'expected at least 2 of each'),
        ({'b': np.zeros((12, 4))}, 'different sizes, 3 and 4'),
        ({'a': np.full((10, 3), np.nan)}, 'the first features: row 0 is not finite'),
        ({'b': np.zeros((12, 2, 2))}, 'the second features are float64'),
    ],
)
def test_refuses(change, message):
    arguments = {'a': draw(10, 3), 'b': draw(12, 3), 'subset_size': 10, **change}
    with pytest.raises(UserError, match=message) as error:
        kid(**arguments)
    assert '\n' not in str(error.value)


def test_mmd_needs_two_samples():
    with pytest.raises(UserError, match='the second features have shape'):
        polynomial_mmd2(draw(4, 3), draw(1, 3))
    with pytest.raises(UserError, match='different sizes, 3 and 1'):
        polynomial_mmd2(draw(4, 3), draw(4, 1))
