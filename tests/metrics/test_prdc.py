import tracemalloc

import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.metrics import compare
from gen_jax.metrics import prdc as prdc_module
from gen_jax.metrics.prdc import prdc


def draw(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def by_hand(real, fake, k, k_density):
    """The definitions, one distance at a time, without blocks or squares that cancel."""
    distance = lambda a, b: np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))  # noqa: E731
    cross = distance(real, fake)  # [n, m]
    radius = lambda x, k: np.sort(distance(x, x), axis=1)[:, k]  # noqa: E731
    precision = (cross <= radius(real, k)[:, None]).any(0).mean()
    recall = (cross <= radius(fake, k)[None]).any(1).mean()
    inside = cross < radius(real, k_density)[:, None]
    return {
        'precision': precision,
        'recall': recall,
        'f1': 2 * precision * recall / (precision + recall) if precision + recall else 0,
        'density': inside.sum(0).mean() / k_density,
        'coverage': inside.any(1).mean(),
    }


@pytest.mark.parametrize(('n', 'm', 'd'), [(60, 80, 2), (50, 30, 40), (7, 5, 1)])
@pytest.mark.parametrize(('k', 'k_density'), [(3, 5), (4, 2), (1, 1)])
def test_definitions(n, m, d, k, k_density):
    real, fake = draw(n, d), draw(m, d, seed=1) * 0.8 + 0.4
    got = prdc(real, fake, k, k_density)
    assert got == pytest.approx(by_hand(real, fake, k, k_density), abs=1e-12)
    assert all(type(value) is float for value in got.values())


@pytest.mark.parametrize('block', [1, 7, 64, 1000])
def test_blocks_change_nothing(block):
    real, fake = draw(64, 5), draw(90, 5, seed=1)
    assert prdc(real, fake, block=block) == prdc(real, fake)


def test_disjoint_supports():
    assert prdc(draw(50, 3), draw(60, 3, seed=1) + 100) == {
        'precision': 0, 'recall': 0, 'f1': 0, 'density': 0, 'coverage': 0,
    }  # fmt: skip


@pytest.mark.parametrize('offset', [0, 1e4])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_equal_sets(offset, dtype):
    """Ties at every radius: a point's own ball holds k points, itself among them, if it is open."""
    x = (draw(100, 16) + offset).astype(dtype)
    assert prdc(x, x[::-1]) == {
        'precision': 1, 'recall': 1, 'f1': 1, 'density': 1, 'coverage': 1,
    }  # fmt: skip


def test_nested_supports():
    """Fakes on a short piece of the line of real points: all look real, few real are reached."""
    real = np.arange(1000.0)[:, None]
    fake = 500.05 + np.arange(100.0)[:, None] / 10
    got = prdc(real, fake)
    # Fakes span 500.05 to 509.95, and those at the ends have a radius of 0.3: 500 to 510 are
    # reached. An open ball of a real point's fifth neighbour has radius 3: 498 to 512 hold a fake.
    assert got['precision'] == 1
    assert got['recall'] == 11 / 1000
    assert got['f1'] == pytest.approx(2 * 0.011 / 1.011)
    assert got['coverage'] == 15 / 1000
    assert got['density'] == 6 / 5  # real points less than 3 away from any fake
    reverse = prdc(fake, real)
    assert (reverse['precision'], reverse['recall']) == (11 / 1000, 1)


def test_swapped_sets_swap_precision_and_recall():
    a, b = draw(50, 3), draw(70, 3, seed=1) * 2
    forth, back = prdc(a, b), prdc(b, a)
    assert (forth['precision'], forth['recall']) == (back['recall'], back['precision'])
    assert forth['precision'] < forth['recall']  # the wide fakes reach everything real


def test_collapsed_fakes_are_precise_and_recall_nothing():
    """One image over and over: its balls have no radius, and hold its twin alone."""
    real = draw(200, 8)
    got = prdc(real, np.repeat(real[:1], 50, axis=0))
    assert (got['precision'], got['recall']) == (1, 1 / 200)


def test_repeated_real_points():
    """Balls without radius: closed, they hold their twins; open, nothing."""
    real = np.repeat(draw(4, 6) + 1000, 7, axis=0)
    got = prdc(real, real)
    assert (got['precision'], got['recall'], got['density'], got['coverage']) == (1, 1, 0, 0)


def test_points_on_a_sphere():
    """Fakes as far from the end of a row of points as its third neighbour, in any direction."""
    random = np.random.default_rng(0)
    direction = random.normal(size=(30, 1, 40))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    start = random.normal(size=(30, 1, 40)) * 30
    real = (start + direction * np.arange(4.0)[:, None]).reshape(-1, 40)
    for stretch, precision, density in ((1, 1, 0), (1 + 1e-6, 0, 0), (1 - 1e-6, 1, 1 / 3)):
        fake = (start - 3 * stretch * direction).reshape(-1, 40)
        got = prdc(real, fake, k=3, k_density=3, block=7)
        assert got['precision'] == precision
        assert got['density'] == pytest.approx(density, abs=1e-12)


def test_a_mean_far_from_zero():
    """Sums with 2^24 are exact for multiples of 2^-10; squares of it would leave no digits."""
    real, fake = (np.round(x * 1024) / 1024 for x in (draw(60, 20), draw(70, 20, seed=1)))
    assert prdc(real + 2.0**24, fake + 2.0**24) == prdc(real, fake)


def test_ties_on_a_lattice():
    """Fakes in the middle of squares, real points on the corners: all distances tie."""
    real = np.stack(np.meshgrid(np.arange(0.0, 12, 2), np.arange(0.0, 12, 2)), -1).reshape(-1, 2)
    fake = real + 1
    # Off the border, radii are 2, centres are sqrt(2) away; doubled in k=5, radii are 2 sqrt(2).
    assert prdc(real, fake, 3, 5) == pytest.approx(by_hand(real, fake, 3, 5), abs=1e-12)
    on_sphere = real * [1, 0] + [2, 0]  # two away along x: exactly on spheres of radius 2
    want = by_hand(real, on_sphere, 3, 5)
    assert prdc(real, on_sphere, 3, 5) == pytest.approx(want, abs=1e-12)


def test_memory_is_that_of_blocks():
    n = 1500
    real, fake = draw(n, 4), draw(n, 4, seed=1)
    tracemalloc.start()
    prdc(real, fake, block=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * (2 * n) * 4 + 20 * 50 * n + 100 * n


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'real': draw(5, 3)}, r'the real features have shape \(5, 3\), expected at least 6'),
        ({'fake': draw(3, 3)}, r'the fake features have shape \(3, 3\), expected at least 4'),
        ({'fake': draw(9, 4)}, 'different sizes, 3 and 4'),
        ({'k': 0}, 'k=0, k_density=5, block=256: expected at least 1'),
        ({'k_density': 0}, 'expected at least 1'),
        ({'block': 0}, 'expected at least 1'),
        ({'fake': np.full((9, 3), np.nan)}, 'the fake features: row 0 is not finite'),
    ],
)
def test_refuses(change, message):
    arguments = {'real': draw(9, 3), 'fake': draw(9, 3), **change}
    with pytest.raises(UserError, match=message) as error:
        prdc(**arguments)
    assert '\n' not in str(error.value)


def test_smallest_sets():
    assert prdc(draw(6, 3), draw(4, 3))['recall'] > 0


def test_the_reference_is_measured_once(monkeypatch):
    """A judge compares samples, and real images, with the same reference."""
    found, measure = [], prdc_module._balls
    monkeypatch.setattr(
        prdc_module, '_balls', lambda x, ks, block: found.append(len(x)) or measure(x, ks, block)
    )
    real, fake, other = draw(50, 3), draw(40, 3, seed=1), draw(30, 3, seed=2)
    seen = [compare.Seen(len(x), {}, {'pool': x}) for x in (real, fake, other)]
    for i in (1, 2):
        rows = compare.compare(seen[0], seen[i], ['prdc'])
        want = prdc(real, (fake, other)[i - 1])
        assert {name: row['value'] for name, row in rows.items()} == want
    again = compare.Seen(50, {}, {'pool': real})
    compare.compare(again, seen[1], ['prdc'])
    # Of each comparison and of `prdc` itself; of the reference at the first of each object only.
    assert found == [50, 40, 50, 40, 30, 50, 30, 50, 40]
