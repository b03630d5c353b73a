"""DCGAN: Radford, Metz and Chintala 2016, "Unsupervised Representation Learning with DCGANs".

The losses are the non-saturating ones of Goodfellow et al. 2014 (section 3), with the one-sided
label smoothing of Salimans et al. 2016 (section 3.4). A training step improves the discriminator
once, then the generator once against the new discriminator, each on fresh noise (Goodfellow et al.,
algorithm 1, with k = 1).

Three choices the papers leave open:

* z is normal, as in most code since; the paper's was uniform.
* Real and generated images pass through the discriminator as two batches, so that each is
  normalised by its own statistics. While training, both nets normalise by the batch (the global
  one, however many devices share it).
* Sampling uses running statistics, so that image i does not depend on its neighbours. They are
  those of the averaged generator: each step runs it once more, on the step's own noise. Averaging
  the trained generator's statistics instead would describe weights that nobody samples from.

The running variance is that of flax: an average of biased batch variances. PyTorch averages
unbiased ones, larger by n / (n - 1), n = b * h * w.

Labels are ignored.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn
from flax import struct

from gen_jax.config import require
from gen_jax.method import Method, Net, check_batch, descend, optimizer, optimizer_defaults


def defaults() -> dict:
    """This method's part of the config; the numbers are the paper's."""
    return {
        'model': {
            'width': 64,  # channels next to the image; doubled whenever the side is halved
            'dtype': 'float32',  # of the computation: float32 or bfloat16
        },
        'gan': {
            'latent_dim': 100,  # length of z
            'label_smoothing': 0.0,  # s: the discriminator's target for real images is 1 - s
            'd_rate_ratio': 1.0,  # the discriminator's learning rate over the generator's
        },
        # The generator's; the discriminator's differs by d_rate_ratio.
        'optimizer': optimizer_defaults(learning_rate=2e-4, b1=0.5),
        'ema_decay': 0.999,  # of the generator that samples; 0: none kept
        'sample': {'knobs': {'temperature': 1.0}},  # standard deviation of z; below 1: less variety
    }


class State(struct.PyTreeNode):
    """Two nets. The generator's `extra` holds the running statistics of its averaged weights."""

    generator: Net
    discriminator: Net


KERNEL_INIT = nn.initializers.normal(0.02)


def _norm(train: bool, dtype, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        scale_init=lambda key, shape, dtype: 1 + KERNEL_INIT(key, shape, dtype),
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )


class Generator(nn.Module):
    """Noise to images by transposed convolutions; no biases; batch norm in all but the last.

    Attributes:
      width: channels before the last layer.
      stages: doublings from 4x4 to the image.
      channels: of the image.
      dtype: of the computation; parameters stay float32.
    """

    width: int
    stages: int
    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z, train: bool):
        """Noise [b, d] -> float32 images [b, 4 * 2**stages, 4 * 2**stages, channels] in [-1, 1]."""
        x = z[:, None, None, :]  # [b, 1, 1, d]
        features = self.width * 2 ** (self.stages - 1)
        x = self._up(features, (1, 1), 'VALID', 'conv_0')(x)  # [b, 4, 4, features]
        x = nn.relu(_norm(train, self.dtype, 'norm_0')(x))
        for i in range(1, self.stages):
            features //= 2
            x = self._up(features, (2, 2), 'SAME', f'conv_{i}')(x)  # [b, 2 * h, 2 * w, c / 2]
            x = nn.relu(_norm(train, self.dtype, f'norm_{i}')(x))
        x = self._up(self.channels, (2, 2), 'SAME', f'conv_{self.stages}')(x)
        return nn.tanh(x.astype(jnp.float32))  # [b, 2 * h, 2 * w, channels]

    def _up(self, features: int, strides: tuple[int, int], padding: str, name: str):
        # transpose_kernel: the gradient of a convolution, which is what PyTorch calls transposed.
        return nn.ConvTranspose(
            features,
            (4, 4),
            strides,
            padding,
            transpose_kernel=True,
            use_bias=False,
            kernel_init=KERNEL_INIT,
            dtype=self.dtype,
            name=name,
        )


class Discriminator(nn.Module):
    """Images to logits by strided convolutions; no biases; batch norm in all but first and last.

    Attributes:
      width: channels after the first layer.
      stages: halvings from the image to 4x4.
      dtype: of the computation; parameters stay float32.
    """

    width: int
    stages: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """Images [b, 4 * 2**stages, 4 * 2**stages, c] in [-1, 1] -> float32 logits [b]."""
        x = nn.leaky_relu(self._down(self.width, (2, 2), 'SAME', 'conv_0')(x), 0.2)
        for i in range(1, self.stages):
            x = self._down(self.width * 2**i, (2, 2), 'SAME', f'conv_{i}')(x)
            x = _norm(train, self.dtype, f'norm_{i}')(x)  # [b, h / 2, w / 2, 2 * c]
            x = nn.leaky_relu(x, 0.2)
        x = self._down(1, (1, 1), 'VALID', f'conv_{self.stages}')(x)  # [b, 1, 1, 1]
        return x[:, 0, 0, 0].astype(jnp.float32)  # [b]

    def _down(self, features: int, strides: tuple[int, int], padding: str, name: str):
        return nn.Conv(
            features,
            (4, 4),
            strides,
            padding,
            use_bias=False,
            kernel_init=KERNEL_INIT,
            dtype=self.dtype,
            name=name,
        )


def discriminator_loss(real: jax.Array, fake: jax.Array, smoothing: float) -> jax.Array:
    """-E[(1 - s) log D(x) + s log(1 - D(x))] - E[log(1 - D(G(z)))], D = sigmoid(logit).

    Goodfellow et al. 2014, equation 1, where s = 0. Only the real targets are smoothed: smoothing
    the fake ones would reward the generator for what it does already (Salimans et al. 2016).

    Args:
      real, fake: logits [b].
      smoothing: s, in [0, 1).

    Returns:
      Scalar, nats.
    """
    on_real = optax.sigmoid_binary_cross_entropy(real, jnp.full_like(real, 1 - smoothing))
    on_fake = optax.sigmoid_binary_cross_entropy(fake, jnp.zeros_like(fake))
    return on_real.mean() + on_fake.mean()


def generator_loss(fake: jax.Array) -> jax.Array:
    """-E[log D(G(z))], the non-saturating loss of Goodfellow et al. 2014, section 3; logits [b]."""
    return optax.sigmoid_binary_cross_entropy(fake, jnp.ones_like(fake)).mean()


class Game(NamedTuple):
    """What both players know: the nets and how each learns."""

    generator: Generator
    discriminator: Discriminator
    latent_dim: int
    smoothing: float
    g_tx: optax.GradientTransformation
    d_tx: optax.GradientTransformation
    ema_decay: float
    accumulate: int


def apply_train(module: nn.Module, variables: dict, x: jax.Array) -> tuple[jax.Array, dict]:
    """The output with batch statistics, and the collections with those mixed in."""
    return module.apply(variables, x, train=True, mutable=['batch_stats'])


def discriminator_step(game: Game, key, state: State, image) -> tuple[State, dict]:
    """Improves the discriminator on real images [b, h, w, c] and as many generated ones."""
    z = jax.random.normal(key, (len(image), game.latent_dim))

    def loss_fn(params, extra, batch):
        z, image = batch
        fake, _ = apply_train(game.generator, state.generator.variables(), z)  # [b, h, w, c]
        on_real, extra = apply_train(game.discriminator, {'params': params, **extra}, image)  # [b]
        on_fake, extra = apply_train(game.discriminator, {'params': params, **extra}, fake)
        metrics = {'real_accuracy': (on_real > 0).mean(), 'fake_accuracy': (on_fake < 0).mean()}
        return discriminator_loss(on_real, on_fake, game.smoothing), (extra, metrics)

    net, metrics = descend(
        state.discriminator, loss_fn, game.d_tx, None, (z, image), game.accumulate
    )
    return state.replace(discriminator=net), {f'd_{k}': v for k, v in metrics.items()}


def generator_step(game: Game, key, state: State, n: int) -> tuple[State, dict]:
    """Improves the generator on n noise vectors, then its average and the running statistics."""
    z = jax.random.normal(key, (n, game.latent_dim))

    def loss_fn(params, extra, z):
        fake, _ = apply_train(game.generator, {'params': params, **extra}, z)  # [n, h, w, c]
        logits, _ = apply_train(game.discriminator, state.discriminator.variables(), fake)
        return generator_loss(logits), (extra, {})

    net, metrics = descend(state.generator, loss_fn, game.g_tx, game.ema_decay, z, game.accumulate)
    _, extra = apply_train(game.generator, net.variables(ema=True), z)
    net = net.replace(extra=extra)
    return state.replace(generator=net), {f'g_{k}': v for k, v in metrics.items()}


def create(config: ml_collections.ConfigDict) -> Method:
    """The DCGAN that `defaults` describes.

    `sample_step` takes `temperature` float32 [n], the standard deviation of z, and uses the
    averaged generator where there is one.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    game = _game(config)
    size, channels = config.data.image_size, config.data.channels

    def init(key, batch):
        check_batch(batch, size, channels)
        g_key, d_key = jax.random.split(key)
        z = jnp.zeros((1, game.latent_dim))
        g_variables = game.generator.init(g_key, z, train=False)
        d_variables = game.discriminator.init(d_key, batch['image'][:1], train=False)
        return State(
            Net.create(g_variables, game.g_tx, config.ema_decay > 0),
            Net.create(d_variables, game.d_tx, False),
        )

    def train_step(key, state, batch):
        check_batch(batch, size, channels)
        d_key, g_key = jax.random.split(key)
        state, d_metrics = discriminator_step(game, d_key, state, batch['image'])
        state, g_metrics = generator_step(game, g_key, state, len(batch['image']))
        return state, d_metrics | g_metrics

    def sample_step(keys, state, condition):
        temperature = condition.get('temperature', config.sample.knobs.temperature)
        z = jax.vmap(lambda key: jax.random.normal(key, (game.latent_dim,)))(keys)  # [n, d]
        return decode(state, jnp.broadcast_to(temperature, len(keys))[:, None] * z, condition)

    def decode(state, latents, condition):
        del condition
        return game.generator.apply(state.generator.variables(ema=True), latents, train=False)

    return Method(init, train_step, sample_step, decode=decode, latent_dim=game.latent_dim)


def _game(config) -> Game:
    model, gan, size = config.model, config.gan, config.data.image_size
    stages = max(size // 4, 1).bit_length() - 1
    sizes = '4 * 2**k with k >= 2: 16, 32, 64 (the paper), 128, ...'
    require(stages >= 2 and size == 4 * 2**stages, 'data.image_size', size, sizes)
    require(model.width >= 1, 'model.width', model.width, 'a whole number of at least 1')
    dtypes = ('float32', 'bfloat16')
    require(model.dtype in dtypes, 'model.dtype', model.dtype, "'float32' or 'bfloat16'")
    require(gan.latent_dim >= 1, 'gan.latent_dim', gan.latent_dim, 'a whole number of at least 1')
    temperature = config.sample.knobs.temperature
    require(temperature >= 0, 'sample.knobs.temperature', temperature, '0 or more')
    smoothing, ratio, decay = gan.label_smoothing, gan.d_rate_ratio, config.ema_decay
    require(0 <= smoothing < 1, 'gan.label_smoothing', smoothing, '0 or more, below 1')
    require(ratio > 0, 'gan.d_rate_ratio', ratio, 'a positive number')
    require(0 <= decay < 1, 'ema_decay', decay, '0 (none) or more, below 1')
    d_optimizer = config.optimizer.copy_and_resolve_references()
    d_optimizer.learning_rate = ratio * config.optimizer.learning_rate
    dtype = jnp.dtype(model.dtype)
    return Game(
        Generator(model.width, stages, config.data.channels, dtype),
        Discriminator(model.width, stages, dtype),
        gan.latent_dim,
        smoothing,
        optimizer(config.optimizer),
        optimizer(d_optimizer),
        decay,
        config.accumulate,
    )
