"""The variational autoencoder (Kingma and Welling 2014) and what its objective became.

    p(z) = N(0, I)     q(z|x) = N(mu(x), diag sigma(x)^2)     p(x|z): see likelihoods.py
    L(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z))               equation 3, estimated as equation 10

`config.objective` is what training makes small, of one sample of z but for 'iwae':

* 'elbo': -log p(x|z) + beta KL. beta 1 is the VAE, more beta-VAE (Higgins et al. 2017), and
  `vae.warmup` lets it grow from 0 (Sønderby et al. 2016).
* 'capacity': -log p(x|z) + gamma |KL - C|, C growing from 0 (Burgess et al. 2018, equation 8); KL
  is a batch's mean (with `accumulate` that of each part), as in disentanglement_lib.
* 'beta_tc': beta weighs the total correlation in the KL (Chen et al. 2018, equation 4).
* 'factor': FactorVAE (Kim and Mnih 2018, algorithm 2): gamma weighs a total correlation that a
  second net finds; half of a batch is what the VAE is trained on, the other what is shuffled.
* 'iwae': -log of the mean of `vae.samples` importance weights (Burda et al. 2016, equation 8).

All are in nats per image, summed over pixels and channels. With `data.num_classes` both nets are
told the label: the conditional VAE (Sohn et al. 2015). `vae.noise` is added to what the encoder
sees in training (Im et al. 2017).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import struct

from gen_jax.autoencoders import factor, networks
from gen_jax.autoencoders.autoencoder import (
    Autoencoder,
    corrupted,
    features_of,
    p_of,
    pixels,
    told_of,
    with_bits,
)
from gen_jax.autoencoders.factor import Judge, judged, shuffled
from gen_jax.autoencoders.posterior import (
    decomposition,
    drawn,
    kl_divergence,
    log_normal,
    normal,
    weighed_bound,
)
from gen_jax.config import nearest, require, require_weights
from gen_jax.method import (
    Latents,
    Method,
    Net,
    check_batch,
    descend,
    knob,
    optimizer,
    optimizer_defaults,
    steps_taken,
)

CHOICES = {'network': 'model', 'objective': 'vae'}
# What each objective adds to `config.vae`.
OBJECTIVES = {
    'elbo': {
        'beta': 1.0,  # weight of the KL
        'warmup': 0,  # steps in which it grows from 0
    },
    'capacity': {
        'gamma': 1000.0,  # weight of the KL's distance from C
        'capacity': 25.0,  # C in the end, nats
        'capacity_steps': 100_000,  # until then
    },
    'beta_tc': {
        'beta': 6.0,  # weight of the total correlation
        'data_size': 0,  # images of the training split
        'estimator': 'weighted',  # of the aggregate's densities: or stratified
    },
    'factor': factor.OPTIONS,
    'iwae': {'samples': 50},  # k
}
ESTIMATORS = 'weighted', 'stratified'
# Samples of z that are weighed at once.
CHUNK = 10


def defaults(network: str = 'conv', objective: str = 'elbo') -> dict:
    """This method's part of the config.

    Raises:
      UserError: where there is no such network or objective.
    """
    known = f'a known name{nearest(objective, OBJECTIVES)}'
    require(objective in OBJECTIVES, 'objective', objective, known)
    return {
        **networks.defaults(network),
        'objective': objective,
        'pixels': pixels('bernoulli', 0.0),
        'vae': {
            'binarize': 'none',  # for bernoulli: none; threshold at mid-grey; stochastic, each time
            'noise': 0.0,  # deviation of what is added to the images that the encoder sees
            'weighed': 0,  # samples of z for an evaluation's importance-weighted bound; 0: none
            'drawn': False,  # whether samples are draws of p(x|z), not its mean
            **OBJECTIVES[objective],
        },
        'optimizer': optimizer_defaults(learning_rate=1e-3),
        'ema_decay': 0.999,  # of the weights that sample and evaluate; 0: none kept
        'sample': {'knobs': {'temperature': 1.0}},  # standard deviation of the prior's z
    }


class State(struct.PyTreeNode):
    """Encoder, decoder and sigma are trained as one.

    Attributes:
      net: of these.
      judge: what tells z from z whose numbers were shuffled; None but for FactorVAE.
    """

    net: Net
    judge: Any = None


class VAE(Autoencoder):
    """q(z|x) and p(x|z); `z` is [b, d], and the encoder gives mu and log sigma^2, [b, 2 * d]."""

    def __call__(self, x, told=None):
        """Runs every parameter, for `init`."""
        return self.log_likelihood(x, self.encode(x, told)[0], told)

    def encode(self, x, told=None):
        """The posterior q(z|x): mu [b, d] and log sigma^2 [b, d]."""
        return jnp.split(self.encoder(x, told), 2, axis=-1)


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


class Question(NamedTuple):
    """What the model is asked of.

    Attributes:
      keys: [b], of all that is drawn for an image.
      x: images [b, h, w, c] in [-1, 1].
      told: [b, k], what both nets are told beside them, or None.
    """

    keys: jax.Array
    x: jax.Array
    told: jax.Array | None = None


def asked(config, keys: jax.Array, batch: dict) -> Question:
    """What is asked of a batch, as the model is to see it, example i from keys[i] alone."""
    data = config.data
    check_batch(batch, data.image_size, data.channels)
    pixel_keys, z_keys = jax.vmap(jax.random.split, out_axes=1)(keys)  # [b] each
    x = binarize(pixel_keys, batch['image'], config.vae.binarize)
    return Question(z_keys, x, told_of(batch, data.num_classes))


def bounded(question: Question, module: VAE, variables: dict, noise: float = 0.0) -> tuple:
    """One-sample estimate of the evidence lower bound, image i from keys[i] alone.

    Args:
      question: of which images.
      module, variables: the model.
      noise: deviation of what is added to the images that the encoder sees.

    Returns:
      'elbo', 'log_likelihood' and 'kl', each [b], nats per image; z [b, d]; the posterior.
    """
    keys, x, told = question
    posterior = _posterior(question, module, variables, noise)
    z = drawn(keys, *posterior)
    log_likelihood = module.apply(variables, x, z, told, method='log_likelihood')  # [b]
    kl = kl_divergence(*posterior)  # [b]
    terms = {'elbo': log_likelihood - kl, 'log_likelihood': log_likelihood, 'kl': kl}
    return terms, z, posterior


def weighed(
    question: Question, module: VAE, variables: dict, k: int, noise: float = 0.0
) -> jax.Array:
    """The importance-weighted bound of log p(x) by k samples (Burda et al. 2016, equation 8).

    CHUNK samples are weighed at once: memory grows with k where gradients are taken only.

    Args:
      question, module, variables, noise: as of `bounded`; sample j of image i is drawn from
        (keys[i], j).
      k: at least 1.

    Returns:
      [b], nats.
    """
    keys, x, told = question
    posterior = _posterior(question, module, variables, noise)

    def log_weight(j):
        z = drawn(jax.vmap(jax.random.fold_in, (0, None))(keys, j), *posterior)
        log_prior, log_q = log_normal(z, 0.0, jnp.zeros(())), log_normal(z, *posterior)
        log_likelihood = module.apply(variables, x, z, told, method='log_likelihood')
        return log_likelihood + (log_prior - log_q).sum(-1)

    return weighed_bound(log_weight, k, min(k, CHUNK))


def _posterior(question, module, variables, noise):
    x = question.x
    if noise:
        keys = jax.vmap(jax.random.fold_in, (0, None))(question.keys, 2**31 - 1)
        x = corrupted(keys, x, noise)
    return module.apply(variables, x, question.told, method='encode')  # [b, d] each


# --- objectives ----------------------------------------------------------------------------------


def objective(config, terms: dict, z: jax.Array, posterior: tuple, step: jax.Array) -> jax.Array:
    """What one sample of z has to answer for, [b], of 'elbo', 'capacity' and 'beta_tc'.

    Args:
      config: with `objective` and `vae`.
      terms: 'log_likelihood' and 'kl', each [b].
      z: [b, d].
      posterior: mu and log sigma^2, [b, d] each.
      step: steps before this one.
    """
    options, kl = config.vae, terms['kl']
    if config.objective == 'capacity':
        capacity = options.capacity * jnp.minimum(1.0, step / options.capacity_steps)
        return options.gamma * jnp.abs(kl.mean() - capacity) - terms['log_likelihood']
    if config.objective == 'beta_tc':
        place = options.data_size, options.estimator
        information, correlation, dimensions = decomposition(z, *posterior, *place)
        kl = information + options.beta * correlation + dimensions
        return kl - terms['log_likelihood']
    grown = jnp.minimum(1.0, step / options.warmup) if options.warmup else 1.0
    return options.beta * grown * kl - terms['log_likelihood']


def make_losses(config, module: VAE, judge: Judge | None) -> Callable:
    """(variables, question, step, the judge's net) -> (loss, what is told of it), each [b].

    With a judge of the first half of the images.
    """
    options = config.vae

    def losses(variables, question, step, second):
        if config.objective == 'iwae':
            bound = weighed(question, module, variables, options.samples, options.noise)
            return -bound, {'iw_bound': bound}
        if judge:  # the other half is for it
            question = jax.tree.map(lambda x: x[: len(x) // 2], question)
        terms, z, posterior = bounded(question, module, variables, options.noise)
        if judge:
            terms['total_correlation'] = factor.correlation(judge, second.variables(), z)
            loss = options.gamma * terms['total_correlation'] - terms['elbo']
        else:
            loss = objective(config, terms, z, posterior, step)
        terms['reconstruction'] = terms.pop('log_likelihood')
        return loss, terms

    return losses


# --- the method ----------------------------------------------------------------------------------


def create(config: ml_collections.ConfigDict) -> Method:
    """The VAE that `defaults` describes.

    `sample_step` takes `temperature` float32 [n], the standard deviation of z; `evaluate_step`
    gives what `bounded` does and, with `vae.weighed`, 'iw_bound' of `weighed`. They, `encode` (the
    posterior's means [b, d]) and `decode` (the mean images) use the averaged parameters where there
    are any.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    module = _module(config)
    _check(config)
    data, options, classes = config.data, config.vae, config.data.num_classes
    latent_dim, factored = config.model.latent_dim, config.objective == 'factor'
    judge = Judge(options.judge_layers, options.judge_width) if factored else None

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        variables = module.init(key, batch['image'], told_of(batch, classes))
        net = Net.create(variables, optimizer(config.optimizer), config.ema_decay > 0)
        if not judge:
            return State(net)
        variables = judge.init(jax.random.fold_in(key, 1), jnp.zeros((1, latent_dim)))
        return State(net, Net.create(variables, factor.optimizer(options), False))

    def evaluate_step(keys, state, batch):
        variables, question = state.net.variables(ema=True), asked(config, keys, batch)
        terms = bounded(question, module, variables)[0]
        if options.weighed:
            terms['iw_bound'] = weighed(question, module, variables, options.weighed)
        return with_bits(module, terms, batch['image'])

    def encode(state, batch):
        check_batch(batch, data.image_size, data.channels)
        # There is no key here: the grey image stands for its own stochastic binarisation.
        how = 'none' if options.binarize == 'stochastic' else options.binarize
        x = binarize(None, batch['image'], how)
        return module.apply(
            state.net.variables(ema=True), x, told_of(batch, classes), method='encode'
        )[0]

    def decode(state, latents, condition):
        variables = state.net.variables(ema=True)
        return module.apply(variables, latents, told_of(condition, classes), method='mean')

    sample_step, latents = sampling(config, decode)

    def draw_step(keys, state, condition):
        z_keys, x_keys = jax.vmap(jax.random.split, out_axes=1)(keys)  # [n] each
        z = latents.mapping(state, normal(z_keys, latent_dim), condition)[:, 0]
        told, variables = told_of(condition, classes), state.net.variables(ema=True)
        return module.given_z.draw(x_keys, module.apply(variables, z, told, method='numbers'))

    return Method(
        init,
        make_train_step(config, module, judge),
        draw_step if options.drawn else sample_step,
        evaluate_step,
        encode,
        decode,
        latent_dim=None if classes else latent_dim,
        latents=latents,
    )


def make_train_step(config, module: VAE, judge: Judge | None) -> Callable:
    """`Method.train_step`."""
    losses, tx = make_losses(config, module, judge), optimizer(config.optimizer)
    judge_step = judge and make_judge_step(config, module, judge)

    def train_step(key, state, batch):
        step = steps_taken(state.net)

        def loss_fn(params, extra, keyed):
            found = losses({'params': params}, asked(config, *keyed), step, state.judge)
            loss, terms = jax.tree.map(jnp.mean, found)
            return loss, (extra, terms)

        keyed = jax.random.split(key, len(batch['image'])), batch
        net, metrics = descend(state.net, loss_fn, tx, config.ema_decay, keyed, config.accumulate)
        if not judge_step:
            return State(net), metrics
        second, found = judge_step(key, net, state.judge, keyed)
        return State(net, second), metrics | {f'judge_{k}': v for k, v in found.items()}

    return train_step


def make_judge_step(config, module: VAE, judge: Judge) -> Callable:
    """(key, the VAE's net, the judge's, (keys, batch)) -> (the judge's net, metrics)."""
    tx = factor.optimizer(config.vae)

    def judge_step(key, net, second, keyed):
        def loss_fn(params, extra, keyed):
            question = asked(config, *keyed)
            mu, log_var = module.apply(net.variables(), *question[1:], method='encode')
            z, half = drawn(question.keys, mu, log_var), len(mu) // 2
            # A key of its own: `key` has made those of the images.
            moved = shuffled(jax.random.fold_in(key, 1), z[half:])
            return judged(judge, {'params': params}, z[:half], moved), (extra, {})

        return descend(second, loss_fn, tx, None, keyed, config.accumulate)

    return judge_step


def sampling(config, decode: Callable) -> tuple[Callable, Latents]:
    """`sample_step` and `latents` of a `Method` whose z is standard normal times 'temperature'.

    Args:
      config: with `model.latent_dim` and the knob.
      decode: of the method.

    Raises:
      UserError: where the config's own temperature is negative.
    """
    dim, temperature = config.model.latent_dim, config.sample.knobs.temperature
    expected = '0 or more, and finite'
    require(0 <= temperature < math.inf, 'sample.knobs.temperature', temperature, expected)

    def mapping(state, z, condition):
        del state
        return (knob(config, condition, 'temperature', len(z))[:, None] * z)[:, None]  # [n, 1, d]

    def synthesis(state, ws, condition, keys=None):
        del keys  # mean images have no noise
        return decode(state, ws[:, 0], condition)

    def sample_step(keys, state, condition):
        ws = mapping(state, normal(keys, dim), condition)
        return synthesis(state, ws, condition)  # [n, h, w, c]

    return sample_step, Latents(dim, mapping, synthesis, False, 'temperature')


def _module(config) -> VAE:
    nets = networks.build(config, 2 * config.model.latent_dim, features_of(config))
    return VAE(*nets, **p_of(config))


def _check(config) -> None:
    vae, batch = config.vae, config.batch_size
    binary = config.pixels.likelihood == 'bernoulli'
    require(
        vae.binarize == 'none' or (vae.binarize in ('threshold', 'stochastic') and binary),
        'vae.binarize',
        vae.binarize,
        "'none', or 'threshold' or 'stochastic' with pixels.likelihood='bernoulli'",
    )
    weights = (x for x in ('beta', 'gamma', 'warmup', 'capacity') if x in vae)
    require_weights('vae', vae, 'noise', 'weighed', *weights)
    if config.objective == 'capacity':
        require(vae.capacity_steps >= 1, 'vae.capacity_steps', vae.capacity_steps, '1 or more')
    if config.objective == 'factor':
        for field in ('judge_layers', 'judge_width'):
            require(vae[field] >= 1, f'vae.{field}', vae[field], 'a whole number of at least 1')
        fits = 0 < vae.judge_rate < math.inf
        require(fits, 'vae.judge_rate', vae.judge_rate, 'a positive number, and finite')
    if config.objective == 'iwae':
        require(vae.samples >= 1, 'vae.samples', vae.samples, 'a whole number of at least 1')
    if config.objective == 'beta_tc':
        expected = f'one of {", ".join(ESTIMATORS)}'
        require(vae.estimator in ESTIMATORS, 'vae.estimator', vae.estimator, expected)
        part = batch // config.accumulate
        expected = f'the images of the training split, no fewer than the {part} of a batch'
        require(vae.data_size >= part, 'vae.data_size', vae.data_size, expected)
    if config.objective in ('beta_tc', 'factor'):
        least = 2 * config.accumulate * (2 if config.objective == 'factor' else 1)
        expected = f'at least {least}: images of a batch are compared with each other'
        require(batch >= least, 'batch_size', batch, expected)
