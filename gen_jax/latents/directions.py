"""Directions in a space of latents that mean something: by what images show, or by variance."""

from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC

from gen_jax.errors import UserError

HELD_OUT = 0.2  # share of the samples of each kind that is kept for the accuracy
FEWEST = 10  # samples with an attribute, and without
LEAST = 100  # samples in all


class Boundary(NamedTuple):
    """A hyperplane between latents whose images have an attribute and those whose have not.

    Attributes:
      direction: float32 [d], of length 1, towards the attribute.
      accuracy: share of other samples on the right side, mean of both kinds; 0.5 is chance.
      n: these other samples.
    """

    direction: np.ndarray
    accuracy: float
    n: int


def boundary(w: np.ndarray, has: np.ndarray) -> Boundary:
    """That of a linear support vector machine (Shen et al. 2020, "Interpreting the Latent Space").

    Args:
      w: float [n, d].
      has: bool [n].

    Raises:
      UserError: too few of either kind.
    """
    w, has = np.asarray(w, np.float64), np.asarray(has, bool)
    if min(has.sum(), (~has).sum()) < FEWEST:
        raise UserError(
            f'{has.sum()} of {len(has)} samples have the attribute: expected {FEWEST} or more with '
            'it and without; raise config.explore.samples, or choose another attribute'
        )
    # At random: labels may follow each other in turn.
    seen, held = train_test_split(
        np.arange(len(w)), test_size=HELD_OUT, stratify=has, random_state=0
    )
    # Scaled as one, so that directions stay what they are.
    mean, scale = w.mean(0), w.std()
    machine = LinearSVC(class_weight='balanced', dual=False)
    machine.fit((w[seen] - mean) / scale, has[seen])
    right = balanced_accuracy_score(has[held], machine.predict((w[held] - mean) / scale))
    normal = machine.coef_[0]
    direction = (normal / np.linalg.norm(normal)).astype(np.float32)
    return Boundary(direction, float(right), len(held))


def principal(w: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal components (Härkönen et al. 2020, "GANSpace").

    Args:
      w: float [n, d].
      k: how many.

    Returns:
      float32 [k, d] of length 1, largest entry positive; the shares [k] of the variance; the
      standard deviations [k].

    Raises:
      UserError: more than there are dimensions.
    """
    if k > w.shape[1]:
        raise UserError(f'{k} components of {w.shape[1]} dimensions: lower config.explore.rows')
    found = PCA(k, svd_solver='full').fit(np.asarray(w, np.float64))
    components = found.components_
    largest = np.abs(components).argmax(1)
    components *= np.sign(components[np.arange(k), largest])[:, None]
    scales = np.sqrt(found.explained_variance_)
    return components.astype(np.float32), found.explained_variance_ratio_, scales
