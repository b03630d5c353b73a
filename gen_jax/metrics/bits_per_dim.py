"""Bits per dimension: negative log-likelihoods of images in a unit that compares.

A discrete model gives a pixel's levels probabilities P, and -log2 P / dims is the number. A
density p needs a step more. With the levels `spacing` apart in the units of p, noise uniform over
one spacing makes a level k the cell around it, whose volume is spacing^dims, and Jensen's
inequality over that noise u (Theis, van den Oord and Bethge 2016, section 3.1) gives

    log P(k) = log E_u[p(k + u)] + dims log(spacing) >= E_u[log p(k + u)] + dims log(spacing)

    bits per dimension = nats / (dims log 2) - log2(spacing)        where nats = -log p

For 256 levels in [-1, 1], as gen_jax's images are, level i is i / 127.5 - 1 and the offset
-log2(spacing) is log2(127.5) = 6.994 bits; for i / 256 in [0, 1), common for flows, it is 8; for
i / 255 in [0, 1] it is log2(255) = 7.994; in units of levels it is 0.
"""

import math
from typing import NamedTuple

import numpy as np

from gen_jax.config import nearest
from gen_jax.errors import UserError

# Between neighbouring levels of `gen_jax.data.pipeline.to_float`'s images.
SPACING = 2 / 255

KINDS = (
    'exact',  # the model's own log-likelihood
    'bound',  # an upper bound on the bits, such as a negative ELBO
)
LIKELIHOODS = (
    'discrete',  # probabilities of the levels; compares with any other discrete one
    'dequantised',  # a density, averaged over noise uniform over one spacing; bounds a discrete one
    'density',  # a density at the levels themselves; has no lower limit, so compares with nothing
)


class BitsPerDim(NamedTuple):
    """A mean over examples, with what one must know to compare it.

    Attributes:
      value: bits per dimension; lower is better.
      standard_error: of the mean, from the examples' spread; 0 for one example.
      n: examples.
      kind: 'exact' or 'bound', see `KINDS`.
      likelihood: 'discrete', 'dequantised' or 'density', see `LIKELIHOODS`.
    """

    value: float
    standard_error: float
    n: int
    kind: str
    likelihood: str


def from_nats(nats, dims: int, spacing: float = 1.0):
    """Bits per dimension of negative log-likelihoods.

    Args:
      nats: -log p of whole examples, a number or any array.
      dims: dimensions of an example, h * w * c.
      spacing: between neighbouring levels in the units of the density; `SPACING` for one of
        gen_jax's images; 1 for discrete probabilities.

    Returns:
      Shaped like `nats`.
    """
    _check(dims, spacing)
    return nats / (dims * math.log(2)) - math.log2(spacing)


def to_nats(bits, dims: int, spacing: float = 1.0):
    """The inverse of `from_nats`."""
    _check(dims, spacing)
    return (bits + math.log2(spacing)) * (dims * math.log(2))


def bits_per_dim(
    nats: np.ndarray, dims: int, kind: str, likelihood: str, spacing: float = 1.0
) -> BitsPerDim:
    """The number to report.

    Args:
      nats: -log p of each example [n], or its bound.
      dims, spacing: as in `from_nats`.
      kind: 'exact' or 'bound'.
      likelihood: 'discrete', 'dequantised' or 'density'.

    Raises:
      UserError: other words, numbers that are not finite or out of range, or a discrete likelihood
        with a spacing.
    """
    for what, word, known in (('kind', kind, KINDS), ('likelihood', likelihood, LIKELIHOODS)):
        if word not in known:
            raise UserError(f'{what}={word!r} says nothing of a likelihood{nearest(word, known)}')
    if likelihood == 'discrete' and spacing != 1:
        raise UserError(f'spacing={spacing}: probabilities of levels have none, expected 1')
    nats = np.asarray(nats, np.float64)
    if nats.ndim != 1 or not nats.size:
        raise UserError(f'nats have shape {nats.shape}: expected [n], one number per example')
    if not np.isfinite(nats).all():
        raise UserError(f'nats of example {(~np.isfinite(nats)).argmax()} are not finite')
    bits, n = from_nats(nats, dims, spacing), len(nats)
    error = bits.std(ddof=1) / math.sqrt(n) if n > 1 else 0.0
    return BitsPerDim(float(bits.mean()), float(error), n, kind, likelihood)


def _check(dims: int, spacing: float) -> None:
    if dims < 1:
        raise UserError(f'dims={dims}: expected h * w * c of the images, at least 1')
    if not spacing > 0:
        raise UserError(f'spacing={spacing}: expected the positive distance between two levels')
