"""Penalties on the discriminator's gradient by its input, and on the generator's by its styles.

Each is a mean over examples of a function of the gradient's norm. They take `judge`, images
[b, h, w, c] -> logits [b], whose logit i depends on image i (batch statistics aside).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def squared_norms(judge: Callable, x: jax.Array) -> jax.Array:
    """|d judge(x)_i / d x_i|^2 of each example, [b]."""
    gradient = jax.grad(lambda x: judge(x).sum())(x)  # [b, h, w, c]
    return jnp.square(gradient).sum((1, 2, 3))


def norms(judge: Callable, x: jax.Array) -> jax.Array:
    """|d judge(x)_i / d x_i|, [b]; its own gradient is finite where it is 0."""
    return jnp.sqrt(jnp.maximum(squared_norms(judge, x), 1e-16))


def wgan_gp(judge, real: jax.Array, fake: jax.Array, keys: jax.Array, target=1.0) -> jax.Array:
    """E[(|grad D(x)| - a)^2] / a^2, x between real and made images (Gulrajani et al. 2017, eq. 3).

    Args:
      judge: see above.
      real, fake: [b, h, w, c].
      keys: typed, [b], of the places in between.
      target: a; 1 in the paper.
    """
    share = _uniform(keys, ())[:, None, None, None]
    found = norms(judge, share * real + (1 - share) * fake)
    return jnp.square(found / target - 1).mean()


def dragan(judge, real: jax.Array, fake: jax.Array, keys: jax.Array, target=1.0) -> jax.Array:
    """E[(|grad D(x)| - a)^2] / a^2, x near a real image (Kodali et al. 2017, equation 1).

    As in the authors' code, x is a uniform share of the way to the image plus half of the standard
    deviation of all images times uniform noise. Args as of `wgan_gp`; `fake` is ignored.
    """
    del fake
    share = _uniform(_told(keys, 0), ())[:, None, None, None]
    noise = 0.5 * real.std() * _uniform(_told(keys, 1), real.shape[1:])
    return jnp.square(norms(judge, real + share * noise) / target - 1).mean()


def r1(judge, real: jax.Array, fake: jax.Array, keys: jax.Array) -> jax.Array:
    """E[|grad D(x)|^2] / 2 at real images (Mescheder et al. 2018, eq. 9); args as of `wgan_gp`."""
    del fake, keys
    return squared_norms(judge, real).mean() / 2


def r2(judge, real: jax.Array, fake: jax.Array, keys: jax.Array) -> jax.Array:
    """E[|grad D(x)|^2] / 2 at generated images (Mescheder et al. 2018, equation 10)."""
    del real, keys
    return squared_norms(judge, fake).mean() / 2


def r1_r2(judge, real: jax.Array, fake: jax.Array, keys: jax.Array) -> jax.Array:
    """Both of Mescheder et al. 2018."""
    return r1(judge, real, fake, keys) + r2(judge, real, fake, keys)


class Penalty(NamedTuple):
    """A penalty by name.

    Attributes:
      value: (judge, real, fake, keys) -> scalar, before its weight; some take `target` too.
      targets: whether it draws the gradient's norm to a target, and not to 0.
    """

    value: Callable
    targets: bool


PENALTIES = {
    'wgan_gp': Penalty(wgan_gp, True),
    'dragan': Penalty(dragan, True),
    'r1': Penalty(r1, False),
    'r2': Penalty(r2, False),
    'r1_r2': Penalty(r1_r2, False),
}


def path_lengths(synthesis: Callable, ws: jax.Array, noise: jax.Array) -> jax.Array:
    """How far an image moves where its styles do: |J_w^T y|_2 (Karras et al. 2020, section 3.2).

    Args:
      synthesis: ws [b, n, d] -> images [b, h, w, c].
      ws: the styles of n layers.
      noise: y, standard normal, shaped like the images.

    Returns:
      float32 [b]: for each image the root of the mean over layers of squared gradients' sums.
    """
    _, h, w, _ = noise.shape
    gradient = jax.grad(lambda ws: (synthesis(ws) * noise).sum() / (h * w) ** 0.5)(ws)
    return jnp.sqrt(jnp.square(gradient).sum(2).mean(1))


def _uniform(keys, shape):
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def _told(keys, i):
    """Other keys, [b], for each i."""
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
