"""Samples guided by another trained method: a classifier of noised images, or a worse model.

Both act on the estimate of x_0 (gen_jax.diffusion.guidance), after classifier-free guidance, which
remains as it is. The knob `guide` g says how much, one number per sample; 0 is none.

A classifier (Dhariwal and Nichol 2021) makes p(x_t) p(label | x_t)^g: g is its scale s. The label
is the condition's, which an unconditional model then needs too. As in the authors' code
(github.com/openai/guided-diffusion, gaussian_diffusion.py) its gradient is added after the model's
own estimate was clipped. Their ancestral step adds variance * s * gradient to its mean; through x_0
it is beta / sqrt(1 - beta) in place of the variance. With DDIM both are the same.

A worse model (Karras et al. 2024) makes p (p / p_worse)^g: g is their w - 1. It is told the model's
whole condition, so that it is guided classifier-free as the model is, if it can be.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from gen_jax.diffusion.guidance import autoguidance, classified, interval
from gen_jax.errors import UserError
from gen_jax.method import Method, knob, labels


class Guided(struct.PyTreeNode):
    """The states of a model and of what guides its samples."""

    own: Any
    guide: Any


def own(state):
    """The model's state, of a `Guided` or where there is no guide."""
    return state.own if isinstance(state, Guided) else state


def guided(method: Method, guide: Method | None) -> Method:
    """A method whose states are `Guided`; the same method where `guide` is None.

    Its likelihood is the model's alone, as that of a guided one is not known, and it does not
    train. What samples and denoises is left: it finds its share of the state by `own` and is guided
    by `steering`.
    """
    if guide is None:
        return method

    def init(key, batch):
        keys = jax.random.split(key)
        return Guided(method.init(keys[0], batch), guide.init(keys[1], batch))

    def train_step(key, state, batch):
        raise UserError('a guided model does not train: train it and its guide without a guide')

    def evaluate_step(keys, state, batch):
        return method.evaluate_step(keys, state.own, batch)

    return method._replace(
        init=init,
        train_step=train_step,
        evaluate_step=evaluate_step,
        num_classes=method.num_classes or guide.num_classes,
    )


def steering(config, guide: Method | None, level: Callable) -> Callable:
    """The last that is done to an estimate: it is guided, and where the config says so, clipped.

    Args:
      config: of the model: `sampler.{clip, guidance_interval}`, and the knob `guide`.
      guide: with `log_prob` or `denoise`, at the model's times; None: estimates are clipped only.
      level: t -> (alpha, sigma), each [n, 1, 1, 1].

    Returns:
      (x_0, state, x_t, t, condition) -> x_0, as the arguments of `Method.denoise`. A classifier is
      called, forward and back, or a worse model, where a sample of the batch is guided.
    """

    def clipped(x_0):
        return jnp.clip(x_0, -1.0, 1.0) if config.sampler.clip else x_0

    if guide is None:
        return lambda x_0, *_: clipped(x_0)

    def steered(x_0, state, x_t, t, condition):
        alpha, sigma = (x[:, 0, 0, 0] for x in level(t))  # [n]
        weight = 1 + knob(config, condition, 'guide', len(t))
        if config.sampler.guidance_interval:
            weight = interval(weight, sigma / alpha, *config.sampler.guidance_interval)
        if guide.log_prob:
            x_0 = clipped(x_0)
            label = labels(condition, guide.num_classes)
            log_prob = partial(guide.log_prob, state.guide, label=label)
            more = partial(_classified, x_0, log_prob, x_t, t, weight - 1, alpha, sigma)
            return jax.lax.cond(jnp.all(weight == 1), lambda: x_0, more)

        def other():
            return autoguidance(x_0, guide.denoise(state.guide, x_t, t, condition), weight)

        return clipped(jax.lax.cond(jnp.all(weight == 1), lambda: x_0, other))

    return steered


def _classified(x_0, log_prob, x_t, t, scale, alpha, sigma):
    """`guidance.classified` of an estimate; where nothing is left of the image, the estimate."""
    some = alpha > 0
    level = jnp.where(some, alpha, 1.0), sigma
    return classified(lambda x_t, t: x_0, log_prob, lambda t: level, scale * some)(x_t, t)
