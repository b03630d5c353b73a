"""StudioGAN's deep_conv of other sizes, by torch's layers with that file's numbers.

Its own code has one size only: test_gan_resnets.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.gans import deep_conv
from gen_jax.method import play

torch = pytest.importorskip('torch')
nn = torch.nn


class Sum(nn.Module):
    def forward(self, x):
        return x.sum((2, 3))


def torch_generator(width=64, channels=3):
    c = 8 * width
    layers = [nn.Linear(128, 16 * c), nn.Unflatten(1, (c, 4, 4))]
    for _ in range(3):
        layers += [nn.ConvTranspose2d(c, c // 2, 4, 2, 1), nn.BatchNorm2d(c // 2, 1e-4), nn.ReLU()]
        c //= 2
    return nn.Sequential(*layers, nn.Conv2d(c, channels, 3, 1, 1), nn.Tanh())


def torch_discriminator(width=64, channels=3, spectral=False):
    def conv(a, b, size, stride):
        made = nn.Conv2d(a, b, size, stride, 1)
        if spectral:
            return [nn.utils.spectral_norm(made), nn.ReLU()]
        return [made, nn.BatchNorm2d(b, 1e-4), nn.ReLU()]

    layers, a = [], channels
    for b in (width, 2 * width, 4 * width):
        layers += [*conv(a, b, 3, 1), *conv(b, b, 4, 2)]
        a = b
    last = nn.Linear(8 * width, 1)
    last = nn.utils.spectral_norm(last) if spectral else last
    return nn.Sequential(*layers, *conv(a, 8 * width, 3, 1), Sum(), last, nn.Flatten(0))


def randomize(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, x in (*net.named_parameters(), *net.named_buffers()):
        if name.endswith(('_u', '_v')) or not x.is_floating_point():
            continue
        if name.endswith('running_var'):
            x.data.uniform_(0.5, 1.5, generator=generator)
        else:
            x.data.normal_(0, 0.1, generator=generator)
    return net


def ours(net, module, given):
    """Our variables: layers of a kind stand in the same order in both."""
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), given, train=False))
    order = (['dense'] if 'conv_0' in made['params'] else []) + sorted(
        name for name in made['params'] if name.startswith('conv_') and name != 'conv_out'
    )
    order += ['conv_out'] + ([] if 'conv_0' in made['params'] else ['dense'])
    norms = sorted(name for name in made['params'] if name.startswith('norm'))
    params, stats, vectors = {}, {}, {}
    for m in net:
        if isinstance(m, nn.BatchNorm2d):
            name = norms.pop(0)
            params[name] = {'bn': {'scale': array(m.weight), 'bias': array(m.bias)}}
            stats[name] = {'bn': {'mean': array(m.running_mean), 'var': array(m.running_var)}}
        elif isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            name = order.pop(0)
            weight = getattr(m, 'weight_orig', m.weight)
            kernel = array(weight.T if weight.ndim == 2 else weight.permute(2, 3, 1, 0))
            bias = array(m.bias)
            if isinstance(m, nn.Linear) and m.in_features == 128:  # [c, h, w] there, [h, w, c] here
                c = m.out_features // 16
                kernel = kernel.reshape(-1, c, 4, 4).transpose(0, 2, 3, 1).reshape(128, -1)
                bias = bias.reshape(c, 4, 4).transpose(1, 2, 0).ravel()
            params[name] = {'kernel': kernel, 'bias': bias}
            if hasattr(m, 'weight_u'):
                v = array(m.weight_v)
                if weight.ndim == 4:
                    v = v.reshape(weight.shape[1:]).transpose(1, 2, 0).ravel()
                vectors[name] = {'u': array(m.weight_u), 'v': v}
    found = {'params': params, 'batch_stats': stats, 'spectral': vectors}
    found = {name: value for name, value in found.items() if value}
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(lambda x: x.shape, made)
    return found


def array(x):
    return jnp.asarray(x.detach().numpy().copy())


def nchw(x):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.abs(np.asarray(ours) - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(('width', 'channels'), [(4, 3), (6, 1)])
def test_generator(train, width, channels):
    net = randomize(torch_generator(width, channels)).train(train)
    z = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)
    module = deep_conv.Generator(128, width, channels)
    variables = ours(net, module, z)
    with torch.no_grad():
        want = net(torch.from_numpy(z)).permute(0, 2, 3, 1)
    made = play(module, variables, z)[0] if train else module.apply(variables, z, train=False)
    close(made, want)


@pytest.mark.parametrize('spectral', [False, True])
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(('width', 'shape'), [(4, (3, 32, 32, 3)), (6, (2, 16, 24, 1))])
def test_discriminator(train, spectral, width, shape):
    net = randomize(torch_discriminator(width, shape[-1], spectral)).train(train)
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    module = deep_conv.Discriminator(width, spectral)
    variables = ours(net, module, x)
    with torch.no_grad():
        want = net(nchw(x))
    made = play(module, variables, x)[0] if train else module.apply(variables, x, train=False)
    close(made, want)


def test_parameters():
    pairs = [
        (torch_generator(), deep_conv.Generator(), jnp.zeros((1, 128)), 3_812_355),
        (torch_discriminator(), deep_conv.Discriminator(), jnp.zeros((1, 32, 32, 3)), 2_931_009),
    ]
    for net, module, given, count in pairs:
        params = jax.eval_shape(lambda m=module, x=given: m.init(jax.random.key(0), x, train=False))
        assert sum(x.size for x in jax.tree.leaves(params['params'])) == count
        assert sum(x.numel() for x in net.parameters()) == count


def test_every_parameter_has_a_gradient():
    module, x = deep_conv.Discriminator(4), np.random.default_rng(0).normal(size=(4, 32, 32, 3))
    generator, z = deep_conv.Generator(8, 4), np.random.default_rng(1).normal(size=(4, 8))
    for net, given in ((module, x), (generator, z)):
        given = given.astype(np.float32)
        variables = jax.jit(partial(net.init, train=False))(jax.random.key(0), given)

        def loss(params, net=net, variables=variables, given=given):
            weights = jnp.arange(len(given), dtype=jnp.float32)
            y = play(net, variables | {'params': params}, given)[0]
            return (jnp.square(y - 0.3).reshape(len(given), -1).sum(1) * weights).sum()

        gradient = jax.jit(jax.grad(loss))(variables['params'])
        dead = [path for path, g in jax.tree_util.tree_leaves_with_path(gradient) if not g.any()]
        assert not dead
