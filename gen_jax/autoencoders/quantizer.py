"""Vector quantisation: van den Oord et al. 2017, "Neural Discrete Representation Learning"."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

# Added to the counts of codes, so that none is divided by 0 (the authors' code, in sonnet).
SMOOTHING = 1e-5


class Quantized(NamedTuple):
    """What a quantiser gives.

    Attributes:
      z: the codes [b, ..., d]; their gradient is that of what was quantised (section 3.2).
      indices: which codes, int32 [b, ...].
      codebook: squared distance of codes from what they stand for, for the codes to learn by, [b],
        mean over all numbers of an image; 0 where they follow a moving average.
      commitment: the same distance, for the encoder to learn by.
    """

    z: jax.Array
    indices: jax.Array
    codebook: jax.Array
    commitment: jax.Array


class VectorQuantizer(nn.Module):
    """Replaces vectors by the nearest of `codes`.

    Codes that learn by gradients are the parameter 'codes'. With a moving average they are kept in
    the collection 'codebook': the average, over steps, of the vectors that each stands for
    (appendix A.1, equations 6 to 8).

    Attributes:
      codes: K.
      dim: of each.
      decay: gamma of the moving average; 0: codes learn by gradients.
      restart: with a moving average, the count below which a code is put where one of the batch's
        vectors is (Dhariwal et al. 2020, "Jukebox", section 3.1); 0: never.
    """

    codes: int
    dim: int
    decay: float = 0.0
    restart: float = 0.0

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """[b, ..., dim] -> `Quantized`.

        With `train`, and where 'codebook' may change, codes move after they were used; restarts
        draw from the rng 'restart'.
        """
        z = z.astype(jnp.float32)

        def drawn(rng):
            shape = self.codes, self.dim
            return jax.random.uniform(rng, shape, minval=-1 / self.codes, maxval=1 / self.codes)

        if self.decay:
            kept = self.variable('codebook', 'codes', lambda: drawn(self.make_rng('params')))
            counts = self.variable('codebook', 'counts', jnp.ones, self.codes)
            sums = self.variable('codebook', 'sums', lambda: kept.value)
            codes = kept.value
        else:
            codes = self.param('codes', drawn)
        indices = nearest_codes(z, codes)
        found = jnp.take(codes, indices, 0)  # [b, ..., d]
        if self.decay and train and self.is_mutable_collection('codebook'):
            moved = self._moved(z, indices, counts.value, sums.value)
            kept.value, counts.value, sums.value = moved
        axes = range(1, z.ndim)
        stopped = jax.lax.stop_gradient
        codebook = jnp.square(found - stopped(z)).mean(axes)
        return Quantized(
            z + stopped(found - z),
            indices,
            jnp.zeros_like(codebook) if self.decay else codebook,
            jnp.square(z - stopped(found)).mean(axes),
        )

    def _moved(self, z, indices, counts, sums):
        """Codes, counts and sums after a step."""
        z, used = jax.lax.stop_gradient(z).reshape(-1, self.dim), indices.reshape(-1)
        with_ones = jnp.concatenate([z, jnp.ones((len(z), 1))], 1)
        new = jax.ops.segment_sum(with_ones, used, self.codes)  # [K, d + 1]
        counts = self.decay * counts + (1 - self.decay) * new[:, -1]
        sums = self.decay * sums + (1 - self.decay) * new[:, :-1]
        if self.restart:
            dead = counts < self.restart
            other = jax.random.randint(self.make_rng('restart'), (self.codes,), 0, len(z))
            sums = jnp.where(dead[:, None], z[other], sums)
            counts = jnp.where(dead, 1.0, counts)
        total = counts.sum()
        smooth = (counts + SMOOTHING) / (total + self.codes * SMOOTHING) * total
        return sums / smooth[:, None], counts, sums


def nearest_codes(z: jax.Array, codes: jax.Array) -> jax.Array:
    """Which of codes [K, d] is nearest to each vector: [b, ..., d] -> int32 [b, ...]."""
    # |z - e|^2 but for |z|^2, which is the same for all codes.
    distances = jnp.square(codes).sum(-1) - 2 * jnp.dot(z, codes.T, precision='highest')
    return distances.argmin(-1).astype(jnp.int32)


def perplexity(indices: jax.Array, codes: int) -> jax.Array:
    """Exp of the entropy of how often each code is used; indices int32 of any shape."""
    shares = jnp.bincount(indices.reshape(-1), length=codes) / indices.size
    return jnp.exp(-jax.scipy.special.xlogy(shares, shares).sum())
