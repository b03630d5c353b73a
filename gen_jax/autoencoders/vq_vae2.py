"""VQ-VAE-2: Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2".

Codes of two levels. The encoder goes down to a quarter of the image (bottom) and on to an eighth
(top). The top is quantised first; the bottom's vectors are made of what the encoder has there and
of the top's codes, and the decoder sees both levels (the paper's algorithm 1 and figure 2a). Losses
and codes are VQ-VAE's: each level has a codebook of its own that follows a moving average, and
distances from codes are added up over levels. In training all codes are as probable, so that the
bound is log p(x|z) less log K for each place of either level. Images are drawn as VQ-VAE's are.

The authors' code is not public. What the paper leaves open is that of an unofficial port,
github.com/rosinality/vq-vae-2-pytorch at ef5f67c, which builds on VQ-VAE's example in sonnet: 4x4
kernels halve; the top's codes reach the bottom through a small decoder that doubles them, and the
decoder through one transposed convolution. Where the port departs from the paper we follow the
paper: 64 channels within residual blocks, of which the port has 32. Codes begin as in `quantizer`,
with counts of 1; the port's begin normal with counts of 0, so that those not used in the first step
land far away. By default pixels have the deviation with which -log p / D is the squared error, and
a constant, as in both.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from gen_jax.autoencoders import residual, vq_vae
from gen_jax.autoencoders.autoencoder import features_of, p_of
from gen_jax.autoencoders.quantizer import Quantized, VectorQuantizer
from gen_jax.config import require
from gen_jax.method import Method
from gen_jax.nn.conv import ConvTranspose

PLACES = 4  # of the bottom level for each of the top's


def defaults() -> dict:
    """This method's part of the config: the paper's numbers, of `model.halvings` the bottom's."""
    parts = vq_vae.defaults()
    return parts | {
        'model': parts['model'] | {'hidden': 64},
        'pixels': parts['pixels'] | {'sigma': math.sqrt(0.5)},
        'ema_decay': 0.0,  # of the weights that encode and decode; 0: none kept
    }


class BothLevels(nn.Module):
    """From codes of both levels to numbers of pixels.

    Attributes:
      decoder: of the bottom's map, with the top's, doubled, beside it.
      dtype: of the doubling; parameters stay float32.
    """

    decoder: residual.Decoder
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z):
        """[b, h, w, 5 * dim] as `joined` gives them -> what `decoder` gives."""
        top, bottom = apart(z)
        up = ConvTranspose(top.shape[-1], (4, 4), (2, 2), 1, dtype=self.dtype, name='up')
        return self.decoder(jnp.concatenate([up(top), bottom], -1))


class VQVAE2(vq_vae.VQVAE):
    """VQ-VAE with a level more; `encoder` gives the bottom's feature map, `quantizer` is its.

    Attributes:
      top_encoder: of that map, to the top's vectors.
      top_quantizer: theirs.
      top_decoder: of the top's codes, to be told to the bottom's.
    """

    top_encoder: nn.Module = None
    top_quantizer: VectorQuantizer = None
    top_decoder: nn.Module = None

    LEVELS = '_top', '_bottom'

    def setup(self):
        """Adds what makes the bottom's vectors."""
        super().setup()
        self.to_bottom = nn.Dense(self.quantizer.dim)

    def codes(self, x, train: bool = False) -> tuple[Quantized, Quantized]:
        """The codes of images: top [b, h, w, dim] and bottom [b, 2 * h, 2 * w, dim]."""
        features = self.encode(x)
        top = self.top_quantizer(self.top_encoder(features), train)
        told = jnp.concatenate([self.top_decoder(top.z), features.astype(jnp.float32)], -1)
        return top, self.quantizer(self.to_bottom(told), train)

    @staticmethod
    def latents(found: tuple[Quantized, Quantized]) -> jax.Array:
        """Both levels as one map, [b, h, w, 5 * dim]."""
        return joined(*(level.z for level in found))

    def snapped(self, z: jax.Array) -> jax.Array:
        """A map as `latents` gives them, each vector replaced by the nearest code of its level."""
        top, bottom = apart(z)
        return joined(self.top_quantizer(top).z, self.quantizer(bottom).z)


def joined(top: jax.Array, bottom: jax.Array) -> jax.Array:
    """[b, h, w, d], [b, 2 * h, 2 * w, d] -> [b, h, w, 5 * d]: a code and the four below it."""
    b, h, w, d = top.shape
    squares = bottom.reshape(b, h, 2, w, 2, d).transpose(0, 1, 3, 2, 4, 5)
    return jnp.concatenate([top, squares.reshape(b, h, w, PLACES * d)], -1)


def apart(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inverse of `joined`."""
    b, h, w, c = z.shape
    d = c // (1 + PLACES)
    squares = z[..., d:].reshape(b, h, w, 2, 2, d).transpose(0, 1, 3, 2, 4, 5)
    return z[..., :d], squares.reshape(b, 2 * h, 2 * w, d)


def create(config: ml_collections.ConfigDict) -> Method:
    """The VQ-VAE-2 that `defaults` describes.

    `evaluate_step` gives what VQ-VAE's does. `encode` gives both levels as one map [b, h, w, 5 *
    dim], of the top's height and width, as `joined` lays them out. Metrics of training have the
    'perplexity_top' and 'perplexity_bottom' of a batch's codes.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    return vq_vae.method_of(config, module_of(config))


def module_of(config: ml_collections.ConfigDict) -> VQVAE2:
    """Both levels of networks and codes.

    Raises:
      UserError: where numbers do not fit.
    """
    options, size = config.vq, config.data.image_size
    encoder, decoder = residual.from_config(config, 0, features_of(config), rectified=False)
    vq_vae.check(config)
    factor = 2 ** (encoder.halvings + 1)
    expected = f'a multiple of {factor}, as the top is halved model.halvings + 1 times'
    require(size % factor == 0, 'data.image_size', size, expected)

    def quantizer():
        return VectorQuantizer(options.codes, options.dim, options.decay > 0)

    return VQVAE2(
        encoder,
        BothLevels(decoder, decoder.dtype),
        **p_of(config),
        quantizer=quantizer(),
        top_encoder=encoder.clone(halvings=1, features=options.dim),
        top_quantizer=quantizer(),
        top_decoder=decoder.clone(halvings=1, features=options.dim),
    )
