"""Disentanglement: how nearly each number of a code tells one known factor of its image.

| function | of | from |
|---|---|---|
| mig, posterior_mig | mutual information gap | Chen et al. 2018, section 4 |
| factor_vae | FactorVAE's score | Kim and Mnih 2018, section 4 |
| beta_vae | beta-VAE's score | Higgins et al. 2017, section 3 |
| dci | disentanglement, completeness, informativeness | Eastwood and Williams 2018, section 2 |
| active_units | numbers that a code uses | Burda et al. 2016, section 5.2 |

All but the last are at most 1, the best. Numbers of samples, votes and bins are those of Locatello
et al. 2019 (the authors' disentanglement_lib). MIG and DCI punish a factor that is told by two
numbers, which a rotation or a shape may need; FactorVAE's and beta-VAE's do not.

Codes are [n, d], of an encoder the means of its posteriors. Factors are int [n, k], each a position
among the factor's values, and `sizes` how many these are. A `represent` is (factors [n, k]) ->
codes [n, d]: of images drawn with these factors.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gen_jax.config import nearest
from gen_jax.errors import UserError

Represent = Callable[[np.ndarray], np.ndarray]
PREDICTORS = ('boosted', 'forest')
GROUPS = 100  # of images that are represented at once
PLACES, POSTERIORS = 64, 4096  # at which densities are weighed, and the parts of these, at once


def drawn(rng: np.random.Generator, sizes: Sequence[int], *shape: int) -> np.ndarray:
    """Factors [*shape, k], every combination as likely as any other."""
    return rng.integers(np.array(sizes), size=(*shape, len(sizes)))


def looked_up(codes: np.ndarray, sizes: Sequence[int]) -> Represent:
    """The `represent` that finds codes [n, d] of every combination, the last factor fastest."""
    if len(codes) != math.prod(sizes):
        raise UserError(f'{len(codes)} codes: expected one of each of {math.prod(sizes)} images')
    return lambda factors: codes[np.ravel_multi_index(factors.T, sizes)]


# --- mutual information --------------------------------------------------------------------------


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Nats that two columns of whole numbers >= 0 [n] tell of each other; of one twice, entropy."""
    counts = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(counts, (a, b), 1)
    joint = counts / counts.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())


def mig(codes: np.ndarray, factors: np.ndarray, bins: int = 20) -> float:
    """The mutual information gap, of codes in bins of equal width (Locatello et al. 2019).

    Of each factor: how much more the best number tells of it than the second best, over its
    entropy. Information of few samples is overestimated, by (bins - 1) (values - 1) / 2n nats.

    Args:
      codes, factors: see the top of the file.
      bins: of each number, from its least to its greatest.
    """
    codes, factors = _checked(codes, factors)
    if bins < 2:
        raise UserError(f'bins={bins}: expected at least 2')
    binned = [np.digitize(x, np.histogram(x, bins)[1][1:-1]) for x in codes.T]
    return _gap([[mutual_information(x, v) for v in factors.T] for x in binned], factors)


def posterior_mig(
    mu: np.ndarray,
    log_var: np.ndarray,
    factors: np.ndarray,
    rng: np.random.Generator,
    samples: int = 10_000,
) -> float:
    """The mutual information gap of samples z ~ q(z|x), as Chen et al. 2018 have it.

    I(z_j; v) = E[log q(z_j | v) - log q(z_j)], densities being means of the posteriors' (equation 5
    and appendix B; the authors draw other z for each of both terms). Time is samples * n * d, and
    memory does not grow with either.

    Args:
      mu, log_var: of the posteriors of all images, [n, d].
      factors: of these.
      rng: draws which images are asked, and a z of each.
      samples: images asked, at most n.
    """
    mu, factors = _checked(mu, factors)
    deviation = np.exp(np.asarray(log_var, np.float64) / 2)
    if deviation.shape != mu.shape:
        raise UserError(f'log_var has shape {deviation.shape}, expected that of mu, {mu.shape}')
    asked, info = rng.permutation(len(mu))[:samples], 0.0
    for start in range(0, len(asked), PLACES):
        own = asked[start : start + PLACES]
        z = mu[own] + deviation[own] * rng.standard_normal((len(own), mu.shape[1]))
        total, given, alike = _densities(z, mu, deviation, factors[own], factors)
        info = info + np.log(given / alike[:, None] / (total / len(mu))[..., None]).sum(0)
    return _gap(np.maximum(info / len(asked), 0), factors)


def _densities(z, mu, deviation, own, factors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of the posteriors' densities at places z [p, d], each number's in a unit of its own.

    Args:
      z, own: the places, and the factors [p, k] of what they were drawn for.
      mu, deviation, factors: of all images, [n, d] and [n, k].

    Returns:
      Of all [p, d]; of those whose factor is `own` [p, d, k]; and how many these are [p, k].
    """
    most = np.full(z.shape, -np.inf)  # logarithm of the unit: of the largest density so far
    total, given, alike = np.zeros(z.shape), np.zeros((*z.shape, own.shape[1])), 0
    for start in range(0, len(mu), POSTERIORS):
        some = slice(start, start + POSTERIORS)
        log_q = -0.5 * ((z[:, None] - mu[some]) / deviation[some]) ** 2 - np.log(deviation[some])
        before, most = most, np.maximum(most, log_q.max(1))
        q = np.exp(log_q - most[:, None])  # [p, some, d]
        same = (own[:, None] == factors[some]).astype(np.float64)  # [p, some, k]
        shrunk = np.exp(before - most)
        total = total * shrunk + q.sum(1)
        given = given * shrunk[..., None] + np.einsum('pnd,pnk->pdk', q, same)
        alike = alike + same.sum(1)
    return total, given, alike


def _gap(info, factors: np.ndarray) -> float:
    """From nats [d, k] that numbers tell of factors."""
    second, first = np.sort(info, 0)[-2:]
    entropy = [mutual_information(column, column) for column in factors.T]
    return float(np.mean((first - second) / entropy))


# --- scores of groups of images ------------------------------------------------------------------


def factor_vae(
    represent: Represent,
    sizes: Sequence[int],
    rng: np.random.Generator,
    votes: tuple[int, int] = (10_000, 5_000),
    batch: int = 64,
    samples: int = 10_000,
    least: float = 0.05,
) -> float:
    """The share of votes that name the factor which a group of images has in common.

    A group votes for the number of its codes that varies least, compared with how it varies over
    all images; each number stands for the factor that it was mostly voted for.

    Args:
      represent, sizes: see the top of the file.
      rng: draws the groups.
      votes: that say what each number stands for, and that are counted. Kim and Mnih count the same
        votes again; here they are new ones, as Locatello et al. have it.
      batch: images of a group.
      samples: images that tell how numbers vary.
      least: standard deviation of a number that has a vote.

    Returns:
      The share, and 0 where no number varies; that of a guess is 1 / k.
    """
    _check_sizes(sizes)
    if not (least > 0 and batch >= 2):
        raise UserError(
            f'least={least}, batch={batch}: expected a positive number, and at least 2 images'
        )
    variance = represent(drawn(rng, sizes, samples)).var(0, ddof=1)
    if not (np.sqrt(variance) >= least).any():
        return 0.0
    counts = []
    for n in votes:
        count = np.zeros((len(variance), len(sizes)))
        for shared, codes, _ in _groups(represent, sizes, rng, n, batch):
            np.add.at(count, (vote(codes, variance, least), shared), 1)
        counts.append(count)
    return majority(*counts)


def vote(codes: np.ndarray, variance: np.ndarray, least: float) -> np.ndarray:
    """The numbers [g] that groups [g, batch, d] vote for; `variance` [d] is over all images."""
    votes = np.sqrt(variance) >= least
    ratio = codes.var(1, ddof=1) / np.where(votes, variance, 1)
    return np.where(votes, ratio, np.inf).argmin(1)


def majority(given: np.ndarray, counted: np.ndarray) -> float:
    """The share of votes [d, k] that agree with what most votes given before stand for."""
    return float(counted[np.arange(len(given)), given.argmax(1)].sum() / counted.sum())


def beta_vae(
    represent: Represent,
    sizes: Sequence[int],
    rng: np.random.Generator,
    groups: tuple[int, int] = (10_000, 5_000),
    batch: int = 64,
) -> float:
    """How often a linear classifier names the factor that the images of each pair share.

    It sees the mean over a group's pairs of |difference of their codes|.

    Args:
      represent, sizes: see the top of the file.
      rng: draws the groups.
      groups: that the classifier learns from, and that it is asked of.
      batch: pairs of a group.

    Returns:
      The share of right answers; that of a guess is 1 / k.
    """
    _check_sizes(sizes)
    sets = []
    for n in groups:
        found = [
            (shared, np.abs(a - b).mean(1))
            for shared, a, b in _groups(represent, sizes, rng, n, batch, of_pairs=True)
        ]
        sets.append([np.concatenate(x) for x in zip(*found, strict=True)])
    return named(*sets)


def named(learnt: Sequence[np.ndarray], asked: Sequence[np.ndarray]) -> float:
    """How often logistic regression is right; each a pair of factors [n] and features [n, d]."""
    # Imported here: scikit-learn takes a second.
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=10_000).fit(learnt[1], learnt[0])
    return float(model.score(asked[1], asked[0]))


def _groups(
    represent: Represent,
    sizes: Sequence[int],
    rng: np.random.Generator,
    n: int,
    batch: int,
    of_pairs: bool = False,
) -> Iterator[tuple]:
    """Groups of images that have one factor in common, some at a time.

    Yields:
      (that factor [g], codes [g, batch, d], None); with `of_pairs` the factor's value is that of a
      pair only, whose other codes stand in place of the None.
    """
    for start in range(0, n, GROUPS):
        g = min(GROUPS, n - start)
        shared = rng.integers(len(sizes), size=g)
        is_shared = (np.arange(len(sizes)) == shared[:, None])[:, None]  # [g, 1, k]
        first, second = drawn(rng, sizes, g, batch), None
        if of_pairs:
            second = np.where(is_shared, first, drawn(rng, sizes, g, batch))
        else:
            first = np.where(is_shared, first[:, :1], first)
        yield (
            shared,
            *(
                x if x is None else represent(x.reshape(-1, len(sizes))).reshape(g, batch, -1)
                for x in (first, second)
            ),
        )


# --- prediction ----------------------------------------------------------------------------------


class DCI(NamedTuple):
    """What `dci` finds.

    Attributes:
      disentanglement: 1 where each number is of use for one factor only; numbers weigh by use.
      completeness: 1 where for each factor one number only is of use.
      informativeness: the share of factors that are predicted rightly, of codes not learnt from.
      importance: of each number for each factor [d, k]; columns are 1 in sum.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: np.ndarray


def dci(
    codes: np.ndarray,
    factors: np.ndarray,
    test_codes: np.ndarray,
    test_factors: np.ndarray,
    predictor: str = 'boosted',
    seed: int | np.random.RandomState = 0,
) -> DCI:
    """Disentanglement, completeness and informativeness.

    Eastwood and Williams predict values by lasso and by random forests, and tell errors; here each
    value is a class, so that shapes and rotations fit too, as Locatello et al. have it.

    Args:
      codes, factors: what predictors learn from; Locatello et al. take 10,000.
      test_codes, test_factors: what they are asked of; 5,000.
      predictor: whose feature importances count: 'boosted', gradient boosted trees (Locatello et
        al.), a hundred for each value of a factor; or 'forest', a hundred in all, each of other
        samples drawn with replacement, which takes less time.
      seed: of the predictor.
    """
    codes, factors = _checked(codes, factors)
    if predictor not in PREDICTORS:
        raise UserError(f'predictor={predictor!r}: no such{nearest(predictor, PREDICTORS)}')
    # Imported here: scikit-learn takes a second.
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

    # Numbers hidden from a tree would leave others to stand in for them: all are seen.
    make = {
        'boosted': GradientBoostingClassifier,
        'forest': functools.partial(RandomForestClassifier, max_features=None),
    }[predictor]
    importance, right = [], []
    for column, asked in zip(factors.T, np.transpose(test_factors), strict=True):
        model = make(random_state=seed).fit(codes, column)
        importance.append(model.feature_importances_)
        right.append(model.score(test_codes, asked))
    importance = np.transpose(importance)
    found = concentration(importance), concentration(importance.T)
    return DCI(*found, float(np.mean(right)), importance)


def concentration(importance: np.ndarray) -> float:
    """How nearly each row of importances [a, b] has all of its sum in one place, from 0 to 1.

    1 - entropy of a row's shares, logarithms to base b; rows weigh by their sums. Of importances
    [d, k] this is disentanglement, transposed completeness (Eastwood and Williams 2018, section 2).
    """
    sums = importance.sum(1)
    if not sums.any():
        return 0.0
    shares = importance / np.where(sums, sums, 1)[:, None]
    logs = np.log(np.where(shares > 0, shares, 1))
    of_row = 1 + (shares * logs).sum(1) / math.log(importance.shape[1])
    return float((of_row * sums).sum() / sums.sum())


def active_units(codes: np.ndarray, least: float = 0.01) -> int:
    """How many numbers of codes [n, d] have a variance of more than `least` over the images."""
    return int((np.var(codes, 0, dtype=np.float64, ddof=1) > least).sum())


# --- what all take -------------------------------------------------------------------------------


def _checked(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, factors = np.asarray(codes, np.float64), np.asarray(factors)
    if codes.ndim != 2 or codes.shape[1] < 2 or not np.isfinite(codes).all():
        raise UserError(
            f'codes of shape {codes.shape}: expected [n, d] finite numbers with d at least 2'
        )
    if factors.ndim != 2 or factors.dtype.kind not in 'iu' or len(factors) != len(codes):
        raise UserError(
            f'factors are {factors.dtype} {factors.shape}: expected whole numbers [{len(codes)}, k]'
        )
    if factors.shape[1] < 2 or (factors == factors[:1]).all(0).any() or factors.min() < 0:
        raise UserError('factors: expected at least 2, of positions >= 0, with 2 values each')
    return codes, factors


def _check_sizes(sizes: Sequence[int]) -> None:
    if len(sizes) < 2 or min(sizes) < 2:
        raise UserError(f'sizes={tuple(sizes)}: expected at least 2 factors of at least 2 values')
