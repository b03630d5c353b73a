"""Layers of GANs; agreement of spectral normalisation with torch's is in tests/parity."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.gans.layers import (
    BatchNorm,
    Conv,
    Dense,
    Embed,
    MinibatchDiscrimination,
    SelfAttention,
    improved,
    largest,
)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize(
    ('layer', 'x', 'matrix'),
    [
        (Conv(4, (3, 2), spectral=True), noise(1, 5, 5, 3), lambda k: k.reshape(18, 4)),
        (Dense(5, spectral=True), noise(2, 3), lambda k: k),
        (Embed(6, 4, spectral=True), np.int32([3]), lambda k: k.T),
    ],
)
def test_iterations_lead_to_the_largest_singular_value(layer, x, matrix):
    """Against LAPACK's; the first estimate is already of its size."""
    variables = layer.init(jax.random.key(0), x)
    W = matrix(next(w for name, w in variables['params'].items() if name != 'bias'))
    want = np.linalg.svd(W, compute_uv=False)[0]
    step = jax.jit(lambda v: layer.clone(train=True).apply(v, x, mutable=['spectral'])[1])

    def sigma():
        return float(variables['spectral']['v'] @ W @ variables['spectral']['u'])

    assert 0.4 < sigma() / want < 1.0001
    for _ in range(60):
        variables = {**variables, **step(variables)}
    assert sigma() == pytest.approx(want, rel=1e-3)
    plain = layer.clone(spectral=False).apply({'params': variables['params']}, x)
    np.testing.assert_allclose(layer.apply(variables, x), plain / want, rtol=2e-3, atol=1e-5)


def test_without_the_option_the_layers_are_flaxs():
    x = noise(2, 5, 5, 3)
    for ours, theirs in ((Conv(4, (3, 3)), nn.Conv(4, (3, 3))), (Dense(4), nn.Dense(4))):
        variables = theirs.init(jax.random.key(3), x)
        jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(3), x), variables)
        np.testing.assert_array_equal(ours.apply(variables, x), theirs.apply(variables, x))


def test_vectors_are_written_only_in_training_and_where_they_may_be():
    x, layer = noise(2, 6), Dense(4, spectral=True, train=True)
    variables = layer.init(jax.random.key(0), x)
    before = jax.tree.map(np.copy, variables['spectral'])
    y, new = layer.apply(variables, x, mutable=['spectral'])
    assert np.abs(new['spectral']['u'] - before['u']).max() > 1e-3
    # Training without a place to write to: the same result.
    np.testing.assert_array_equal(layer.apply(variables, x), y)
    at_rest, same = layer.clone(train=False).apply(variables, x, mutable=['spectral'])
    jax.tree.map(np.testing.assert_array_equal, same['spectral'], before)
    assert np.abs(at_rest - y).max() > 1e-4


@pytest.mark.parametrize('layer', [Dense(4, spectral=True), Embed(5, 4, spectral=True)])
def test_vectors_are_improved_apart_as_in_training(layer):
    x = noise(2, 6) if isinstance(layer, Dense) else np.int32([3])
    variables = layer.init(jax.random.key(0), x)
    weights = jax.tree.map(lambda w: w + noise(*w.shape, seed=1), variables['params'])
    other = {'params': weights, 'spectral': variables['spectral']}
    _, want = layer.clone(train=True).apply(other, x, mutable=['spectral'])
    got = improved({'part': other['spectral']}, {'part': weights})
    jax.tree.map(np.testing.assert_array_equal, got, {'part': want['spectral']})


def conditional(train, **options):
    """The layer and variables with which every part of it matters."""
    layer, x, y = (
        BatchNorm(train=train, epsilon=0.1, **options),
        3 * noise(3, 2, 2, 4) + 1,
        noise(3, 5),
    )
    variables = layer.clone(train=False).init(jax.random.key(0), x, y)
    stats = {'bn': {'mean': noise(4, seed=1), 'var': noise(4, seed=2) ** 2}}
    return layer, {**variables, 'batch_stats': stats}, x, y


@pytest.mark.parametrize('train', [True, False])
def test_conditional_batch_norm(train):
    layer, variables, x, y = conditional(train)
    got, new = jax.jit(lambda *args: layer.apply(*args, mutable=['batch_stats']))(variables, x, y)
    kept = variables['batch_stats']['bn']
    batch = {'mean': x.mean((0, 1, 2)), 'var': x.var((0, 1, 2))}
    used = batch if train else kept
    plain = (x - used['mean']) / np.sqrt(used['var'] + 0.1)
    gain, bias = (y @ variables['params'][name]['kernel'] for name in ('gain', 'bias'))
    want = plain * (1 + gain[:, None, None]) + bias[:, None, None]
    np.testing.assert_allclose(got, want, atol=1e-5)
    for name, running in new['batch_stats']['bn'].items():
        mixed = 0.9 * kept[name] + 0.1 * batch[name] if train else kept[name]
        np.testing.assert_allclose(running, mixed, atol=1e-5)


def test_a_spectral_batch_norm_divides_its_layers():
    layer, variables, x, y = conditional(False, spectral=True)
    for name in ('gain', 'bias'):
        kernel, kept = (variables[part][name] for part in ('params', 'spectral'))
        sigma = kept['v'] @ kernel['kernel'] @ kept['u']
        variables['params'][name] = {'kernel': kernel['kernel'] * sigma * 2}
    got = layer.apply(variables, x, y)
    for name in ('gain', 'bias'):
        variables['params'][name] = {'kernel': variables['params'][name]['kernel'] / 3}
    np.testing.assert_allclose(got, layer.apply(variables, x, y), atol=1e-5)


def test_batch_norm_that_is_told_nothing():
    layer, x = BatchNorm(train=False), noise(2, 2, 2, 3)
    variables = layer.init(jax.random.key(0), x)
    variables['params'] = {'bn': {'scale': noise(3, seed=1), 'bias': noise(3, seed=2)}}
    want = x * noise(3, seed=1) + noise(3, seed=2)
    np.testing.assert_allclose(layer.apply(variables, x), want, atol=1e-4)


def test_self_attention():
    """Against loops over pixels."""
    x, layer = noise(2, 4, 2, 16), SelfAttention()
    params = layer.init(jax.random.key(0), x)['params']
    np.testing.assert_array_equal(layer.apply({'params': params}, x), x)  # gamma is 0
    params['gamma'] = np.float32(0.5)
    theta, phi, g, o = (np.asarray(params[name]['kernel']) for name in ('theta', 'phi', 'g', 'o'))
    boxes = [(i, j) for i in (0, 2) for j in (0,)]
    want = np.copy(x)
    for b, i, j in itertools.product(range(2), range(4), range(2)):
        near = [x[b, k : k + 2, m : m + 2].reshape(4, 16) for k, m in boxes]
        logits = np.array([x[b, i, j] @ theta @ (pixels @ phi).max(0) for pixels in near])
        weights = np.exp(logits) / np.exp(logits).sum()
        value = sum(w * (pixels @ g).max(0) for w, pixels in zip(weights, near, strict=True))
        want[b, i, j] += 0.5 * value @ o
    got = jax.jit(layer.apply)({'params': params}, x)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_attention_tells_keys_apart_that_bfloat16_does_not():
    """Logits of 255 and 257.125, of which the latter is no bfloat16."""
    names = {'theta': (8, 1), 'phi': (8, 1), 'g': (8, 4), 'o': (4, 8)}
    kernels = {name: np.zeros(shape, np.float32) for name, shape in names.items()}
    kernels['theta'][0], kernels['phi'][1], kernels['g'][2], kernels['o'][0, 3] = 17, 1, 1, 1
    x = np.zeros((1, 2, 4, 8), np.float32)
    x[..., 0], x[..., :2, 1], x[..., 2:, 1], x[..., 2:, 2] = 1, 15, 15.125, 1
    params = {name: {'kernel': kernel} for name, kernel in kernels.items()}
    got = SelfAttention(dtype=jnp.bfloat16).apply({'params': params | {'gamma': np.float32(1)}}, x)
    np.testing.assert_allclose(got[..., 3], 1 / (1 + np.exp(-2.125)), rtol=0.01)


def test_largest_has_second_derivatives():
    x = noise(1, 2, 2, 1)
    hessian = jax.hessian(lambda x: (largest(x) ** 3).sum())(x).reshape(4, 4)
    want = np.zeros((4, 4))
    want[x.argmax(), x.argmax()] = 6 * x.max()
    np.testing.assert_allclose(hessian, want, rtol=1e-5)


def test_minibatch_discrimination():
    x, layer = noise(3, 4), MinibatchDiscrimination(kernels=2, dims=5)
    variables = layer.init(jax.random.key(0), x)
    M = (x @ variables['params']['T']['kernel']).reshape(3, 2, 5)
    want = np.zeros((3, 2))
    for i, j, b in itertools.product(range(3), range(3), range(2)):
        want[i, b] += np.exp(-np.abs(M[i, b] - M[j, b]).sum())
    got = jax.jit(layer.apply)(variables, x)
    np.testing.assert_allclose(got, np.hstack([x, want]), rtol=1e-5)
    # One that is alone is near itself.
    np.testing.assert_allclose(layer.apply(variables, x[:1])[:, 4:], 1, rtol=1e-6)
