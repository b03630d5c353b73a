"""FID's Inception-v3: the graph of 2015-12-05, as torch-fidelity and pytorch-fid have it.

Szegedy et al. 2016, with the quirks of the frozen TensorFlow graph that Heusel et al. 2017 measured
FID with: 1008 classes, average pools that leave the padding out of the count, and a maximum pool in
the last block. It is not torchvision's Inception, and its weights are not either.
"""

from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.interop.tensors import read_tensors, to_variables
from gen_jax.interop.weights import WeightsFile

SIZE = 299
OUTPUTS = ('64', '192', '768', '2048', 'spatial', 'logits', 'logits_unbiased')

# torch-fidelity publishes the same bytes as weights-inception-2015-12-05-6726825d.pth.
WEIGHTS = WeightsFile(
    name='pt_inception-2015-12-05-6726825d.pth',
    url=(
        'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
        'pt_inception-2015-12-05-6726825d.pth'
    ),
    sha256='6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2',
)


class Inception(nn.Module):
    """FID's Inception-v3 in inference mode. Layers bear the names of the published weights.

    Attributes:
      outputs: which of `OUTPUTS` to compute. Layers that none of them needs have no parameters:
        21,785,568 up to '2048', 23,850,960 with 'logits' or 'logits_unbiased'.
    """

    outputs: tuple[str, ...] = ('2048',)

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Features of images that one of `resize.RESIZES` prepared.

        Args:
          x: float32 [b, 299, 299, 3] in [-1, 1].

        Returns:
          {name: float32 [b, d]} for each of `outputs`.
          '64', '192', '768', '2048': the maps after the first and second maximum pool, after
          Mixed_6e and after Mixed_7c, averaged over positions.
          'spatial': sFID's (Nash et al. 2021), the first 7 channels of Mixed_6d's branch1x1 at 17 x
          17 positions, 2023 in all, in the order of guided-diffusion's evaluator: channels last.
          'logits_unbiased', 'logits': [b, 1008], the last layer without and with its bias. The
          Inception Score takes the former.

        Raises:
          UserError: for an unknown output, or where `x` is not as described.
        """
        check(self.outputs, x)
        features = {}
        for part in (_to_64, _to_192, _to_768, _to_2048, _to_logits):
            x, found = part(x)
            features |= found
            if features.keys() >= set(self.outputs):
                break
        return {name: features[name] for name in self.outputs}


def load(path: str | Path) -> dict:
    """The variables of `Inception`, whatever its outputs, from a published state dict.

    Args:
      path: `WEIGHTS`, under pytorch-fid's or torch-fidelity's name.

    Returns:
      {'params', 'batch_stats'}, float32.

    Raises:
      UserError: where the file cannot be read or is of another network.
    """
    x = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(Inception(OUTPUTS).init, jax.random.key(0), x)
    return to_variables(read_tensors(path), shapes, path, ignore=r'.*\.num_batches_tracked')


def check(outputs: tuple[str, ...], x: jax.Array) -> None:
    """Raises UserError where `Inception` cannot give these outputs of this input."""
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs:
        raise UserError(f'outputs={outputs!r}: expected some of {", ".join(OUTPUTS)}')
    if x.dtype != jnp.float32 or x.ndim != 4 or x.shape[1:] != (SIZE, SIZE, 3):
        raise UserError(
            f'Inception got {x.dtype} {x.shape}, expected float32 [b, {SIZE}, {SIZE}, 3] in '
            '[-1, 1]: prepare images with gen_jax.metrics.features.resize'
        )


def _to_64(x):
    x = Conv(32, 3, 2, 'VALID', name='Conv2d_1a_3x3')(x)  # [b, 149, 149, 32]
    x = Conv(32, 3, 1, 'VALID', name='Conv2d_2a_3x3')(x)  # [b, 147, 147, 32]
    x = Conv(64, 3, name='Conv2d_2b_3x3')(x)  # [b, 147, 147, 64]
    x = halve(x)  # [b, 73, 73, 64]
    return x, {'64': x.mean((1, 2))}


def _to_192(x):
    x = Conv(80, name='Conv2d_3b_1x1')(x)  # [b, 73, 73, 80]
    x = Conv(192, 3, 1, 'VALID', name='Conv2d_4a_3x3')(x)  # [b, 71, 71, 192]
    x = halve(x)  # [b, 35, 35, 192]
    return x, {'192': x.mean((1, 2))}


def _to_768(x):
    x = InceptionA(32, name='Mixed_5b')(x)  # [b, 35, 35, 256]
    x = InceptionA(64, name='Mixed_5c')(x)  # [b, 35, 35, 288]
    x = InceptionA(64, name='Mixed_5d')(x)
    x = InceptionB(name='Mixed_6a')(x)  # [b, 17, 17, 768]
    x = InceptionC(128, name='Mixed_6b')(x)
    x = InceptionC(160, name='Mixed_6c')(x)
    x = InceptionC(160, name='Mixed_6d')(x)
    # TensorFlow calls this block mixed_6. Its first channels are those of branch1x1.
    spatial = x[..., :7].reshape(len(x), -1)  # [b, 2023]
    x = InceptionC(192, name='Mixed_6e')(x)
    return x, {'spatial': spatial, '768': x.mean((1, 2))}


def _to_2048(x):
    x = InceptionD(name='Mixed_7a')(x)  # [b, 8, 8, 1280]
    x = InceptionE(average, name='Mixed_7b')(x)  # [b, 8, 8, 2048]
    x = InceptionE(maximum, name='Mixed_7c')(x)
    x = x.mean((1, 2))  # [b, 2048]
    return x, {'2048': x}


def _to_logits(x):
    unbiased, logits = Linear(1008, name='fc')(x)
    return x, {'logits_unbiased': unbiased, 'logits': logits}


class Conv(nn.Module):
    """Convolution without bias, batch norm with running statistics, ReLU.

    Attributes:
      features: channels of the output.
      kernel: side of the kernel, or (height, width).
      stride: of both axes.
      padding: 'SAME' or 'VALID'.
    """

    features: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    padding: str = 'SAME'

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h, w, features], or half the side at stride 2."""
        kernel = (self.kernel,) * 2 if isinstance(self.kernel, int) else self.kernel
        # Accelerators would otherwise round the factors to 10 or 7 bits, which FID feels.
        conv = nn.Conv(
            self.features,
            kernel,
            self.stride,
            self.padding,
            use_bias=False,
            precision='highest',
            name='conv',
        )
        norm = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name='bn')
        return nn.relu(norm(conv(x)))


class Linear(nn.Module):
    """x W and x W + b; the first is not the second less b, in floating point."""

    features: int

    @nn.compact
    def __call__(self, x):
        """[b, d] -> two of [b, features]."""
        shape = (x.shape[-1], self.features)
        kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
        bias = self.param('bias', nn.initializers.zeros, shape[1:])
        unbiased = jnp.dot(x, kernel, precision='highest')
        return unbiased, unbiased + bias


def chain(x, prefix: str, *layers):
    """`Conv`s one after another, called prefix_1, prefix_2, ..."""
    for i, layer in enumerate(layers, 1):
        x = Conv(*layer, name=f'{prefix}_{i}')(x)
    return x


class InceptionA(nn.Module):
    """Szegedy et al. 2016, figure 5."""

    pool_features: int

    @nn.compact
    def __call__(self, x):
        """[b, 35, 35, c] -> [b, 35, 35, 224 + pool_features]."""
        branch1x1 = Conv(64, name='branch1x1')(x)
        branch5x5 = chain(x, 'branch5x5', (48,), (64, 5))
        branch3x3dbl = chain(x, 'branch3x3dbl', (64,), (96, 3), (96, 3))
        branch_pool = Conv(self.pool_features, name='branch_pool')(average(x))
        return jnp.concatenate([branch1x1, branch5x5, branch3x3dbl, branch_pool], -1)


class InceptionB(nn.Module):
    """Halves the side of the map; Szegedy et al. 2016, figure 10."""

    @nn.compact
    def __call__(self, x):
        """[b, 35, 35, 288] -> [b, 17, 17, 768]."""
        branch3x3 = Conv(384, 3, 2, 'VALID', name='branch3x3')(x)
        branch3x3dbl = chain(x, 'branch3x3dbl', (64,), (96, 3), (96, 3, 2, 'VALID'))
        return jnp.concatenate([branch3x3, branch3x3dbl, halve(x)], -1)


class InceptionC(nn.Module):
    """Szegedy et al. 2016, figure 6 with n = 7."""

    channels_7x7: int

    @nn.compact
    def __call__(self, x):
        """[b, 17, 17, 768] -> the same shape."""
        c, row, column = self.channels_7x7, (1, 7), (7, 1)
        branch1x1 = Conv(192, name='branch1x1')(x)
        branch7x7 = chain(x, 'branch7x7', (c,), (c, row), (192, column))
        branch7x7dbl = chain(
            x, 'branch7x7dbl', (c,), (c, column), (c, row), (c, column), (192, row)
        )
        branch_pool = Conv(192, name='branch_pool')(average(x))
        return jnp.concatenate([branch1x1, branch7x7, branch7x7dbl, branch_pool], -1)


class InceptionD(nn.Module):
    """Halves the side of the map."""

    @nn.compact
    def __call__(self, x):
        """[b, 17, 17, 768] -> [b, 8, 8, 1280]."""
        end = (3, 2, 'VALID')
        branch3x3 = chain(x, 'branch3x3', (192,), (320, *end))
        branch7x7x3 = chain(x, 'branch7x7x3', (192,), (192, (1, 7)), (192, (7, 1)), (192, *end))
        return jnp.concatenate([branch3x3, branch7x7x3, halve(x)], -1)


class InceptionE(nn.Module):
    """Szegedy et al. 2016, figure 7."""

    pool: Callable

    @nn.compact
    def __call__(self, x):
        """[b, 8, 8, c] -> [b, 8, 8, 2048]."""
        branch1x1 = Conv(320, name='branch1x1')(x)
        branch3x3 = Conv(384, name='branch3x3_1')(x)
        branch3x3dbl = chain(x, 'branch3x3dbl', (448,), (384, 3))
        branch_pool = Conv(192, name='branch_pool')(self.pool(x))
        split = [
            Conv(384, kernel, name=name + letter)(branch)
            for name, branch in (('branch3x3_2', branch3x3), ('branch3x3dbl_3', branch3x3dbl))
            for letter, kernel in (('a', (1, 3)), ('b', (3, 1)))
        ]
        return jnp.concatenate([branch1x1, *split, branch_pool], -1)


def halve(x):
    """Maximum over 3x3 with stride 2, without padding."""
    return nn.max_pool(x, (3, 3), (2, 2))


def maximum(x):
    """Maximum over 3x3 with stride 1; what lies outside the map does not count."""
    return nn.max_pool(x, (3, 3), (1, 1), 'SAME')


def average(x):
    """Mean over 3x3 with stride 1; what lies outside the map does not count."""
    return nn.avg_pool(x, (3, 3), (1, 1), 'SAME', count_include_pad=False)
