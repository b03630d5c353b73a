"""VAE-GAN: Larsen et al. 2016, "Autoencoding beyond pixels using a learned similarity metric".

    x~ = Dec(z), z ~ q(z|x) = Enc(x)      x_p = Dec(z_p), z_p ~ p(z) = N(0, I)
    L_prior = KL(q(z|x) || p(z))
    L_llike = -log N(Dis_l(x); Dis_l(x~), I)                                       section 2.3
    L_GAN = -log Dis(x) - log(1 - Dis(x~)) - log(1 - Dis(x_p))

Algorithm 1: the encoder makes L_prior + L_llike small, the decoder gamma L_llike - L_GAN, the
discriminator L_GAN alone, all at once and each by its own optimiser. L_GAN is a cross-entropy here,
with which the algorithm's signs hold; the paper writes the likelihood. L_llike is summed over the
numbers of the layer, without the density's constant. The decoder's side is the one that saturates
(Goodfellow et al. 2014, equation 1).

What the authors' scripts (github.com/andersbll/autoencoding_beyond_pixels at 24aa0f2) do beside the
algorithm can be asked for: `vae_gan.judge_reconstructions` False leaves x~ out of L_GAN, `margin`
holds back who wins. They weigh L_llike by w and L_GAN by 1 - w in the decoder, w 1e-6 on faces of
64x64 and 1e-5 on CIFAR-10: gamma is w / (1 - w). In pythae w is 1 - `adversarial_loss_scale`.

Differences: x, x~ and x_p each pass through the discriminator as a batch of their own, as in this
house's GANs, so that batch norm normalises each by its own statistics, where the authors put two of
them together; Adam with beta_1 0, which is their RMSProp, decay 0.9 and epsilon 1e-8, with its mean
unbiased, stands at one rate, where theirs, 0.025 / 64 at first, falls; no decay of weights; nothing
is added to probabilities in a logarithm, where they add 1e-3.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn
from flax import struct

from gen_jax.autoencoders import vae_gan_networks
from gen_jax.autoencoders.posterior import drawn, kl_divergence, normal
from gen_jax.autoencoders.vae import sampling
from gen_jax.config import require_unlabelled, require_weights
from gen_jax.method import (
    Method,
    Net,
    check_batch,
    descend,
    optimizer,
    optimizer_defaults,
    play,
)

# See gen_jax.idle.
SERVES = (('vae_gan.equilibrium', lambda c: c.vae_gan.margin, 'vae_gan.margin'),)


def defaults() -> dict:
    """This method's part of the config."""
    return {
        'model': vae_gan_networks.defaults(),
        'vae_gan': {
            'gamma': 1e-6,  # weight of L_llike in the decoder's loss
            'judge_reconstructions': True,  # whether L_GAN is of x~ too
            # Cross-entropy, nats, of real images and of others: where one of them is further below
            # equilibrium than margin, the discriminator rests; where above, the decoder; where
            # both would, neither.
            'equilibrium': 0.68,
            'margin': 0.0,  # 0: nobody ever rests
        },
        'optimizer': optimizer_defaults(learning_rate=3e-4, b1=0.0, b2=0.9),  # of each net
        'sample': {'knobs': {'temperature': 1.0}},  # standard deviation of the prior's z
    }


class State(struct.PyTreeNode):
    """Three nets, each with its running statistics."""

    encoder: Net
    decoder: Net
    discriminator: Net


class Trio(NamedTuple):
    """One thing of each net, such as its variables or its loss."""

    encoder: nn.Module | dict | jax.Array
    decoder: nn.Module | dict | jax.Array
    discriminator: nn.Module | dict | jax.Array


def played(modules: Trio, rules, variables: Trio, keyed: tuple) -> tuple[Trio, Trio, Trio]:
    """All that a step of algorithm 1 finds out of a batch, but for gradients.

    Args:
      modules: the networks.
      rules: `config.vae_gan`.
      variables: theirs.
      keyed: keys [b] and images [b, h, w, c].

    Returns:
      Losses, means over the batch; collections afterwards; metrics.
    """
    keys, x = keyed
    z_keys, prior_keys = jax.vmap(jax.random.split, out_axes=1)(keys)  # [b] each
    posterior, encoder, _ = play(modules.encoder, variables.encoder, x)
    decoder, images = variables.decoder, [x]
    for z in (drawn(z_keys, *posterior), normal(prior_keys, posterior[0].shape[-1])):
        made, extra, _ = play(modules.decoder, decoder, z)
        decoder = decoder | extra
        images.append(made)
    discriminator, judged = variables.discriminator, []
    for image in images:
        found, extra, _ = play(modules.discriminator, discriminator, image)
        discriminator = discriminator | extra
        judged.append(found)
    (on_real, real), (on_back, back), (on_prior, _) = judged
    kl = kl_divergence(*posterior).mean()
    distance = feature_distance(real, back).mean()
    # -log Dis and -log(1 - Dis), Dis = sigmoid(logit)
    real_cost = jax.nn.softplus(-on_real).mean()
    costs = [jax.nn.softplus(on_prior).mean()]
    costs += [jax.nn.softplus(on_back).mean()] if rules.judge_reconstructions else []
    gan = real_cost + sum(costs)
    losses = Trio(kl + distance, rules.gamma * distance - gan, gan)
    told = {'real_cost': real_cost, 'fake_cost': sum(costs) / len(costs)}
    told |= {'real_accuracy': (on_real > 0).mean(), 'fake_accuracy': (on_prior < 0).mean()}
    metrics = Trio({'kl': kl, 'feature_distance': distance}, {}, told)
    kept = (_without_params(each) for each in (encoder, decoder, discriminator))
    return losses, Trio(*kept), metrics


def feature_distance(real: jax.Array, back: jax.Array) -> jax.Array:
    """L_llike of features [b, f], but for its constant: [b]."""
    return jnp.square(real - back).sum(-1) / 2


def _without_params(variables: dict) -> dict:
    return {name: value for name, value in variables.items() if name != 'params'}


def resting(rules, real_cost: jax.Array, fake_cost: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether the decoder and whether the discriminator rest, as the authors' model/aegan.py says.

    Args:
      rules: with `equilibrium` and `margin`.
      real_cost, fake_cost: the discriminator's cross-entropies of real and of other images.
    """
    costs = jnp.stack([real_cost, fake_cost])
    decoder = (costs > rules.equilibrium + rules.margin).any()
    discriminator = (costs < rules.equilibrium - rules.margin).any()
    both = decoder & discriminator
    return decoder & ~both, discriminator & ~both


def unmoved(rests: jax.Array, before: Net, after: Net) -> Net:
    """The net after a step that is taken back where it `rests`; statistics of batches stay new."""
    parts = [(net.params, net.opt_state) for net in (before, after)]
    params, opt_state = jax.tree.map(partial(jnp.where, rests), *parts)
    return after.replace(params=params, opt_state=opt_state)


def create(config: ml_collections.ConfigDict) -> Method:
    """The VAE-GAN that `defaults` describes.

    `sample_step` takes `temperature` float32 [n], the standard deviation of z. `evaluate_step`
    gives, of one z of the posterior, 'feature_distance' (L_llike) and 'squared_error' (the mean
    over an image's numbers), and 'kl', nats; there is no bound of log p(x). `encode` gives the
    posterior's means [b, d].

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    require_unlabelled(config)
    modules, tx = Trio(*vae_gan_networks.from_config(config)), optimizer(config.optimizer)
    rules = ml_collections.FrozenConfigDict(config.vae_gan)
    require_weights('vae_gan', rules, 'gamma', 'equilibrium', 'margin')
    data, latent_dim = config.data, config.model.latent_dim

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        x = batch['image']
        given = x, jnp.zeros((len(x), latent_dim)), x
        nets = (
            Net.create(module.init(jax.random.fold_in(key, i), what, train=False), tx, False)
            for i, (module, what) in enumerate(zip(modules, given, strict=True))
        )
        return State(*nets)

    def train_step(key, state, batch):
        check_batch(batch, data.image_size, data.channels)
        nets = Trio(state.encoder, state.decoder, state.discriminator)
        variables = Trio(*(net.variables() for net in nets))

        def loss_of(name, params, extra, keyed):
            mine = {name: {'params': params, **extra}}
            found = played(modules, rules, variables._replace(**mine), keyed)
            loss, extra, told = (getattr(each, name) for each in found)
            return loss, (extra, told)

        keyed = jax.random.split(key, len(batch['image'])), batch['image']
        after, metrics = {}, {}
        # What the three steps have in common is computed once: XLA sees that it is the same.
        for name, net in nets._asdict().items():
            loss_fn = partial(loss_of, name)
            after[name], told = descend(net, loss_fn, tx, None, keyed, config.accumulate)
            metrics |= {f'{name}_{k}': v for k, v in told.items()}
        if rules.margin:
            costs = (metrics[f'discriminator_{kind}_cost'] for kind in ('real', 'fake'))
            for name, rests in zip(Trio._fields[1:], resting(rules, *costs), strict=True):
                after[name] = unmoved(rests, getattr(nets, name), after[name])
                metrics[f'{name}_rests'] = rests.astype(jnp.float32)
        return State(**after), metrics

    def run(state, name, x):
        return getattr(modules, name).apply(getattr(state, name).variables(), x, train=False)

    def encode(state, batch):
        check_batch(batch, data.image_size, data.channels)
        return run(state, 'encoder', batch['image'])[0]

    def decode(state, latents, condition):
        del condition
        return run(state, 'decoder', latents)

    def evaluate_step(keys, state, batch):
        check_batch(batch, data.image_size, data.channels)
        x = batch['image']
        posterior = run(state, 'encoder', x)
        back = run(state, 'decoder', drawn(keys, *posterior))
        of_real, of_back = (run(state, 'discriminator', image)[1] for image in (x, back))
        return {
            'kl': kl_divergence(*posterior),
            'feature_distance': feature_distance(of_real, of_back),
            'squared_error': jnp.square(back - x).mean((1, 2, 3)),
        }

    sample_step, latents = sampling(config, decode)
    return Method(
        init,
        train_step,
        sample_step,
        evaluate_step,
        encode,
        decode,
        latent_dim=latent_dim,
        latents=latents,
    )
