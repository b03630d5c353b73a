"""Dropout with half the random bits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


class Dropout(nn.Module):
    """Zeroes each value with probability `rate` and scales up the rest (Srivastava et al. 2014).

    As `flax.linen.Dropout`, but of 16 random bits per value instead of 32: drawing them is what it
    costs. `rate` is rounded to a multiple of 2**-16, and the scale is that of the rounded rate, so
    that the mean stays. Rematerialisation can keep the mask by its name, `Dropout.MASK`.

    Attributes:
      rate: probability in [0, 1).
      deterministic: whether to do nothing; otherwise it needs the rng 'dropout'.
    """

    MASK = 'dropout_mask'

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Any shape -> the same."""
        dropped = round(self.rate * 2**16)
        if self.deterministic or not dropped:
            return x
        bits = jax.random.bits(self.make_rng('dropout'), x.shape, jnp.uint16)
        keep = checkpoint_name(bits >= dropped, self.MASK)
        return jnp.where(keep, x / (1 - dropped / 2**16), 0)
