"""VQ-VAE: van den Oord et al. 2017, "Neural Discrete Representation Learning".

    z = the code nearest to encoder(x), at each place of a map
    loss = -log p(x|z) / D + |sg[encoder(x)] - z|^2 + beta |encoder(x) - sg[z]|^2      equation 3

Each term is a mean: over the D numbers of an image, over places and numbers of a code, as in the
authors' code (sonnet's examples/vqvae_example.ipynb), where log p is the squared error over the
data's variance: pixels 'gaussian' with sigma^2 half of that, by default of a variance of 0.5. (A
learned sigma, 0, begins at 1, far above what is left of most data, and log p counts for little for
thousands of steps.) With `vq.decay` codes follow a moving average instead of the second term
(appendix A.1), which begins with counts of 1; in sonnet it begins at 0, over 1 - decay^t.

In training all codes are as probable, so that the bound is log p(x|z) less log K for each place
(section 3.2). To draw images, a diffusion model learns where codes lie (`config.latent`), and what
it draws is taken for the nearest code; the paper's prior is a PixelCNN.
"""

import math

import jax
import jax.numpy as jnp
import ml_collections
from flax import struct

from gen_jax.autoencoders import residual
from gen_jax.autoencoders.autoencoder import Autoencoder, features_of, p_of, pixels, with_bits
from gen_jax.autoencoders.quantizer import (
    Quantized,
    VectorQuantizer,
    moved,
    perplexity,
    require_room,
)
from gen_jax.config import require, require_unlabelled, require_weights
from gen_jax.method import Method, Net, check_batch, descend, optimizer, optimizer_defaults


def defaults() -> dict:
    """This method's part of the config."""
    return {
        'model': residual.defaults(),
        'pixels': pixels('gaussian', 0.5),
        'vq': {
            'codes': 512,  # K
            'dim': 64,  # of each
            'commitment': 0.25,  # beta
            'decay': 0.99,  # of the moving average that codes follow; 0: they learn by gradients
            'restart': 0.0,  # count below which an averaged code is put elsewhere; 0: never
        },
        'optimizer': optimizer_defaults(learning_rate=3e-4),
        'ema_decay': 0.999,  # of the weights that encode and decode; 0: none kept
    }


class State(struct.PyTreeNode):
    """Both networks and the codes; those that follow an average are in `net.extra`."""

    net: Net


class VQVAE(Autoencoder):
    """An autoencoder with codes between its nets.

    Attributes:
      quantizer: puts codes in the place of vectors.
    """

    quantizer: VectorQuantizer = None

    LEVELS = ('',)  # what the names of a level's metrics end in

    def __call__(self, x, train: bool = False) -> tuple[jax.Array, tuple[Quantized, ...]]:
        """Images [b, h, w, c] -> log p(x|z) [b], nats, by their codes, and these."""
        found = self.codes(x, train)
        return self.log_likelihood(x, self.latents(found)), found

    def codes(self, x, train: bool = False) -> tuple[Quantized, ...]:
        """The codes of images, of each level [b, h', w', dim]."""
        return (self.quantizer(self.encode(x), train),)

    @staticmethod
    def latents(found: tuple[Quantized, ...]) -> jax.Array:
        """All codes of an image as one map, of which the decoder makes images."""
        return found[0].z

    def snapped(self, z: jax.Array) -> jax.Array:
        """A map as `latents` gives them, each vector replaced by the nearest code."""
        return self.quantizer(z).z


def create(config: ml_collections.ConfigDict) -> Method:
    """The VQ-VAE that `defaults` describes.

    `evaluate_step` gives 'elbo' and 'log_likelihood', nats, of pixels that are probabilities of
    levels 'elbo_bits_per_dim' too, 'squared_error', the mean over an image's numbers, and
    'commitment'; it, `encode` (to codes [b, h', w', dim]) and `decode` (of the codes nearest to
    what it is given) use the averaged parameters where there are any. Metrics of training have the
    `perplexity` of a batch's codes.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    return method_of(config, module_of(config))


def module_of(config: ml_collections.ConfigDict) -> VQVAE:
    """The networks and codes of a config; errors as of `create`."""
    options = config.vq
    nets = residual.from_config(config, options.dim, features_of(config), rectified=True)
    check(config)
    quantizer = VectorQuantizer(options.codes, options.dim, options.decay > 0)
    return VQVAE(*nets, **p_of(config), quantizer=quantizer)


def method_of(config: ml_collections.ConfigDict, module: VQVAE) -> Method:
    """The method that trains a module as `create` says; its config has passed `check`."""
    data, options, tx = config.data, config.vq, optimizer(config.optimizer)

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        return State(Net.create(module.init(key, batch['image']), tx, config.ema_decay > 0))

    def train_step(key, state, batch):
        check_batch(batch, data.image_size, data.channels)

        def loss_fn(params, extra, keyed):
            key, x = keyed
            rngs, mutable = {'restart': key}, list(extra)
            (log_likelihood, found), extra = module.apply(
                {'params': params, **extra}, x, train=True, mutable=mutable, rngs=rngs
            )
            metrics = {
                'reconstruction': log_likelihood.mean(),
                'codebook': sum(level.codebook.mean() for level in found),
                'commitment': sum(level.commitment.mean() for level in found),
            }
            for name, level in zip(module.LEVELS, found, strict=True):
                metrics[f'perplexity{name}'] = perplexity(level.indices, options.codes)
            loss = metrics['codebook'] + options.commitment * metrics['commitment']
            return loss - metrics['reconstruction'] / x[0].size, (extra, metrics)

        extra, keyed = state.net.extra, (key, batch['image'])  # extra: {} without an average
        zeros = {'assigned': jax.tree.map(jnp.zeros_like, extra['codebook'])} if extra else {}
        net = state.net.replace(extra=extra | zeros)
        net, metrics = descend(net, loss_fn, tx, config.ema_decay, keyed, config.accumulate)
        if extra:  # codes move once, by all parts of a batch
            told = extra['codebook'], net.extra['assigned']
            net = net.replace(extra={'codebook': moved(*told, options.decay, options.restart)})
        return State(net), metrics

    def codes(state, batch):
        check_batch(batch, data.image_size, data.channels)
        return module.apply(state.net.variables(ema=True), batch['image'], method='codes')

    def encode(state, batch):
        return module.latents(codes(state, batch))

    def decode(state, latents, condition):
        del condition
        variables = state.net.variables(ema=True)
        z = module.apply(variables, latents, method='snapped')
        return module.apply(variables, z, method='mean')

    def evaluate_step(keys, state, batch):
        del keys
        found, x = codes(state, batch), batch['image']
        z, variables = module.latents(found), state.net.variables(ema=True)
        log_likelihood = module.apply(variables, x, z, method='log_likelihood')
        places = sum(level.indices[0].size for level in found)
        elbo = log_likelihood - places * math.log(options.codes)
        terms = {
            'elbo': elbo,
            'log_likelihood': log_likelihood,
            'squared_error': jnp.square(decode(state, z, {}) - x).mean((1, 2, 3)),
            'commitment': sum(level.commitment for level in found),
        }
        return with_bits(module, terms, x)

    return Method(init, train_step, evaluate_step=evaluate_step, encode=encode, decode=decode)


def check(config) -> None:
    """Raises UserError where `config.vq`, beside networks that fit, asks for what cannot be."""
    require_unlabelled(config)
    options, side = config.vq, config.data.image_size >> config.model.halvings
    require(options.dim >= 1, 'vq.dim', options.dim, 'a whole number of at least 1')
    vectors = side**2 * config.batch_size // config.accumulate
    require_room('vq.codes', options.codes, options.dim, vectors)
    require_weights('vq', options, 'commitment', 'restart')
    require(0 <= options.decay < 1, 'vq.decay', options.decay, '0 (none) or more, below 1')
    expected = '0 with vq.decay=0: only codes that follow an average are put elsewhere'
    require(options.decay > 0 or not options.restart, 'vq.restart', options.restart, expected)
