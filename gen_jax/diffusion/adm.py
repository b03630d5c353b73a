"""ADM, the U-Net and the noisy classifier of Dhariwal and Nichol 2021 (Diffusion Models Beat GANs).

The U-Net is that of Nichol and Dhariwal 2021 (Improved Denoising Diffusion Probabilistic Models,
appendix A) with the changes of section 3: more heads and sizes of attention, and residual blocks
that resize as BigGAN's do. Initial values are those of the authors' code
(github.com/openai/guided-diffusion, unet.py). The defaults are the network for ImageNet at 64x64;
with 1000 classes and learned variances it has 295,904,454 parameters.
`gen_jax.interop.adm.PUBLISHED` has the others.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.config import require
from gen_jax.diffusion import unet
from gen_jax.diffusion.unet import kept_less
from gen_jax.errors import UserError
from gen_jax.nn.conv import conv
from gen_jax.nn.dropout import Dropout
from gen_jax.nn.norm import GroupNorm
from gen_jax.nn.resize import double, halve

# The last layer of each residual branch starts at zero: every block starts as the identity.
ZEROS = {'kernel_init': nn.initializers.zeros}


def uniform(fan_in: int) -> dict:
    """Initial values as torch has them: kernel and bias uniform, of variance 1 / (3 fan_in)."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {'kernel_init': init, 'bias_init': init}


def conv3x3(x: jax.Array, width: int, name: str, strides: int = 1, init: dict | None = None):
    """[b, h, w, c] -> [b, h / strides, w / strides, width]; part of the module that calls it."""
    init = init or uniform(9 * x.shape[-1])
    options = {'padding': 1, 'dtype': x.dtype, 'conv_general_dilated': conv}
    return nn.Conv(width, (3, 3), strides, name=name, **options, **init)(x)


def dense(x: jax.Array, width: int, name: str, init: dict | None = None):
    """[..., c] -> [..., width]; part of the module that calls it."""
    init = init or uniform(x.shape[-1])
    return nn.Dense(width, dtype=x.dtype, name=name, **init)(x)


def norm(x: jax.Array, groups: int, name: str):
    """Group norm with torch's epsilon, shapes unchanged; part of the module that calls it."""
    return GroupNorm(groups, 1e-5, x.dtype, name=name)(x)


def same(x: jax.Array) -> jax.Array:
    """[b, h, w, c] -> [b, h, w, c]."""
    return x


def sinusoids(t: jax.Array, width: int) -> jax.Array:
    """Cosines, then sines, of t at width/2 frequencies from 1 down to almost 1/10000.

    Args:
      t: times [b], whole or not.
      width: even.

    Returns:
      float32 [b, width]. DDPM's U-Net puts sines first and reaches 1/10000.
    """
    half = width // 2
    frequencies = jnp.exp(-np.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies  # [b, half]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)  # [b, width]


def number_of_heads(width: int, heads: int, head_channels: int) -> int:
    """How many heads attention over `width` channels has.

    Args:
      width: channels of the feature map.
      heads: their number; 0: as `head_channels` says.
      head_channels: the width of each; 0: as `heads` says.

    Raises:
      UserError: where not just one of both is given, or it does not divide `width`.
    """
    given = heads or head_channels
    if bool(heads) == bool(head_channels) or width % given:
        raise UserError(
            f'attention over {width} channels, with model.heads={heads} and '
            f'model.head_channels={head_channels}: expected one of both to be 0, and the other to '
            f'divide {width}'
        )
    return heads or width // head_channels


def attend(qkv: jax.Array, heads: int) -> jax.Array:
    """Attention of n pixels to each other: [b, n, 3 * c] -> [b, n, c].

    The channels of qkv are all queries, then all keys, then all values; each has its heads in turn.
    """
    b, n, _ = qkv.shape
    qkv = qkv.reshape(b, n, 3, heads, -1)  # [b, n, 3, heads, c / heads]
    return jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0)).reshape(b, n, -1)  # [b, n, c]


class ResBlock(nn.Module):
    """Two 3x3 convolutions with time and class told between them, around a shortcut.

    Attributes:
      scale_shift: whether time and class scale and shift what is normalised ("adaptive group
        normalization"), or are added before it.
      resize: of both branches, before the first convolution: `same`, `halve` or `double`.
    """

    width: int
    groups: int
    dropout: float
    scale_shift: bool
    remat: str
    resize: Callable = same

    @nn.compact
    def __call__(self, parts, emb, train: bool):
        """Parts [b, h, w, ...] of the channels and the embedding [b, e] -> [b, h', w', width]."""

        def first(self, parts):
            h = nn.silu(norm(jnp.concatenate(parts, -1), self.groups, 'norm1'))  # [b, h, w, c]
            return conv3x3(self.resize(h), self.width, 'conv1')  # [b, h', w', width]

        def shortcut(self, parts):
            x = self.resize(jnp.concatenate(parts, -1))  # [b, h', w', c]
            return x if x.shape[-1] == self.width else dense(x, self.width, 'conv_shortcut')

        def second(self, h, told):
            if self.scale_shift:
                scale, shift = jnp.split(told, 2, -1)
                h = norm(h, self.groups, 'norm2') * (1 + scale) + shift
            else:
                h = norm(h + told, self.groups, 'norm2')
            h = Dropout(self.dropout, deterministic=not train)(nn.silu(h))
            return conv3x3(h, self.width, 'conv2', init=ZEROS)

        h = kept_less(first, self.remat)(self, parts)
        told = dense(nn.silu(emb), (1 + self.scale_shift) * self.width, 'emb_proj')
        h = kept_less(second, self.remat)(self, h, told[:, None, None, :])
        return kept_less(shortcut, self.remat)(self, parts) + h


class Attention(nn.Module):
    """Self-attention over pixels."""

    groups: int
    heads: int

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h, w, c], the input plus what it attends to."""
        b, h, w, c = x.shape
        y = norm(x, self.groups, 'norm').reshape(b, h * w, c)  # [b, hw, c]
        y = attend(dense(y, 3 * c, 'qkv'), self.heads)
        return x + dense(y, c, 'proj_out', ZEROS).reshape(b, h, w, c)  # [b, h, w, c]


class AttentionPool(nn.Module):
    """What the mean of all pixels attends to among itself and them (Radford et al. 2021, CLIP)."""

    heads: int
    features: int

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, features]; h and w are those of the parameters."""
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c)  # [b, hw, c]
        x = jnp.concatenate([x.mean(1, keepdims=True), x], 1)  # [b, 1 + hw, c]
        init = nn.initializers.normal(c**-0.5)
        x = x + self.param('positional_embedding', init, x.shape[1:]).astype(x.dtype)
        y = attend(dense(x, 3 * c, 'qkv_proj'), self.heads)[:, 0]  # [b, c]
        return dense(y, self.features, 'c_proj')


class Encoder(nn.Module):
    """The way down and the middle, which the U-Net and the classifier share.

    Attributes:
      channels: even; the widths of the levels are multiples of it.
      multipliers: one per level, whole or not; each level but the last halves the size.
      blocks: residual blocks per level on the way down; one more on the way up.
      attention: sizes (in pixels) of the feature maps whose blocks are followed by attention. The
        middle always has one.
      dropout: probability, before the second convolution of each block.
      groups: groups of each group norm; divides every width.
      heads: of each attention; 0: as `head_channels` says.
      head_channels: width of each head; 0: as `heads` says.
      scale_shift: whether time and class scale and shift what is normalised, or are added before.
      resample_in_blocks: whether residual blocks resize, or convolutions between them.
      remat: what the backward pass computes again instead of keeping it: 'none', 'norms' (the
        inputs of the convolutions, from those of the norms before them, and attention), 'blocks'
        (all between the ends of the blocks).
      dtype: what convolutions and attention compute in. Parameters, statistics, softmax and the
        result are float32.
    """

    channels: int = 192
    multipliers: tuple[float, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.1
    groups: int = 32
    heads: int = 0
    head_channels: int = 64
    scale_shift: bool = True
    resample_in_blocks: bool = True
    remat: str = 'none'
    dtype: Any = jnp.float32

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [int(self.channels * multiplier) for multiplier in self.multipliers]

    def embed_time(self, t):
        """Times [b] -> [b, 4 * channels]."""
        emb = sinusoids(t, self.channels).astype(self.dtype)  # [b, channels]
        emb = nn.silu(dense(emb, 4 * self.channels, 'time_embedding_1'))  # [b, 4 * channels]
        return dense(emb, 4 * self.channels, 'time_embedding_2')

    def encode(self, x, emb, train: bool):
        """Images [b, h, w, c] -> what the middle makes of them, and all features on the way."""
        widths, last = self.widths, len(self.widths) - 1
        x = conv3x3(x.astype(self.dtype), widths[0], 'conv_in')  # [b, h, w, width]
        skips = [x]
        for i, width in enumerate(widths):
            for j in range(self.blocks):
                x = self.features([x], emb, train, width, f'down_{i}', j)  # [b, h, w, width]
                skips.append(x)
            if i < last:
                x = self.resample(x, emb, train, halve, f'down_{i}_resample')  # [b, h/2, w/2, .]
                skips.append(x)
        x = self.block(widths[-1], 'mid_resnet_0')([x], emb, train)
        x = self.attend(x, 'mid_attention_0')
        return self.block(widths[-1], 'mid_resnet_1')([x], emb, train), skips

    def features(self, parts, emb, train: bool, width: int, level: str, j: int):
        """A residual block, and attention where the size has it: parts -> [b, h, w, width]."""
        x = self.block(width, f'{level}_resnet_{j}')(parts, emb, train)
        return self.attend(x, f'{level}_attention_{j}') if x.shape[1] in self.attention else x

    def block(self, width: int, name: str, resize: Callable = same) -> ResBlock:
        """A residual block, rematerialised as told."""
        make = nn.remat(ResBlock, static_argnums=3) if self.remat == 'blocks' else ResBlock
        options = {'scale_shift': self.scale_shift, 'remat': self.remat, 'resize': resize}
        return make(width, self.groups, self.dropout, **options, name=name)

    def attend(self, x, name: str):
        """[b, h, w, c] -> [b, h, w, c]."""
        # Attention is worth keeping nowhere: it has few operations and many values.
        make = Attention if self.remat == 'none' else nn.remat(Attention)
        heads = number_of_heads(x.shape[-1], self.heads, self.head_channels)
        return make(self.groups, heads, name=name)(x)

    def resample(self, x, emb, train: bool, resize: Callable, name: str):
        """[b, h, w, c] -> [b, h/2, w/2, c] by `halve`, [b, 2h, 2w, c] by `double`."""
        c = x.shape[-1]
        if self.resample_in_blocks:
            return self.block(c, name, resize)([x], emb, train)
        if resize is halve:
            return conv3x3(x, c, name, strides=2)
        return kept_less(lambda self, x: conv3x3(double(x), c, name), self.remat)(self, x)


class ADMUNet(Encoder):
    """What the method trains the network to say of x_t, told of the time and optionally of a class.

    The attributes are those of `Encoder`, and

    Attributes:
      num_classes: rows of the label embedding, the null class counted where there is one; 0: the
        net takes no label.
      out_channels: channels of the result: those of the image, or twice as many where a variance
        is learned (Nichol and Dhariwal 2021, eq. 15), which come last.
    """

    num_classes: int = 0
    out_channels: int = 3

    @nn.compact
    def __call__(self, x, t, label=None, train: bool = False):
        """The network's result.

        Args:
          x: float [b, h, w, c]; h and w divisible by 2 ** (levels - 1). What else the network is
            to see of the picture, such as a smaller one enlarged, comes in further channels.
          t: times [b]; int or float. The papers' are 0 .. 999 and 0 .. 3999, the latter scaled by
            1/4 in Nichol and Dhariwal's unconditional networks; EDM's are log(sigma) / 4.
          label: int32 [b] below `num_classes`; None where `num_classes` is 0.
          train: whether to drop; needs the rng 'dropout'.

        Returns:
          float32 [b, h, w, out_channels].
        """
        emb = self.embed_time(t)  # [b, 4 * channels]
        if self.num_classes:
            # N(0, 1) as torch's Embedding.
            table = partial(nn.Embed, embedding_init=nn.initializers.normal(1.0), dtype=self.dtype)
            emb = emb + table(self.num_classes, emb.shape[-1], name='class_embedding')(label)

        x, skips = self.encode(x, emb, train)
        for i, width in enumerate(reversed(self.widths)):
            for j in range(self.blocks + 1):
                parts = [x, skips.pop()]
                x = self.features(parts, emb, train, width, f'up_{i}', j)  # [b, h, w, width]
            if skips:
                x = self.resample(x, emb, train, double, f'up_{i}_resample')  # [b, 2h, 2w, width]

        def out(self, x):
            x = nn.silu(norm(x, self.groups, 'norm_out'))
            return conv3x3(x, self.out_channels, 'conv_out', init=ZEROS)

        return kept_less(out, self.remat)(self, x).astype(jnp.float32)  # [b, h, w, out_channels]


class ADMClassifier(Encoder):
    """The class of noised images, whose gradient guides a sampler (section 4, appendix H).

    The attributes are those of `Encoder`, and

    Attributes:
      num_classes: classes to tell apart.
    """

    channels: int = 128
    blocks: int = 4
    dropout: float = 0.0
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x, t, train: bool = False):
        """The logits of p(label | x_t).

        Args:
          x: float [b, h, w, c], of the size for which the parameters were made.
          t: times [b], as the guided U-Net is told them; int or float.
          train: whether to drop; needs the rng 'dropout'.

        Returns:
          float32 [b, num_classes].
        """
        x, _ = self.encode(x, self.embed_time(t), train)  # [b, h', w', width]
        heads = number_of_heads(x.shape[-1], self.heads, self.head_channels)
        x = nn.silu(norm(x, self.groups, 'norm_out'))
        return AttentionPool(heads, self.num_classes, name='pool')(x).astype(jnp.float32)


def defaults() -> dict:
    """The network's part of a config, `config.model`: a small one for the 8x8 digits."""
    return {
        'channels': 32,  # the widths of the levels are multiples of it
        'multipliers': (1, 2),  # one per level, whole or not
        'blocks': 1,  # residual blocks per level
        'attention': (4,),  # sizes of the feature maps that get attention
        'dropout': 0.1,
        'groups': 8,  # groups of each group norm
        'heads': 0,  # of each attention; 0: as head_channels says
        'head_channels': 32,  # width of each head; 0: as heads says
        'scale_shift': True,  # time and class scale and shift after each norm; or are added before
        'resample_in_blocks': True,  # residual blocks resize; or convolutions between them
        'remat': 'none',  # computed again in the backward pass: none, norms, blocks
        'dtype': 'float32',  # what the network computes in: float32, bfloat16
    }


def from_config(config, num_classes: int) -> ADMUNet:
    """The U-Net that `config.model` describes, for images as `config.data` says.

    A method that learns variances takes `from_config(...).clone(out_channels=2 * channels)`.

    Args:
      config: with `model` as in `defaults` and `data.{image_size, channels}`.
      num_classes: rows of the label embedding; 0: none.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    return _from_config(ADMUNet, config, num_classes, out_channels=config.data.channels)


def classifier_from_config(config) -> ADMClassifier:
    """The classifier that `config.model` describes, of `config.data`'s images and classes.

    Args:
      config: with `model` as in `defaults` and `data.{image_size, channels, num_classes}`.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    return _from_config(ADMClassifier, config, config.data.num_classes)


def _from_config(kind: type[Encoder], config, num_classes: int, **fields) -> Encoder:
    model = config.model
    # What DDPM's network has, these have by the same names and within the same bounds.
    plain = unet.fitting(config, num_classes)
    fields |= {name: getattr(plain, name) for name in defaults() if hasattr(plain, name)}
    for name in ('heads', 'head_channels'):
        require(model[name] >= 0, f'model.{name}', model[name], '0 or more')
        fields[name] = model[name]
    net = kind(
        **fields,
        scale_shift=model.scale_shift,
        resample_in_blocks=model.resample_in_blocks,
        num_classes=num_classes,
    )
    sizes = [config.data.image_size // 2**i for i in range(len(net.widths))]
    for width, size in zip(net.widths, sizes, strict=True):
        if size in net.attention or size == sizes[-1]:
            number_of_heads(width, net.heads, net.head_channels)
    return net
