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
  the trained generator's statistics instead would describe weights that nobody samples from. They
  stand for BigGAN's standing statistics, over some ten batches instead of many.
* A network's spectral vectors and its mean of w are kept by its own steps only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax.scipy.special import erf, erfinv

from gen_jax.config import nearest, require
from gen_jax.gans import networks
from gen_jax.gans.augment import AUGMENTATIONS, augmented, moved
from gen_jax.gans.objectives import OBJECTIVES, Objective
from gen_jax.gans.penalties import PENALTIES, path_lengths
from gen_jax.gans.progressive import faded
from gen_jax.gans.style_layers import sizes_up_to
from gen_jax.method import (
    Method,
    Net,
    check_batch,
    descend,
    knob,
    labels,
    optimizer,
    optimizer_defaults,
    ramped_decay,
)
from gen_jax.nn.resize import double, halve

CHOICES = ('network',)
# Of z, as samples are drawn.
SPREAD = {
    'temperature': 1.0,  # standard deviation of z; below 1: less variety
    'truncation': 0.0,  # largest |z| at temperature 1 (BigGAN); 0: any
}
# Of generators that map z to styles (Karras et al. 2019 and 2020).
STYLE = {
    'style_mixing': 0.9,  # share of images with the styles of two z; 0: none
    'path_length': 2.0,  # weight of path length regularisation; 0: none
    'path_length_every': 4,  # training steps
}
# Of networks that can grow (Karras et al. 2018).
GROWTH = {
    # Training steps of each size, from 4x4 pixels on, and as many until the next has faded in;
    # 0: all at full size
    'grow_steps': 0,
}
STYLE_KNOBS = {
    'psi': 1.0,  # truncation in w; 1: none, 0: the mean
}
PATH_DECAY = 0.01  # share of a new mean path length in the running one
PATH_SHRINK = 2  # path lengths are taken of one image in so many


def defaults(network: str = 'dcgan') -> dict:
    """This method's part of the config: the non-saturating game, alone.

    Each stabiliser is off, and any may be turned on with any other.
    """
    styled, direction = network in networks.STYLED, network in networks.NORMALISED
    return {
        **networks.defaults(network),
        'gan': {
            # minimax, non_saturating, least_squares (LSGAN), hinge, wasserstein
            'objective': 'non_saturating',
            'label_smoothing': 0.0,  # s: the discriminator's target for real images is 1 - s
            'fake_smoothing': 0.0,  # its target for generated ones
            'n_critic': 1,  # steps of the discriminator for one of the generator; divides the batch
            'd_rate_ratio': 1.0,  # the discriminator's learning rate over the generator's
            'penalty': '',  # on its gradient: wgan_gp, dragan, r1, r2, r1_r2; '': none
            'penalty_weight': 10.0,  # lambda, or gamma
            'penalty_target': 1.0,  # the norm that wgan_gp and dragan draw it to
            # Training steps from one penalty to the next, which is as much stronger (lazy
            # regularisation, Karras et al. 2020); Adam is told of the steps in between
            'penalty_every': 1,
            'drift': 0.0,  # weight of E[D(x)^2] of real images (Karras et al. 2018)
            'clip_weights': 0.0,  # largest parameter of a critic (WGAN); 0: any
            'instance_noise': 0.0,  # deviation of noise on all that the discriminator sees
            'instance_noise_steps': 0,  # training steps until it has faded to 0; 0: it stays
            'augment': (),  # DiffAugment: color, translation, cutout
            'consistency': 0.0,  # weight of consistency regularisation, of real images
            'consistency_fake': 0.0,  # and of generated ones
            'feature_matching': 0.0,  # its share of the generator's loss, 0 to 1 (Salimans et al.)
            'unroll': 0,  # steps of the discriminator that the generator looks ahead
            'auxiliary_weight': 1.0,  # of the classifier's losses, with model.condition='auxiliary'
            **(STYLE if styled else {}),
            **(GROWTH if network in networks.GROWING else {}),
        },
        # The generator's; the discriminator's differs by d_rate_ratio.
        'optimizer': optimizer_defaults(learning_rate=2e-4, b1=0.5),
        'ema_decay': 0.999,  # of the generator that samples; 0: none kept
        'ema_rampup': 0.0,  # most of its half-life, as a share of the steps so far; 0: no limit
        'ema_start': 0,  # the step until which the average is the weights of now
        'sample': {'knobs': dict(STYLE_KNOBS if styled else {} if direction else SPREAD)},
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


NOISE, MIXING, VIEW, PENALTY, MOVED, PATH = range(6)


# --- one pass through one network ----------------------------------------------------------------


def play(module: nn.Module, variables: dict, *args, **options) -> tuple[Any, dict, dict]:
    """The output in training, the collections with what training keeps, and what was sown."""
    extra = {name: value for name, value in variables.items() if name != 'params'}
    mutable = [*extra, 'intermediates']
    out, changed = module.apply(variables, *args, train=True, mutable=mutable, **options)
    sown = {name: values[0] for name, values in changed.pop('intermediates', {}).items()}
    return out, extra | changed, sown


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

    Style mixing (Karras et al. 2019, section 3.1).
    """
    ws, extra, _ = play(game.generator, variables, asked.z, asked.label, method='mapping')
    if not game.rules.style_mixing:
        return ws, extra

    def draw(key):
        z, layer, mixed = jax.random.split(key, 3)
        crossover = jax.random.randint(layer, (), 1, ws.shape[1])
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

    def view(self, x: jax.Array) -> jax.Array:
        """Images as the discriminator sees them: with instance noise, and augmented."""
        keys = self.asked.keys_of(VIEW)
        if self.game.rules.instance_noise:
            draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))
            x = x + self.noise * draw(keys)
        return augmented(keys, x, self.game.rules.augment)

    def __call__(self, variables: dict, x: jax.Array) -> tuple[jax.Array, dict, dict]:
        """Logits [b] of images, collections, and what was sown."""
        options = {'rngs': {'dropout': self.asked.whole}}
        if self.game.growth:
            options['alpha'] = self.game.growth['alpha']
        return play(self.game.discriminator, variables, self.view(x), self.asked.label, **options)

    def penalty(self, variables: dict, real: jax.Array, fake: jax.Array) -> jax.Array:
        """`gan.penalty`, weighted."""
        rules = self.game.rules
        value, targets = PENALTIES[rules.penalty]
        options = {'target': rules.penalty_target} if targets else {}
        keys = self.asked.keys_of(PENALTY)
        found = value(lambda x: self(variables, x)[0], real, fake, keys, **options)
        return rules.penalty_weight * found

    def inconsistency(self, variables: dict, x: jax.Array, logits: jax.Array) -> jax.Array:
        """E[(D(x) - D(T(x)))^2], T a flip and a shift (Zhang et al. 2020, equation 2)."""
        return jnp.square(logits - self(variables, moved(self.asked.keys_of(MOVED), x))[0]).mean()


# --- losses --------------------------------------------------------------------------------------


def discriminator_loss(judge: Judge, generator: dict, params, extra, asked: Round) -> tuple:
    """(loss, (collections, metrics)) of the discriminator; `generator` are its variables."""
    game, judge = judge.game, judge._replace(asked=asked)
    rules, real = game.rules, asked.image
    fake = jax.lax.stop_gradient(generate(game, generator, asked)[0])  # [b, h, w, c]
    on_real, extra, of_real = judge({'params': params, **extra}, real)  # [b]
    on_fake, extra, of_fake = judge({'params': params, **extra}, fake)
    smoothing = rules.label_smoothing, rules.fake_smoothing
    loss = game.objective.discriminator(on_real, on_fake, smoothing)
    variables, metrics = {'params': params, **extra}, {}
    if rules.penalty and rules.penalty_every == 1:
        metrics['penalty'] = judge.penalty(variables, real, fake)
        loss += metrics['penalty']
    if rules.drift:
        loss += rules.drift * jnp.square(on_real).mean()
    for weight, x, logits in (
        (rules.consistency, real, on_real),
        (rules.consistency_fake, fake, on_fake),
    ):
        if weight:
            loss += weight * judge.inconsistency(variables, x, logits)
    if 'class_logits' in of_real:
        guessed = [misjudged(sown, asked.label) for sown in (of_real, of_fake)]
        loss += rules.auxiliary_weight * sum(guessed)
    if (boundary := game.objective.boundary) is not None:
        metrics['real_accuracy'] = (on_real > boundary).mean()
        metrics['fake_accuracy'] = (on_fake < boundary).mean()
    return loss, (extra, metrics)


def generator_loss(judge: Judge, opponent: Net, params, extra, asked: Round) -> tuple:
    """(loss, (collections, metrics)) of the generator; `opponent` is the discriminator."""
    game, judge = judge.game, judge._replace(asked=asked)
    rules, variables = game.rules, {'params': params, **extra}
    fake, extra = generate(game, variables, asked)  # [b, h, w, c]
    if rules.unroll:
        opponent = unrolled(judge, opponent, asked.image, fake)
    logits, _, of_fake = judge(opponent.variables(), fake)  # [b]
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


def unrolled(judge: Judge, opponent: Net, real: jax.Array, fake: jax.Array) -> Net:
    """The discriminator after steps against these very images (Metz et al. 2017, equation 7).

    The generator's gradient passes through the steps.
    """
    rules = judge.game.rules

    def loss_fn(params):
        on_real, extra, _ = judge({'params': params, **opponent.extra}, real)
        on_fake, _, _ = judge({'params': params, **extra}, fake)
        smoothing = rules.label_smoothing, rules.fake_smoothing
        return judge.game.objective.discriminator(on_real, on_fake, smoothing)

    for _ in range(rules.unroll):
        gradient = jax.grad(loss_fn)(opponent.params)
        # Adam's root of its second moment is steep without end at 0, where units are dead from the
        # start; their 0 passes no gradient on.
        gradient = jax.tree.map(lambda g: jnp.where(g == 0, 0.0, g), gradient)
        updates, opt_state = judge.game.d_tx.update(gradient, opponent.opt_state, opponent.params)
        params = optax.apply_updates(opponent.params, updates)
        opponent = opponent.replace(params=params, opt_state=opt_state)
    return opponent


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


# --- steps ---------------------------------------------------------------------------------------


def discriminator_step(judge: Judge, state: State) -> tuple[State, dict]:
    """Improves the discriminator on the round's images and as many generated ones."""
    game, asked = judge.game, judge.asked
    rules, generator = game.rules, state.generator.variables()
    net = state.discriminator
    if rules.penalty and rules.penalty_every > 1:
        net = every(rules.penalty_every, state.step, partial(penalised, judge, generator), net)
    loss_fn = partial(discriminator_loss, judge, generator)
    net, metrics = descend(net, loss_fn, game.d_tx, None, asked, game.accumulate)
    if limit := rules.clip_weights:
        net = net.replace(params=jax.tree.map(lambda x: jnp.clip(x, -limit, limit), net.params))
    return state.replace(discriminator=net), {f'd_{k}': v for k, v in metrics.items()}


def penalised(judge: Judge, generator: dict, net: Net) -> Net:
    """The discriminator after a step on its penalty alone, as strong as the steps without it."""
    game = judge.game

    def loss_fn(params, extra, asked):
        now = judge._replace(asked=asked)
        fake = jax.lax.stop_gradient(generate(game, generator, asked)[0])
        found = now.penalty({'params': params, **extra}, asked.image, fake)
        return game.rules.penalty_every * found, (extra, {})

    return descend(net, loss_fn, game.d_tx, None, judge.asked, game.accumulate)[0]


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
        _, extra = generate(game, before.variables(ema=True), asked)
        net = net.replace(extra=net.extra | {'batch_stats': extra['batch_stats']})
    return state.replace(generator=net), {f'g_{k}': v for k, v in metrics.items()}


def shortened(game: Game, asked: Round, pair: tuple[Net, jax.Array]) -> tuple[Net, jax.Array]:
    """(generator, mean path length) after a step of path length regularisation.

    E[(|J_w^T y| - a)^2], a their running mean (Karras et al. 2020, section 3.2), on a part of the
    batch, as strong as the steps without it.
    """
    net, mean = pair
    rules, fewer = game.rules, jax.tree.map(lambda x: x[::PATH_SHRINK] if x.ndim else x, asked)

    def loss_fn(params, extra, _):
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
    net, metrics = descend(net.replace(ema=None), loss_fn, game.g_tx, None, ())
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
    regular, grows = bool(rules.get('path_length', 0)), bool(rules.get('grow_steps', 0))

    def init(key, batch):
        check_batch(batch, size, channels)
        g_key, d_key = jax.random.split(key)
        n = config.model.get('packing', 1)  # no less than what is judged at once
        z, x = jnp.zeros((n, game.generator.latent_dim)), jnp.zeros((n, size, size, channels))
        label = jnp.zeros(n, jnp.int32) if classes else None
        g_variables = game.generator.init(g_key, z, label, train=False)
        d_variables = game.discriminator.init(d_key, x, label, train=False)
        return State(
            Net.create(g_variables, game.g_tx, config.ema_decay > 0),
            Net.create(d_variables, game.d_tx, False),
            jnp.zeros((), jnp.int32),
            jnp.zeros(()) if regular else None,
        )

    def train_step(key, state, batch, stage=size):
        check_batch(batch, size, channels)
        d_key, g_key = jax.random.split(key)
        label, noise = labels(batch, classes), instance_noise(rules, state.step)
        image, now = batch['image'], game
        if grows:
            alpha = growth(rules.grow_steps, size, state.step)[1]
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

    def sample_step(keys, state, condition):
        number = partial(knob, config, condition, n=len(keys))
        z = jax.vmap(lambda key: jax.random.normal(key, (game.generator.latent_dim,)))(keys)
        if config.network not in networks.NORMALISED:
            z = number('temperature')[:, None] * within(z, number('truncation')[:, None])  # [n, d]
        told = {name: number(name) for name in ('psi',) if name in config.sample.knobs}
        noise = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        return drawn(state, z, condition, keys=noise, **told)

    def decode(state, latents, condition):
        return drawn(state, latents, condition)

    def drawn(state, z, condition, **told):
        variables, label = state.generator.variables(ema=True), labels(condition, classes)

        def at(size, alpha):
            grown = {'size': size, 'alpha': alpha} if grows else {}
            images = game.generator.apply(variables, z, label, train=False, **told, **grown)
            return enlarged(images, config.data.image_size)

        if not grows:
            return jnp.clip(at(size, 1.0), -1.0, 1.0)
        number, alpha = growth(rules.grow_steps, size, state.step)
        sizes = [partial(at, size) for size in sizes_up_to(size)]
        return jnp.clip(jax.lax.switch(number, sizes, alpha), -1.0, 1.0)

    latent_dim = None if classes else game.generator.latent_dim

    def stage(step):
        return sizes_up_to(size)[int(growth(rules.grow_steps, size, np.int64(step))[0])]

    return Method(
        init,
        train_step,
        sample_step,
        decode=decode,
        latent_dim=latent_dim,
        stage=stage if grows else None,
        advise=advise,
    )


def growth(n: int, image_size: int, step) -> tuple:
    """What a step trains: which of the sizes 4, 8, ..., and how far it is faded in.

    Each size is trained for n steps, then the next fades in over n (Karras et al. 2018, figure 2).

    Args:
      n: `gan.grow_steps`.
      image_size: the last of the sizes.
      step: an array of NumPy or of JAX.

    Returns:
      (number from 0, alpha in [0, 1]), of the same kind.
    """
    xp = np if isinstance(step, np.generic) else jnp
    last = len(sizes_up_to(image_size)) - 1
    number = (step // n + 1) // 2
    fading = (number <= last) & ((step // n) % 2 == 1)
    return xp.minimum(number, last), xp.where(fading, (step % n) / n, 1.0)


def shown(image: jax.Array, size: int, alpha: jax.Array) -> jax.Array:
    """Real images [b, s, s, c] as they are while `size` fades in, [b, size, size, c].

    Karras et al. 2018, figure 2: they are mixed with themselves at half the size as well.
    """
    while image.shape[1] > size:
        image = halve(image)
    return image if size == 4 else faded(double(halve(image)), image, alpha)


def enlarged(image: jax.Array, size: int) -> jax.Array:
    """Images of any size on the way, [b, s, s, c], in squares: [b, size, size, c]."""
    while image.shape[1] < size:
        image = double(image)
    return image


def within(z: jax.Array, limit: jax.Array) -> jax.Array:
    """Normal values as values of the normal distribution truncated to [-limit, limit]; 0: as is."""
    share = jnp.where(limit > 0, erf(limit / 2**0.5), 1.0)
    # Where erf rounds to 1, its inverse is infinite.
    inside = jnp.clip(2**0.5 * erfinv(share * erf(z / 2**0.5)), -limit, limit)
    return jnp.where(limit > 0, inside, z)


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
    lazy_path = rules.path_length_every if rules.get('path_length', 0) else 1
    lazy_penalty = rules.penalty_every if rules.penalty else 1
    return Game(
        generator,
        discriminator,
        OBJECTIVES[rules.objective],
        rules,
        lazy_optimizer(config.optimizer, 1.0, lazy_path),
        lazy_optimizer(config.optimizer, rules.d_rate_ratio, lazy_penalty, rules.n_critic),
        config.accumulate,
    )


def lazy_optimizer(options, ratio: float, k: int, rounds: int = 1) -> optax.GradientTransformation:
    """Adam for k steps and one of regularisation, as if it were k (Karras et al. 2020, appendix B).

    Args:
      options: of `gen_jax.method.optimizer`.
      ratio: of the learning rate to that of `options`.
      k: 1: no step of regularisation apart.
      rounds: steps of Adam, beside those of regularisation, in one of training: the schedule,
        which `options` has in steps of training, is stretched by all of them.
    """
    options, c = options.copy_and_resolve_references(), k / (k + 1) if k > 1 else 1.0
    options.learning_rate = ratio * c * options.learning_rate
    options.b1, options.b2 = options.b1**c, options.b2**c
    for field in ('warmup', 'decay_steps'):
        options[field] = round(options[field] * (rounds + (1 / k if k > 1 else 0)))
    return optimizer(options)


def check(config) -> None:
    """Raises UserError where the rules do not exist or do not fit each other."""
    rules, batch = config.gan, config.batch_size
    named = [
        ('objective', OBJECTIVES, rules.objective),
        ('penalty', ('', *PENALTIES), rules.penalty),
    ]
    for field, known, value in (*named, *(('augment', AUGMENTATIONS, x) for x in rules.augment)):
        require(value in known, f'gan.{field}', value, f'a known name{nearest(value, known)}')
    require(rules.n_critic >= 1, 'gan.n_critic', rules.n_critic, 'a whole number of at least 1')
    packing = config.model.get('packing', 1)
    parts = rules.n_critic * config.accumulate * max(packing, 1)
    product = 'n_critic * accumulate' + ' * model.packing' * (packing > 1)
    require(batch % parts == 0, 'batch_size', batch, f'a multiple of {product} = {parts}')
    for field in ('label_smoothing', 'fake_smoothing'):
        require(0 <= rules[field] < 1, f'gan.{field}', rules[field], '0 or more, below 1')
    for field in (
        'penalty_weight',
        'clip_weights',
        'instance_noise',
        'instance_noise_steps',
        'consistency',
        'consistency_fake',
        'auxiliary_weight',
        'unroll',
        'drift',
        *(('grow_steps',) if 'grow_steps' in rules else ()),
        *(('path_length',) if 'path_length' in rules else ()),
    ):
        require(rules[field] >= 0, f'gan.{field}', rules[field], '0 or more')
    for field in ('penalty_every', *(('path_length_every',) if 'path_length' in rules else ())):
        require(rules[field] >= 1, f'gan.{field}', rules[field], 'a whole number of at least 1')
    for field in ('feature_matching', *(('style_mixing',) if 'style_mixing' in rules else ())):
        require(0 <= rules[field] <= 1, f'gan.{field}', rules[field], '0 to 1')
    for field in ('d_rate_ratio', 'penalty_target'):
        require(rules[field] > 0, f'gan.{field}', rules[field], 'a positive number')
    _check_fit(config)
    for field, value in config.sample.knobs.items():
        require(value >= 0, f'sample.knobs.{field}', value, '0 or more')
    require(0 <= config.ema_decay < 1, 'ema_decay', config.ema_decay, '0 (none) or more, below 1')
    for field in ('ema_rampup', 'ema_start'):
        require(config[field] >= 0, field, config[field], '0 or more')


def _check_fit(config) -> None:
    """Raises UserError where one rule forbids another."""
    rules, model = config.gan, config.model
    objective = OBJECTIVES[rules.objective]
    critic = objective.boundary is None
    smoothed = rules.label_smoothing or rules.fake_smoothing
    smooth = ', '.join(name for name, other in OBJECTIVES.items() if other.smooths)
    expected = f'one of {smooth}, which have targets to smooth'
    require(objective.smooths or not smoothed, 'gan.objective', rules.objective, expected)
    expected = "0 but for gan.objective='wasserstein'"
    require(critic or not rules.clip_weights, 'gan.clip_weights', rules.clip_weights, expected)
    spectral = model.get('d_spectral', config.network == 'biggan')
    bounded = rules.penalty or rules.clip_weights or spectral
    expected = 'gan.penalty, gan.clip_weights or model.d_spectral with it, to bound its gradient'
    require(not critic or bounded, 'gan.objective', rules.objective, expected)
    normed = model.get('d_batch_norm', False) and rules.penalty == 'wgan_gp'
    expected = "'' or another where model.d_batch_norm=True ties the images of a batch together"
    require(not normed, 'gan.penalty', rules.penalty, expected)
