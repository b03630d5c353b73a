import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gen_jax.metrics.features import alexnet, squeezenet, vgg16
from gen_jax.metrics.features.squeezenet import _max_pool_ceil

NETS = {'vgg': (vgg16.VGG16, vgg16), 'alex': (alexnet.AlexNet, alexnet)}
NETS['squeeze'] = (squeezenet.SqueezeNet, squeezenet)


def shapes(net, height, width):
    """(taps, params) by shape alone."""
    image = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    taps, variables = jax.eval_shape(NETS[net][0]().init_with_output, jax.random.key(0), image)
    return [tap.shape[1:] for tap in taps], flatten_dict(variables['params'])


# Parameters of torchvision's models, less those of their classifiers.
@pytest.mark.parametrize(
    ('net', 'count'),
    [('vgg', 14_714_688), ('alex', 2_469_696), ('squeeze', 1_235_496 - 512 * 1000 - 1000)],
)
def test_parameters(net, count):
    _, params = shapes(net, 64, 64)
    assert sum(np.prod(p.shape) for p in params.values()) == count
    fire = r'features\.\d+(/(squeeze|expand1x1|expand3x3))?/(kernel|bias)'
    assert all(re.fullmatch(fire, '/'.join(path)) for path in params)


@pytest.mark.parametrize(
    ('net', 'taps'),
    [
        ('vgg', [(64, 96, 64), (32, 48, 128), (16, 24, 256), (8, 12, 512), (4, 6, 512)]),
        ('alex', [(15, 23, 64), (7, 11, 192), (3, 5, 384), (3, 5, 256), (3, 5, 256)]),
        (
            'squeeze',
            [(31, 47, 64), (15, 23, 128), (7, 11, 256), *2 * [(3, 5, 384)], *2 * [(3, 5, 512)]],
        ),
    ],
)
def test_taps(net, taps):
    assert shapes(net, 64, 96)[0] == taps


@pytest.mark.parametrize('net', NETS)
def test_smallest_side(net):
    side = NETS[net][1].SMALLEST_SIDE
    assert all(0 not in tap for tap in shapes(net, side, side)[0])
    assert any(0 in tap for tap in shapes(net, side - 1, side - 1)[0])


@pytest.mark.parametrize('side', range(2, 9))
def test_ceil_mode(side):
    """Windows begin at 0, 2, 4, ... as long as those before do not reach the last pixel."""
    x = np.random.default_rng(side).normal(size=side).astype(np.float32) - 10
    starts = [s for s in range(0, side, 2) if s == 0 or s + 1 <= side - 1]
    want = np.array([x[s : s + 3].max() for s in starts])
    found = _max_pool_ceil(np.broadcast_to(x[:, None], (side, side))[None, :, :, None])
    np.testing.assert_array_equal(found[0, :, 0, 0], want)
    found = _max_pool_ceil(np.broadcast_to(x, (side, side))[None, :, :, None])
    np.testing.assert_array_equal(found[0, 0, :, 0], want)


@pytest.mark.parametrize('net', NETS)
def test_weights(net):
    """torchvision names files by the first eight digits."""
    weights = NETS[net][1].WEIGHTS
    assert weights.url.endswith('/' + weights.name)
    assert re.fullmatch('[0-9a-f]{64}', weights.sha256)
    assert f'-{weights.sha256[:8]}.pth' in weights.name
