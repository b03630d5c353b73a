"""VDVAE: Child 2021, "Very Deep VAEs Generalize Autoregressive Models [...] on Images".

    p(z) = p(z_1) p(z_2|z_1) ... p(z_K|z_<K)      q(z|x) = q(z_1|x) ... q(z_K|z_<K, x)
    loss = (KL(q(z|x) || p(z)) - log p(x|z)) / D               D: numbers of an image

Each factor is a normal distribution at the pixels of one resolution, of small maps first, and each
KL is exact given the z before it. An update whose gradient's norm is `optimizer.skip_above` or more
before clipping, or that is not finite, is left out with all that belongs to it: parameters, their
average, Adam's moments and its count of steps (the authors' train.py, where the warm-up alone goes
on).
"""

import math

import jax
import jax.numpy as jnp
import ml_collections
from flax import struct

from gen_jax.autoencoders import top_down
from gen_jax.autoencoders.autoencoder import Autoencoder, features_of, p_of, pixels, with_bits
from gen_jax.autoencoders.posterior import normal, weighed_bound
from gen_jax.config import require, require_unlabelled, require_weights
from gen_jax.method import (
    Method,
    Net,
    check_batch,
    descend,
    knob,
    optimizer,
    optimizer_defaults,
)


def defaults() -> dict:
    """This method's part of the config."""
    return {
        'model': top_down.defaults(),
        'pixels': pixels('logistic_mixture', 0.0),
        'optimizer': {
            **optimizer_defaults(
                learning_rate=2e-4, warmup=100, b1=0.9, b2=0.9, weight_decay=0.01, clip=200.0
            ),
            # Gradient norm before clipping, loss in nats per dimension; 0: only what is not finite
            'skip_above': 400.0,
        },
        'vae': {
            'weighed': 0,  # samples of z for an evaluation's importance-weighted bound; 0: none
        },
        'ema_decay': 0.9999,  # of the weights that sample and evaluate; 0: none kept
        'sample': {'knobs': {'temperature': 1.0}},  # its factor of the deviations of the prior's z
    }


class State(struct.PyTreeNode):
    """Encoder, decoder and sigma are trained as one."""

    net: Net


class VDVAE(Autoencoder):
    """q(z|x), p(z) and p(x|z). The last map y is all of z that pixels are told: the decoder's z.

    Attributes:
      layers: the prior, the posterior given the encoder's activations, and y.
    """

    layers: top_down.TopDown = None

    def __call__(self, x, noise) -> tuple[jax.Array, top_down.Found]:
        """Of images [b, h, w, c] and noise [b, dim]: log p(x|z) [b], nats, and z of q(z|x)."""
        found = self.inferred(x, noise)
        return self.log_likelihood(x, found.y), found

    def inferred(self, x, noise) -> top_down.Found:
        """Latents of q(z|x)."""
        return self.layers(noise, self.encode(x))

    def generated(self, given, fixed: bool):
        """The likelihood's numbers for noise [b, dim] or, `fixed`, for z itself."""
        return self.numbers(self.layers(given, fixed=fixed).y)


def create(config: ml_collections.ConfigDict) -> Method:
    """The VDVAE that `defaults` describes.

    `sample_step` takes `temperature` float32 [n], by which all deviations of the prior are
    multiplied; images are draws of p(x|z), as the authors'. `evaluate_step` gives 'elbo',
    'log_likelihood' and 'kl', nats, and 'elbo_bits_per_dim' of pixels that are probabilities of
    levels; with `vae.weighed` also 'iw_bound' and its bits, as `autoencoders.vae`, a sample at a
    time. `encode` gives the means of q, each given the means before it, [b, dim], layer by layer;
    `decode` the mean images. All of these use the averaged parameters where there are any. Metrics
    of training have the share `skipped` of steps; what is not finite counts as 0 in the others.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    require_unlabelled(config)
    module, tx = module_of(config), optimizer(config.optimizer)
    data, likelihood = config.data, module.given_z
    dim, limit = module.layers.dim, config.optimizer.skip_above or math.inf

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        x = batch['image']
        variables = module.init(key, x, jnp.zeros((len(x), dim)))
        return first_state(config, variables)

    def terms_of(variables, keys, x):
        log_likelihood, found = module.apply(variables, x, normal(keys, dim))
        kl = found.kl.sum(1)
        return {'elbo': log_likelihood - kl, 'log_likelihood': log_likelihood, 'kl': kl}

    def train_step(key, state, batch):
        check_batch(batch, data.image_size, data.channels)

        def loss_fn(params, extra, keyed):
            terms = terms_of({'params': params}, *keyed)
            mean = jax.tree.map(jnp.mean, terms)
            mean['reconstruction'] = mean.pop('log_likelihood')
            return -mean['elbo'] / batch['image'][0].size, (extra, mean)

        keyed = jax.random.split(key, len(batch['image'])), batch['image']
        net, metrics = descend(state.net, loss_fn, tx, config.ema_decay, keyed, config.accumulate)
        net, metrics = careful(state.net, net, metrics, limit)
        return State(net), metrics

    def sample_step(keys, state, condition):
        noise_keys, pixel_keys = jax.vmap(jax.random.split, out_axes=1)(keys)  # [n] each
        temperature = knob(config, condition, 'temperature', len(keys))
        noise = temperature[:, None] * normal(noise_keys, dim)
        return likelihood.draw(pixel_keys, generated(state, noise, fixed=False))

    def generated(state, given, fixed):
        variables = state.net.variables(ema=True)
        return module.apply(variables, given, fixed, method='generated')

    def evaluate_step(keys, state, batch):
        check_batch(batch, data.image_size, data.channels)
        x, variables = batch['image'], state.net.variables(ema=True)
        terms = terms_of(variables, keys, x)
        if config.vae.weighed:
            terms['iw_bound'] = weighed(module, variables, keys, x, config.vae.weighed)
        return with_bits(module, terms, x)

    def encode(state, batch):
        check_batch(batch, data.image_size, data.channels)
        x, variables = batch['image'], state.net.variables(ema=True)
        return module.apply(variables, x, jnp.zeros((len(x), dim)), method='inferred').z

    def decode(state, latents, condition):
        del condition
        return likelihood.mean(generated(state, latents, fixed=True))

    return Method(init, train_step, sample_step, evaluate_step, encode, decode, advise=advise)


def weighed(module: VDVAE, variables: dict, keys: jax.Array, x: jax.Array, k: int) -> jax.Array:
    """The importance-weighted bound of log p(x) by k samples (Burda et al. 2016, equation 8).

    Args:
      module, variables: of the model.
      keys: [b]; sample j of image i is drawn from (keys[i], j).
      x: images [b, h, w, c].
      k: at least 1.

    Returns:
      [b], nats.
    """

    def log_weight(j):
        noise = normal(jax.vmap(jax.random.fold_in, (0, None))(keys, j), module.layers.dim)
        log_likelihood, found = module.apply(variables, x, noise)
        return log_likelihood - found.excess.sum(1)

    return weighed_bound(log_weight, k)


def careful(before: Net, after: Net, metrics: dict, limit: float) -> tuple[Net, dict]:
    """`after`, or `before` where the step's gradient was not below `limit` or not finite.

    Args:
      before, after: a step of `descend`.
      metrics: its own.
      limit: of 'grad_norm'.

    Returns:
      The net, and `metrics` with 'skipped', 0 or 1, and all of them finite.
    """
    kept = jnp.isfinite(metrics['loss']) & (metrics['grad_norm'] < limit)
    net = jax.tree.map(lambda new, old: jnp.where(kept, new, old), after, before)
    metrics = {name: jnp.where(jnp.isfinite(x), x, 0.0) for name, x in metrics.items()}
    return net, metrics | {'skipped': 1.0 - kept}


def advise(means: dict) -> dict[str, str]:
    """What goes wrong, by its name, and what to do: from metrics, each a mean over some steps."""
    if means.get('skipped', 0.0) <= 0.1:
        return {}
    return {
        'updates are skipped': f'{means["skipped"]:.0%} of them have too large a gradient or one '
        'that is not finite: try a lower optimizer.learning_rate or a higher optimizer.skip_above'
    }


def first_state(config, variables: dict) -> State:
    """The state before the first step, of these variables."""
    return State(Net.create(variables, optimizer(config.optimizer), config.ema_decay > 0))


def module_of(config) -> VDVAE:
    """The networks of a config.

    Raises:
      UserError: where it asks for what does not exist or does not fit.
    """
    skip, temperature = config.optimizer.skip_above, config.sample.knobs.temperature
    require(skip >= 0, 'optimizer.skip_above', skip, '0 (no norm is too large) or more')
    expected = '0 or more, and finite'
    require(0 <= temperature < math.inf, 'sample.knobs.temperature', temperature, expected)
    require_weights('vae', config.vae, 'weighed')
    encoder, head, layers = top_down.from_config(config, features_of(config))
    return VDVAE(encoder, head, **p_of(config), layers=layers)
