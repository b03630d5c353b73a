"""What each player of a GAN minimises, as functions of the discriminator's logits.

Logits are D before any sigmoid, float32 [b]; losses are means over the batch, scalars. Names are
those of `OBJECTIVES`, which any network meets.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Objective(NamedTuple):
    """Both players' losses.

    Attributes:
      discriminator: (real logits [b], fake logits [b], smoothing) -> its loss. `smoothing` is (s,
        s'): the targets of real and of fake images move towards each other by s and by s'.
      generator: (fake logits [b]) -> its loss.
      smooths: whether there are targets that `smoothing` can move.
      boundary: the logit above which an image counts as judged real; None of a score, which has no
        such place and whose gradient something has to keep in bounds (Arjovsky et al. 2017).
      zero_sum: whether the generator's is, but for what does not depend on it, minus the
        discriminator's.
    """

    discriminator: Callable
    generator: Callable
    smooths: bool = False
    boundary: float | None = 0.0
    zero_sum: bool = False


def _cross_entropy(real: jax.Array, fake: jax.Array, smoothing: tuple) -> jax.Array:
    """-E[log D(x)] - E[log(1 - D(G(z)))], D = sigmoid(logit).

    Goodfellow et al. 2014, equation 1. Smoothing the real targets alone is Salimans et al. 2016,
    section 3.4; the fake ones too rewards the generator for what it does already.
    """
    on_real = optax.sigmoid_binary_cross_entropy(real, jnp.full_like(real, 1 - smoothing[0]))
    on_fake = optax.sigmoid_binary_cross_entropy(fake, jnp.full_like(fake, smoothing[1]))
    return on_real.mean() + on_fake.mean()


def _saturating(fake: jax.Array) -> jax.Array:
    """E[log(1 - D(G(z)))], the generator's side of Goodfellow et al. 2014, equation 1."""
    return -jax.nn.softplus(fake).mean()


def _non_saturating(fake: jax.Array) -> jax.Array:
    """-E[log D(G(z))] (Goodfellow et al. 2014, section 3)."""
    return jax.nn.softplus(-fake).mean()


def _least_squares(real: jax.Array, fake: jax.Array, smoothing: tuple) -> jax.Array:
    """E[(D(x) - 1)^2] / 2 + E[D(G(z))^2] / 2 (Mao et al. 2017, equation 9)."""
    return (jnp.square(real - 1 + smoothing[0]).mean() + jnp.square(fake - smoothing[1]).mean()) / 2


def _least_squares_generator(fake: jax.Array) -> jax.Array:
    """E[(D(G(z)) - 1)^2] / 2."""
    return jnp.square(fake - 1).mean() / 2


def _hinge(real: jax.Array, fake: jax.Array, smoothing: tuple) -> jax.Array:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (Miyato et al. 2018, equation 16)."""
    del smoothing
    return jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()


def _wasserstein(real: jax.Array, fake: jax.Array, smoothing: tuple) -> jax.Array:
    """E[D(G(z))] - E[D(x)] (Arjovsky et al. 2017, equation 3)."""
    del smoothing
    return fake.mean() - real.mean()


def _score(fake: jax.Array) -> jax.Array:
    """-E[D(G(z))], of hinge (Miyato et al. 2018, eq. 17) and Wasserstein."""
    return -fake.mean()


OBJECTIVES = {
    'minimax': Objective(_cross_entropy, _saturating, smooths=True, zero_sum=True),
    'non_saturating': Objective(_cross_entropy, _non_saturating, smooths=True),
    'least_squares': Objective(_least_squares, _least_squares_generator, True, 0.5),
    'hinge': Objective(_hinge, _score),
    'wasserstein': Objective(_wasserstein, _score, boundary=None, zero_sum=True),
}
