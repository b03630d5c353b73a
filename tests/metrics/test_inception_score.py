import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.metrics.inception_score import inception_score


def draw(n, k, seed=0):
    return np.random.default_rng(seed).normal(size=(n, k))


@pytest.mark.parametrize('confidence', [50.0, 5000.0])
def test_certain_of_every_class_equally_often(confidence):
    """K, even where the other classes' probabilities are below the smallest float."""
    logits = confidence * np.eye(7)[np.arange(70) % 7]
    got = inception_score(logits, splits=10, shuffle_seed=None)
    assert got['mean'] == pytest.approx(7, rel=1e-12)
    assert got['std'] < 1e-12


@pytest.mark.parametrize('row', [np.zeros(5), np.arange(5.0), 900 * np.eye(5)[2]])
def test_the_same_prediction_everywhere(row):
    got = inception_score(np.tile(row, (20, 1)))
    assert got['mean'] == pytest.approx(1, rel=1e-12)


def test_a_mixture_of_two_predictions():
    """exp of the mutual information of image and class, from probabilities written out."""
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    q = p.mean(0)
    want = np.exp(np.mean([sum(row * np.log(row / q)) for row in p]))
    logits = np.log(np.repeat(p, 4, axis=0)) + draw(8, 1)  # a constant in a row changes nothing
    assert inception_score(logits, splits=1)['mean'] == pytest.approx(want, rel=1e-12)


def test_splits_are_scored_alone():
    logits = draw(23, 4) * 3
    parts = [logits[a:b] for a, b in ((0, 4), (4, 9), (9, 13), (13, 18), (18, 23))]
    scores = [inception_score(part, splits=1, shuffle_seed=None)['mean'] for part in parts]
    got = inception_score(logits, splits=5, shuffle_seed=None)
    assert got['mean'] == pytest.approx(np.mean(scores), rel=1e-12)
    assert got['std'] == pytest.approx(np.std(scores), rel=1e-12)


def test_shuffle_mends_an_order_by_class():
    logits = 50 * np.eye(5)[np.repeat(np.arange(5), 200)]
    assert inception_score(logits, splits=5, shuffle_seed=None)['mean'] == pytest.approx(1)
    assert inception_score(logits, splits=5)['mean'] > 4.8
    a, b = (inception_score(logits, splits=5, shuffle_seed=seed)['mean'] for seed in (1, 2))
    assert a != b


def test_a_split_of_one_image_scores_one():
    assert inception_score(draw(6, 3), splits=6)['mean'] == pytest.approx(1, rel=1e-12)


def test_float32_is_computed_in_float64():
    logits = (draw(40, 9) * 20).astype(np.float32)
    assert inception_score(logits) == inception_score(logits.astype(np.float64))
    assert all(type(value) is float for value in inception_score(logits).values())


def test_logits_are_left_alone():
    logits = draw(20, 3)
    inception_score(logits, shuffle_seed=None)
    np.testing.assert_array_equal(logits, draw(20, 3))


@pytest.mark.parametrize(
    ('logits', 'splits', 'message'),
    [
        (draw(9, 3), 10, r'logits have shape \(9, 3\), expected at least 10 samples'),
        (draw(9, 3), 0, 'splits=0: expected at least 1'),
        (np.full((9, 3), -np.inf), 1, 'logits: row 0 is not finite'),
        (np.zeros(9), 1, 'logits are float64'),
    ],
)
def test_refuses(logits, splits, message):
    with pytest.raises(UserError, match=message) as error:
        inception_score(logits, splits)
    assert '\n' not in str(error.value)
