"""Vector quantisation: van den Oord et al. 2017, "Neural Discrete Representation Learning"."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen_jax.config import require

# Added to the counts of codes, so that none is divided by 0 (the authors' code, in sonnet).
SMOOTHING = 1e-5
# Bytes of a table of distances, or of codes with all that is kept of them.
MOST_ROOM = 2**33
COPIES = 4  # of codes that learn by gradients: themselves, these, and Adam's moments


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

    Codes that learn by gradients are the parameter 'codes'. Averaged ones are kept in the
    collection 'codebook', which `moved` changes after a step by what the collection 'assigned',
    zeros like it before, tells then: of each code the number of vectors that it stood for
    ('counts'), their sum ('sums'), and one of the last vectors, whose code it need not be
    ('codes').

    Attributes:
      codes: K.
      dim: of each.
      averaged: whether codes follow a moving average, not gradients.
    """

    codes: int
    dim: int
    averaged: bool = False

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False) -> Quantized:
        """[b, ..., dim] -> `Quantized`.

        With `train` the collection 'assigned' is added to; its vectors are drawn from the rng
        'restart'.
        """
        z = z.astype(jnp.float32)

        def drawn(rng):
            shape = self.codes, self.dim
            return jax.random.uniform(rng, shape, minval=-1 / self.codes, maxval=1 / self.codes)

        if self.averaged:
            kept = self.variable('codebook', 'codes', lambda: drawn(self.make_rng('params')))
            self.variable('codebook', 'counts', jnp.ones, self.codes)
            self.variable('codebook', 'sums', lambda: kept.value)
            codes = kept.value
        else:
            codes = self.param('codes', drawn)
        indices = nearest_codes(z, codes)
        found = jnp.take(codes, indices, 0)  # [b, ..., d]
        if self.averaged and train:
            self._assign(z, indices)
        axes = range(1, z.ndim)
        stopped = jax.lax.stop_gradient
        codebook = jnp.square(found - stopped(z)).mean(axes)
        return Quantized(
            z + stopped(found - z),
            indices,
            jnp.zeros_like(codebook) if self.averaged else codebook,
            jnp.square(z - stopped(found)).mean(axes),
        )

    def _assign(self, z, indices):
        z, used = jax.lax.stop_gradient(z).reshape(-1, self.dim), indices.reshape(-1)
        with_ones = jnp.concatenate([z, jnp.ones((len(z), 1))], 1)
        new = jax.ops.segment_sum(with_ones, used, self.codes)  # [K, d + 1]
        other = jax.random.randint(self.make_rng('restart'), (self.codes,), 0, len(z))
        assigned = partial(self.variable, 'assigned')
        assigned('counts', jnp.zeros, self.codes).value += new[:, -1]
        assigned('sums', jnp.zeros, (self.codes, self.dim)).value += new[:, :-1]
        assigned('codes', jnp.zeros, (self.codes, self.dim)).value = z[other]


def require_room(field: str, codes: int, dim: int, vectors: int) -> None:
    """Raises the UserError of more codes than memory holds, or none.

    Args:
      field: what the config calls their number.
      codes: K.
      dim: of each.
      vectors: how many look for theirs at once: a table has the distances of all from all.
    """
    require(codes >= 1, field, codes, 'a whole number of at least 1')
    most = MOST_ROOM // (4 * max(vectors, COPIES * dim))
    expected = (
        f'at most {most}: the distances of {vectors} vectors from all codes, or codes of {dim} '
        'numbers with what an optimiser keeps of them, take 8 GiB then'
    )
    require(codes <= most, field, codes, expected)


def moved(codebook: dict, assigned: dict, decay: float, restart: float = 0.0) -> dict:
    """The collection 'codebook' after a step of the moving average.

    That of codes is over steps, of the vectors that each stands for (appendix A.1, equations 6 to
    8).

    Args:
      codebook: before.
      assigned: what `VectorQuantizer` made of zeros like it, over the whole batch.
      decay: gamma.
      restart: the count below which a code is put where one of the batch's vectors is (Dhariwal et
        al. 2020, "Jukebox", section 3.1); 0: never.
    """
    if 'codes' not in codebook:
        return {name: moved(x, assigned[name], decay, restart) for name, x in codebook.items()}
    counts, sums = (
        decay * codebook[name] + (1 - decay) * assigned[name] for name in ('counts', 'sums')
    )
    if restart:
        dead = counts < restart
        sums = jnp.where(dead[:, None], assigned['codes'], sums)
        counts = jnp.where(dead, 1.0, counts)
    total = counts.sum()
    smooth = (counts + SMOOTHING) / (total + len(counts) * SMOOTHING) * total
    return {'codes': sums / smooth[:, None], 'counts': counts, 'sums': sums}


def nearest_codes(z: jax.Array, codes: jax.Array) -> jax.Array:
    """Which of codes [K, d] is nearest to each vector: [b, ..., d] -> int32 [b, ...]."""
    # |z - e|^2 but for |z|^2, which is the same for all codes.
    distances = jnp.square(codes).sum(-1) - 2 * jnp.dot(z, codes.T, precision='highest')
    return distances.argmin(-1).astype(jnp.int32)


def perplexity(indices: jax.Array, codes: int) -> jax.Array:
    """Exp of the entropy of how often each code is used; indices int32 of any shape."""
    shares = jnp.bincount(indices.reshape(-1), length=codes) / indices.size
    return jnp.exp(-jax.scipy.special.xlogy(shares, shares).sum())
