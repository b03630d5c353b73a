"""Diffusion of the latents of another method: Rombach et al. 2022, section 3.

What is learned and drawn is factor * latents; a factor that makes their deviation 1 suits the noise
of any process (appendix G). Latents that are Gaussian are taken at their means; the authors' code
(ldm/models/diffusion/ddpm.py of github.com/CompVis/latent-diffusion) draws them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from gen_jax.method import Method, Net


class Staged(struct.PyTreeNode):
    """The states of a model and of the first stage whose latents it learns.

    Attributes:
      own: of the model.
      stage: of the first stage, which stays: `frozen`.
      factor: that latents are multiplied by, a scalar.
    """

    own: Any
    stage: Any
    factor: jax.Array


def frozen(state):
    """A state whose nets are used and not trained: the averaged parameters, where there are any."""

    def used(x):
        if not isinstance(x, Net):
            return x
        return Net(x.params if x.ema is None else x.ema, None, (), x.extra)

    return jax.tree.map(used, state, is_leaf=lambda x: isinstance(x, Net))


def staged(method: Method, stage: Method, latents) -> Method:
    """The method of images that `method` is of a first stage's latents.

    Its `encode` gives latents as the first stage has them, and `denoise` knows them as the model
    does. There is no likelihood of images, and nothing is edited.

    Args:
      method: of maps of `latents.image_size` pixels with `latents.channels` numbers.
      stage: with `encode` and `decode`.
      latents: those sizes.
    """
    shape = latents.image_size, latents.image_size, latents.channels

    def init(key, batch):
        own, other = jax.random.split(key)
        z = jnp.zeros((len(batch['image']), *shape))
        first = frozen(stage.init(other, batch))
        return Staged(method.init(own, batch | {'image': z}), first, jnp.ones(()))

    def train_step(key, state, batch):
        z = state.factor * stage.encode(state.stage, batch)
        own, metrics = method.train_step(key, state.own, batch | {'image': z})
        return state.replace(own=own), metrics

    def sample_step(keys, state, condition):
        z = method.sample_step(keys, state.own, condition)
        return stage.decode(state.stage, z / state.factor, condition)

    def denoise(state, x_t, t, condition):
        return method.denoise(state.own, x_t, t, condition)

    def encode(state, batch):
        return stage.encode(state.stage, batch)

    return Method(
        init,
        train_step,
        sample_step,
        encode=encode,
        denoise=denoise,
        noised=shape,
        num_classes=method.num_classes,
        network_calls=method.network_calls,
    )
