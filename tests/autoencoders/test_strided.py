"""The networks of studies of disentanglement: the paper's counts, PyTorch's layers, shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.autoencoders import networks, strided
from gen_jax.config import default
from gen_jax.errors import UserError


def built(size=64, given=20, made=1, **model):
    config = default('autoencoders.vae', network='strided')
    config.data.image_size = size
    config.model.update(model)
    return networks.build(config, given, made)


def counted(module, x):
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
    return {path: sum(leaf.size for leaf in jax.tree.leaves(part)) for path, part in shapes.items()}


def dense(a, b):
    return a * b + b


def kernel(k, a, b):
    return k * k * a * b + b


@pytest.mark.parametrize(
    ('model', 'kernels', 'widths', 'hidden', 'total'),
    [
        # Locatello et al. 2019, with a mean and a variance for each of 10 latents.
        ({}, (4, 4, 2, 2), (32, 32, 64, 64), (256,), 309_204 + 381_313),
        # Burgess et al. 2018.
        (
            {'widths': (32,) * 4, 'kernels': (4,) * 4, 'hidden': (256, 256)},
            (4, 4, 4, 4),
            (32,) * 4,
            (256, 256),
            252_052 + 249_953,
        ),
    ],
)
def test_parameters_are_the_papers(model, kernels, widths, hidden, total):
    encoder, decoder = built(**model)
    found = counted(encoder, jnp.zeros((1, 64, 64, 1)))
    expected = {
        f'conv_{i}': kernel(k, a, b)
        for i, (k, a, b) in enumerate(zip(kernels, (1, *widths), widths, strict=False))
    }
    flat = (16 * widths[-1], *hidden)
    expected['hidden'] = sum(map(dense, flat, hidden))
    expected['out'] = dense(hidden[-1], 20)
    assert found == expected
    other = counted(decoder, jnp.zeros((1, 10)))
    expected = {
        f'up_{i}': kernel(4, a, b)
        for i, (a, b) in enumerate(zip(widths[::-1], widths[-2::-1], strict=False))
    }
    expected['hidden'] = sum(map(dense, (10, *flat[:0:-1]), flat[::-1]))
    expected['out'] = kernel(4, widths[0], 1)
    assert other == expected
    assert sum(found.values()) + sum(other.values()) == total


@pytest.mark.slow
def test_both_are_pytorchs_layers():
    """Whose convolutions have the padding that TensorFlow's 'same' means here."""
    torch = pytest.importorskip('torch')
    widths, kernels = (3, 5), (4, 2)
    encoder, decoder = built(8, 6, 2, widths=widths, kernels=kernels, hidden=(7,), latent_dim=4)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    z = jax.random.normal(jax.random.key(1), (2, 4))
    out, variables = encoder.init_with_output(jax.random.key(2), x)
    image, others = decoder.init_with_output(jax.random.key(3), z)

    def tensor(x, *axes):
        return torch.from_numpy(np.array(x.transpose(*axes) if axes else x))

    def full(part, x):
        return x @ tensor(part['kernel']) + tensor(part['bias'])

    net, y = variables['params'], tensor(x, 0, 3, 1, 2)
    for i, k in enumerate(kernels):
        weights = tensor(net[f'conv_{i}']['kernel'], 3, 2, 0, 1), tensor(net[f'conv_{i}']['bias'])
        y = torch.nn.functional.conv2d(y, *weights, stride=2, padding=k // 2 - 1).relu()
    y = y.permute(0, 2, 3, 1).reshape(2, -1)
    y = full(net['out'], full(net['hidden']['dense_0'], y).relu())
    np.testing.assert_allclose(out, y, atol=1e-5)

    net, y = others['params'], tensor(z)
    for i in range(2):
        y = full(net['hidden'][f'dense_{i}'], y).relu()
    y = y.reshape(2, 2, 2, 5).permute(0, 3, 1, 2)
    for name in ('up_0', 'out'):
        weights = tensor(net[name]['kernel'], 3, 2, 0, 1), tensor(net[name]['bias'])
        y = torch.nn.functional.conv_transpose2d(y, *weights, stride=2, padding=1)
        y = y if name == 'out' else y.relu()
    np.testing.assert_allclose(image, y.permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_shapes(dtype):
    encoder, decoder = built(12, 6, 3, widths=(4, 5), kernels=(4, 4), hidden=(8,), dtype=dtype)
    x, z, told = jnp.zeros((1, 12, 12, 3)), jnp.zeros((1, 10)), jnp.zeros((1, 2))
    for beside in ((), (told,)):
        for module, given, shape in ((encoder, x, (1, 6)), (decoder, z, (1, 12, 12, 3))):
            out, variables = jax.eval_shape(
                module.init_with_output, jax.random.key(0), given, *beside
            )
            assert (out.shape, out.dtype) == (shape, jnp.float32)
            assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.slow
def test_gradients_reach_every_parameter():
    encoder, decoder = built(8, 10, 1, widths=(4, 4), kernels=(4, 2), hidden=(8, 8))
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    keys = jax.random.split(jax.random.key(1))
    params = encoder.init(keys[0], x), decoder.init(keys[1], jnp.zeros((1, 10)))

    def loss(params):
        return jnp.square(decoder.apply(params[1], encoder.apply(params[0], x)) - x).mean()

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert jnp.abs(leaf).max() > 0


@pytest.mark.parametrize(
    ('field', 'model'),
    [
        ('model.widths', {'widths': ()}),
        ('model.widths', {'widths': (4, 0, 4, 4)}),
        ('model.hidden', {'hidden': ()}),
        ('model.kernels', {'kernels': (4, 4)}),
        ('model.kernels', {'kernels': (4, 4, 3, 2)}),
        ('data.image_size', {'size': 24}),
    ],
)
def test_numbers_that_do_not_fit_are_told(field, model):
    with pytest.raises(UserError, match=field) as error:
        built(**model)
    assert '\n' not in str(error.value)


def test_defaults_are_locatellos():
    assert strided.defaults() | {'dtype': ''} == {
        'widths': (32, 32, 64, 64),
        'kernels': (4, 4, 2, 2),
        'hidden': (256,),
        'latent_dim': 10,
        'dtype': '',
    }
