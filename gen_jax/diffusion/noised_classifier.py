"""A classifier of noised images, p(label | x_t, t), whose gradient guides a sampler.

Dhariwal and Nichol 2021, section 4 and appendix H: ADM's encoder with attention pooling, trained by
cross-entropy on x_t = alpha_t x_0 + sigma_t eps. With `config.time` 'discrete' t is drawn uniformly
from the T times of `diffusion.gaussian`, with 'continuous' as models of `diffusion.continuous` draw
it, and what x_t is to the network has unit variance. A run of this method is what
`config.guide.workdir` of such a model may name.

As in the authors' code (github.com/openai/guided-diffusion, scripts/classifier_train.py): Adam with
decoupled weight decay, and no moving average. It crops images at random (`data.crop`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gen_jax.config import nearest, require
from gen_jax.diffusion import adm, continuous_time, discrete, predictions, samplers
from gen_jax.method import (
    Method,
    Net,
    check_batch,
    descend,
    labels,
    optimizer,
    optimizer_defaults,
    recognised,
)

CHOICES = {'time': 'diffusion'}
# `config.diffusion` by `config.time`: what the models have that it is to guide, but for how times
# are drawn and told.
FIELDS = {
    'discrete': discrete.FIELDS,
    'continuous': {
        **continuous_time.FIELDS,
        # Twice as wide as EDM's: samples begin at noise that EDM hardly trains for
        'times_std': 2.4,
        'sigma_data': 0.5,  # the data's standard deviation, by which x_t is scaled
    },
}

# See gen_jax.idle.
SERVES = (*discrete.SERVES, *continuous_time.SERVES)


def defaults(time: str = 'discrete') -> dict:
    """The method's part of a config: a small net for the house's default data, the 8x8 digits.

    Args:
      time: of the models that it is to guide: discrete (diffusion.gaussian), continuous
        (diffusion.continuous).

    Raises:
      UserError: where there is no such time.
    """
    require(time in FIELDS, 'time', time, f'a known name{nearest(time, FIELDS)}')
    return {
        'time': time,
        'model': {**adm.defaults(), 'dropout': 0.0},
        'diffusion': dict(FIELDS[time]),
        'optimizer': optimizer_defaults(learning_rate=3e-4, weight_decay=0.05),
    }


class State(struct.PyTreeNode):
    """One network."""

    net: Net


class Noise(NamedTuple):
    """What noised images are, and what the network is told of them.

    Attributes:
      level: t [n] -> (alpha, sigma) of x_t, each [n, 1, 1, 1].
      draw: (key, n) -> times of training, [n].
      told: t [n] -> the network's time, [n].
      scale: (alpha, sigma) -> what x_t is multiplied by before the network sees it.
    """

    level: Callable
    draw: Callable
    told: Callable
    scale: Callable

    @classmethod
    def from_config(cls, config) -> 'Noise':
        """As `config.diffusion` describes it."""
        diffusion = config.diffusion
        if config.time == 'discrete':
            process = discrete.process(diffusion)
            T = len(process.tau)
            return cls(
                process.level,
                lambda key, n: jax.random.randint(key, n, 0, T),
                partial(discrete.time, diffusion.told, T),
                lambda alpha, sigma: jnp.ones_like(sigma),
            )
        process = continuous_time.process(diffusion)
        return cls(
            process.level,
            partial(continuous_time.draw_times, diffusion, process),
            partial(continuous_time.time, diffusion.told, process),
            predictions.edm(diffusion.sigma_data).scale,
        )


def create(config) -> Method:
    """The classifier that `defaults` describes.

    `evaluate_step` gives, of one noised image at a drawn time, `cross_entropy` in nats and
    `accuracy`, 1 where the largest logit is the label's and 0 elsewhere.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    check(config)
    data, tx = config.data, optimizer(config.optimizer)
    network, noise = adm.classifier_from_config(config), Noise.from_config(config)
    shape = data.image_size, data.image_size, data.channels

    def init(key, batch):
        check_batch(batch, *shape[1:])
        return first_state(config, network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1)))

    def logits(variables, x_t, t, **options):
        scaled = noise.scale(*noise.level(t)) * x_t
        return network.apply(variables, scaled, noise.told(t), **options)  # [n, classes]

    def noised(x_0, t, eps):
        alpha, sigma = noise.level(t)
        return alpha * x_0 + sigma * eps

    def train_step(key, state, batch):
        check_batch(batch, *shape[1:])
        x_0, label = batch['image'], labels(batch, data.num_classes)
        key_t, key_eps, key_dropout = jax.random.split(key, 3)
        t = noise.draw(key_t, len(x_0))
        x_t = noised(x_0, t, jax.random.normal(key_eps, x_0.shape))

        def loss_fn(params, extra, drawn):
            x_t, t, label, key = drawn
            said = logits({'params': params}, x_t, t, train=True, rngs={'dropout': key})
            terms = jax.tree.map(jnp.mean, recognised(said, label))
            return terms.pop('cross_entropy'), (extra, terms)

        drawn = x_t, t, label, key_dropout
        net, metrics = descend(state.net, loss_fn, tx, None, drawn, config.accumulate)
        return State(net), metrics

    def evaluate_step(keys, state, batch):
        check_batch(batch, *shape[1:])
        x_0, label = batch['image'], labels(batch, data.num_classes)
        t = jax.vmap(lambda key: noise.draw(jax.random.fold_in(key, 0), 1)[0])(keys)
        x_t = noised(x_0, t, samplers.normal(keys, 1, shape))
        return recognised(logits(state.net.variables(), x_t, t), label)

    def log_prob(state, x_t, t, label):
        said = logits(state.net.variables(), x_t, t)
        return -recognised(said, label)['cross_entropy']

    return Method(
        init,
        train_step,
        evaluate_step=evaluate_step,
        log_prob=log_prob,
        num_classes=data.num_classes,
    )


def first_state(config, variables: dict) -> State:
    """The state before the first step, from what `network.init` gives."""
    return State(Net.create(variables, optimizer(config.optimizer), False))


def check(config) -> None:
    """Raises UserError where `data` or `diffusion` cannot be obeyed."""
    classes = config.data.num_classes
    require(classes >= 2, 'data.num_classes', classes, 'the number of classes, 2 or more')
    if config.time == 'discrete':
        discrete.check(config.diffusion)
        return
    continuous_time.check(config.diffusion)
    std = config.diffusion.sigma_data
    require(0 < std < math.inf, 'diffusion.sigma_data', std, 'a number, more than 0')
