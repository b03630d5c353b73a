"""Spectral normalisation against torch.nn.utils.spectral_norm, step by step, with gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.gans.layers import Conv, Dense, Embed

torch = pytest.importorskip('torch')

# For each: ours, theirs, what goes in, and the axes of their weight in the order of ours.
LAYERS = {
    'conv': (
        partial(Conv, 6, (3, 3), padding=1),
        lambda: torch.nn.Conv2d(5, 6, 3, padding=1),
        np.random.default_rng(0).standard_normal((2, 7, 4, 5), np.float32),
        (2, 3, 1, 0),
    ),
    'dense': (
        partial(Dense, 3),
        lambda: torch.nn.Linear(8, 3),
        np.random.default_rng(1).standard_normal((4, 8), np.float32),
        (1, 0),
    ),
    'embed': (
        partial(Embed, 5, 7),
        lambda: torch.nn.Embedding(5, 7),
        np.int32([4, 0, 0]),
        (0, 1),
    ),
}


def into_torch(x):
    return torch.tensor(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x)


def out_of_torch(y):
    y = y.detach().numpy().copy()
    return y.transpose(0, 2, 3, 1) if y.ndim == 4 else y


def read(layer, axes):
    """Our variables of their layer."""
    weight = layer.weight_orig.detach().numpy().transpose(axes).copy()
    v = layer.weight_v.numpy()
    if weight.ndim == 4:
        v = v.reshape(layer.weight_orig.shape[1:]).transpose(1, 2, 0).ravel()
    name = 'embedding' if isinstance(layer, torch.nn.Embedding) else 'kernel'
    params = {name: weight}
    if name == 'kernel':
        params['bias'] = layer.bias.detach().numpy().copy()
    # Copies, as torch changes its own in place.
    return params, {'u': layer.weight_u.numpy().copy(), 'v': v.copy()}


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def stepped(make, x, params, kept, train):
    """Output, new vectors, and the gradient of sum(sin(output)) by the parameters."""

    def loss(params):
        y, new = make(spectral=True, train=train).apply(
            {'params': params, 'spectral': kept}, x, mutable=['spectral']
        )
        return jnp.sin(y).sum(), (y, new['spectral'])

    grads, (y, new) = jax.grad(loss, has_aux=True)(params)
    return y, new, grads


@pytest.mark.parametrize('name', LAYERS)
def test_every_step_is_torchs(name):
    make, theirs, x, axes = LAYERS[name]
    torch.manual_seed(0)
    layer = torch.nn.utils.spectral_norm(theirs())
    params, kept = read(layer, axes)
    step = jax.jit(stepped, static_argnums=(0, 4))
    for train in (True, True, False, True, False):
        layer.train(train)
        layer.zero_grad()
        want = layer(into_torch(x))
        torch.sin(want).sum().backward()
        y, new, grads = step(make, x, params, kept, train)
        close(y, out_of_torch(want))
        close(
            grads['embedding' if name == 'embed' else 'kernel'],
            layer.weight_orig.grad.numpy().transpose(axes),
        )
        assert train == any(not np.array_equal(new[k], kept[k]) for k in kept)
        kept = new
        for key, vector in read(layer, axes)[1].items():
            close(kept[key], vector)
        # As a step of the optimiser would: sigma is that of the new weight.
        with torch.no_grad():
            layer.weight_orig *= 1.5
            layer.weight_orig[0, 0] += 0.3
        params, _ = read(layer, axes)
