"""VDVAE's networks: images to activations bottom-up, noise or latents to an image's map top-down.

Child 2021, "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images",
figure 3; what the paper leaves open is that of the authors' code (github.com/openai/vdvae at
ea35b49). How many blocks work at which resolution is told in their notation, with commas:

| part | in the encoder | in the decoder |
|---|---|---|
| 32x11 | eleven blocks at 32x32 pixels | eleven layers of latents at 32x32 |
| 32d2, 32m16 | one more, then 2 times smaller | one more, to whose map that of 16x16 is added |
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen_jax.config import require
from gen_jax.nn.conv import conv

Conv = partial(nn.Conv, conv_general_dilated=conv)
DTYPES = 'float32', 'bfloat16'
# Maps of so many pixels a side see no convolution wider than a pixel.
SMALLEST = 2


class Step(NamedTuple):
    """One part of a network.

    Attributes:
      resolution: of the map that it begins with, pixels a side.
      other: of the encoder, how many times smaller the map becomes; of the decoder, the resolution
        of the map that is added first; 0: neither.
    """

    resolution: int
    other: int = 0


class Found(NamedTuple):
    """What the decoder gives.

    Attributes:
      y: the map that tells of pixels, float32 [b, size, size, width].
      z: all latents, layer by layer, [b, dim].
      kl: of q(z|x) to the prior, for each layer, [b, layers], nats; 0 where z is not of q.
      excess: log q(z|x) - log p(z) of this z, whose mean `kl` is; likewise.
    """

    y: jax.Array
    z: jax.Array
    kl: jax.Array
    excess: jax.Array


def uniform(scale: float = 1.0) -> Callable:
    """How PyTorch begins a convolution's kernel, times sqrt(scale)."""
    return nn.initializers.variance_scaling(scale / 3, 'fan_in', 'uniform')


def kl_divergence(q: tuple[jax.Array, jax.Array], p: tuple[jax.Array, jax.Array]) -> jax.Array:
    """KL(q || p) of normal distributions, each (mean, log sigma), for each number; nats."""
    (mu, log_sigma), (prior_mu, prior_log_sigma) = q, p
    ratio = log_sigma - prior_log_sigma
    distance = (mu - prior_mu) * jnp.exp(-prior_log_sigma)
    return 0.5 * (jnp.exp(2 * ratio) + distance**2 - 1) - ratio


class Block(nn.Module):
    """Through a bottleneck: convolutions of 1, 3, 3 and 1 pixels, GELU before each (figure 3).

    Attributes:
      hidden: channels of the bottleneck.
      features: of the result.
      last: how the last kernel begins.
      dtype: of the computation but for the last convolution, whose results are summed up or are
        exponents; parameters stay float32.
    """

    hidden: int
    features: int
    last: Callable = uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> float32 [b, h, w, features]."""
        gelu, options = partial(nn.gelu, approximate=False), {'dtype': self.dtype}
        wide = nn.Dense if x.shape[1] <= SMALLEST else partial(Conv, kernel_size=(3, 3))
        x = x.astype(self.dtype)
        for name, layer in (('c1', nn.Dense), ('c2', wide), ('c3', wide)):
            x = layer(self.hidden, kernel_init=uniform(), name=name, **options)(gelu(x))
        x = gelu(x).astype(jnp.float32)
        return nn.Dense(self.features, kernel_init=self.last, name='c4')(x)


class BottomUp(nn.Module):
    """The encoder.

    Attributes:
      steps: its blocks.
      widths: channels of maps, ((resolution, channels), ...), of all resolutions there are.
      bottleneck: share of these within blocks.
      mean, deviation: of the data's pixels, levels of 0 to 255.
      dtype: of the computation within blocks; parameters stay float32.
    """

    steps: tuple[Step, ...]
    widths: tuple[tuple[int, int], ...]
    bottleneck: float
    mean: float
    deviation: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[b, s, s, c] in [-1, 1] -> {r: float32 [b, r, r, widths[r]]}, the last map of each r."""
        widths, last = dict(self.widths), uniform(1 / len(self.steps))
        x = ((x + 1) * 127.5 - self.mean) / self.deviation
        options = {'kernel_init': uniform(), 'dtype': self.dtype, 'name': 'in'}
        x = Conv(widths[x.shape[1]], (3, 3), **options)(x).astype(jnp.float32)
        activations = {x.shape[1]: x}
        for i, (_, factor) in enumerate(self.steps):
            width = x.shape[-1]
            hidden = int(width * self.bottleneck)
            x += Block(hidden, width, last, self.dtype, name=f'block_{i}')(x)
            if factor:
                x = nn.avg_pool(x, (factor, factor), (factor, factor))
                more = widths[x.shape[1]] - width
                x = jnp.pad(x, [(0, 0)] * 3 + [(0, more)])
            activations[x.shape[1]] = x
        return activations


class Layer(nn.Module):
    """One layer of latents: prior, posterior, and what z does to the map (figure 3).

    Attributes:
      latents: channels of z.
      hidden: channels of bottlenecks.
      last: how the kernels begin whose results are added to the map, but the prior's, which is 0.
      dtype: of the computation within blocks; parameters stay float32.
    """

    latents: int
    hidden: int
    last: Callable
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, given, activation=None, fixed: bool = False):
        """The map after this layer, z, and how far q is from the prior.

        Args:
          x: the map [b, r, r, w].
          given: standard normal noise [b, r, r, latents], that z is made of.
          activation: the encoder's map [b, r, r, w], by which z is of q(z|x); None: of the prior.
          fixed: whether `given` is z itself.

        Returns:
          [b, r, r, w], [b, r, r, latents], and [b, r, r, latents] or 0 twice: the divergence, and
          log q(z|x) - log p(z).
        """
        d, width = self.latents, x.shape[-1]
        block = partial(Block, self.hidden, dtype=self.dtype)
        prior = block(2 * d + width, nn.initializers.zeros, name='prior')(x)
        mu, log_sigma, step = jnp.split(prior, (d, 2 * d), -1)
        q = mu, log_sigma
        if activation is not None:
            both = jnp.concatenate([x, activation], -1)
            q = jnp.split(block(2 * d, name='posterior')(both), 2, -1)
        z = given if fixed else q[0] + jnp.exp(q[1]) * given
        kl = excess = 0.0
        if activation is not None:
            kl, under_prior = kl_divergence(q, (mu, log_sigma)), (z - mu) * jnp.exp(-log_sigma)
            excess = 0.5 * (under_prior**2 - given**2) + log_sigma - q[1]
        x = x + step + nn.Dense(width, kernel_init=self.last, name='project')(z)
        x += block(width, self.last, name='block')(x)
        return x, z, kl, excess


class TopDown(nn.Module):
    """The decoder, but for what it says of pixels: `Head`.

    Attributes:
      steps: its layers.
      widths, bottleneck, dtype: those of the encoder.
      latents: channels of each layer's z.
      start_up_to: resolutions up to this one begin with a learned map, the others with 0.
    """

    steps: tuple[Step, ...]
    widths: tuple[tuple[int, int], ...]
    bottleneck: float
    latents: int
    start_up_to: int
    dtype: Any = jnp.float32

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Those of each layer's z."""
        return [(r, r, self.latents) for r, _ in self.steps]

    @property
    def dim(self) -> int:
        """Latents of an image, of all layers together."""
        return sum(h * w * c for h, w, c in self.shapes)

    @nn.compact
    def __call__(self, given, activations=None, fixed: bool = False) -> Found:
        """All layers, one after the other.

        Args:
          given: standard normal noise [b, dim], that z is made of.
          activations: the encoder's, by which z is of q(z|x); None: of the prior.
          fixed: whether `given` is z itself.
        """
        last, maps, zs, apart = uniform(1 / len(self.steps)), {}, [], ([], [])
        for i, part in enumerate(self._parts(given)):
            r, other = self.steps[i]
            x = maps[r] if r in maps else self._start(r, len(given))
            width = x.shape[-1]
            if other:
                x += enlarged(maps[other][..., :width], r // other)
            hidden, activation = int(width * self.bottleneck), activations and activations[r]
            layer = Layer(self.latents, hidden, last, self.dtype, name=f'layer_{i}')
            maps[r], z, *terms = layer(x, part, activation, fixed)
            zs.append(z.reshape(len(given), -1))
            for found, term in zip(apart, terms, strict=True):
                found.append(jnp.broadcast_to(term, z.shape).sum((1, 2, 3)))
        kl, excess = (jnp.stack(found, 1) for found in apart)
        return Found(maps[max(maps)], jnp.concatenate(zs, 1), kl, excess)

    def _parts(self, flat):
        """[b, dim] as each layer's, [b, h, w, c]."""
        at = 0
        for h, w, c in self.shapes:
            yield flat[:, at : at + h * w * c].reshape(-1, h, w, c)
            at += h * w * c

    def _start(self, r, b):
        shape = r, r, dict(self.widths)[r]
        if r > self.start_up_to:
            return jnp.zeros((b, *shape))
        start = self.param(f'start_{r}', nn.initializers.zeros, shape)
        return jnp.broadcast_to(start, (b, *shape))


class Head(nn.Module):
    """From the last map to numbers of pixels.

    Attributes:
      features: numbers for each pixel.
    """

    features: int

    @nn.compact
    def __call__(self, y):
        """[b, h, w, c] -> [b, h, w, features]."""
        gain = self.param('gain', nn.initializers.ones, y.shape[-1:])
        bias = self.param('bias', nn.initializers.zeros, y.shape[-1:])
        return nn.Dense(self.features, kernel_init=uniform(), name='out')(gain * y + bias)


def enlarged(x: jax.Array, factor: int) -> jax.Array:
    """Each pixel becomes factor^2: [b, h, w, c] -> [b, factor * h, factor * w, c]."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, factor, w, factor, c))
    return x.reshape(b, factor * h, factor * w, c)


# --- from a config -------------------------------------------------------------------------------


def defaults() -> dict:
    """The networks' part of a config, `config.model`."""
    return {
        # Blocks and layers by resolution, see gen_jax.autoencoders.top_down.
        'encoder': '8x2,8d2,4x2,4d4,1x1',
        'decoder': '1x1,4m1,4x2,8m4,8x2',
        'width': 64,  # channels of maps
        'widths': '',  # of some resolutions others, such as '4:128,1:128'
        'bottleneck': 0.25,  # share of these within blocks
        'latents': 16,  # channels of each layer's z
        'start_up_to': 64,  # resolutions up to this one begin with a learned map, the others with 0
        'mean': 127.5,  # of the data's pixels, levels of 0 to 255: what the encoder sees is
        'deviation': 127.5,  # (level - mean) / deviation
        'dtype': 'float32',  # of the computation: float32 or bfloat16
    }


def from_config(config, features: int) -> tuple[BottomUp, Head, TopDown]:
    """All networks of a config; `features` are the head's numbers a pixel.

    Raises:
      UserError: numbers that do not fit.
    """
    model, size = config.model, config.data.image_size
    for field in ('width', 'latents'):
        require(model[field] >= 1, f'model.{field}', model[field], 'a whole number of at least 1')
    require(model.start_up_to >= 0, 'model.start_up_to', model.start_up_to, '0 (none) or more')
    fits = 0 < model.deviation < math.inf
    require(fits, 'model.deviation', model.deviation, 'a positive number, and finite')
    require(math.isfinite(model.mean), 'model.mean', model.mean, 'a finite number')
    require(model.dtype in DTYPES, 'model.dtype', model.dtype, "'float32' or 'bfloat16'")
    up, resolutions = bottom_up_steps(model.encoder, size)
    down = top_down_steps(model.decoder, size, resolutions)
    widths = widths_of(model.widths, model.width, resolutions)
    _check_widths(model, dict(widths), up, down, size)
    shared = {'widths': widths, 'bottleneck': model.bottleneck, 'dtype': jnp.dtype(model.dtype)}
    return (
        BottomUp(up, mean=model.mean, deviation=model.deviation, **shared),
        Head(features),
        TopDown(down, latents=model.latents, start_up_to=model.start_up_to, **shared),
    )


def bottom_up_steps(text: str, size: int) -> tuple[tuple[Step, ...], list[int]]:
    """`config.model.encoder`'s blocks for images of `size` pixels, and all resolutions, falling."""

    def check(ok, expected):
        require(ok, 'model.encoder', text, expected)

    steps, resolutions = parsed(text, 'd', 'model.encoder'), [size]
    for r, factor in steps:
        here = resolutions[-1]
        check(r == here, f'{here} where it has {r}: the map has so many pixels a side there')
        if factor:
            check(factor > 1 and r % factor == 0, f'a divisor of {r}, at least 2, in {r}d{factor}')
            resolutions.append(r // factor)
    return steps, resolutions


def top_down_steps(text: str, size: int, resolutions: list[int]) -> tuple[Step, ...]:
    """`config.model.decoder`'s layers for images of `size` pixels and an encoder's resolutions."""

    def check(ok, expected):
        require(ok, 'model.decoder', text, expected)

    steps, before = parsed(text, 'm', 'model.decoder'), set()
    known = ', '.join(map(str, resolutions))
    for r, other in steps:
        check(r in resolutions, f'resolutions of model.encoder ({known}) only, not {r}')
        if other:
            fits = other in before and other < r and r % other == 0
            check(fits, f'a resolution that divides {r} and came before, in {r}m{other}')
        before.add(r)
    check(size in before, f'layers at data.image_size={size}')
    return steps


def parsed(text: str, letter: str, field: str) -> tuple[Step, ...]:
    """The steps that `text` tells of; `letter` is of the parts that end at another resolution.

    Raises:
      UserError: it is not of that notation.
    """
    steps = []
    for part in text.split(','):
        found = re.fullmatch(rf'([1-9][0-9]*)(?:([x{letter}])([1-9][0-9]*))?', part)
        example = {'d': '32x11, 32d2 or 32', 'm': '32x11, 32m16 or 32'}[letter]
        require(found, field, text, f'parts such as {example} with commas between, not {part!r}')
        r, sign, number = found.groups()
        if sign == letter:
            steps.append(Step(int(r), int(number)))
        else:
            steps += [Step(int(r))] * int(number or 1)
    return tuple(steps)


def widths_of(text: str, width: int, resolutions: list[int]) -> tuple[tuple[int, int], ...]:
    """((resolution, channels), ...): `config.model.widths` where it tells, else `width`.

    Raises:
      UserError: it is not of that notation, or tells of another resolution.
    """
    widths = dict.fromkeys(resolutions, width)
    for part in filter(None, text.split(',')):
        found = re.fullmatch(r'([1-9][0-9]*):([1-9][0-9]*)', part)
        expected = f"'' or parts such as '4:128,1:128' with commas between, not {part!r}"
        require(found, 'model.widths', text, expected)
        r, channels = map(int, found.groups())
        known = ', '.join(map(str, resolutions))
        expected = f'resolutions of model.encoder ({known}) only, not {r}'
        require(r in widths, 'model.widths', text, expected)
        widths[r] = channels
    return tuple(widths.items())


def _check_widths(model, widths: dict[int, int], up, down, size: int) -> None:
    """Maps become no narrower upwards, as zeros widen them, and no wider downwards."""
    pairs = [(r, r // factor) for r, factor in up if factor]
    pairs += [(r, other) for r, other in down if other]
    for large, small in pairs:
        expected = f'at least the {widths[large]} of {large} for {small}, not {widths[small]}'
        require(widths[small] >= widths[large], 'model.widths', model.widths, expected)
    least = 1 / min(widths.values())
    expected = f'at least {least:.3g} or a little more, one channel of the narrowest map'
    fits = 1 <= min(widths.values()) * model.bottleneck < float('inf')
    require(fits, 'model.bottleneck', model.bottleneck, expected)
