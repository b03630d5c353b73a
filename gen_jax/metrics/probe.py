"""How much of an image's class a linear model finds in features (Alain and Bengio 2017)."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gen_jax.errors import NotFinite, UserError
from gen_jax.metrics.accuracy import Share, share

MOST_STEPS = 300  # of L-BFGS
TOGETHER = 250  # rows


class Probed(NamedTuple):
    """What a probe says of images that it has not seen.

    Attributes:
      right: the share whose class it names.
      converged: whether fitting ended by itself, and not after MOST_STEPS.
    """

    right: Share
    converged: bool


def probe(seen: tuple, held_out: tuple) -> Probed:
    """Logistic regression on standardised features, penalty |w|^2 / 2 beside the summed losses.

    Beside what it is given it holds the standardised features that it is fitted to, in float32.

    Args:
      seen: features [n, ...] of images, of any numbers, and their labels int [n], to fit.
      held_out: the same of others.

    Raises:
      UserError: fewer than two classes to tell apart, or features that are not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (x, y), (x_held, y_held) = ((flat(f), np.asarray(labels)) for f, labels in (seen, held_out))
    if len(np.unique(y)) < 2:
        raise UserError(f'a probe of labels {np.unique(y).tolist()}: expected two classes or more')
    scaler, model = StandardScaler(), LogisticRegression(max_iter=MOST_STEPS)
    for part in _parts(x):
        scaler.partial_fit(part)
    standard = np.empty(x.shape, np.float32)
    for part, to in zip(_parts(x), _parts(standard), strict=True):
        to[:] = scaler.transform(part)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always', ConvergenceWarning)
        model.fit(standard, y)
    converged = not any(issubclass(x.category, ConvergenceWarning) for x in told)
    named = [model.predict(np.float32(scaler.transform(part))) for part in _parts(x_held)]
    return Probed(share(np.concatenate(named) == y_held), converged)


def _parts(x: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time: of pixels there is much, and arithmetic makes it larger."""
    return (x[start : start + TOGETHER] for start in range(0, len(x), TOGETHER))


def flat(features: np.ndarray) -> np.ndarray:
    """Features [n, ...] as [n, d]; NotFinite where some are not finite."""
    features = np.asarray(features).reshape(len(features), -1)
    if not all(np.isfinite(part).all() for part in _parts(features)):
        raise NotFinite('a probe of features that are not finite: the model has diverged')
    return features
