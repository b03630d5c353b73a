"""From noise to images by the generator that samples, in two steps that can be taken one by one.

The first maps z to what tells each layer its style, ws [n, layers, d]; of generators without styles
that is z itself, as one layer.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, erfinv

from gen_jax.gans import networks
from gen_jax.gans.game import Game
from gen_jax.gans.growing import enlarged, growth_of
from gen_jax.gans.layers import MOMENTUM, improved
from gen_jax.method import Latents, Net, knob, labels, play


def latents(config, game: Game) -> Latents:
    """`Method.latents` of a game."""
    classes, styled = game.generator.num_classes, config.network in networks.STYLED

    def mapping(state, z, condition):
        n, told = len(z), labels(condition, classes)
        number = partial(knob, config, condition, n=n)
        if styled:
            variables = state.generator.variables(ema=True)
            options = {'psi': number('psi'), 'method': 'mapping'}
            return game.generator.apply(variables, z, told, **options)  # [n, layers, d]
        if config.network not in networks.NORMALISED:
            z = number('temperature')[:, None] * within(z, number('truncation')[:, None])
        return z[:, None]  # [n, 1, d]

    def synthesis(state, ws, condition, keys=None):
        return drawn(config, game, state, ws, labels(condition, classes), keys)

    truncation = 'psi' if styled else 'truncation' if 'truncation' in config.sample.knobs else ''
    direction = config.network in networks.NORMALISED
    return Latents(game.generator.latent_dim, mapping, synthesis, styled, truncation, direction)


def drawn(config, game: Game, state, ws: jax.Array, label, keys=None) -> jax.Array:
    """Images [n, h, w, c] in [-1, 1] of ws [n, layers, d].

    While networks grow they are of the size of now, in larger pixels.

    Args:
      config: of the game.
      game, state: of the method.
      ws: see above.
      label: int32 [n], or None.
      keys: [n], of noise inside of the generator; None: noise that never changes.
    """
    variables, image_size = at_rest(state.generator), config.data.image_size
    growth = growth_of(game.rules, image_size)

    def at(size, alpha):
        grown = {'size': size, 'alpha': alpha} if growth else {}
        if config.network in networks.STYLED:
            return game.generator.apply(variables, ws, keys, method='synthesis', **grown)
        return game.generator.apply(variables, ws[:, 0], label, train=False, keys=keys, **grown)

    if not growth:
        return clipped(at(image_size, 1.0))
    number, alpha = growth.at(state.step)
    sizes = [lambda alpha, s=s: enlarged(at(s, alpha), image_size) for s in growth.sizes]
    return clipped(jax.lax.switch(number, sizes, alpha))


@jax.custom_jvp
def clipped(x: jax.Array) -> jax.Array:
    """In [-1, 1], with the gradient of x: who looks for an image can leave what is saturated."""
    return jnp.clip(x, -1.0, 1.0)


clipped.defjvps(lambda tangent, primal_out, x: tangent)


def at_rest(net: Net) -> dict:
    """Variables of the generator that samples, as it is applied to draw them.

    Spectral vectors are kept of the trained weights. A step of power iteration takes them to the
    averaged ones, as it does where batch statistics of these are taken, and in BigGAN's code (its
    `W_`) whenever samples are drawn.
    """
    variables = net.variables(ema=True)
    if 'spectral' not in variables:
        return variables
    return variables | {'spectral': improved(variables['spectral'], variables['params'])}


def standing(config, game: Game, found: Latents) -> Callable:
    """`Method.settle` of a game: standing statistics (Brock et al. 2019, appendix B).

    Batch norm's statistics of the averaged generator, means over `sample.standing` batches of those
    that samples are drawn from: of the config's truncation, which the running ones know nothing of,
    and of labels that are equally probable. A batch is as large as one of training.
    """
    n = config.batch_size // (game.rules.n_critic * config.accumulate)
    classes, generator = game.generator.num_classes, game.generator

    def of_one(state, key):
        z_key, label_key, noise_key = jax.random.split(key, 3)
        label = jax.random.randint(label_key, (n,), 0, classes) if classes else None
        condition = {'label': label} if classes else {}
        z = jax.random.normal(z_key, (n, generator.latent_dim))
        ws, keys = found.mapping(state, z, condition)[:, 0], jax.random.split(noise_key, n)
        variables = state.generator.variables(ema=True)
        # Batch norm adds the batch's share to what is left of 0.
        nothing = jax.tree.map(jnp.zeros_like, variables['batch_stats'])
        _, extra, _ = play(generator, variables | {'batch_stats': nothing}, ws, label, keys=keys)
        return jax.tree.map(lambda x: x / (1 - MOMENTUM), extra['batch_stats'])

    def settle(key, state):
        keys, net = jax.random.split(key, config.sample.standing), state.generator
        each = jax.lax.map(lambda key: of_one(state, key), keys)
        stats = jax.tree.map(lambda x: x.mean(0), each)
        return state.replace(generator=net.replace(extra=net.extra | {'batch_stats': stats}))

    return settle


def within(z: jax.Array, limit: jax.Array) -> jax.Array:
    """Normal values as values of the normal distribution truncated to [-limit, limit]; 0: as is."""
    share = jnp.where(limit > 0, erf(limit / 2**0.5), 1.0)
    # Where erf rounds to 1, its inverse is infinite.
    inside = jnp.clip(2**0.5 * erfinv(share * erf(z / 2**0.5)), -limit, limit)
    return jnp.where(limit > 0, inside, z)
