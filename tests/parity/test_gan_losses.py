"""Objectives, and penalties with their gradients, against torch's autograd and double backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.gans.objectives import OBJECTIVES
from gen_jax.gans.penalties import PENALTIES, path_lengths
from gen_jax.nn.conv import conv

torch = pytest.importorskip('torch')
F = torch.nn.functional

B, SIZE, WIDTH = 4, 8, 16
RNG = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(0), B)
REAL, FAKE = RNG.uniform(-1, 1, (2, B, SIZE, SIZE, 3)).astype(np.float32)
# A 3x3 convolution wide enough for the fast way on a CPU, one with a stride, a dense layer.
PARAMS = {
    'first': 0.3 * RNG.standard_normal((3, 3, 3, WIDTH)),
    'middle': 0.1 * RNG.standard_normal((3, 3, WIDTH, WIDTH)),
    'strided': 0.1 * RNG.standard_normal((4, 4, WIDTH, WIDTH)),
    'last': 0.1 * RNG.standard_normal((SIZE * SIZE * WIDTH // 4,)),
}
PARAMS = {name: x.astype(np.float32) for name, x in PARAMS.items()}
NHWC = ('NHWC', 'HWIO', 'NHWC')


def convolved(x, kernel, stride=1):
    pad = [(1, 1), (1, 1)]
    return conv(x, kernel, (stride, stride), pad, dimension_numbers=NHWC)


def ours(params, x):
    x = jnp.tanh(convolved(x, params['first']))
    x = jax.nn.leaky_relu(convolved(x, params['middle']), 0.2)
    x = jax.nn.leaky_relu(convolved(x, params['strided'], 2), 0.2)
    return x.reshape(len(x), -1) @ params['last']


def theirs(params, x):
    kernels = {name: x.permute(3, 2, 0, 1) for name, x in params.items() if x.ndim == 4}
    x = torch.tanh(F.conv2d(x, kernels['first'], padding=1))
    x = F.leaky_relu(F.conv2d(x, kernels['middle'], padding=1), 0.2)
    x = F.leaky_relu(F.conv2d(x, kernels['strided'], stride=2, padding=1), 0.2)
    return x.permute(0, 2, 3, 1).reshape(len(x), -1) @ params['last']


def nchw(x):
    return torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy())


def slopes(params, x):
    """|grad D(x)|^2 of each example, kept for another derivative."""
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(theirs(params, x).sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def drawn(i, shape):
    keys = KEYS if i is None else [jax.random.fold_in(key, i) for key in KEYS]
    return np.stack([np.asarray(jax.random.uniform(key, shape)) for key in keys])


def wanted(name, params):
    real, fake = nchw(REAL), nchw(FAKE)
    if name == 'wgan_gp':
        share = torch.from_numpy(drawn(None, ()))[:, None, None, None]
        return (slopes(params, share * real + (1 - share) * fake).sqrt() - 1).square().mean()
    if name == 'dragan':
        share = torch.from_numpy(drawn(0, ()))[:, None, None, None]
        noise = 0.5 * real.std(correction=0) * nchw(drawn(1, REAL.shape[1:]))
        return (slopes(params, real + share * noise).sqrt() - 1).square().mean()
    places = {'r1': (real,), 'r2': (fake,), 'r1_r2': (real, fake)}[name]
    return sum(slopes(params, x).mean() / 2 for x in places)


def assert_same(value, gradients, want, params):
    np.testing.assert_allclose(value, want.item(), rtol=1e-4)
    want.backward()
    for name, gradient in gradients.items():
        other = params[name].grad.numpy()
        assert np.abs(gradient - other).max() < 1e-4 * np.abs(other).max(), name


def in_torch():
    return {name: torch.from_numpy(x.copy()).requires_grad_() for name, x in PARAMS.items()}


@pytest.mark.parametrize('name', PENALTIES)
def test_penalties_and_their_gradients(name):
    def penalty(params):
        return PENALTIES[name].value(lambda x: ours(params, x), REAL, FAKE, KEYS)

    value, gradients = jax.jit(jax.value_and_grad(penalty))(PARAMS)
    assert_same(value, gradients, wanted(name, params := in_torch()), params)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_losses_and_their_gradients(name):
    objective, params = OBJECTIVES[name], in_torch()

    def losses(ours_of):
        real, fake = (ours(ours_of, x) for x in (REAL, FAKE))
        return objective.discriminator(real, fake, (0.0, 0.0)), objective.generator(fake)

    real, fake = (theirs(params, nchw(x)) for x in (REAL, FAKE))
    ones, zeros = torch.ones(B), torch.zeros(B)
    bce, mse = F.binary_cross_entropy_with_logits, F.mse_loss
    want = {
        'minimax': (bce(real, ones) + bce(fake, zeros), -bce(fake, zeros)),
        'non_saturating': (bce(real, ones) + bce(fake, zeros), bce(fake, ones)),
        'least_squares': ((mse(real, ones) + mse(fake, zeros)) / 2, mse(fake, ones) / 2),
        'hinge': (F.relu(1 - real).mean() + F.relu(1 + fake).mean(), -fake.mean()),
        'wasserstein': (fake.mean() - real.mean(), -fake.mean()),
    }[name]
    for i in range(2):
        for x in params.values():
            x.grad = None
        value, gradients = jax.value_and_grad(lambda p, i=i: losses(p)[i])(PARAMS)
        want[i].backward(retain_graph=True)
        np.testing.assert_allclose(value, want[i].item(), rtol=1e-5)
        for key, gradient in gradients.items():
            other = params[key].grad.numpy()
            assert np.abs(gradient - other).max() <= 1e-4 * np.abs(other).max() + 1e-7, key


def test_path_lengths_and_their_gradient():
    """Of a synthesis of two layers, by Karras et al. 2020's formula."""
    A = (0.3 * RNG.standard_normal((5, SIZE * SIZE * 3))).astype(np.float32)
    ws = RNG.standard_normal((B, 2, 5)).astype(np.float32)
    y = RNG.standard_normal((B, SIZE, SIZE, 3)).astype(np.float32)

    def penalty(A):
        synthesis = lambda w: jnp.tanh(w[:, 0] @ A * (w[:, 1] @ A)).reshape(y.shape)  # noqa: E731
        return jnp.square(path_lengths(synthesis, ws, y) - 0.7).mean()

    value, gradient = jax.jit(jax.value_and_grad(penalty))(A)
    weight, w = (torch.from_numpy(x.copy()).requires_grad_() for x in (A, ws))
    image = torch.tanh(w[:, 0] @ weight * (w[:, 1] @ weight)).reshape(y.shape)
    moved = (image * torch.from_numpy(y)).sum() / SIZE
    (slope,) = torch.autograd.grad(moved, w, create_graph=True)
    lengths = slope.square().sum(2).mean(1).sqrt()
    want = (lengths - 0.7).square().mean()
    assert_same(value, {'A': gradient}, want, {'A': weight})
