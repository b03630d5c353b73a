"""A generator and a discriminator that play: any objective, stabiliser and network of this room.

One training step improves the discriminator `gan.n_critic` times, each on its own part of the batch
and fresh noise, then the generator once against the new discriminator (Goodfellow et al. 2014,
algorithm 1). Labels of generated images are those of the real ones beside them.

What the papers leave open:

* z is normal.
* Real and generated images pass through the discriminator as two batches, so that batch norm
  normalises each by its own statistics; while training, by the batch (the global one, however many
  devices share it).
* Sampling uses running statistics, so that image i does not depend on its neighbours. They are
  those of the averaged generator: each step runs it once more, on the step's own noise. Averaging
  the trained generator's statistics instead would describe weights that nobody samples from. With
  `sample.standing` BigGAN's standing statistics take their place.
* A network's spectral vectors and its mean of w are kept by its own steps only. Whatever uses the
  averaged generator takes one step of power iteration from them, and keeps none.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import struct

from gen_jax.gans import networks
from gen_jax.gans import rules as game_rules
from gen_jax.gans.game import (
    NOISE,
    PATH,
    Game,
    Judge,
    Round,
    clipped,
    discriminator_loss,
    generate,
    generator_loss,
    styles,
)
from gen_jax.gans.growing import Growth, forgotten, growth_of, shown
from gen_jax.gans.latents import latents, standing
from gen_jax.gans.objectives import OBJECTIVES
from gen_jax.gans.penalties import path_lengths
from gen_jax.gans.rules import check, rules_for, sample_for
from gen_jax.method import (
    UNTRUNCATED,
    Method,
    Net,
    check_batch,
    descend,
    labels,
    optimizer,
    optimizer_defaults,
    parts,
    ramped_decay,
)

CHOICES = {'network': 'model'}
PENALTY_WEIGHT, PATH_LENGTH = 'gan.penalty_weight', 'gan.path_length'
PATH_DECAY = 0.01  # share of a new mean path length in the running one
PATH_SHRINK = 2  # path lengths are taken of one image in so many

SERVES = game_rules.SERVES  # see gen_jax.idle


def defaults(network: str = 'dcgan') -> dict:
    """This method's part of the config."""
    return {
        **networks.defaults(network),
        'gan': rules_for(network),
        # The generator's; the discriminator's differs by d_rate_ratio.
        'optimizer': optimizer_defaults(learning_rate=2e-4, b1=0.5),
        'ema_decay': 0.999,  # of the generator that samples; 0: none kept
        'ema_rampup': 0.0,  # most of its half-life, as a share of the steps so far; 0: no limit
        'ema_start': 0,  # the step until which the average is the weights of now
        'sample': sample_for(network),
    }


class State(struct.PyTreeNode):
    """Two nets. The generator's `extra` holds the running statistics of its averaged weights.

    Attributes:
      step: training steps so far.
      path_length: its running mean; None where it is not regularised.
    """

    generator: Net
    discriminator: Net
    step: jax.Array
    path_length: Any


# --- steps ---------------------------------------------------------------------------------------


def discriminator_step(judge: Judge, state: State) -> tuple[State, dict]:
    """Improves the discriminator on the round's images and as many generated ones."""
    game, asked = judge.game, judge.asked
    rules, generator = game.rules, state.generator.variables()
    net, lazy = state.discriminator, {}
    if PENALTY_WEIGHT in lazy_terms(rules):
        pair = net, jnp.zeros(())
        step = partial(penalised, judge, generator)
        net, lazy['penalty'] = every(rules.penalty_every, state.step, step, pair)
    loss_fn = partial(discriminator_loss, judge, generator)
    net, metrics = descend(net, loss_fn, game.d_tx, None, asked, game.accumulate)
    net = net.replace(params=clipped(rules, net.params))
    return state.replace(discriminator=net), {f'd_{k}': v for k, v in (metrics | lazy).items()}


def penalised(judge: Judge, generator: dict, pair: tuple[Net, jax.Array]) -> tuple[Net, jax.Array]:
    """(discriminator, loss) after a step on its penalty alone, as strong as the steps without it.

    The loss of many steps, 0 in those without it, has the penalty as its mean.
    """
    (net, _), game = pair, judge.game

    def loss_fn(params, extra, asked):
        now = judge._replace(asked=asked)
        fake = jax.lax.stop_gradient(generate(game, generator, asked)[0])
        found = now.penalty({'params': params, **extra}, asked.image, fake)
        return game.rules.penalty_every * found, (extra, {})

    net, metrics = descend(net, loss_fn, game.d_tx, None, judge.asked, game.accumulate)
    return net, metrics['loss']


def generator_step(judge: Judge, state: State, decay: float | jax.Array) -> tuple[State, dict]:
    """Improves the generator, then its average, to `decay`, and the running statistics."""
    game, asked = judge.game, judge.asked
    if state.path_length is not None:
        pair = state.generator, state.path_length
        step = partial(shortened, game, asked)
        net, mean = every(game.rules.path_length_every, state.step, step, pair)
        state = state.replace(generator=net, path_length=mean)
    loss_fn = partial(generator_loss, judge, state.discriminator)
    net, metrics = descend(state.generator, loss_fn, game.g_tx, decay, asked, game.accumulate)
    if 'batch_stats' in net.extra:
        # Those before the step: what the step's own batches kept is of other weights.
        before = net.replace(
            extra=net.extra | {'batch_stats': state.generator.extra['batch_stats']}
        )
        variables = before.variables(ema=True)

        def kept(part):
            return generate(game, variables, part)[1]['batch_stats']

        each = jax.lax.map(kept, parts(asked, game.accumulate))
        stats = jax.tree.map(lambda x: x.mean(0), each)
        net = net.replace(extra=net.extra | {'batch_stats': stats})
    if state.path_length is not None:
        metrics['path_length'] = state.path_length
    return state.replace(generator=net), {f'g_{k}': v for k, v in metrics.items()}


def shortened(game: Game, asked: Round, pair: tuple[Net, jax.Array]) -> tuple[Net, jax.Array]:
    """(generator, mean path length) after a step of path length regularisation.

    E[(|J_w^T y| - a)^2], a their running mean (Karras et al. 2020, section 3.2), on a share of the
    batch, as strong as the steps without it. Of a batch in parts each part tells its own mean.
    """
    net, mean = pair
    rules = game.rules

    def loss_fn(params, extra, asked):
        fewer = jax.tree.map(lambda x: x[::PATH_SHRINK] if x.ndim else x, asked)
        variables = {'params': params, **extra}
        ws, _ = styles(game, variables, fewer)
        noise = fewer.keys_of(NOISE)
        options = {'keys': noise, 'method': 'synthesis', **(game.growth or {})}
        synthesis = partial(game.generator.apply, variables, **options)
        shape = fewer.image.shape[1:]
        y = jax.vmap(lambda key: jax.random.normal(key, shape))(fewer.keys_of(PATH))
        lengths = path_lengths(synthesis, ws, y)  # [b]
        a = mean + PATH_DECAY * (lengths.mean() - mean)
        loss = rules.path_length_every * rules.path_length * jnp.square(lengths - a).mean()
        return loss, (extra, {'a': a})

    # No decay: the average takes its step with the game's own.
    net, metrics = descend(net.replace(ema=None), loss_fn, game.g_tx, None, asked, game.accumulate)
    return net.replace(ema=pair[0].ema), metrics['a']


def every(n: int, step: jax.Array, function: Callable, value):
    """`function(value)` at every n-th step, else `value`."""
    return jax.lax.cond(step % n == 0, function, lambda same: same, value)


# --- the method ----------------------------------------------------------------------------------


def create(config) -> Method:
    """The game that `defaults` describes.

    `sample_step` uses the averaged generator where there is one, and takes, per sample, what
    `sample.knobs` has: `temperature`, the standard deviation of z, and `truncation`, the largest
    |z| before that, 0 for any (Brock et al. 2019, section 3.1); of networks with styles `psi`.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    check(config)
    game = game_of(config)
    size, channels = config.data.image_size, config.data.channels
    classes, rules = game.generator.num_classes, config.gan
    lazy, growth = lazy_terms(rules), growth_of(rules, size)

    def init(key, batch):
        check_batch(batch, size, channels)
        g_key, d_key = jax.random.split(key)
        generator, discriminator = first_calls(config, game)
        return first_state(config, game, generator(g_key), discriminator(d_key))

    def train_step(key, state, batch, stage=size):
        check_batch(batch, size, channels)
        d_key, g_key = jax.random.split(key)
        label, noise = labels(batch, classes), instance_noise(rules, state.step)
        image, now = batch['image'], game
        if growth:
            alpha, new = growth.at(state.step)[1], growth.begins(state.step)
            state = state.replace(
                generator=forgotten(state.generator, new),
                discriminator=forgotten(state.discriminator, new),
            )
            image, now = (
                shown(image, stage, alpha),
                game._replace(growth={'size': stage, 'alpha': alpha}),
            )
        each = []
        for i in range(rules.n_critic):
            # Every k-th image: each device finds its share of a part in its share of the batch.
            part = jax.tree.map(lambda x: x[i :: rules.n_critic], (image, label))  # noqa: B023
            asked = now.draw(jax.random.fold_in(d_key, i), *part)
            state, metrics = discriminator_step(Judge(now, asked, noise), state)
            each.append(metrics)
        d_metrics = jax.tree.map(lambda *values: sum(values) / len(values), *each)
        asked = now.draw(g_key, *part)
        decay = jnp.where(state.step < config.ema_start, 0.0, ramped_decay(config, state.step))
        state, g_metrics = generator_step(Judge(now, asked, noise), state, decay)
        return state.replace(step=state.step + 1), d_metrics | g_metrics

    found = latents(config, game)

    def sample_step(keys, state, condition):
        z = jax.vmap(lambda key: jax.random.normal(key, (game.generator.latent_dim,)))(keys)
        noise = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        return found.synthesis(state, found.mapping(state, z, condition), condition, noise)

    def decode(state, z, condition):
        return found.synthesis(state, found.mapping(state, z, condition | UNTRUNCATED), condition)

    latent_dim = None if classes else game.generator.latent_dim

    @cache
    def of_phase(phase):
        return growth.sizes[int(growth.at(np.int64(phase * growth.steps))[0])]

    def stage(step):
        return of_phase(step // growth.steps)

    return Method(
        init,
        train_step,
        sample_step,
        decode=decode,
        latent_dim=latent_dim,
        latents=found,
        settle=standing(config, game, found) if config.sample.get('standing') else None,
        stage=stage if growth else None,
        lazy=lazy,
        advise=advise,
    )


def first_calls(config, game: Game) -> tuple[Callable, Callable]:
    """What makes the variables of the generator and of the discriminator, each of a key."""
    size, channels = config.data.image_size, config.data.channels
    n = config.model.get('packing', 1)  # no less than what is judged at once
    z, x = jnp.zeros((n, game.generator.latent_dim)), jnp.zeros((n, size, size, channels))
    label = jnp.zeros(n, jnp.int32) if game.generator.num_classes else None

    def generator(key):
        return game.generator.init(key, z, label, train=False)

    def discriminator(key):
        return game.discriminator.init(key, x, label, train=False)

    return generator, discriminator


def first_state(config, game: Game, generator: dict, discriminator: dict) -> State:
    """The state before the first step, of both players' variables."""
    return State(
        Net.create(generator, game.g_tx, config.ema_decay > 0),
        Net.create(discriminator, game.d_tx, False),
        jnp.zeros((), jnp.int32),
        jnp.zeros(()) if PATH_LENGTH in lazy_terms(config.gan) else None,
    )


def instance_noise(rules, step: jax.Array) -> jax.Array:
    """Its deviation after `step` training steps (Sønderby et al. 2017, section 3.2)."""
    if not rules.instance_noise_steps:
        return jnp.float32(rules.instance_noise)
    return rules.instance_noise * jnp.maximum(1 - step / rules.instance_noise_steps, 0.0)


def advise(means: dict) -> dict[str, str]:
    """What goes wrong, by its name, and what to do: from metrics, each a mean over some steps."""
    said = {}
    right = min(means.get(f'd_{kind}_accuracy', 0.0) for kind in ('real', 'fake'))
    if right > 0.99:
        said['the discriminator wins'] = (
            f'it is right on {right:.1%} of images, which teaches the generator little: try '
            "gan.penalty='r1', gan.instance_noise, or a lower gan.d_rate_ratio"
        )
    if means.get('g_diversity', 1.0) < 0.25:
        said['mode collapse'] = (
            f'generated images differ from each other by {means["g_diversity"]:.0%} of what real '
            "ones do: try gan.penalty='r1', gan.objective='hinge' with spectral normalisation, or "
            'a lower optimizer.learning_rate'
        )
    return said


def game_of(config) -> Game:
    """The players of a config that `check` has passed."""
    generator, discriminator = networks.build(config)
    rules = ml_collections.FrozenConfigDict(config.gan)  # hashable
    growth = growth_of(rules, config.data.image_size)
    lazy = lazy_terms(rules)
    lazy_path, lazy_penalty = lazy.get(PATH_LENGTH, 0), lazy.get(PENALTY_WEIGHT, 0)
    return Game(
        generator,
        discriminator,
        OBJECTIVES[rules.objective],
        rules,
        lazy_optimizer(config.optimizer, 1.0, lazy_path, growth=growth),
        lazy_optimizer(config.optimizer, rules.d_rate_ratio, lazy_penalty, rules.n_critic, growth),
        config.accumulate,
    )


def lazy_terms(rules) -> dict[str, int]:
    """What is regularised by steps of its own: {its weight in the config: every how many}."""
    terms = {}
    # At every step the penalty is part of the loss.
    if rules.penalty and rules.penalty_weight and rules.penalty_every > 1:
        terms[PENALTY_WEIGHT] = rules.penalty_every
    if rules.get('path_length', 0):
        terms[PATH_LENGTH] = rules.path_length_every
    return terms


def lazy_optimizer(
    options, ratio: float, k: int, rounds: int = 1, growth: Growth | None = None
) -> optax.GradientTransformation:
    """Adam for k steps and one of regularisation, as if it were k (Karras et al. 2020, appendix B).

    Args:
      options: of `gen_jax.method.optimizer`.
      ratio: of the learning rate to that of `options`.
      k: 0: there is no step of regularisation.
      rounds: steps of Adam in one of training, to which every k-th time as many of regularisation
        are added: the schedule, which `options` has in steps of training, is stretched by all.
      growth: of the networks, whose sizes may have rates of their own.
    """
    options, c = options.copy_and_resolve_references(), k / (k + 1) if k else 1.0
    moves = rounds / c
    options.learning_rate = ratio * c * options.learning_rate
    options.b1, options.b2 = options.b1**c, options.b2**c
    for field in ('warmup', 'decay_steps'):
        options[field] = round(options[field] * moves)
    adam = optimizer(options)
    return optax.chain(adam, growth.scheduled(moves)) if growth and growth.rates else adam
