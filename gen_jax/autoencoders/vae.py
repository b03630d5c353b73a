"""The variational autoencoder: Kingma and Welling 2014, "Auto-Encoding Variational Bayes".

    p(z) = N(0, I)     q(z|x) = N(mu(x), diag sigma(x)^2)     p(x|z) = Bernoulli or Gaussian
    L(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z))               equation 3, estimated as equation 10

All log-likelihoods are in nats per image, summed over pixels and channels:

* 'bernoulli': pixels mapped to [0, 1] are targets of a cross-entropy with the decoder's
  probabilities. On images whose pixels are only 0 and 1 (`vae.binarize`) that is a log-likelihood.
  On grey levels it is the usual training loss but not a normalised density: the continuous
  Bernoulli's constant (Loaiza-Ganem and Cunningham 2019) is missing, so such an ELBO compares
  with other cross-entropies only, never with a log-likelihood.
* 'gaussian': a density of the pixels as they come, in [-1, 1], with one sigma for all. Divide x by
  its range 2 to compare with densities on [0, 1]: add h * w * c * log 2.

Labels are ignored.
"""

import math

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn
from flax import struct

from gen_jax.autoencoders import conv
from gen_jax.config import require
from gen_jax.method import Method, Net, check_batch, descend, optimizer, optimizer_defaults

LOG_2PI = math.log(2 * math.pi)


def defaults() -> dict:
    """This method's part of the config."""
    return {
        'model': {
            'channels': 32,  # width of a stage whose multiplier is 1
            'multipliers': (1, 2),  # one per stage; each stage halves height and width
            'hidden': 256,  # width of the fully connected layers around the latents
            'latent_dim': 32,  # length of z
            'dtype': 'float32',  # of the computation: float32 or bfloat16
        },
        'vae': {
            'likelihood': 'bernoulli',  # of a pixel given z: bernoulli or gaussian
            'sigma': 0.0,  # gaussian's, for pixels in [-1, 1]; 0: one number, learned from 1 on
            'binarize': 'none',  # for bernoulli: none; threshold at mid-grey; stochastic, each time
        },
        'optimizer': optimizer_defaults(learning_rate=1e-3),
        'ema_decay': 0.999,  # of the weights that sample and evaluate; 0: none kept
        'sample': {'knobs': {'temperature': 1.0}},  # standard deviation of the prior's z
    }


class State(struct.PyTreeNode):
    """Encoder, decoder and sigma are trained as one."""

    net: Net


def bernoulli_log_likelihood(x: jax.Array, logits: jax.Array) -> jax.Array:
    """Equation 11: sum of x log p + (1 - x) log(1 - p), with p = sigmoid(logits).

    Args:
      x: targets in [0, 1], [b, ...]; where they are not 0 or 1, see this module's docstring.
      logits: of the same shape.

    Returns:
      [b], nats.
    """
    terms = -optax.sigmoid_binary_cross_entropy(logits, x)
    return terms.sum(axis=range(1, x.ndim))  # [b]


def gaussian_log_likelihood(x: jax.Array, mean: jax.Array, log_sigma: jax.Array) -> jax.Array:
    """Equation 12: log N(x; mean, sigma^2 I).

    Args:
      x, mean: [b, ...].
      log_sigma: scalar.

    Returns:
      [b], nats.
    """
    terms = -0.5 * LOG_2PI - log_sigma - 0.5 * ((x - mean) / jnp.exp(log_sigma)) ** 2
    return terms.sum(axis=range(1, x.ndim))  # [b]


def kl_divergence(mu: jax.Array, log_var: jax.Array) -> jax.Array:
    """KL(N(mu, diag exp(log_var)) || N(0, I)) in closed form. Kingma and Welling, appendix B.

    Args:
      mu, log_var: [b, d].

    Returns:
      [b], nats.
    """
    return -0.5 * (1 + log_var - mu**2 - jnp.exp(log_var)).sum(axis=-1)  # [b]


class VAE(nn.Module):
    """q(z|x) and p(x|z). `x` is float32 [b, h, w, c] in [-1, 1] everywhere, `z` is [b, d].

    Attributes:
      encoder: gives mu and log sigma^2 of q(z|x), [b, 2 * d].
      decoder: gives the logits of p(x|z), or its mean, [b, h, w, c].
      likelihood: 'bernoulli' or 'gaussian'.
      sigma: standard deviation of the Gaussian; 0 makes it a parameter.
    """

    encoder: nn.Module
    decoder: nn.Module
    likelihood: str
    sigma: float

    def setup(self):
        """Makes sigma, where the likelihood has one."""
        if self.likelihood == 'gaussian' and self.sigma == 0:
            self.log_sigma = self.param('log_sigma', nn.initializers.zeros, ())
        elif self.likelihood == 'gaussian':
            self.log_sigma = math.log(self.sigma)

    def __call__(self, x):
        """Runs every parameter, for `init`."""
        return self.log_likelihood(x, self.encode(x)[0])

    def encode(self, x):
        """The posterior q(z|x): mu [b, d] and log sigma^2 [b, d]."""
        return jnp.split(self.encoder(x), 2, axis=-1)

    def log_likelihood(self, x, z):
        """The log-likelihood log p(x|z) [b], nats."""
        if self.likelihood == 'bernoulli':
            return bernoulli_log_likelihood((x + 1) / 2, self.decoder(z))
        return gaussian_log_likelihood(x, self.decoder(z), self.log_sigma)

    def mean(self, z):
        """E[x|z] [b, h, w, c], in [-1, 1]."""
        if self.likelihood == 'bernoulli':
            return 2 * nn.sigmoid(self.decoder(z)) - 1
        return jnp.clip(self.decoder(z), -1, 1)


def normal(keys: jax.Array, dim: int) -> jax.Array:
    """Standard normal [n, dim], row i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, (dim,)))(keys)


def binarize(keys: jax.Array, image: jax.Array, how: str) -> jax.Array:
    """Images [b, h, w, c] in [-1, 1] as the model is to see them.

    'threshold' makes pixels above mid-grey 1 and others -1; 'stochastic' draws 1 with the pixel's
    brightness as probability, image i from keys[i]; 'none' leaves them.
    """
    if how == 'threshold':
        return jnp.where(image > 0, 1.0, -1.0)
    if how == 'stochastic':
        u = jax.vmap(lambda key: jax.random.uniform(key, image.shape[1:], minval=-1))(keys)
        return jnp.where(u < image, 1.0, -1.0)
    return image


def elbo(keys: jax.Array, module: VAE, variables: dict, x: jax.Array) -> dict:
    """One-sample estimate of the evidence lower bound, example i from keys[i] alone.

    Args:
      keys: [b].
      module, variables: the model.
      x: [b, h, w, c] in [-1, 1].

    Returns:
      'elbo', 'log_likelihood' and 'kl', each [b], nats per image.
    """
    mu, log_var = module.apply(variables, x, method='encode')  # [b, d] each
    z = mu + jnp.exp(log_var / 2) * normal(keys, mu.shape[-1])
    log_likelihood = module.apply(variables, x, z, method='log_likelihood')  # [b]
    kl = kl_divergence(mu, log_var)  # [b]
    return {'elbo': log_likelihood - kl, 'log_likelihood': log_likelihood, 'kl': kl}


def create(config: ml_collections.ConfigDict) -> Method:
    """The VAE that `defaults` describes.

    `sample_step` takes `temperature` float32 [n], the standard deviation of z; `evaluate_step`
    gives what `elbo` does. They, `encode` (the posterior's means [b, d]) and `decode` (the mean
    images) use the averaged parameters where there are any.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    _check(config)
    data, how = config.data, config.vae.binarize
    latent_dim = config.model.latent_dim
    module, tx = _module(config), optimizer(config.optimizer)

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        return State(Net.create(module.init(key, batch['image']), tx, config.ema_decay > 0))

    def terms(keys, variables, batch):
        check_batch(batch, data.image_size, data.channels)
        pixel_keys, z_keys = jax.vmap(jax.random.split, out_axes=1)(keys)  # [b] each
        return elbo(z_keys, module, variables, binarize(pixel_keys, batch['image'], how))

    def train_step(key, state, batch):
        def loss_fn(params, extra, keyed):
            keys, batch = keyed
            mean = jax.tree.map(jnp.mean, terms(keys, {'params': params}, batch))
            mean['reconstruction'] = mean.pop('log_likelihood')
            return -mean['elbo'], (extra, mean)

        keyed = jax.random.split(key, len(batch['image'])), batch
        net, metrics = descend(state.net, loss_fn, tx, config.ema_decay, keyed, config.accumulate)
        return State(net), metrics

    def evaluate_step(keys, state, batch):
        return terms(keys, state.net.variables(ema=True), batch)

    def encode(state, batch):
        check_batch(batch, data.image_size, data.channels)
        # There is no key here: the grey image stands for its own stochastic binarisation.
        x = binarize(None, batch['image'], 'none' if how == 'stochastic' else how)
        return module.apply(state.net.variables(ema=True), x, method='encode')[0]

    def decode(state, latents, condition):
        del condition
        return module.apply(state.net.variables(ema=True), latents, method='mean')

    def sample_step(keys, state, condition):
        temperature = condition.get('temperature', config.sample.knobs.temperature)
        z = jnp.broadcast_to(temperature, len(keys))[:, None] * normal(keys, latent_dim)  # [n, d]
        return decode(state, z, condition)  # [n, h, w, c]

    return Method(
        init, train_step, sample_step, evaluate_step, encode, decode, latent_dim=latent_dim
    )


def _module(config) -> VAE:
    model, data = config.model, config.data
    shared = {'dtype': jnp.dtype(model.dtype), 'hidden': model.hidden}
    shared |= {'channels': model.channels, 'multipliers': tuple(model.multipliers)}
    return VAE(
        conv.Encoder(features=2 * model.latent_dim, **shared),
        conv.Decoder(image_size=data.image_size, features=data.channels, **shared),
        config.vae.likelihood,
        config.vae.sigma,
    )


def _check(config) -> None:
    model, vae = config.model, config.vae
    for name in ('channels', 'hidden', 'latent_dim'):
        require(model[name] >= 1, f'model.{name}', model[name], 'a whole number of at least 1')
    require(
        len(model.multipliers) > 0 and min(model.multipliers) >= 1,
        'model.multipliers',
        model.multipliers,
        'one whole number of at least 1 per stage, such as (1, 2)',
    )
    factor, size = 2 ** len(model.multipliers), config.data.image_size
    require(
        size % factor == 0,
        'data.image_size',
        size,
        f'a multiple of {factor}, as {len(model.multipliers)} stages of model.multipliers halve it',
    )
    dtypes = ('float32', 'bfloat16')
    require(model.dtype in dtypes, 'model.dtype', model.dtype, "'float32' or 'bfloat16'")
    likelihoods = ('bernoulli', 'gaussian')
    expected = "'bernoulli' or 'gaussian'"
    require(vae.likelihood in likelihoods, 'vae.likelihood', vae.likelihood, expected)
    require(
        vae.sigma >= 0 and (vae.sigma == 0 or vae.likelihood == 'gaussian'),
        'vae.sigma',
        vae.sigma,
        "0, or a positive number with vae.likelihood='gaussian'",
    )
    require(
        vae.binarize == 'none'
        or (vae.binarize in ('threshold', 'stochastic') and vae.likelihood == 'bernoulli'),
        'vae.binarize',
        vae.binarize,
        "'none', or 'threshold' or 'stochastic' with vae.likelihood='bernoulli'",
    )
    require(0 <= config.ema_decay < 1, 'ema_decay', config.ema_decay, '0 (none) or more, below 1')
    temperature = config.sample.knobs.temperature
    require(temperature >= 0, 'sample.knobs.temperature', temperature, '0 or more')
