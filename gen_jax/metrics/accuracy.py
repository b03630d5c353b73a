"""How often a classifier sees in samples the classes they were asked for.

The upper end is the classifier's accuracy on real images, which belongs beside this number: a
sample that it misnames may be its own mistake.
"""

import math
from typing import NamedTuple

import numpy as np

from gen_jax.errors import UserError


class Share(NamedTuple):
    """A share of n trials.

    Attributes:
      value: in [0, 1].
      standard_error: sqrt(value (1 - value) / n), the binomial's.
      n: trials.
    """

    value: float
    standard_error: float
    n: int


class Accuracy(NamedTuple):
    """The share recognised as the class asked for.

    Attributes:
      overall: of all samples.
      per_class: {class: of the samples asked to be it}, for the classes that were asked for.
      worst_class: where the share is least; of equals, the first class.
    """

    overall: Share
    per_class: dict[int, Share]
    worst_class: int


def accuracy(seen: np.ndarray, asked: np.ndarray) -> Accuracy:
    """Accuracy in all and per class.

    Args:
      seen: a classifier's logits, float [n, k], or the classes it names, int [n].
      asked: the labels that the samples were conditioned on, int [n].

    Raises:
      UserError: nothing to count, other shapes, logits that are NaN, or labels beyond the classes.
    """
    classes = np.shape(seen)[1] if np.ndim(seen) == 2 else None
    asked = named(asked, classes)
    right = named(seen) == _same_length(asked, seen)
    per_class = {int(label): share(right[asked == label]) for label in np.unique(asked)}
    worst = min(per_class, key=lambda label: per_class[label].value)
    return Accuracy(share(right), per_class, worst)


def share(right: np.ndarray) -> Share:
    """The share of True in bool [n], n at least 1."""
    value, n = float(np.mean(right)), len(right)
    return Share(value, math.sqrt(value * (1 - value) / n), n)


def named(seen: np.ndarray, classes: int | None = None) -> np.ndarray:
    """The classes int [n] of logits float [n, k] (the first of equals) or of labels int [n].

    Args:
      seen: logits or labels.
      classes: labels must be below it; None: any from 0 on.

    Raises:
      UserError: there are none, or they are neither.
    """
    seen = np.asarray(seen)
    if not seen.size:
        raise UserError('no logits or labels to count: expected at least one')
    if seen.ndim == 2 and seen.dtype.kind == 'f':
        if np.isnan(seen).any():
            raise UserError(f'logits of sample {np.isnan(seen).any(1).argmax()} are NaN')
        return seen.argmax(1)
    if seen.ndim != 1 or seen.dtype.kind not in 'iu':
        raise UserError(
            f'got {seen.dtype} of shape {seen.shape}: expected logits, float [n, classes], or '
            'labels, int [n]'
        )
    if seen.min() < 0 or (classes is not None and seen.max() >= classes):
        wrong = seen.min() if seen.min() < 0 else seen.max()
        upper = '' if classes is None else f' to {classes - 1}'
        raise UserError(f'label {wrong} is no class: expected 0{upper or " or more"}')
    return seen


def _same_length(asked: np.ndarray, seen: np.ndarray) -> np.ndarray:
    if len(asked) != len(seen):
        raise UserError(
            f'{len(seen)} samples were judged but {len(asked)} labels asked for: expected as many'
        )
    return asked
