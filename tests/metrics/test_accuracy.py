"""Class accuracy, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix

from gen_jax.errors import UserError
from gen_jax.metrics.accuracy import accuracy, share

RNG = np.random.default_rng(0)


def test_agrees_with_scikit_learn():
    asked = RNG.integers(0, 5, 400)
    logits = RNG.normal(size=(400, 5)) + 1.5 * np.eye(5)[asked]
    seen = logits.argmax(1)
    table = confusion_matrix(asked, seen)
    ours = accuracy(logits, asked)
    assert ours.overall.value == pytest.approx(accuracy_score(asked, seen))
    assert ours.overall.n == 400
    per_class = table.diagonal() / table.sum(1)
    assert [ours.per_class[i].value for i in range(5)] == pytest.approx(per_class.tolist())
    assert [ours.per_class[i].n for i in range(5)] == table.sum(1).tolist()
    assert ours.worst_class == per_class.argmin()
    assert accuracy(seen, asked) == ours


def test_only_the_classes_asked_for_are_listed_and_the_first_of_equals_is_the_worst():
    ours = accuracy(np.array([7, 0, 2, 2, 5, 9]), np.array([7, 7, 2, 4, 5, 1]))
    assert {label: row.value for label, row in ours.per_class.items()} == {
        1: 0,
        2: 1,
        4: 0,
        5: 1,
        7: 0.5,
    }
    assert ours.worst_class == 1
    assert ours.overall.value == pytest.approx(3 / 6)


def test_standard_error_is_the_spread_of_repeated_shares():
    shares = RNG.random((4000, 50)) < 0.3
    spread = shares.mean(1).std()
    errors = [share(row).standard_error for row in shares]
    assert np.mean(errors) == pytest.approx(spread, rel=0.05)
    assert share(np.array([True])) == (1, 0, 1)


@pytest.mark.parametrize(
    ('seen', 'asked', 'says'),
    [
        (np.zeros((0, 3)), np.zeros(0, int), 'at least one'),
        (np.zeros(0, int), np.zeros(0, int), 'at least one'),
        (np.array([0, 1]), np.array([0]), '2 samples .* 1 labels'),
        (np.zeros(2), np.zeros(2, int), r'float64 of shape \(2,\)'),
        (np.zeros((2, 3, 1)), np.zeros(2, int), r'shape \(2, 3, 1\)'),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), np.array([0, 1]), 'sample 1 are NaN'),
        (np.zeros((2, 3)), np.array([0, 3]), 'label 3 is no class: expected 0 to 2'),
        (np.array([0, 1]), np.array([0, -1]), 'label -1 is no class: expected 0 or more'),
    ],
)
def test_bad_input_is_one_line(seen, asked, says):
    with pytest.raises(UserError, match=says) as error:
        accuracy(seen, asked)
    assert '\n' not in str(error.value)
