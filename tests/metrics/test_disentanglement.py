"""Disentanglement: codes whose scores are known in closed form, and scikit-learn."""

import math
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from gen_jax.errors import UserError
from gen_jax.metrics import disentanglement
from gen_jax.metrics.disentanglement import (
    active_units,
    beta_vae,
    dci,
    drawn,
    factor_vae,
    looked_up,
    mig,
    mutual_information,
    posterior_mig,
)

SIZES = (3, 4, 5)
EVERY = np.stack(np.unravel_index(np.arange(60), SIZES), 1)
FEW = {'votes': (300, 300), 'batch': 16, 'samples': 300}
ROTATION = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]


def rng():
    return np.random.default_rng(0)


def spread(factors):
    """Factors [n, 3] with a variance of 1."""
    return factors / np.sqrt((np.array(SIZES) ** 2 - 1) / 12)


# --- mutual information --------------------------------------------------------------------------


def test_information_by_hand_and_by_scikit_learn():
    a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2])
    assert mutual_information(a, b) == pytest.approx(math.log(2))
    assert mutual_information(b, b) == pytest.approx(1.5 * math.log(2))
    for seed in range(5):
        a, b = np.random.default_rng(seed).integers(6, size=(2, 40))
        assert mutual_information(a, a ^ b) == pytest.approx(mutual_info_score(a, a ^ b))


def test_factors_themselves_have_the_whole_gap():
    assert mig(EVERY, EVERY) == pytest.approx(1)
    assert mig(-3.0 * EVERY[:, ::-1], EVERY) == pytest.approx(1)  # in another order
    assert mig(EVERY[:, :2], EVERY) == pytest.approx(2 / 3)  # nothing tells the third


def test_the_gap_of_what_is_told_twice_or_in_part():
    assert mig(np.repeat(EVERY, 2, 1), EVERY) == pytest.approx(0)
    half = np.column_stack([EVERY, EVERY[:, 1] // 2])  # one bit of two
    assert mig(half, EVERY) == pytest.approx((1 + 1 / 2 + 1) / 3)
    ends = np.column_stack([EVERY[:, :2], EVERY[:, 2] % 4 == 0])  # 2 of 5 values
    told = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    assert mig(ends, EVERY) == pytest.approx((2 + told / math.log(5)) / 3)


def test_bins_join_values():
    """Of 4 values in 2 bins one bit is left, of 5 log 5 - (2 log 2 + 3 log 3) / 5, of 3 as much."""
    told = [(math.log(n) - (a * math.log(a) + (n - a) * math.log(n - a)) / n) / math.log(n)
            for n, a in ((3, 1), (4, 2), (5, 2))]  # fmt: skip
    assert mig(EVERY, EVERY, bins=2) == pytest.approx(np.mean(told))


def test_noise_has_no_gap():
    factors = drawn(rng(), SIZES, 20_000)
    noise = rng().standard_normal((20_000, 4))
    # 19 (values - 1) / 2n nats each, and less their difference.
    assert 0 <= mig(noise, factors) < 0.005


def test_a_constant_number_tells_nothing():
    assert mig(np.column_stack([EVERY, np.ones(60)]), EVERY) == pytest.approx(1)


def test_narrow_posteriors_have_the_gap_of_their_means():
    half = np.column_stack([EVERY, EVERY[:, 1] // 2]) + 0.0
    found = posterior_mig(half, np.full(half.shape, -12.0), EVERY, rng())
    assert found == pytest.approx((1 + 1 / 2 + 1) / 3, abs=1e-4)  # all images are asked


def test_posteriors_that_overlap_by_quadrature():
    """z ~ N(+-m, s^2) of two values: I = H(mixture) - H(component), by a sum over a fine grid."""
    m, s = 0.8, 0.7
    grid = np.linspace(-8, 8, 4001)
    parts = (
        np.exp(-0.5 * ((grid - m * np.array([[-1], [1]])) / s) ** 2) / s / math.sqrt(2 * math.pi)
    )
    mixture = parts.mean(0)
    entropy = -(mixture * np.log(mixture)).sum() * (grid[1] - grid[0])
    told = (entropy - 0.5 * math.log(2 * math.pi * math.e * s**2)) / math.log(2)
    factors = np.stack(np.unravel_index(np.arange(2000) % 4, (2, 2)), 1)
    mu = np.column_stack([m * (2 * factors[:, 0] - 1), 5.0 * factors[:, 1], np.zeros(2000)])
    log_var = np.log([s**2, 1e-4, 1.0]) * np.ones((2000, 1))
    found = posterior_mig(mu, log_var, factors, rng(), samples=1000)
    # 4 standard errors of a log ratio whose deviation is below 0.7.
    assert found == pytest.approx((told + 1) / 2, abs=4 * 0.7 / math.sqrt(1000) / 2 / math.log(2))
    # The bits that a posterior blurs are not lost to its mean.
    assert mig(mu, factors) == pytest.approx(1)


def test_posteriors_are_weighed_in_parts_of_any_size(monkeypatch):
    mu, log_var = rng().standard_normal((2, 60, 4)) * np.array([[[3.0]], [[2.0]]])

    def found(places, posteriors):
        monkeypatch.setattr(disentanglement, 'PLACES', places)
        monkeypatch.setattr(disentanglement, 'POSTERIORS', posteriors)
        # Unlike parts: densities of the first are far above those of the last.
        return posterior_mig(mu, np.sort(8 * log_var, 0), EVERY, rng())

    whole = found(60, 60)
    assert 0.01 < whole < 1
    for parts in ((1, 60), (60, 1), (7, 11), (64, 4096)):
        assert found(*parts) == pytest.approx(whole, rel=1e-12)


def test_memory_does_not_grow_with_the_images():
    n = 200_000
    factors = drawn(rng(), SIZES, n)
    mu = factors + rng().standard_normal((n, 3))
    tracemalloc.start()
    posterior_mig(mu, np.zeros((n, 3)), factors, rng(), samples=64)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Of all at once one table of densities would be 307 MB.
    assert most < 1e8


# --- scores of groups ----------------------------------------------------------------------------


def test_groups_share_one_factor():
    for pairs in (False, True):
        found = list(disentanglement._groups(lambda x: x, SIZES, rng(), 130, 8, pairs))
        assert [len(x[0]) for x in found] == [100, 30]
        for shared, first, second in found:
            assert first.shape == (len(shared), 8, 3)
            same = (first == (second if pairs else first[:, :1])).all(1)  # [g, k]
            assert same[np.arange(len(shared)), shared].all()
            assert same.mean() < 0.36  # the others differ
            assert pairs or second is None
            assert not (first == first[:, :1]).all(1)[:, 1:].all()
    assert set(np.concatenate([x[0] for x in found])) == {0, 1, 2}


def test_factors_themselves_are_always_named():
    represent = looked_up(spread(EVERY), SIZES)
    assert factor_vae(represent, SIZES, rng(), **FEW) == 1
    assert beta_vae(represent, SIZES, rng(), (300, 300), 16) > 0.98
    # A number of its own for each factor is no more than is asked for.
    doubled = looked_up(np.repeat(spread(EVERY), 2, 1), SIZES)
    assert factor_vae(doubled, SIZES, rng(), **FEW) == 1


def test_noise_names_nothing():
    noise = np.random.default_rng(5)

    def represent(factors):
        return noise.standard_normal((len(factors), 4))

    # The best of three guesses, 1/3 give or take 4 standard deviations of 300 votes.
    for found in (
        factor_vae(represent, SIZES, rng(), **FEW),
        beta_vae(represent, SIZES, rng(), (300, 300), 16),
    ):
        assert abs(found - 1 / 3) < 4 * math.sqrt(2 / 9 / 300)


def test_a_number_that_hardly_varies_has_no_vote():
    codes = spread(EVERY)
    beside = np.column_stack([codes[:, :2], 0.01 * codes[:, 2]])
    votes = factor_vae(looked_up(beside, SIZES), SIZES, rng(), **FEW)
    assert votes < 0.75  # the third factor has no number
    finer = factor_vae(looked_up(beside, SIZES), SIZES, rng(), **FEW, least=1e-4)
    assert finer == 1
    assert factor_vae(looked_up(0.01 * codes, SIZES), SIZES, rng(), **FEW) == 0


def test_what_is_drawn_decides_the_score():
    represent = looked_up(spread(EVERY) @ ROTATION, SIZES)
    found = [factor_vae(represent, SIZES, np.random.default_rng(i), **FEW) for i in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


# --- prediction ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('predictor', ['forest', 'boosted'])
def test_factors_themselves_are_predicted_each_by_its_own(predictor):
    found = dci(EVERY, EVERY, EVERY, EVERY, predictor)
    np.testing.assert_allclose(found.importance.sum(0), 1)
    assert found.informativeness == 1
    assert min(found.disentanglement, found.completeness) > 0.97


@pytest.mark.slow
def test_a_rotation_is_informative_but_entangled():
    train, test = (np.random.default_rng(i).integers(SIZES, size=(400, 3)) for i in (0, 1))
    codes = [spread(x) for x in (train, test)]
    straight = dci(codes[0], train, codes[1], test)
    turned = dci(codes[0] @ ROTATION, train, codes[1] @ ROTATION, test)
    assert straight.disentanglement > 0.95
    assert turned.disentanglement < 0.4
    assert turned.completeness < 0.4
    assert turned.informativeness > 0.8
    assert mig(codes[0] @ ROTATION, train) < 0.3 < 0.9 < mig(codes[0], train)
    for name in ('factor_vae', 'beta_vae'):
        score = getattr(disentanglement, name)
        few = FEW if name == 'factor_vae' else {'groups': (300, 300), 'batch': 16}
        whole = [
            score(looked_up(x, SIZES), SIZES, rng(), **few)
            for x in (spread(EVERY), spread(EVERY) @ ROTATION)
        ]
        assert whole[1] < whole[0] - 0.1


def test_concentration_by_hand():
    of = disentanglement.concentration
    assert of(np.eye(3)) == 1
    assert of(np.ones((4, 3))) == pytest.approx(0, abs=1e-12)
    assert of(np.zeros((4, 3))) == 0
    # Two numbers for each of two factors: disentangled, and half complete.
    twice = np.array([[0.5, 0], [0.5, 0], [0, 0.5], [0, 0.5]])
    assert of(twice) == 1
    assert of(twice.T) == pytest.approx(1 - math.log(2) / math.log(4))
    # Rows weigh by their sums: of [3, 1] -+ entropy, and one that is not used.
    rows = np.array([[3.0, 1.0], [0.0, 4.0], [0.0, 0.0]])
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert of(rows) == pytest.approx((4 * (1 - entropy) + 4) / 8)


@pytest.mark.slow
def test_duplicated_numbers_are_disentangled_and_not_complete():
    codes = np.repeat(EVERY, 2, 1)
    found = dci(codes, EVERY, codes, EVERY)
    assert found.disentanglement > 0.99
    # At best each of two numbers has half, which is 1 - log 2 / log 6; chance shares it unevenly.
    assert 0.6 < found.completeness < 0.95


@pytest.mark.slow
def test_noise_predicts_nothing():
    train, test = (np.random.default_rng(i).integers(SIZES, size=(300, 3)) for i in (0, 1))
    noise = rng().standard_normal((2, 300, 3))
    found = dci(noise[0], train, noise[1], test, 'forest')
    guess = np.mean(1 / np.array(SIZES))
    assert abs(found.informativeness - guess) < 4 * math.sqrt(guess * (1 - guess) / 900)
    assert found.disentanglement < 0.05


def test_units_in_use():
    codes = np.column_stack([spread(EVERY), np.full(60, 7.0), 0.05 * spread(EVERY)[:, 0]])
    assert active_units(codes) == 3
    assert active_units(codes, least=1e-3) == 4


# --- what is asked -------------------------------------------------------------------------------

CODES = spread(EVERY)
WRONG = [
    (lambda: mig(CODES[:, :1], EVERY), 'd at least 2'),
    (lambda: mig(np.where(EVERY == 1, np.nan, CODES), EVERY), 'finite'),
    (lambda: mig(CODES, EVERY[1:]), r'expected whole numbers \[60, k\]'),
    (lambda: mig(CODES, CODES), 'factors are float64'),
    (lambda: mig(CODES, EVERY * [1, 1, 0]), '2 values each'),
    (lambda: mig(CODES, EVERY[:, :1]), 'at least 2'),
    (lambda: mig(CODES, EVERY - 1), 'positions >= 0'),
    (lambda: mig(CODES, EVERY, bins=1), 'bins=1'),
    (lambda: posterior_mig(CODES, CODES[1:], EVERY, rng()), 'expected that of mu'),
    (lambda: looked_up(CODES, (3, 4)), '60 codes'),
    (lambda: factor_vae(None, (3, 1), rng()), r'sizes=\(3, 1\)'),
    (lambda: beta_vae(None, (3,), rng()), r'sizes=\(3,\)'),
    (lambda: factor_vae(None, SIZES, rng(), least=0.0), 'least=0.0'),
    (lambda: factor_vae(None, SIZES, rng(), batch=1), 'batch=1'),
    (lambda: dci(CODES, EVERY, CODES, EVERY, 'boost'), "did you mean 'boosted'"),
]


@pytest.mark.parametrize(('call', 'told'), WRONG, ids=[told for _, told in WRONG])
def test_mistakes_are_told_in_one_line(call, told):
    with pytest.raises(UserError, match=told) as error:
        call()
    assert '\n' not in str(error.value)
