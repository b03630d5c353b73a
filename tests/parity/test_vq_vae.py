"""VQ-VAE's networks against torch's, put together as the authors' example does.

Read in sonnet's examples/vqvae_example.ipynb (github.com/google-deepmind/sonnet): which layers
there are, and where a ReLU stands.
"""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gen_jax import config as house
from gen_jax.autoencoders import residual

torch = pytest.importorskip('torch')
F = torch.nn.functional


def made(side, channels):
    config = house.default('autoencoders.vq_vae')
    sizes = {'image_size': side, 'channels': channels}
    config.data.update(sizes)
    config.model.update({'channels': 12, 'hidden': 5})
    return residual.from_config(config, 6, channels, rectified=True)


def random_of(net, shape, seed):
    """Weights of which no layer dies out, and biases that count."""
    shapes = flatten_dict(jax.eval_shape(net.init, jax.random.key(0), np.zeros(shape, np.float32)))
    rng = np.random.default_rng(seed)
    drawn = {
        path: np.float32(rng.normal(size=x.shape) * (2 / np.prod(x.shape[:-1])) ** 0.5)
        for path, x in shapes.items()
    }
    return unflatten_dict(drawn)


def applied(layer, x, **options):
    """A convolution of HWIO weights, or of a dense layer's."""
    kernel = torch.from_numpy(layer['kernel'])
    kernel = kernel[None, None] if kernel.ndim == 2 else kernel
    bias = torch.from_numpy(layer['bias'])
    return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, **options)


def doubled(layer, x):
    kernel = torch.from_numpy(layer['kernel']).permute(3, 2, 0, 1)
    return F.conv_transpose2d(x, kernel, torch.from_numpy(layer['bias']), 2, 1)


def stack(params, x):
    for i in range(2):
        y = applied(params[f'conv_{i}'], F.relu(x), padding=1)
        x = x + applied(params[f'out_{i}'], F.relu(y))
    return F.relu(x)


def encoder(params, x):
    for i in range(2):
        x = F.relu(applied(params[f'down_{i}'], x, stride=2, padding=1))
    x = F.relu(applied(params['in'], x, padding=1))
    return applied(params['out'], stack(params['blocks'], x))


def decoder(params, z):
    x = stack(params['blocks'], applied(params['in'], z, padding=1))
    return doubled(params['up_1'], F.relu(doubled(params['up_0'], x)))


@pytest.mark.parametrize(('batch', 'side', 'channels'), [(2, 16, 3), (1, 28, 1)])
def test_networks(batch, side, channels):
    nets = made(side, channels)
    inputs = (batch, side, side, channels), (batch, side // 4, side // 4, 6)
    for i, (net, reference, shape) in enumerate(zip(nets, (encoder, decoder), inputs, strict=True)):
        variables = random_of(net, shape, i)
        x = np.random.default_rng(9).normal(size=shape).astype(np.float32)
        ours = jax.jit(net.apply)(variables, x)
        theirs = reference(variables['params'], torch.from_numpy(x).permute(0, 3, 1, 2))
        theirs = theirs.permute(0, 2, 3, 1).numpy()
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_sizes_of_the_example():
    """By hand, of 32x32 images in colour: 128 channels, 32 within blocks, codes of 64 numbers."""
    config = house.default('autoencoders.vq_vae')
    config.data.update({'image_size': 32, 'channels': 3})
    shapes = (1, 32, 32, 3), (1, 8, 8, 64)
    block = 9 * 128 * 32 + 32 + 32 * 128 + 128
    expected = (
        16 * 3 * 64 + 64 + 16 * 64 * 128 + 128 + 9 * 128 * 128 + 128 + 2 * block + 128 * 64 + 64,
        9 * 64 * 128 + 128 + 2 * block + 16 * 128 * 64 + 64 + 16 * 64 * 3 + 3,
    )
    nets = residual.from_config(config, 64, 3, rectified=True)
    for net, shape, count in zip(nets, shapes, expected, strict=True):
        params = jax.eval_shape(net.init, jax.random.key(0), np.zeros(shape, np.float32))
        assert sum(x.size for x in jax.tree.leaves(params)) == count
