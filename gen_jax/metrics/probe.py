"""How much of an image's class a linear model finds in features (Alain and Bengio 2017)."""

import warnings
from typing import NamedTuple

import numpy as np

from gen_jax.errors import UserError
from gen_jax.metrics.accuracy import Share, share

MOST_STEPS = 300  # of L-BFGS


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

    Args:
      seen: features [n, ...] of images and their labels int [n], to fit.
      held_out: the same of others.

    Raises:
      UserError: fewer than two classes to tell apart, or features that are not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, y), (x_held, y_held) = ((flat(f), np.asarray(labels)) for f, labels in (seen, held_out))
    if len(np.unique(y)) < 2:
        raise UserError(f'a probe of labels {np.unique(y).tolist()}: expected two classes or more')
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MOST_STEPS))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always', ConvergenceWarning)
        model.fit(x, y)
    converged = not any(issubclass(x.category, ConvergenceWarning) for x in told)
    return Probed(share(model.predict(x_held) == y_held), converged)


def flat(features: np.ndarray) -> np.ndarray:
    """Features [n, ...] as float64 [n, d]; UserError where some are not finite."""
    features = np.asarray(features, np.float64).reshape(len(features), -1)
    if not np.isfinite(features).all():
        raise UserError('a probe of features that are not finite: the model has diverged')
    return features
