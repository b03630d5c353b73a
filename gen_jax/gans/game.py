"""What both players of a game know, see and lose.

A `Game` is networks and rules, a `Round` what is drawn for one step, a `Judge` the discriminator as
the round knows it. Losses are functions of parameters, as `gen_jax.method.descend` takes them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gen_jax.gans.augment import augmented, moved
from gen_jax.gans.objectives import Objective
from gen_jax.gans.penalties import PENALTIES
from gen_jax.gans.style_layers import sizes_up_to
from gen_jax.method import Net, play


class Game(NamedTuple):
    """What both players know: the nets, the rules (`config.gan`), and how each learns.

    Where networks grow, `growth` has the size of a step and how far it is faded in.
    """

    generator: nn.Module
    discriminator: nn.Module
    objective: Objective
    rules: Any
    g_tx: optax.GradientTransformation
    d_tx: optax.GradientTransformation
    accumulate: int
    growth: Any = None

    def draw(self, key: jax.Array, image: jax.Array, label: jax.Array | None) -> 'Round':
        """What a step needs beside images [b, h, w, c] and their labels."""
        z = jax.random.normal(key, (len(image), self.generator.latent_dim))
        keys = jax.random.split(jax.random.fold_in(key, 1), len(image))
        return Round(image, label, z, keys, jax.random.fold_in(key, 2))


class Round(NamedTuple):
    """What a step of one player is about.

    Attributes:
      image: real ones [b, h, w, c].
      label: int32 [b], of real and of generated ones, or None.
      z: [b, d].
      keys: [b], of all else that is drawn for an example.
      whole: one key, of what is drawn for the batch.
    """

    image: jax.Array
    label: jax.Array | None
    z: jax.Array
    keys: jax.Array
    whole: jax.Array

    def keys_of(self, name: int) -> jax.Array:
        """Keys [b] of their own for one purpose, a number from 0."""
        return jax.vmap(lambda key: jax.random.fold_in(key, name))(self.keys)


NOISE, MIXING, VIEW, PENALTY, MOVED, PATH, VIEW_MADE = range(7)


def generate(game: Game, variables: dict, asked: Round) -> tuple[jax.Array, dict]:
    """Images [b, h, w, c] and the generator's collections after it."""
    noise, growth = asked.keys_of(NOISE), game.growth or {}
    if 'style_mixing' not in game.rules:
        told = asked.z, asked.label
        images, extra, _ = play(game.generator, variables, *told, keys=noise, **growth)
        return images, extra
    ws, extra = styles(game, variables, asked)
    return game.generator.apply(variables, ws, noise, method='synthesis', **growth), extra


def styles(game: Game, variables: dict, asked: Round) -> tuple[jax.Array, dict]:
    """Styles [b, num_ws, w_dim], some with a second z's from a random layer on, and collections.

    Style mixing (Karras et al. 2019, section 3.1), by one of the layers that the size of now has.
    """
    ws, extra, _ = play(game.generator, variables, asked.z, asked.label, method='mapping')
    if not game.rules.style_mixing:
        return ws, extra
    layers = 2 * len(sizes_up_to(game.growth['size'])) if game.growth else ws.shape[1]

    def draw(key):
        z, layer, mixed = jax.random.split(key, 3)
        crossover = jax.random.randint(layer, (), 1, layers)
        mixed = jax.random.bernoulli(mixed, game.rules.style_mixing)
        return jax.random.normal(z, asked.z.shape[1:]), jnp.where(mixed, crossover, ws.shape[1])

    z, crossover = jax.vmap(draw)(asked.keys_of(MIXING))  # [b, d], [b]
    other = game.generator.apply(variables, z, asked.label, method='mapping')
    first = jnp.arange(ws.shape[1]) < crossover[:, None]  # [b, num_ws]
    return jnp.where(first[..., None], ws, other), extra


class Judge(NamedTuple):
    """The discriminator as a round knows it, with what it sees instead of images.

    Attributes:
      game: the players.
      asked: the round.
      noise: deviation of instance noise.
    """

    game: Game
    asked: Round
    noise: jax.Array

    def view(self, x: jax.Array, made: bool) -> jax.Array:
        """Images as the discriminator sees them: with instance noise, and augmented.

        What is made is seen with other draws than what is real.
        """
        keys = self.asked.keys_of(VIEW_MADE if made else VIEW)
        if self.game.rules.instance_noise:
            draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))
            x = x + self.noise * draw(keys)
        return augmented(keys, x, self.game.rules.augment)

    def __call__(self, variables: dict, x: jax.Array, made: bool = False) -> tuple:
        """Logits [b] of images, real ones or `made`, collections, and what was sown."""
        options = {'rngs': {'dropout': jax.random.fold_in(self.asked.whole, int(made))}}
        if self.game.growth:
            options['alpha'] = self.game.growth['alpha']
        seen = self.view(x, made)
        return play(self.game.discriminator, variables, seen, self.asked.label, **options)

    def penalty(self, variables: dict, real: jax.Array, fake: jax.Array) -> jax.Array:
        """`gan.penalty`, weighted; of images that are judged together as of one that is taller.

        Where networks grow, its gradient is by images of full size, as in the authors' code: these
        are tiled, and the discriminator takes means over squares of (image_size / size)^2 pixels.
        """
        rules, m = self.game.rules, getattr(self.game.discriminator, 'packing', 1)
        value, targets = PENALTIES[rules.penalty]
        options = {'target': rules.penalty_target} if targets else {}
        keys = self.asked.keys_of(PENALTY)[::m]
        seen = [x.reshape(-1, m * x.shape[1], *x.shape[2:]) for x in (real, fake)]
        # k^2 pixels that share one pixel's gradient g have the norm |g| / k.
        share = real.shape[1] / self.game.generator.image_size if self.game.growth else 1.0

        def judge(x):
            return share * self(variables, x.reshape(real.shape))[0]

        return rules.penalty_weight * value(judge, *seen, keys, **options)

    def inconsistency(
        self, variables: dict, x: jax.Array, logits: jax.Array, made: bool
    ) -> jax.Array:
        """E[(D(x) - D(T(x)))^2], T a flip and a shift (Zhang et al. 2020, equation 2)."""
        other = moved(self.asked.keys_of(MOVED), x)
        return jnp.square(logits - self(variables, other, made)[0]).mean()


# --- losses --------------------------------------------------------------------------------------


def discriminator_loss(judge: Judge, generator: dict, params, extra, asked: Round) -> tuple:
    """(loss, (collections, metrics)) of the discriminator; `generator` are its variables."""
    fake = jax.lax.stop_gradient(generate(judge.game, generator, asked)[0])  # [b, h, w, c]
    return verdict(judge._replace(asked=asked), params, extra, fake)


def verdict(judge: Judge, params, extra, fake: jax.Array) -> tuple:
    """`discriminator_loss` of the generated images [b, h, w, c] that are given."""
    game, asked = judge.game, judge.asked
    rules, real = game.rules, asked.image
    on_real, extra, of_real = judge({'params': params, **extra}, real)  # [b]
    on_fake, extra, of_fake = judge({'params': params, **extra}, fake, made=True)
    smoothing = rules.label_smoothing, rules.fake_smoothing
    loss = game.objective.discriminator(on_real, on_fake, smoothing)
    variables, metrics = {'params': params, **extra}, {}
    if rules.penalty and rules.penalty_every == 1:
        metrics['penalty'] = judge.penalty(variables, real, fake)
        loss += metrics['penalty']
    if rules.drift:
        loss += rules.drift * jnp.square(on_real).mean()
    for weight, x, logits, made in (
        (rules.consistency, real, on_real, False),
        (rules.consistency_fake, fake, on_fake, True),
    ):
        if weight:
            loss += weight * judge.inconsistency(variables, x, logits, made)
    if 'class_logits' in of_real:
        guessed = [misjudged(sown, asked.label) for sown in (of_real, of_fake)]
        loss += rules.auxiliary_weight * sum(guessed)
    if (boundary := game.objective.boundary) is not None:
        metrics['real_accuracy'] = (on_real > boundary).mean()
        metrics['fake_accuracy'] = (on_fake < boundary).mean()
    return loss, (extra, metrics)


def generator_loss(judge: Judge, opponent: Net, params, extra, asked: Round) -> tuple:
    """(loss, (collections, metrics)) of the generator; `opponent` is the discriminator.

    Looking ahead it descends, as Metz et al. 2017, the whole of what a zero-sum objective is about
    (minus `Objective.discriminator`): how the opponent will judge real images depends on what is
    generated now. Of other objectives it is the generator's own loss, by the opponent then.
    """
    game, judge = judge.game, judge._replace(asked=asked)
    rules, variables = game.rules, {'params': params, **extra}
    fake, extra = generate(game, variables, asked)  # [b, h, w, c]
    if rules.unroll:
        opponent = unrolled(judge, opponent, fake)
    logits, _, of_fake = judge(opponent.variables(), fake, made=True)  # [b]
    if rules.unroll and game.objective.zero_sum:
        on_real, _, _ = judge(opponent.variables(), asked.image)
        smoothing = rules.label_smoothing, rules.fake_smoothing
        loss = -game.objective.discriminator(on_real, logits, smoothing)
    else:
        loss = game.objective.generator(logits)
    if share := rules.feature_matching:
        _, _, of_real = judge(opponent.variables(), asked.image)
        loss = (1 - share) * loss + share * mismatch(of_real['features'], of_fake['features'])
    if 'class_logits' in of_fake:
        loss += rules.auxiliary_weight * misjudged(of_fake, asked.label)
    metrics = {}
    if len(fake) > 1:
        metrics['diversity'] = spread(fake) / (spread(asked.image) + 1e-12)
    return loss, (extra, metrics)


def unrolled(judge: Judge, opponent: Net, fake: jax.Array) -> Net:
    """The discriminator after steps against these very images (Metz et al. 2017, equation 7).

    They are its own steps, whatever these add to its objective. The generator's gradient passes
    through them.
    """
    rules = judge.game.rules
    gradient_of = jax.grad(functools.partial(verdict, judge), has_aux=True)
    for _ in range(rules.unroll):
        gradient, (extra, _) = gradient_of(opponent.params, opponent.extra, fake)
        # Adam's root of its second moment is steep without end at 0, where units are dead from the
        # start; their 0 passes no gradient on.
        gradient = jax.tree.map(lambda g: jnp.where(g == 0, 0.0, g), gradient)
        updates, opt_state = judge.game.d_tx.update(gradient, opponent.opt_state, opponent.params)
        params = clipped(rules, optax.apply_updates(opponent.params, updates))
        opponent = opponent.replace(params=params, extra=extra, opt_state=opt_state)
    return opponent


def clipped(rules, params):
    """Parameters within `gan.clip_weights` of 0 (Arjovsky et al. 2017, algorithm 1)."""
    if not (limit := rules.clip_weights):
        return params
    return jax.tree.map(lambda x: jnp.clip(x, -limit, limit), params)


def misjudged(sown: dict, label: jax.Array) -> jax.Array:
    """-E[log p(label)] by the auxiliary classifier (Odena et al. 2017, equation 2)."""
    logits = sown['class_logits']  # [b, k]
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def mismatch(real: jax.Array, fake: jax.Array) -> jax.Array:
    """|E f(x) - E f(G(z))|^2 of features [b, f] (Salimans et al. 2016, section 3.1)."""
    return jnp.square(real.mean(0) - fake.mean(0)).sum()


def spread(x: jax.Array) -> jax.Array:
    """Mean absolute difference of each image [b, h, w, c] from the one before."""
    return jnp.abs(x - jnp.roll(x, 1, 0)).mean()
