"""Mode coverage: by hand, by enumeration, and against the mixture's own closed forms."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from gen_jax.errors import UserError
from gen_jax.metrics.modes import by_centres, by_classifier

GRID = np.array(list(itertools.product(range(-4, 5, 2), repeat=2)), float)  # VEEGAN's 25
STD = 0.05


def test_counts_by_hand_on_a_line():
    centres = np.array([[0.0], [10.0], [20.0]])
    samples = np.array([[0.2], [-2.9], [3.1], [9.0], [5.1], [13.0]])  # 3.1 and 5.1 are too far
    ours = by_centres(samples, centres, std=1.0)
    assert ours.counts == (2, 2, 0)  # 13.0 lies on the border
    assert (ours.found, ours.modes) == (2, 3)
    assert ours.high_quality == pytest.approx(4 / 6)
    assert ours.kl == pytest.approx(math.log(3 / 2))
    assert by_centres(samples, centres, std=1.0, within=1.5).counts == (1, 1, 0)
    assert by_centres(samples, centres, std=1.0, least=3).found == 0


@pytest.mark.parametrize('d', [2, 5])
def test_the_mixtures_own_samples_find_every_mode_and_the_share_that_chi_says(d):
    rng = np.random.default_rng(0)
    centres = 3 * np.eye(d)
    weights = np.arange(1, d + 1) / sum(range(1, d + 1))
    mode = rng.choice(d, 20_000, p=weights)
    samples = centres[mode] + STD * rng.normal(size=(20_000, d))
    ours = by_centres(samples, centres, STD, true_weights=weights)
    share = scipy.stats.chi(d).cdf(3)
    assert ours.found == d
    assert abs(ours.high_quality - share) < 4 * math.sqrt(share * (1 - share) / 20_000)
    # 2 n KL is chi^2 of d - 1 degrees where the weights are true.
    assert 0 <= 2 * sum(ours.counts) * ours.kl < scipy.stats.chi2(d - 1).ppf(0.9999)
    equal = by_centres(samples, centres, STD).kl
    assert equal == pytest.approx(scipy.stats.entropy(weights, np.ones(d) / d), abs=0.03)


@pytest.mark.parametrize('drawn', [1, 7, 25])
def test_a_model_that_draws_some_modes_evenly_finds_just_these(drawn):
    ours = by_centres(np.repeat(GRID[:drawn], 4, axis=0), GRID, STD)
    assert (ours.found, ours.high_quality) == (drawn, 1)
    assert ours.kl == pytest.approx(math.log(25 / drawn), abs=1e-12)


def test_nothing_of_high_quality_is_the_worst():
    ours = by_centres(GRID + 1, GRID, STD)
    assert (ours.found, ours.high_quality, ours.kl) == (0, 0, math.inf)


def test_direction_of_the_kl():
    """KL(model || data): a mode that the data lack is infinitely bad, a lost mode is not."""
    seen = np.array([0, 0, 0, 1])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.3)
    assert by_classifier(seen, 3, [5, 3, 2]).kl == pytest.approx(expected)
    assert by_classifier(seen, 3, [1, 0, 1]).kl == math.inf
    assert by_classifier(np.array([0, 2]), 3, [1, 0, 1]).kl == 0


def test_stacked_digits_are_a_thousand_classes():
    digits = np.array(list(itertools.product(range(10), repeat=3)))
    classes = np.ravel_multi_index(digits.T, (10, 10, 10))
    whole = by_classifier(classes, 1000)
    assert (whole.found, whole.modes, whole.high_quality) == (1000, 1000, 1)
    assert whole.kl == pytest.approx(0, abs=1e-12)
    third = by_classifier(classes[digits[:, 2] < 3], 1000)
    assert third.found == 300
    assert third.kl == pytest.approx(math.log(1000 / 300))


def test_logits_and_labels_say_the_same():
    logits = np.random.default_rng(0).normal(size=(50, 4))
    ours = by_classifier(logits, 4)
    assert ours == by_classifier(logits.argmax(1), 4)
    assert sum(ours.counts) == 50


@pytest.mark.parametrize(
    ('call', 'says'),
    [
        (lambda: by_centres(np.zeros((0, 2)), GRID, 1), r'samples have shape \(0, 2\)'),
        (lambda: by_centres(np.zeros(2), GRID, 1), r'samples have shape \(2,\)'),
        (lambda: by_centres(np.zeros((4, 3)), GRID, 1), '3 dimensions and centres 2'),
        (lambda: by_centres(np.array([[0, 0], [0, np.nan]]), GRID, 1), 'samples: row 1'),
        (lambda: by_centres(GRID, GRID, 0.0), 'std=0.0'),
        (lambda: by_centres(GRID, GRID, 1, within=-1.0), 'within=-1.0'),
        (lambda: by_centres(GRID, GRID, 1, least=0), 'least=0'),
        (lambda: by_centres(GRID, GRID, 1, true_weights=[1.0]), 'one per mode, 25'),
        (lambda: by_classifier(np.array([0, 1]), 2, [1, -1]), '0 or more'),
        (lambda: by_classifier(np.array([0, 1]), 2, [0, 0]), 'do not sum to 0'),
        (lambda: by_classifier(np.array([0, 2]), 2), 'label 2 is no class'),
        (lambda: by_classifier(np.zeros((3, 4)), 5), 'classes=5'),
        (lambda: by_classifier(np.zeros((0, 4)), 4), 'at least one'),
    ],
)
def test_bad_input_is_one_line(call, says):
    with pytest.raises(UserError, match=says) as error:
        call()
    assert '\n' not in str(error.value)
