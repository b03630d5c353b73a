"""A classifier of noised images, p(label | x_t, t), whose gradient guides a sampler.

Dhariwal and Nichol 2021, section 4 and appendix H: ADM's encoder with attention pooling, trained by
cross-entropy on x_t = alpha_t x_0 + sigma_t eps at times drawn uniformly from the T of
`diffusion.gaussian`. A run of this method is what `config.guide.workdir` of such a model may name.

As in the authors' code (github.com/openai/guided-diffusion, scripts/classifier_train.py): Adam with
decoupled weight decay, and no moving average. It crops images at random (`data.crop`).
"""

import jax
import jax.numpy as jnp
from flax import struct

from gen_jax.config import require
from gen_jax.diffusion import adm, discrete, samplers
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


def defaults() -> dict:
    """The method's part of a config: a small net for the house's default data, the 8x8 digits."""
    return {
        'model': {**adm.defaults(), 'dropout': 0.0},
        'diffusion': dict(discrete.FIELDS),  # the model's that it is to guide, but for `told`
        'optimizer': optimizer_defaults(learning_rate=3e-4, weight_decay=0.05),
    }


class State(struct.PyTreeNode):
    """One network."""

    net: Net


def create(config) -> Method:
    """The classifier that `defaults` describes.

    `evaluate_step` gives, of one noised image at a drawn time, `cross_entropy` in nats and
    `accuracy`, 1 where the largest logit is the label's and 0 elsewhere.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    check(config)
    data, told, tx = config.data, config.diffusion.told, optimizer(config.optimizer)
    network, process = adm.classifier_from_config(config), discrete.process(config.diffusion)
    shape, T = (data.image_size, data.image_size, data.channels), len(process.tau)

    def init(key, batch):
        check_batch(batch, *shape[1:])
        return first_state(config, network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1)))

    def logits(variables, x_t, t, **options):
        return network.apply(variables, x_t, discrete.time(told, T, t), **options)  # [n, classes]

    def noised(x_0, t, eps):
        alpha, sigma = process.level(t)
        return alpha * x_0 + sigma * eps

    def train_step(key, state, batch):
        check_batch(batch, *shape[1:])
        x_0, label = batch['image'], labels(batch, data.num_classes)
        key_t, key_eps, key_dropout = jax.random.split(key, 3)
        t = jax.random.randint(key_t, len(x_0), 0, T)
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
        t = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 0), (), 0, T))(keys)
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
    discrete.check(config.diffusion)
