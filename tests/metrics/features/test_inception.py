"""Inception where its features are known without another implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from gen_jax.errors import UserError
from gen_jax.interop.tensors import torch_name
from gen_jax.metrics.features import inception

X = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
WIDTHS = {
    '64': 64,
    '192': 192,
    '768': 768,
    '2048': 2048,
    'spatial': 2023,
    'logits': 1008,
    'logits_unbiased': 1008,
}


def shapes(*outputs):
    return jax.eval_shape(inception.Inception(outputs).init, jax.random.key(0), X)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ('outputs', 'parameters'),
    [
        (('2048',), 21_785_568),
        (('2048', 'spatial'), 21_785_568),
        (('logits_unbiased',), 23_850_960),
        (('64', 'logits'), 23_850_960),
        # 3x3 kernels 3 -> 32 -> 32 -> 64, and a scale and a bias per channel
        (('64',), 9 * (3 * 32 + 32 * 32 + 32 * 64) + 2 * 128),
    ],
)
def test_parameters(outputs, parameters):
    assert count(shapes(*outputs)['params']) == parameters


def test_running_statistics():
    """Two per channel of every convolution, as there are two parameters of every norm."""
    params, stats = flatten_dict(shapes('2048')['params']), shapes('2048')['batch_stats']
    assert count(stats) == sum(x.size for path, x in params.items() if path[-2] == 'bn')


@pytest.mark.slow
@pytest.mark.parametrize('outputs', [('2048',), ('64', 'spatial'), tuple(reversed(WIDTHS))])
def test_outputs(outputs):
    net = inception.Inception(outputs)
    found = jax.eval_shape(net.apply, shapes(*inception.OUTPUTS), X)
    assert {name: x.shape for name, x in found.items()} == {n: (2, WIDTHS[n]) for n in outputs}
    assert {x.dtype for x in found.values()} == {jnp.dtype('float32')}


@pytest.mark.slow
def test_norm_and_head():
    """Kernels of zero leave the norm: relu(bias - mean scale / sqrt(var + 1e-3)) everywhere."""
    value = 2 - 0.5 * 0.2 / (3e-3 + 1e-3) ** 0.5
    leaves = {'scale': 0.2, 'bias': 2.0, 'mean': 0.5, 'var': 3e-3, 'kernel': 0.0}
    flat = {
        path: np.full(x.shape, leaves[path[-1]], np.float32)
        for path, x in flatten_dict(shapes(*inception.OUTPUTS)).items()
    }
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(2048, 1008)), rng.normal(size=1008)
    flat['params', 'fc', 'kernel'] = np.float32(kernel)
    flat['params', 'fc', 'bias'] = np.float32(bias)
    net = inception.Inception(inception.OUTPUTS)
    found = jax.jit(net.apply)(unflatten_dict(flat), jnp.zeros((1, 299, 299, 3)))
    for name in ('64', '192', '768', '2048', 'spatial'):
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
    unbiased = value * kernel.sum(0)[None]
    np.testing.assert_allclose(found['logits_unbiased'], unbiased, atol=1e-3)
    np.testing.assert_allclose(found['logits'], unbiased + bias, atol=1e-3)


@pytest.mark.parametrize(
    ('pool', 'reduce'), [(inception.average, np.nanmean), (inception.maximum, np.nanmax)]
)
def test_pools_leave_the_padding_out(pool, reduce):
    x = -np.random.default_rng(0).uniform(1, 2, (2, 5, 4, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    windows = [padded[:, i : i + 5, j : j + 4] for i in range(3) for j in range(3)]
    np.testing.assert_allclose(pool(x), reduce(windows, 0), rtol=1e-6)


def test_halve():
    x = np.arange(49, dtype=np.float32).reshape(1, 7, 7, 1)
    corners = [[16, 18, 20], [30, 32, 34], [44, 46, 48]]  # the last pixel of each 3x3 window
    np.testing.assert_array_equal(inception.halve(x)[0, :, :, 0], corners)


@pytest.mark.slow
def test_load_reads_safetensors(tmp_path):
    """Names and layouts are torch's; a count of batches, which torch saves, is left out."""
    rng = np.random.default_rng(0)
    tensors, expected = {'Mixed_5b.branch1x1.bn.num_batches_tracked': np.ones(1, np.float32)}, {}
    for path, shape in flatten_dict(shapes(*inception.OUTPUTS)).items():
        x = expected[path] = rng.random(shape.shape, np.float32)
        x = np.moveaxis(x, (-1, -2), (0, 1)) if path[-1] == 'kernel' else x
        tensors[torch_name(path[1:])] = np.ascontiguousarray(x)
    assert tensors['Mixed_7c.branch3x3dbl_3b.conv.weight'].shape == (384, 384, 3, 1)
    save_file(tensors, tmp_path / 'inception.safetensors')
    variables = inception.load(tmp_path / 'inception.safetensors')
    jax.tree.map(np.testing.assert_array_equal, variables, unflatten_dict(expected))


def test_weights_of_another_network(tmp_path):
    save_file({'conv1.weight': np.zeros((64, 3, 7, 7), np.float32)}, tmp_path / 'x.safetensors')
    with pytest.raises(UserError, match=r'x\.safetensors') as error:
        inception.load(tmp_path / 'x.safetensors')
    assert '\n' not in str(error.value)


def test_published_name_bears_the_digest():
    file = inception.WEIGHTS
    assert file.name == f'pt_inception-2015-12-05-{file.sha256[:8]}.pth'
    assert file.url.endswith(file.name)
    assert len(file.sha256) == 64


@pytest.mark.parametrize(
    ('outputs', 'x', 'message'),
    [
        (('2048',), np.zeros((1, 298, 299, 3), np.float32), '298'),
        (('2048',), np.zeros((299, 299, 3), np.float32), r'\(299, 299, 3\)'),
        (('2048',), np.zeros((1, 299, 299, 1), np.float32), r'299, 1\)'),
        (('2048',), np.zeros((1, 299, 299, 3), np.uint8), 'uint8'),
        (('2048', 'pool3'), np.zeros((1, 299, 299, 3), np.float32), 'pool3.*expected some of 64'),
        ((), np.zeros((1, 299, 299, 3), np.float32), 'expected some of 64'),
    ],
)
def test_bad_input(outputs, x, message):
    with pytest.raises(UserError, match=message) as error:
        inception.Inception(outputs).init(jax.random.key(0), x)
    assert '\n' not in str(error.value)
