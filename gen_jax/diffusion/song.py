"""DDPM++ and NCSN++ of Song et al. 2021 (Score-Based Generative Modeling through SDEs, appendix H).

The same networks serve Karras et al. 2022 (Elucidating the Design Space of Diffusion-Based
Generative Models, appendices C.2 and F.1), who widen the first level and add labels of classes and
of augmentation. Initial values are those of the authors' code (github.com/yang-song/score_sde).

    DDPM++            the defaults: 61,804,419 parameters on CIFAR-10 (blocks=8, deep: 106,632,579)
    NCSN++, CIFAR-10  encoder='residual', fir=True: 62,693,251 for VP, which embeds times; for VE
                      embedding='fourier', scale_by_sigma=True: 62,758,787 and 128 frequencies
    NCSN++, 256x256   encoder='skip', decoder='skip', and the rest as for VE
    of EDM, CIFAR-10  multipliers=(2, 2, 2), augment_dim=9; NCSN++ without scale_by_sigma
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.config import are_whole, nearest, require
from gen_jax.diffusion.unet import DTYPES, NEAR_ZERO, Conv3x3, Dense, sinusoids
from gen_jax.nn import fir
from gen_jax.nn.dropout import Dropout
from gen_jax.nn.norm import GroupNorm

CHOICES = {
    'embedding': ('positional', 'fourier'),
    'encoder': ('standard', 'skip', 'residual'),
    'decoder': ('standard', 'skip'),
    'remat': ('none', 'blocks'),
    'dtype': tuple(DTYPES),
}

# Queries, keys and values start smaller than all else.
SMALL = nn.initializers.variance_scaling(0.1, 'fan_avg', 'uniform')
FOURIER_SCALE = 16.0  # standard deviation of the frequencies
ROOT_HALF = 0.5**0.5  # keeps the variance of a sum of two


def norm(x: jax.Array, dtype: Any, name: str) -> jax.Array:
    """Group normalisation with at most 32 groups, of at least 4 channels: [b, h, w, c] -> same."""
    return GroupNorm(min(x.shape[-1] // 4, 32), dtype=dtype, name=name)(x)


class Embedding(nn.Module):
    """What every block is told: of the noise, the class and the augmentation.

    The frequencies of `fourier` are random but not trained: the collection `constants` keeps them.
    """

    channels: int
    kind: str
    num_classes: int
    augment_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, t, label, augment):
        """[b], int32 [b] or None, [b, augment_dim] or None -> [b, 4 * channels]."""
        if self.kind == 'fourier':
            frequencies = self.variable('constants', 'frequencies', self._frequencies).value
            angles = 2 * jnp.pi * t.astype(jnp.float32)[:, None] * frequencies  # [b, channels]
            emb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)  # [b, 2 * channels]
        else:
            emb = sinusoids(t, self.channels)  # [b, channels]
        dense = partial(Dense, dtype=self.dtype)
        if self.num_classes:
            none = jnp.full(len(t), self.num_classes)
            one_hot = jax.nn.one_hot(none if label is None else label, self.num_classes)
            one_hot = one_hot * self.num_classes**0.5  # of mean square 1
            emb = emb + dense(emb.shape[-1], name='label')(one_hot)
        if self.augment_dim:
            augment = jnp.zeros((len(t), self.augment_dim)) if augment is None else augment
            emb = emb + dense(emb.shape[-1], use_bias=False, name='augment')(augment)
        emb = nn.silu(dense(4 * self.channels, name='linear_1')(emb))
        return nn.silu(dense(4 * self.channels, name='linear_2')(emb))

    def _frequencies(self):
        return FOURIER_SCALE * jax.random.normal(self.make_rng('params'), (self.channels,))


class Block(nn.Module):
    """BigGAN's residual block: `resize`, where given, happens inside, on both branches."""

    width: int
    resize: Any
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x, emb, train: bool):
        """[b, h, w, c] and the embedding [b, e] -> [b, h', w', width]."""
        conv = partial(Conv3x3, self.width, dtype=self.dtype)
        h = nn.silu(norm(x, self.dtype, 'norm_1'))
        if self.resize:
            h, x = self.resize(h), self.resize(x)  # [b, h', w', c]
        h = conv(name='conv_1')(h)  # [b, h', w', width]
        h = h + Dense(self.width, dtype=self.dtype, name='embedding')(emb)[:, None, None, :]
        h = nn.silu(norm(h, self.dtype, 'norm_2'))
        h = Dropout(self.dropout, deterministic=not train)(h)
        h = conv(kernel_init=NEAR_ZERO, name='conv_2')(h)
        if self.resize or x.shape[-1] != self.width:
            x = Dense(self.width, dtype=self.dtype, name='shortcut')(x)  # 1x1
        return ROOT_HALF * (x + h)


class Attention(nn.Module):
    """Self-attention over pixels, with one head."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h, w, c]."""
        b, h, w, c = x.shape
        y = norm(x, self.dtype, 'norm')
        dense = partial(Dense, c, dtype=self.dtype)
        q, k, v = (
            dense(kernel_init=SMALL, name=name)(y).reshape(b, h * w, 1, c)  # [b, hw, 1, c]
            for name in ('to_q', 'to_k', 'to_v')
        )
        y = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)  # [b, h, w, c]
        return ROOT_HALF * (x + dense(kernel_init=NEAR_ZERO, name='to_out')(y))


class SongUNet(nn.Module):
    """The network of a score or of a denoiser, told the noise by t.

    Modules are named by level: 0 is the finest, on the way down and on the way up.

    Attributes:
      channels: width of the first convolution; those of the levels are multiples of it.
      multipliers: one per level; each level but the last halves the size.
      blocks: residual blocks per level on the way down; one more on the way up.
      attention: sizes (heights in pixels) of the feature maps that have attention: after each
        block on the way down, after the level on the way up. The middle always has one.
      dropout: probability, before the second convolution of each block.
      embedding: of t: 'positional' (sines of fixed frequencies) or 'fourier' (of random ones).
      encoder: what sees the image at each smaller size: 'standard' (nothing but the blocks),
        'skip' (the image, smaller, through a 1x1 convolution) or 'residual' (a chain of strided
        convolutions beside the blocks). The paper's progressive input: none, input_skip, residual.
      decoder: 'standard', or 'skip': each level adds an image to the enlarged one before. The
        paper's progressive: none, output_skip.
      fir: resize through the filter (1, 3, 3, 1), not by 2x2 means and nearest neighbours.
      scale_by_sigma: t is the standard deviation of the noise: its logarithm is embedded, and the
        result is divided by it.
      num_classes: labels the network can tell apart; 0: it takes none.
      augment_dim: numbers that tell of an image's augmentation; 0: it takes none.
      out_channels: channels of the result.
      remat: what the backward pass computes again instead of keeping it: 'none', or 'blocks' (all
        between the ends of blocks and attentions).
      dtype: what convolutions and attention compute in. Parameters, statistics, softmax and the
        result are float32.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.1
    embedding: str = 'positional'
    encoder: str = 'standard'
    decoder: str = 'standard'
    fir: bool = False
    scale_by_sigma: bool = False
    num_classes: int = 0
    augment_dim: int = 0
    out_channels: int = 3
    remat: str = 'none'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, t, label=None, train: bool = False, augment=None):
        """The network's raw output.

        Args:
          x: float [b, h, w, c]; h and w divisible by 2 ** (levels - 1). All weights take images in
            [-1, 1] plus noise: score_sde's networks for [0, 1] double and shift them first.
          t: float [b], what the reference's network is told: 999 times the time in [0, 1] for
            score_sde's VP, sigma for its VE (`scale_by_sigma`; sigma of images in [0, 1]),
            c_noise(sigma) for EDM's.
          label: int32 [b]; one below 0, or from `num_classes` on, is no class, as is None.
          train: whether to drop; needs the rng 'dropout'.
          augment: float [b, augment_dim]; 0 or None for an image as it is.

        Returns:
          float32 [b, h, w, out_channels].
        """
        embed = Embedding(
            *(self.channels, self.embedding, self.num_classes, self.augment_dim, self.dtype),
            name='embedding',
        )
        emb = embed(jnp.log(t) if self.scale_by_sigma else t, label, augment)  # [b, 4 * channels]
        y = self._decode(self._encode(x, emb, train), emb, train).astype(jnp.float32)
        return y / t[:, None, None, None] if self.scale_by_sigma else y

    def _encode(self, x, emb, train):
        """Image -> the feature maps of each level's blocks, from first to last."""
        image, skips = x, []
        for i, multiplier in enumerate(self.multipliers):
            if i == 0:
                x = Conv3x3(self.channels, dtype=self.dtype, name='conv_in')(x)  # [b, h, w, c]
            else:
                down = partial(fir.downsample, taps=self._taps)
                x = self._block(f'down_{i}_resize', x, emb, train, resize=down)  # [b, h/2, w/2, c]
                x, image = self._see(i, x, image)
            skips.append(x)
            for j in range(self.blocks):
                width = self.channels * multiplier
                x = self._block(f'down_{i}_block_{j}', x, emb, train, width)  # [b, h, w, width]
                x = self._attend(f'down_{i}_attention_{j}', x)
                skips.append(x)
        return skips

    def _decode(self, skips, emb, train):
        """What `_encode` returns -> [b, h, w, out_channels]."""
        x, y, last = skips[-1], None, len(self.multipliers) - 1
        up = partial(fir.upsample, taps=self._taps)
        for i in range(last, -1, -1):
            if i == last:
                x = self._block('mid_block_0', x, emb, train)
                x = self._attend('mid_attention', x, always=True)
                x = self._block('mid_block_1', x, emb, train)
            else:
                x = self._block(f'up_{i}_resize', x, emb, train, resize=up)  # [b, 2h, 2w, c]
            for j in range(self.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], -1)
                width = self.channels * self.multipliers[i]
                x = self._block(f'up_{i}_block_{j}', x, emb, train, width)  # [b, h, w, width]
            x = self._attend(f'up_{i}_attention', x)
            if self.decoder == 'skip' or i == 0:
                out = self._draw(i, x)
                y = out if y is None else up(y) + out  # [b, h, w, out_channels]
        return y

    def _see(self, i, x, image):
        """Shows level i the image, or what came of it; both [b, h, w, .], the image twice that."""
        if self.encoder == 'skip':
            image = fir.downsample(image, self._taps)  # [b, h, w, .]
            return x + Dense(x.shape[-1], dtype=self.dtype, name=f'down_{i}_image')(image), image
        if self.encoder == 'residual':
            # One padding for filter and convolution, as StyleGAN2 has it.
            k = len(self._taps)
            image = fir.upfirdn2d(image, fir.normalized(self._taps), pad=((k + 1) // 2, k // 2))
            shrink = partial(Conv3x3, strides=2, padding=0, dtype=self.dtype)
            image = shrink(x.shape[-1], name=f'down_{i}_image')(image)  # [b, h, w, c]
            x = image = ROOT_HALF * (x + image)
        return x, image

    def _draw(self, i, x):
        """What level i adds to the result: [b, h, w, c] -> [b, h, w, out_channels]."""
        x = nn.silu(norm(x, self.dtype, f'up_{i}_norm_out'))
        out = partial(Conv3x3, kernel_init=NEAR_ZERO, dtype=self.dtype)
        return out(self.out_channels, name=f'up_{i}_conv_out')(x)

    def _block(self, name, x, emb, train, width=None, resize=None):
        block = nn.remat(Block, static_argnums=3) if self.remat == 'blocks' else Block
        width = width or x.shape[-1]
        return block(width, resize, self.dropout, self.dtype, name=name)(x, emb, train)

    def _attend(self, name, x, always=False):
        if not always and x.shape[1] not in self.attention:
            return x
        attention = nn.remat(Attention) if self.remat == 'blocks' else Attention
        return attention(self.dtype, name=name)(x)

    @property
    def _taps(self):
        return (1, 3, 3, 1) if self.fir else (1, 1)


def defaults() -> dict:
    """The network's part of a config, `config.model`: DDPM++, small, for the 8x8 digits."""
    return {
        'channels': 32,  # width of the first convolution
        'multipliers': (1, 2),  # width of each level, in multiples of it
        'blocks': 1,  # residual blocks per level
        'attention': (4,),  # sizes of the feature maps that get attention
        'dropout': 0.1,
        'embedding': 'positional',  # of the time or noise: positional; fourier in NCSN++
        'encoder': 'standard',  # standard; NCSN++: residual, or skip for large images
        'decoder': 'standard',  # standard; skip in NCSN++ for large images
        'fir': False,  # resize through a filter, as NCSN++ does
        'remat': 'none',  # computed again in the backward pass: none, blocks
        'dtype': 'float32',  # what the network computes in: float32, bfloat16
    }


def from_config(config, num_classes: int) -> SongUNet:
    """The network that `config.model` describes, for images as `config.data` says.

    Args:
      config: with `model` as `defaults` gives it and `data.{image_size, channels}`.
      num_classes: labels the network can tell apart; 0: none.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    model, data = config.model, config.data
    _check(model, data.image_size)
    fields = {name: model[name] for name in defaults()}
    return SongUNet(
        **fields
        | {name: tuple(model[name]) for name in ('multipliers', 'attention')}
        | {'dtype': DTYPES[model.dtype], 'num_classes': num_classes, 'out_channels': data.channels}
    )


def _check(model, image_size: int) -> None:
    def check(name, ok, expected):
        require(ok, f'model.{name}', model[name], expected)

    for name, known in CHOICES.items():
        check(name, model[name] in known, f'a known name{nearest(model[name], known)}')
    levels = len(model.multipliers)
    whole = levels >= 1 and are_whole(model.multipliers)
    check('multipliers', whole, 'one whole number of at least 1 per level')
    check('blocks', model.blocks >= 1, 'at least 1')
    check('dropout', 0 <= model.dropout < 1, 'a probability below 1')
    # Group norms see a level's width, or two levels' side by side, and have a rule for groups.
    channels, widest = model.channels, 2 * model.channels * max(model.multipliers)
    fits = channels > 0 and channels % (4 if widest <= 128 else 32) == 0
    check('channels', fits, 'a multiple of 32, or of 4 where no level is wider than 64')
    step = 2 ** (levels - 1)
    expected = f'a multiple of {step}, as the {levels} levels of config.model.multipliers need'
    require(image_size % step == 0, 'data.image_size', image_size, expected)
    sizes = [image_size // 2**i for i in range(levels)]
    expected = f'sizes of feature maps, which here are {sizes}'
    check('attention', set(model.attention) <= set(sizes), expected)
