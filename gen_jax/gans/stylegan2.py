"""StyleGAN2: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN".

Initial values and what the paper leaves open are those of the authors' code in PyTorch
(github.com/NVlabs/stylegan2-ada-pytorch and stylegan3, networks_stylegan2.py), without its clamping
for float16. Parameters, of generator and discriminator; noise and mean w are not among them:

    paper, 1024x1024   30,370,060 and 29,012,513: latent_dim=w_dim=512, channel_base=32768,
                       channel_max=512, mapping_layers=8 (config F)
    CIFAR-10           19,947,539 and 20,720,641: mapping_layers=2, d_architecture='orig', the rest
                       as above (Karras et al. 2020, "Training Generative Adversarial Networks with
                       Limited Data", appendix D, without augmentation)
    CIFAR-10, classes  20,215,315 and 23,089,664
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.config import require
from gen_jax.gans.layers import DTYPES
from gen_jax.gans.style_layers import (
    TAPS,
    EqualizedConv,
    EqualizedDense,
    check_model,
    lrelu,
    minibatch_std,
    modulated_conv,
    noise,
    pixel_norm,
    sizes_up_to,
    width_at,
)
from gen_jax.nn.fir import upsample

CHOICES = {
    'g_architecture': ('skip', 'resnet', 'orig'),
    'd_architecture': ('resnet', 'orig'),
    'dtype': DTYPES,
}
WHOLE = ('latent_dim', 'w_dim', 'channel_max', 'mapping_layers', 'label_layers', 'mbstd_group')
ROOT_HALF = 0.5**0.5  # keeps the mean square of a sum of two


class Mapping(nn.Module):
    """The mapping network f: normalised latents and embedded labels to w. Always float32.

    Attributes:
      width: of w and of all layers.
      layers: dense ones, after the label's embedding.
      rate: learning rate of the layers relative to the optimiser's.
      num_classes: 0: no labels.
    """

    width: int
    layers: int
    rate: float
    num_classes: int

    @nn.compact
    def __call__(self, z, label):
        """[b, d] or None, int32 [b] or None -> w [b, width]; there is a z or a label."""
        parts = [] if z is None else [pixel_norm(z)]
        if self.num_classes:
            one_hot = jax.nn.one_hot(label, self.num_classes)  # [b, num_classes]
            parts.append(pixel_norm(EqualizedDense(self.width, name='embed')(one_hot)))
        x = jnp.concatenate(parts, -1)
        for i in range(self.layers):
            x = lrelu(EqualizedDense(self.width, self.rate, name=f'dense_{i}')(x))
        return x


class StyledConv(nn.Module):
    """A modulated 3x3 convolution, noise, bias and activation.

    Attributes:
      features: channels of the result.
      layer: counts the convolutions from 0, which keeps their noises apart.
      resample: '' or 'up'.
    """

    features: int
    layer: int
    resample: str = ''

    @nn.compact
    def __call__(self, x, w, keys):
        """[b, h, w, c], [b, w_dim] and keys [b] or None -> [b, h', w', features]."""
        c = x.shape[-1]
        style = EqualizedDense(c, bias_init=1.0, name='affine')(w)  # [b, c]
        kernel = self.param('kernel', nn.initializers.normal(1.0), (3, 3, c, self.features))
        x = modulated_conv(x, kernel, style, resample=self.resample)
        strength = self.param('noise_strength', nn.initializers.zeros, ())
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        x = x + (strength * noise(self, x.shape[1], self.layer, keys)).astype(x.dtype)
        return lrelu(x + bias.astype(x.dtype))


class ToRGB(nn.Module):
    """What one size adds to the image: a modulated 1x1 convolution, not demodulated."""

    channels: int

    @nn.compact
    def __call__(self, x, w):
        """[b, h, w, c] and [b, w_dim] -> float32 [b, h, w, channels]."""
        c = x.shape[-1]
        style = EqualizedDense(c, bias_init=1.0, name='affine')(w) * c**-0.5  # [b, c]
        kernel = self.param('kernel', nn.initializers.normal(1.0), (c, self.channels))
        bias = self.param('bias', nn.initializers.zeros, (self.channels,))
        return modulated_conv(x, kernel, style, demodulate=False).astype(jnp.float32) + bias


class Synthesis(nn.Module):
    """The synthesis network g: one w per layer to an image. Attributes as of `Generator`."""

    image_size: int
    channels: int
    channel_base: int
    channel_max: int
    architecture: str
    dtype: Any

    @nn.compact
    def __call__(self, ws, keys):
        """[b, num_ws, w_dim] and keys [b] or None -> float32 [b, image_size, image_size, c]."""
        sizes = sizes_up_to(self.image_size)
        width = width_at(4, self.channel_base, self.channel_max)
        x = self.param('const', nn.initializers.normal(1.0), (4, 4, width))
        x = jnp.broadcast_to(x.astype(self.dtype), (len(ws), *x.shape))  # [b, 4, 4, width]
        image = None
        for i, size in enumerate(sizes):
            x = self._block(i, size, x, ws, keys)  # [b, size, size, width]
            image = None if image is None else upsample(image, TAPS)  # [b, size, size, c]
            if self.architecture == 'skip' or size == self.image_size:
                y = ToRGB(self.channels, name=f'block_{size}_to_rgb')(x, ws[:, 2 * i + 1])
                image = y if image is None else image + y
        return image

    def _block(self, i, size, x, ws, keys):
        """The convolutions at one size, 2i - 1 and 2i: [b, size/2, size/2, c] -> [b, size, ...]."""
        width, start = width_at(size, self.channel_base, self.channel_max), x
        if i:
            up = StyledConv(width, 2 * i - 1, 'up', name=f'block_{size}_conv_0')
            x = up(x, ws[:, 2 * i - 1], keys)  # [b, size, size, width]
        x = StyledConv(width, 2 * i, name=f'block_{size}_conv_1')(x, ws[:, 2 * i], keys)
        if i and self.architecture == 'resnet':
            shortcut = EqualizedConv(width, 1, 'up', use_bias=False, name=f'block_{size}_skip')
            x = ROOT_HALF * (x + shortcut(start))
        return x


class StyleGenerator(nn.Module):
    """Latents to images, in two steps that can be taken one by one: `mapping` and `synthesis`.

    Collections beside the parameters: `constants` has noise that never changes, one image per
    layer; `w_avg` the moving average of w, towards which `mapping` can truncate.

    Attributes:
      latent_dim: length of z.
      w_dim: length of w.
      image_size: 2**k, at least 8, pixels.
      channels: of the image.
      channel_base, channel_max: a feature map of s by s pixels has min(channel_base // s,
        channel_max) channels.
      mapping_layers: of the mapping network.
      mapping_rate: its learning rate relative to the optimiser's.
      num_classes: 0: no labels.
      dtype: what the synthesis network computes in. Parameters, w and the image are float32.
    """

    W_AVG_DECAY = 0.998  # of the moving average of w

    latent_dim: int = 512
    w_dim: int = 512
    image_size: int = 1024
    channels: int = 3
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    mapping_rate: float = 0.01
    num_classes: int = 0
    dtype: Any = jnp.float32

    def setup(self):
        """The two networks and the moving average of w."""
        self.mapping_network, self.synthesis_network = self.networks()
        self.w_avg = self.variable('w_avg', 'w_avg', jnp.zeros, (self.w_dim,))

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Mapping (z, label) -> w, and synthesis (ws, keys) -> images."""
        raise NotImplementedError

    @property
    def num_ws(self) -> int:
        """How many layers are told a w."""
        return 2 * len(sizes_up_to(self.image_size))

    def __call__(self, z, label=None, *, train: bool, keys=None, psi=1.0, cutoff=None, **growth):
        """Images.

        Args:
          z: float32 [b, latent_dim], standard normal.
          label: int32 [b] below `num_classes`; None where that is 0.
          train: whether the moving average of w takes a step, where 'w_avg' is mutable.
          keys: of the noise, typed PRNG keys [b]; None: the noise that never changes.
          psi, cutoff: as of `mapping`.
          growth: what else `synthesis` takes.

        Returns:
          float32 [b, image_size, image_size, channels], unbounded; the data lies in [-1, 1].
        """
        ws = self.mapping(z, label, train=train, psi=psi, cutoff=cutoff)  # [b, num_ws, w_dim]
        return self.synthesis(ws, keys, **growth)

    def mapping(self, z, label=None, *, train: bool = False, psi=1.0, cutoff=None):
        """What tells each layer its style.

        Args:
          z, label, train: as of `__call__`.
          psi: truncation (Karras et al. 2019, appendix B): w is moved to its moving average until
            this part of the distance is left. A number or [b]; 1: none.
          cutoff: how many of the first layers are truncated; None: all.

        Returns:
          ws, float32 [b, num_ws, w_dim], the same w for all layers but for the cutoff.
        """
        w = self.mapping_network(z, label)  # [b, w_dim]
        if train and self.is_mutable_collection('w_avg') and not self.is_initializing():
            mean = jax.lax.stop_gradient(w).mean(0)
            self.w_avg.value = mean + self.W_AVG_DECAY * (self.w_avg.value - mean)
        truncated = jnp.arange(self.num_ws) < (self.num_ws if cutoff is None else cutoff)
        lost = jnp.where(truncated, 1 - jnp.reshape(psi, (-1, 1)), 0.0)  # [b or 1, num_ws]
        return w[:, None] - lost[..., None] * (w - self.w_avg.value)[:, None]

    def synthesis(self, ws, keys=None, **growth):
        """Images as of `__call__` from ws [b, num_ws, w_dim] and the noise's keys [b] or None."""
        return self.synthesis_network(ws, keys, **growth)


class Generator(StyleGenerator):
    """StyleGAN2's generator: attributes as of `StyleGenerator`, and

    Attributes:
      architecture: 'skip' (images of all sizes are summed), 'resnet' (shortcuts around each size)
        or 'orig' (neither).
    """

    architecture: str = 'skip'

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """As `StyleGenerator` needs them."""
        mapping = Mapping(self.w_dim, self.mapping_layers, self.mapping_rate, self.num_classes)
        synthesis = Synthesis(
            self.image_size,
            self.channels,
            self.channel_base,
            self.channel_max,
            self.architecture,
            self.dtype,
        )
        return mapping, synthesis


class Discriminator(nn.Module):
    """Images to logits; labels, where there are any, are projected on (Miyato and Koyama 2018).

    Attributes:
      channel_base, channel_max: as of `Generator`.
      label_layers: of the network that maps labels.
      architecture: 'resnet' (shortcuts around each size) or 'orig' (none).
      group: images that are compared with each other, as `minibatch_std` takes it.
      num_classes: 0: no labels.
      dtype: what is computed in at 8x8 pixels and above; the rest is float32.
    """

    channel_base: int = 32768
    channel_max: int = 512
    label_layers: int = 8
    architecture: str = 'resnet'
    group: int = 4
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, label=None, *, train: bool):
        """Images [b, s, s, c] in [-1, 1], int32 [b] or None -> float32 logits [b].

        `intermediates` has the last hidden features, float32 [b, f]. `train` changes nothing.
        """
        del train
        sizes = sizes_up_to(x.shape[1])
        width = self._width(sizes[-1])
        x = lrelu(EqualizedConv(width, 1, name='from_rgb')(x.astype(self.dtype)))
        for size in reversed(sizes[1:]):
            x = self._block(size, x)  # [b, size/2, size/2, width]
        x = minibatch_std(x.astype(jnp.float32), self.group)  # [b, 4, 4, width + 1]
        width = self._width(4)
        x = lrelu(EqualizedConv(width, name='epilogue_conv')(x))  # [b, 4, 4, width]
        x = lrelu(EqualizedDense(width, name='epilogue_dense')(x.reshape(len(x), -1)))
        self.sow('intermediates', 'features', x)  # [b, width]
        if not self.num_classes:
            return EqualizedDense(1, name='epilogue_out')(x)[:, 0]  # [b]
        x = EqualizedDense(width, name='epilogue_out')(x)  # [b, width]
        told = Mapping(width, self.label_layers, 0.01, self.num_classes, name='mapping_network')
        return (x * told(None, label)).sum(-1) * width**-0.5  # [b]

    def _block(self, size, x):
        """[b, size, size, width] -> [b, size/2, size/2, width']."""
        name, width = f'block_{size}', self._width(size // 2)
        y = lrelu(EqualizedConv(x.shape[-1], name=f'{name}_conv_0')(x))
        y = lrelu(EqualizedConv(width, 3, 'down', name=f'{name}_conv_1')(y))
        if self.architecture == 'resnet':
            shortcut = EqualizedConv(width, 1, 'down', use_bias=False, name=f'{name}_skip')
            y = ROOT_HALF * (y + shortcut(x))
        return y

    def _width(self, size):
        return width_at(size, self.channel_base, self.channel_max)


def defaults() -> dict:
    """The networks' part of a config, `config.model`: small ones, for the 8x8 digits."""
    return {
        'latent_dim': 64,  # length of z
        'w_dim': 64,  # length of w
        'channel_base': 512,  # s x s pixels have min(channel_base // s, channel_max) channels
        'channel_max': 64,
        'mapping_layers': 2,  # of the mapping network; 8 in the paper
        'mapping_rate': 0.01,  # its learning rate relative to the optimiser's
        'label_layers': 2,  # of the discriminator's network for labels; the authors': 8
        'g_architecture': 'skip',  # skip, resnet, orig
        'd_architecture': 'resnet',  # resnet, orig
        'mbstd_group': 4,  # images that the discriminator compares with each other
        'dtype': 'float32',  # what the networks compute in: float32, bfloat16
    }


def from_config(config, num_classes: int) -> tuple[Generator, Discriminator]:
    """The networks that `config.model` describes, for images as `config.data` says.

    Args:
      config: with `model` as `defaults` gives it and `data.{image_size, channels}`.
      num_classes: labels the networks are told; 0: none.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    model = config.model
    check_model(config, WHOLE, CHOICES)
    told, shared = fields(config, num_classes)
    discriminator = Discriminator(
        label_layers=model.label_layers,
        architecture=model.d_architecture,
        group=model.mbstd_group,
        **shared,
    )
    return Generator(architecture=model.g_architecture, **told, **shared), discriminator


def fields(config, num_classes: int) -> tuple[dict, dict]:
    """What both StyleGANs' generators are made of, and what their discriminators share with them.

    Args, errors: as of `from_config`.
    """
    model, data = config.model, config.data
    fits = 0 < model.mapping_rate < math.inf
    require(fits, 'model.mapping_rate', model.mapping_rate, 'a positive number, and finite')
    generator = {
        'latent_dim': model.latent_dim,
        'w_dim': model.w_dim,
        'image_size': data.image_size,
        'channels': data.channels,
        'mapping_layers': model.mapping_layers,
        'mapping_rate': model.mapping_rate,
    }
    shared = {
        'channel_base': model.channel_base,
        'channel_max': model.channel_max,
        'num_classes': num_classes,
        'dtype': DTYPES[model.dtype],
    }
    return generator, shared
