"""What a decoder says of pixels: p(x|z), by name. Each is summed over pixels and channels, in nats.

Images x are float32 [b, h, w, c] in [-1, 1]; a decoder gives `features` numbers for each pixel.

| name | of a pixel | what the numbers are |
|---|---|---|
| bernoulli | 0 or 1; x is mapped to [0, 1] | logits |
| gaussian | a density on [-1, 1] | the mean; sigma is one for all, fixed or learned |
| gaussian_per_pixel | the same | mean, log sigma |
| logistic | one of 256 levels: a logistic's mass between their middles | mean, log scale |
| logistic_mixture | the same, by a mixture of 10; green follows red, blue both | PixelCNN++'s |
| categorical | the same, each level by itself | 256 logits |
| table | numbers, and which of some values | see `table` |

Only logistic, logistic_mixture and categorical are probabilities of images of 8 bits, which can be
told as bits per dimension and compared with other models'. A density compares with densities:
divide x by its range 2 to compare with those on [0, 1], that is, add h * w * c * log 2. On grey
levels a Bernoulli's cross-entropy is the usual training loss but no normalised density: the
continuous Bernoulli's constant (Loaiza-Ganem and Cunningham 2019) is missing, so that it compares
with other cross-entropies only.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax.errors import UserError

LOG_2PI = math.log(2 * math.pi)
LEVELS = 256
HALF = 1 / (LEVELS - 1)  # half of the distance between two levels
MIXTURES = 10
# PixelCNN++ and VDVAE take no scale below e^-7: a ninth of a level.
LEAST_LOG_SCALE = -7.0


class Likelihood(NamedTuple):
    """One p(x|z).

    Attributes:
      features: (channels) -> how many numbers it takes for a pixel.
      log_prob: (x [b, h, w, c], numbers [b, h, w, features]) -> [b], nats.
      mean: numbers -> E[x|z] [b, h, w, c], in [-1, 1]; of logistics where they lie, which near
        the ends of the levels is not quite that.
      draw: (keys [b], numbers) -> x [b, h, w, c] in [-1, 1], image i from keys[i].
      channels: of the images that it fits; (): any.
      bits: whether it is a probability of images of 8 bits.
    """

    features: Callable
    log_prob: Callable
    mean: Callable
    draw: Callable
    channels: tuple[int, ...] = ()
    bits: bool = False


def total(terms: jax.Array) -> jax.Array:
    """Sums all but the first axis: [b, ...] -> [b]."""
    return terms.sum(range(1, terms.ndim))


def each(draw: Callable, keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What `draw` (key, shape) gives for each key, [b, *shape]."""
    return jax.vmap(lambda key: draw(key, shape))(keys)


# --- of two values -------------------------------------------------------------------------------


def bernoulli(x: jax.Array, logits: jax.Array) -> jax.Array:
    """Sum of t log p + (1 - t) log(1 - p), with p = sigmoid(logits) and t = (x + 1) / 2.

    Kingma and Welling 2014, equation 11.

    Raises:
      UserError: x is not within [-1, 1], where it is known, which it is not in a compiled program.
    """
    if not isinstance(x, jax.core.Tracer) and np.abs(x).max(initial=0) > 1:
        ends = f'from {np.min(x):g} to {np.max(x):g}'
        raise UserError(f"pixels {ends}: expected [-1, 1], whose ends are a Bernoulli's 0 and 1")
    return total(-optax.sigmoid_binary_cross_entropy(logits, (x + 1) / 2))


def _bernoulli_mean(logits):
    return 2 * jax.nn.sigmoid(logits) - 1


def _bernoulli_draw(keys, logits):
    u = each(jax.random.uniform, keys, logits.shape[1:])
    return jnp.where(u < jax.nn.sigmoid(logits), 1.0, -1.0)


# --- densities -----------------------------------------------------------------------------------


def gaussian(x: jax.Array, numbers: jax.Array) -> jax.Array:
    """Kingma and Welling 2014, equation 12: log N(x; mean, sigma^2), numbers mean, log sigma."""
    mean, log_sigma = jnp.split(numbers, 2, -1)
    return total(-0.5 * LOG_2PI - log_sigma - 0.5 * ((x - mean) / jnp.exp(log_sigma)) ** 2)


def _first(numbers):
    return jnp.clip(jnp.split(numbers, 2, -1)[0], -1, 1)


def _gaussian_draw(keys, numbers):
    mean, log_sigma = jnp.split(numbers, 2, -1)
    noise = each(jax.random.normal, keys, mean.shape[1:])
    return jnp.clip(mean + jnp.exp(log_sigma) * noise, -1, 1)


# --- masses of 256 levels ------------------------------------------------------------------------


def mass(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Log of a logistic's mass between the middles to the levels next to x; any shapes.

    The first and last level have all that is beyond them (Salimans et al. 2017, section 2.1). Exact
    in float32 at any distance from the mean, so that the masses of all levels are 1 in sum;
    PixelCNN++'s code, and those after it, take the density in the middle where less than 1e-5 is.
    """
    scale = jnp.exp(-jnp.maximum(log_scale, LEAST_LOG_SCALE))
    high, low = (x - mean + HALF) * scale, (x - mean - HALF) * scale
    below, above = jax.nn.log_sigmoid(high), jax.nn.log_sigmoid(-low)
    # log(s(high) - s(low)) = log s(high) + log s(-low) + log(1 - e^(low - high))
    inside = below + above + jnp.log(-jnp.expm1(-2 * HALF * scale))
    first, last = x < HALF - 1, x > 1 - HALF
    return jnp.where(first, below, jnp.where(last, above, inside))


def logistic(x: jax.Array, numbers: jax.Array) -> jax.Array:
    """A logistic for each number of an image: mean, log scale."""
    return total(mass(x, *jnp.split(numbers, 2, -1)))


def _logistic_draw(keys, numbers):
    mean, log_scale = jnp.split(numbers, 2, -1)
    noise = each(jax.random.logistic, keys, mean.shape[1:])
    return levels_near(mean + jnp.exp(jnp.maximum(log_scale, LEAST_LOG_SCALE)) * noise)


def levels_near(x: jax.Array) -> jax.Array:
    """Each number as the nearest of the 256 levels in [-1, 1]."""
    return jnp.round((jnp.clip(x, -1, 1) + 1) / (2 * HALF)) * (2 * HALF) - 1


class Mixture(NamedTuple):
    """What tells of a mixture of logistics; k of them, c channels of an image.

    Attributes:
      log_weights: of a pixel's logistics [b, h, w, k].
      means: [b, h, w, c, k], of each channel by itself.
      log_scales: [b, h, w, c, k].
      slopes: how means follow the channels before, [b, h, w, 3, k]: of green by red, of blue by red
        and by green; None of grey images.
    """

    log_weights: jax.Array
    means: jax.Array
    log_scales: jax.Array
    slopes: jax.Array | None

    @classmethod
    def of(cls, numbers: jax.Array) -> 'Mixture':
        """From numbers [b, h, w, 10 k] of colour or [b, h, w, 3 k] of grey, as PixelCNN++ has them.

        k weights come first, then for each channel k means, log scales and, of colour, slopes.
        """
        k = MIXTURES
        c = 3 if numbers.shape[-1] == 10 * k else 1
        weights, rest = numbers[..., :k], numbers[..., k:]
        means, log_scales, *slopes = jnp.split(
            rest.reshape(*rest.shape[:-1], c, -1), 2 + (c == 3), -1
        )
        log_weights = jax.nn.log_softmax(weights)
        return cls(log_weights, means, log_scales, jnp.tanh(slopes[0]) if slopes else None)

    def means_after(self, x: jax.Array) -> jax.Array:
        """Means [b, h, w, c, k] where the channels before are those of x [b, h, w, c, k or 1]."""
        if self.slopes is None:
            return self.means
        red, green = x[..., 0, :], x[..., 1, :]
        by = [self.slopes[..., i, :] for i in range(3)]
        shift = jnp.stack([jnp.zeros_like(by[0]), by[0] * red, by[1] * red + by[2] * green], -2)
        return self.means + shift


def logistic_mixture(x: jax.Array, numbers: jax.Array) -> jax.Array:
    """A mixture of logistics for each pixel (Salimans et al. 2017, section 2.2)."""
    mixture = Mixture.of(numbers)
    x = x[..., None]  # [b, h, w, c, 1]
    of_each = mass(x, mixture.means_after(x), mixture.log_scales).sum(-2)  # [b, h, w, k]
    return total(jax.nn.logsumexp(mixture.log_weights + of_each, -1))


def _mixture_mean(numbers):
    mixture = Mixture.of(numbers)
    means = mixture.means
    for _ in range(means.shape[-2] - 1):  # each follows the mean of the channels before
        means = mixture.means_after(means)
    weights = jnp.exp(mixture.log_weights)[..., None, :]
    return jnp.clip((weights * means).sum(-1), -1, 1)


def _mixture_draw(keys, numbers):
    mixture = Mixture.of(numbers)

    def draw(key, mixture):
        which, key = jax.random.split(key)
        chosen = jax.random.categorical(which, mixture.log_weights)  # [h, w]
        picked = jax.nn.one_hot(chosen, MIXTURES)[..., None, :]  # [h, w, 1, k]
        noise = jax.random.logistic(key, mixture.means.shape[:-1])  # [h, w, c]
        spread = jnp.exp(jnp.maximum(mixture.log_scales, LEAST_LOG_SCALE))
        noise = (picked * spread).sum(-1) * noise
        x = jnp.zeros_like(mixture.means[..., :1])  # [h, w, c, 1]
        for _ in range(x.shape[-2]):  # channel by channel
            means = (picked * mixture.means_after(x)).sum(-1)
            x = levels_near(means + noise)[..., None]
        return x[..., 0]

    return jax.vmap(draw)(keys, mixture)


def categorical(x: jax.Array, logits: jax.Array) -> jax.Array:
    """Each of the 256 levels by itself; logits [b, h, w, 256 c]."""
    logits = jax.nn.log_softmax(_by_level(logits))
    level = jnp.round((x + 1) / (2 * HALF)).astype(jnp.int32)
    return total(jnp.take_along_axis(logits, level[..., None], -1))


def _by_level(logits):
    return logits.reshape(*logits.shape[:-1], -1, LEVELS)


def _categorical_mean(logits):
    return jax.nn.softmax(_by_level(logits)) @ jnp.linspace(-1, 1, LEVELS)


def _categorical_draw(keys, logits):
    level = jax.vmap(jax.random.categorical)(keys, _by_level(logits))
    return level * (2 * HALF) - 1


LIKELIHOODS = {
    'bernoulli': Likelihood(lambda c: c, bernoulli, _bernoulli_mean, _bernoulli_draw),
    'gaussian': Likelihood(lambda c: c, gaussian, _first, _gaussian_draw),
    'gaussian_per_pixel': Likelihood(lambda c: 2 * c, gaussian, _first, _gaussian_draw),
    'logistic': Likelihood(lambda c: 2 * c, logistic, _first, _logistic_draw, bits=True),
    'logistic_mixture': Likelihood(
        lambda c: MIXTURES * (10 if c == 3 else 3),
        logistic_mixture,
        _mixture_mean,
        _mixture_draw,
        channels=(1, 3),
        bits=True,
    ),
    'categorical': Likelihood(
        lambda c: LEVELS * c, categorical, _categorical_mean, _categorical_draw, bits=True
    ),
}


# --- of tables -----------------------------------------------------------------------------------


def table(columns: tuple[int, ...]) -> Likelihood:
    """Rows of a table as images of one pixel.

    A column is a number in [-1, 1], with a density as gaussian_per_pixel's, or one of k values: k
    channels that are -1 but for a 1 in its place, with a probability each.

    Args:
      columns: of each how many values, 1: it is a number. Channels are their sum; a decoder gives
        all means, all log sigmas, then the logits of each.
    """
    at = np.split(np.arange(sum(columns)), np.cumsum(columns)[:-1])
    reals = np.array([where[0] for where, k in zip(at, columns, strict=True) if k == 1], int)
    choices = [where for where, k in zip(at, columns, strict=True) if k > 1]
    n = len(reals)
    ends = np.cumsum([len(where) for where in choices])

    def split(numbers):
        logits = jnp.split(numbers[..., 2 * n :], ends[:-1], -1) if choices else []
        return numbers[..., : 2 * n], logits

    def together(x, picked):
        """A row from its numbers [..., n] and what stands for its choices [..., k] each."""
        order = np.concatenate([reals, *choices]).argsort()
        return jnp.concatenate([jnp.clip(x, -1, 1), *(2 * p - 1 for p in picked)], -1)[..., order]

    def log_prob(x, numbers):
        density, logits = split(numbers)
        terms = [gaussian(x[..., reals], density)]
        for where, each_logits in zip(choices, logits, strict=True):
            terms.append(total((x[..., where] + 1) / 2 * jax.nn.log_softmax(each_logits)))
        return sum(terms)

    def mean(numbers):
        density, logits = split(numbers)
        return together(density[..., :n], [jax.nn.softmax(x) for x in logits])

    def draw(keys, numbers):
        density, logits = split(numbers)
        noise_keys, *pick_keys = jax.vmap(jax.random.split, (0, None), 1)(keys, 1 + len(logits))
        x = _gaussian_draw(noise_keys, density)
        picked = [
            jax.nn.one_hot(jax.vmap(jax.random.categorical)(key, one), one.shape[-1])
            for key, one in zip(pick_keys, logits, strict=True)
        ]
        return together(x, picked)

    return Likelihood(lambda c: 2 * n + sum(map(len, choices)), log_prob, mean, draw)


# Names of all, tables among them.
NAMES = (*LIKELIHOODS, 'table')


def named(name: str, columns: tuple[int, ...] = ()) -> Likelihood:
    """The likelihood of that name; `columns` are of 'table'."""
    return table(columns) if name == 'table' else LIKELIHOODS[name]
