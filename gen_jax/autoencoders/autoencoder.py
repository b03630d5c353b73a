"""The autoencoder, plain and denoising, and what every autoencoder of this room is made of.

    z = encoder(x~)     training makes -log p(x|z) small     p(x|z): see likelihoods.py

With 'gaussian' and sigma 1 that is half the squared error, and a constant. x~ is x itself, or x
with noise and with pixels set to mid-grey (Vincent et al. 2010, "Stacked Denoising Autoencoders",
section 3.3). There is no prior: nothing is sampled.
"""

import math

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn
from flax import struct

from gen_jax.autoencoders import networks
from gen_jax.autoencoders.likelihoods import NAMES, Likelihood, named
from gen_jax.config import are_whole, nearest, require, require_average, require_weights
from gen_jax.method import (
    Method,
    Net,
    check_batch,
    descend,
    labels,
    optimizer,
    optimizer_defaults,
)

CHOICES = {'network': 'model'}


def defaults(network: str = 'conv') -> dict:
    """This method's part of the config."""
    return {
        **networks.defaults(network),
        'pixels': pixels('gaussian', 1.0),
        'autoencoder': {
            'noise': 0.0,  # deviation of what is added to the images that the encoder sees
            'masked': 0.0,  # share of their pixels that are set to mid-grey
        },
        'optimizer': optimizer_defaults(learning_rate=1e-3),
        'ema_decay': 0.999,  # of the weights that encode and decode; 0: none kept
    }


def pixels(likelihood: str, sigma: float) -> dict:
    """`config.pixels` of any method of this room."""
    return {
        'likelihood': likelihood,  # of pixels given z: see gen_jax.autoencoders.likelihoods
        'sigma': sigma,  # gaussian's, for pixels in [-1, 1]; 0: one number, learned from 1 on
        'columns': (),  # of table: of each how many values; 1: it is a number
    }


class State(struct.PyTreeNode):
    """Encoder, decoder and sigma are trained as one."""

    net: Net


class Autoencoder(nn.Module):
    """An encoder, a decoder and p(x|z). `x` is float32 [b, h, w, c] in [-1, 1] everywhere.

    What both nets are told beside it, such as classes, is `told` [b, k] or None.

    Attributes:
      encoder: gives what z is made of.
      decoder: gives what the likelihood takes of each pixel.
      likelihood: of `NAMES`.
      sigma: standard deviation of 'gaussian'; 0 makes it a parameter.
      columns: of 'table'.
    """

    encoder: nn.Module
    decoder: nn.Module
    likelihood: str
    sigma: float
    columns: tuple[int, ...] = ()

    @property
    def given_z(self) -> Likelihood:
        """The likelihood p(x|z), of what `numbers` gives."""
        return named(self.likelihood, self.columns)

    def setup(self):
        """Makes sigma, where the likelihood has one."""
        if self.likelihood == 'gaussian' and self.sigma == 0:
            self.log_sigma = self.param('log_sigma', nn.initializers.zeros, ())
        elif self.likelihood == 'gaussian':
            self.log_sigma = math.log(self.sigma)

    def __call__(self, x, told=None):
        """Runs every parameter, for `init`."""
        return self.log_likelihood(x, self.encode(x, told), told)

    def encode(self, x, told=None):
        """What the encoder gives, [b, d]."""
        return self.encoder(x) if told is None else self.encoder(x, told)

    def numbers(self, z, told=None):
        """What the likelihood takes, [b, h, w, features]."""
        out = self.decoder(z) if told is None else self.decoder(z, told)
        if self.likelihood != 'gaussian':
            return out
        return jnp.concatenate([out, jnp.broadcast_to(self.log_sigma, out.shape)], -1)

    def log_likelihood(self, x, z, told=None):
        """The log-likelihood log p(x|z) [b], nats."""
        return self.given_z.log_prob(x, self.numbers(z, told))

    def mean(self, z, told=None):
        """E[x|z] [b, h, w, c], in [-1, 1]."""
        return self.given_z.mean(self.numbers(z, told))


def with_bits(module: Autoencoder, terms: dict, x: jax.Array) -> dict:
    """`terms`, nats, and their bounds in bits per dimension where p(x|z) is of images of 8 bits."""
    if not module.given_z.bits:
        return terms
    names = {'elbo': 'elbo_bits_per_dim', 'iw_bound': 'iw_bits_per_dim'}
    bits = -1 / (math.log(2) * x[0].size)
    return terms | {new: bits * terms[old] for old, new in names.items() if old in terms}


def features_of(config) -> int:
    """Numbers that the decoder gives for a pixel, where `config.pixels` fits the images.

    Raises:
      UserError: where it does not, or does not exist.
    """
    name, sigma, channels = config.pixels.likelihood, config.pixels.sigma, config.data.channels
    columns = tuple(config.pixels.columns)
    require(name in NAMES, 'pixels.likelihood', name, f'a known name{nearest(name, NAMES)}')
    whole = are_whole(columns) and sum(columns) == channels
    fits = whole if name == 'table' else not columns
    expected = (
        f'how many values each column has, {channels} in all, as config.data.channels'
        if name == 'table'
        else "() but with pixels.likelihood='table'"
    )
    require(fits, 'pixels.columns', columns, expected)
    likelihood = named(name, columns)
    fits = not likelihood.channels or channels in likelihood.channels
    expected = f'another: {name} is of {" or ".join(map(str, likelihood.channels))} channels'
    require(fits, 'pixels.likelihood', name, f'{expected}, and config.data.channels={channels}')
    require(
        sigma == 0 or (0 < sigma < math.inf and name == 'gaussian'),
        'pixels.sigma',
        sigma,
        "0, or a positive number, finite, with pixels.likelihood='gaussian'",
    )
    require_average(config)
    return likelihood.features(channels)


def p_of(config) -> dict:
    """What an `Autoencoder` is to know of p(x|z)."""
    return {
        'likelihood': config.pixels.likelihood,
        'sigma': config.pixels.sigma,
        'columns': tuple(config.pixels.columns),
    }


def told_of(batch: dict, classes: int) -> jax.Array | None:
    """What both nets are told of a batch's or a condition's labels, [b, classes]; None: nothing."""
    label = labels(batch, classes)
    return None if label is None else jax.nn.one_hot(label, classes)


def corrupted(keys: jax.Array, x: jax.Array, noise: float, masked: float = 0.0) -> jax.Array:
    """Images as a denoising autoencoder sees them, image i by keys[i].

    Args:
      keys: [b].
      x: [b, h, w, c].
      noise: deviation of what is added.
      masked: share of pixels that are set to mid-grey.
    """

    def one(key, image):
        noise_key, mask_key = jax.random.split(key)
        if noise:
            image = image + noise * jax.random.normal(noise_key, image.shape)
        if masked:
            kept = jax.random.bernoulli(mask_key, 1 - masked, (*image.shape[:2], 1))
            image = jnp.where(kept, image, 0.0)
        return image

    return jax.vmap(one)(keys, x) if noise or masked else x


def create(config: ml_collections.ConfigDict) -> Method:
    """The autoencoder that `defaults` describes.

    `evaluate_step` gives 'log_likelihood' and 'squared_error', the mean over an image's numbers;
    it, `encode` and `decode` use the averaged parameters where there are any.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    features, data, options = features_of(config), config.data, config.autoencoder
    require_weights('autoencoder', options, 'noise')
    require(0 <= options.masked < 1, 'autoencoder.masked', options.masked, '0 or more, below 1')
    nets = networks.build(config, config.model.latent_dim, features)
    module = Autoencoder(*nets, **p_of(config))
    classes, tx = data.num_classes, optimizer(config.optimizer)

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        variables = module.init(key, batch['image'], told_of(batch, classes))
        return State(Net.create(variables, tx, config.ema_decay > 0))

    def train_step(key, state, batch):
        check_batch(batch, data.image_size, data.channels)

        def loss_fn(params, extra, keyed):
            keys, batch = keyed
            x, y, variables = batch['image'], told_of(batch, classes), {'params': params}
            seen = corrupted(keys, x, options.noise, options.masked)
            z = module.apply(variables, seen, y, method='encode')
            loss = -module.apply(variables, x, z, y, method='log_likelihood').mean()
            return loss, (extra, {})

        keyed = jax.random.split(key, len(batch['image'])), batch
        net, metrics = descend(state.net, loss_fn, tx, config.ema_decay, keyed, config.accumulate)
        return State(net), metrics

    def encode(state, batch):
        check_batch(batch, data.image_size, data.channels)
        variables = state.net.variables(ema=True)
        return module.apply(variables, batch['image'], told_of(batch, classes), method='encode')

    def decode(state, latents, condition):
        variables = state.net.variables(ema=True)
        return module.apply(variables, latents, told_of(condition, classes), method='mean')

    def evaluate_step(keys, state, batch):
        del keys
        z, x, y = encode(state, batch), batch['image'], told_of(batch, classes)
        variables = state.net.variables(ema=True)
        return {
            'log_likelihood': module.apply(variables, x, z, y, method='log_likelihood'),
            'squared_error': jnp.square(decode(state, z, batch) - x).mean((1, 2, 3)),
        }

    return Method(init, train_step, evaluate_step=evaluate_step, encode=encode, decode=decode)
