"""Layers of generators and discriminators: spectral normalisation and what tells them of others.

`Conv`, `Dense` and `Embed` are flax's, with the option of spectral normalisation.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from gen_jax.nn.conv import conv

# As torch: vectors are divided by their length, but by no less.
SHORTEST = 1e-12
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}  # that networks compute in
EXACT = lax.Precision.HIGHEST
MOMENTUM = 0.9  # of batch norm: how much of its statistics a batch leaves
WEIGHTS = 'kernel', 'embedding'  # the names of what is divided


def unit(x: jax.Array) -> jax.Array:
    """A vector divided by its length."""
    return x / jnp.maximum(jnp.linalg.norm(x), SHORTEST)


def power_iteration(W: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step towards the first singular vectors (Miyato et al. 2018, eqs. 18 and 19).

    Args:
      W: [inputs, outputs].
      u: [outputs].

    Returns:
      The new u, and v [inputs], both of length 1.
    """
    v = unit(jnp.dot(W, u, precision=EXACT))
    return unit(jnp.dot(v, W, precision=EXACT)), v


def as_matrix(name: str, weight: jax.Array) -> jax.Array:
    """A layer's weight of that name as [inputs, outputs]; an embedding's outputs are its rows."""
    return weight.T if name == 'embedding' else weight.reshape(-1, weight.shape[-1])


def improved(vectors: dict, params: dict) -> dict:
    """The collection 'spectral' after one step of power iteration on the weights of `params`.

    Args:
      vectors: the collection before.
      params: of the same module, whose weights need not be those that the vectors are of.
    """
    if 'u' in vectors:
        (W,) = [as_matrix(name, x) for name, x in params.items() if name in WEIGHTS]
        return dict(zip('uv', power_iteration(W, vectors['u']), strict=True))
    return {name: improved(part, params[name]) for name, part in vectors.items()}


class Spectral(nn.Module):
    """A layer whose weight may be divided by its largest singular value, sigma.

    Spectral normalisation (Miyato et al. 2018, "Spectral Normalization for Generative Adversarial
    Networks", algorithm 1): sigma = v^T W u, where W is the weight as a matrix, with a column for
    each output, and u and v are kept in the collection 'spectral'. Step by step it is what
    `torch.nn.utils.spectral_norm` does. Gradients flow through W in sigma, and not through u and v.

    Attributes:
      spectral: whether to divide.
      train: whether one step of power iteration goes before, whose vectors are kept where
        'spectral' is mutable. Otherwise those that are kept are used with the weight of now.
    """

    spectral: bool = False
    train: bool = False

    @nn.nowrap
    def param(self, name, *args, **kwargs):
        """As of flax's modules, but that the weight may be normalised."""
        weight = super().param(name, *args, **kwargs)
        if not self.spectral or name not in WEIGHTS:
            return weight
        return weight / self._sigma(as_matrix(name, weight))

    @nn.nowrap
    def _sigma(self, W):
        fixed = lax.stop_gradient(W)  # [inputs, outputs]

        def first():
            # One step from noise: vectors that knew nothing of W could make sigma almost 0.
            return power_iteration(fixed, jax.random.normal(self.make_rng('params'), W.shape[1:]))

        kept = self.variable('spectral', 'u', lambda: first()[0])
        kept_v = self.variable('spectral', 'v', lambda: unit(jnp.dot(fixed, kept.value)))
        u, v = kept.value, kept_v.value
        if self.train and not self.is_initializing():
            u, v = power_iteration(fixed, u)
            if self.is_mutable_collection('spectral'):
                kept.value, kept_v.value = u, v
        return jnp.dot(v, jnp.dot(W, u, precision=EXACT), precision=EXACT)


class Conv(Spectral, nn.Conv):
    """`flax.linen.Conv` by `gen_jax.nn.conv.conv`, and what `Spectral` adds."""

    conv_general_dilated: Any = conv


class Dense(Spectral, nn.Dense):
    """`flax.linen.Dense`, and what `Spectral` adds."""


class Embed(Spectral, nn.Embed):
    """`flax.linen.Embed`, and what `Spectral` adds."""


class BatchNorm(nn.Module):
    """Batch normalisation whose gain and bias are learned or, told y, linear in it.

    Conditional batch normalisation (Dumoulin et al. 2017; de Vries et al. 2017) has a gain and a
    bias for each class, which is y as a one-hot vector. The running statistics are flax's, with
    biased variances.

    Attributes:
      train: whether to normalise by the batch and mix its statistics into the running ones.
      epsilon: added to the variance.
      spectral: of the layers that make gain and bias of y.
      kernel_init: of these.
      dtype: of the result; statistics are float32.
    """

    train: bool
    epsilon: float = 1e-5
    spectral: bool = False
    kernel_init: Any = nn.initializers.orthogonal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        """[b, h, w, c] and, where there is something to tell, y [b, e] -> [b, h, w, c]."""
        x = nn.BatchNorm(
            not self.train,
            momentum=MOMENTUM,
            epsilon=self.epsilon,
            dtype=self.dtype,
            use_scale=y is None,
            use_bias=y is None,
            use_fast_variance=False,
            name='bn',
        )(x)
        if y is None:
            return x
        gain, bias = (self._linear(x.shape[-1], name)(y) for name in ('gain', 'bias'))  # [b, c]
        return x * (1 + gain[:, None, None, :]) + bias[:, None, None, :]

    def _linear(self, width, name):
        options = {'spectral': self.spectral, 'train': self.train, 'kernel_init': self.kernel_init}
        return Dense(width, use_bias=False, dtype=self.dtype, name=name, **options)


class SelfAttention(nn.Module):
    """Self-attention over pixels, as in SAGAN (Zhang et al. 2019, section 3) and BigGAN.

    As in the authors' code, keys and values are of half the height and width, each the largest of
    2x2 pixels, and values have half of the channels.

    Attributes:
      spectral, train: as `Spectral` has them, of all four layers.
      kernel_init: of these.
      dtype: of the computation; the softmax is float32.
    """

    spectral: bool = False
    train: bool = False
    kernel_init: Any = nn.initializers.orthogonal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c], of even height and width and at least 8 channels -> the same."""
        b, h, w, c = x.shape
        query = self._dense(c // 8, 'theta')(x).reshape(b, h * w, c // 8)  # [b, hw, c/8]
        key = largest(self._dense(c // 8, 'phi')(x)).reshape(b, -1, c // 8)  # [b, hw/4, c/8]
        value = largest(self._dense(c // 2, 'g')(x)).reshape(b, -1, c // 2)  # [b, hw/4, c/2]
        options = {'preferred_element_type': jnp.float32}
        logits = jnp.einsum('bqc,bkc->bqk', query, key, **options)  # [b, hw, hw/4]
        attended = jax.nn.softmax(logits).astype(self.dtype) @ value  # [b, hw, c/2]
        y = self._dense(c, 'o')(attended).reshape(b, h, w, c)  # [b, h, w, c]
        # The network begins without it.
        gamma = self.param('gamma', nn.initializers.zeros, ())
        return x + gamma.astype(self.dtype) * y

    def _dense(self, width, name):
        options = {'spectral': self.spectral, 'train': self.train, 'kernel_init': self.kernel_init}
        return Dense(width, use_bias=False, dtype=self.dtype, name=name, **options)


def largest(x: jax.Array) -> jax.Array:
    """Maxima of 2x2 pixels, differentiable to any order: [b, h, w, c] -> [b, h/2, w/2, c]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


class MinibatchDiscrimination(nn.Module):
    """How near each example is to the others of its batch (Salimans et al. 2016, section 3.2).

    Attributes:
      kernels: B, the closenesses that are told of each example.
      dims: C, over whose numbers each is measured.
      spectral, train: as `Spectral` has them, of the tensor T.
      kernel_init: of T.
    """

    kernels: int = 100
    dims: int = 5
    spectral: bool = False
    train: bool = False
    kernel_init: Any = nn.initializers.normal(0.05)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features float32 [b, f] -> [b, f + kernels], the closenesses last."""
        options = {'spectral': self.spectral, 'train': self.train, 'kernel_init': self.kernel_init}
        T = Dense(self.kernels * self.dims, use_bias=False, name='T', **options)
        M = T(x).reshape(-1, self.kernels, self.dims)  # [b, B, C]
        distances = jnp.abs(M[:, None] - M[None]).sum(-1)  # [b, b, B]
        # As in the paper, each example counts itself too, which adds 1.
        return jnp.concatenate([x, jnp.exp(-distances).sum(1)], -1)  # [b, f + B]
