"""Progressive GAN and StyleGAN against torch, written here from the papers, one step at a time."""

from functools import partial

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.gans import progressive, stylegan

torch = pytest.importorskip('torch')
F = torch.nn.functional

RATE = 0.01  # of the mapping network
WIDE = {'channel_base': 112, 'channel_max': 13, 'num_classes': 3}  # 13 channels, 13, 7
ALPHA = 0.3
TOLERANCE = 1e-4


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def variables(net, *args):
    """Standard normal everywhere, but for what the mapping network's rate scales down."""
    shapes = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), *args)
    shapes.pop('intermediates', None)
    leaves, tree = jax.tree.flatten_with_path(shapes)

    def draw(i, path, shape):
        slow = 'mapping_network' in str(path) and 'dense' in str(path)
        return normal(i, *shape) / np.float32(RATE if slow else 1)

    return tree.unflatten([draw(i, path, x.shape) for i, (path, x) in enumerate(leaves)])


def tensor(x):
    return torch.tensor(np.asarray(x))


def nchw(x):
    return tensor(x).permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1).numpy()


def conv(x, params, gain=2**0.5):
    """He's constant times standard normal weights (Karras et al. 2018, section 4.1)."""
    w = tensor(params['kernel'])
    w = w[None, None] if w.ndim == 2 else w
    w = w.permute(3, 2, 0, 1)
    bias = tensor(params['bias']) if 'bias' in params else None
    return F.conv2d(x, w * gain / w[0].numel() ** 0.5, bias, padding=w.shape[-1] // 2)


def dense(x, params, gain=2**0.5, rate=1.0):
    w = tensor(params['kernel'])
    return x @ w * rate * gain / len(w) ** 0.5 + rate * tensor(params['bias'])


def act(x):
    return F.leaky_relu(x, 0.2)


def pixel_norm(x):
    return x / torch.sqrt(x.square().mean(1, keepdim=True) + 1e-8)


def double(x):
    return F.interpolate(x, scale_factor=2, mode='nearest')


def blur(x):
    f = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    c = x.shape[1]
    return F.conv2d(x, f.expand(c, 1, 3, 3), padding=1, groups=c)


def draw(images, alpha):
    """Figure 2 of Karras et al. 2018."""
    return (1 - alpha) * double(images[-2]) + alpha * images[-1] if images[1:] else images[-1]


def progressive_generator(params, z, label, size):
    """Table 2 of Karras et al. 2018."""
    z = pixel_norm(torch.cat([tensor(z), F.one_hot(tensor(label).long(), 3)], 1))
    w = tensor(params['block_4_dense']['kernel'])
    w = w.reshape(len(w), 4, 4, -1).permute(0, 3, 1, 2)
    images = []
    for at in (4, 8, 16):
        if at == 4:
            x = F.conv_transpose2d(z[:, :, None, None], w * (2 / (16 * len(w))) ** 0.5)
            x = x + tensor(params['block_4_bias'])[:, None, None]
        else:
            x = conv(double(x), params[f'block_{at}_conv_0'])
        x = pixel_norm(act(x))
        x = pixel_norm(act(conv(x, params[f'block_{at}_conv_1'])))
        images.append(conv(x, params[f'block_{at}_to_rgb'], 1))
        if at == size:
            return nhwc(draw(images, ALPHA))


def discriminator(params, image, label, blurs):
    image, x, start = nchw(image), None, image.shape[1]
    for size in (16, 8, 4):
        if size <= start:
            seen = act(conv(image, params[f'block_{size}_from_rgb']))
            x = seen if x is None else x
            x = (1 - ALPHA) * seen + ALPHA * x if size == start // 2 else x
            image = F.avg_pool2d(image, 2)
        if 4 < size <= start:
            x = act(conv(x, params[f'block_{size}_conv_0']))
            last = params[f'block_{size}_conv_1']
            x = F.avg_pool2d(conv(blur(x) if blurs else x, last), 2)
            x = act(x)
    std = torch.sqrt(x.var(0, unbiased=False) + 1e-8).mean()
    x = torch.cat([x, std.expand(len(x), 1, 4, 4)], 1)
    x = act(conv(x, params['epilogue_conv']))
    x = act(dense(x.permute(0, 2, 3, 1).flatten(1), params['epilogue_dense']))
    return dense(x, params['epilogue_out'], 1)[torch.arange(len(x)), tensor(label).long()].numpy()


def style_generator(variables, z, label, size):
    """Figure 1b and equation 1 of Karras et al. 2019, with the noise that never changes."""
    params, constants = variables['params'], variables['constants']['synthesis_network']
    mapping, params = params['mapping_network'], params['synthesis_network']
    embedded = tensor(mapping['embed']['embedding'])[tensor(label).long()]
    w = pixel_norm(torch.cat([tensor(z), embedded], 1))
    for i in range(2):
        w = act(dense(w, mapping[f'dense_{i}'], rate=RATE))

    def style(x, name):
        own = params[name]
        noise = tensor(constants[name]['noise'])
        x = x + tensor(own['noise_strength'])[:, None, None] * noise
        x = act(x + tensor(own['bias'])[:, None, None])
        scale, shift = dense(w, own['affine'], 1)[:, :, None, None].chunk(2, 1)
        return F.instance_norm(x, eps=1e-8) * (1 + scale) + shift

    images = []
    for at in (4, 8, 16):
        if at == 4:
            x = nchw(params['const'][None]).expand(len(w), -1, -1, -1)
        else:
            x = blur(conv(double(x), params[f'block_{at}_conv_0']))
        x = style(x, f'block_{at}_style_0')
        x = style(conv(x, params[f'block_{at}_conv_1']), f'block_{at}_style_1')
        images.append(conv(x, params[f'block_{at}_to_rgb'], 1))
        if at == size:
            return nhwc(draw(images, ALPHA))


@pytest.mark.parametrize('kind', ['progressive', 'style'])
def test_generators(kind):
    z, label = normal(1, 2, 5), np.int32([2, 0])
    options = {'latent_dim': 5, 'image_size': 16, **WIDE}
    if kind == 'style':
        net = stylegan.Generator(w_dim=6, mapping_layers=2, mapping_rate=RATE, **options)
    else:
        net = progressive.Generator(**options)
    of_net = variables(net, z, label)
    sizes = 4, 8, 16
    run = partial(net.apply, train=False, alpha=ALPHA)
    got = jax.jit(lambda v, z, label: [run(v, z, label, size=s) for s in sizes])(of_net, z, label)
    for size, image in zip(sizes, got, strict=True):
        if kind == 'style':
            want = style_generator(of_net, z, label, size)
        else:
            want = progressive_generator(of_net['params'], z, label, size)
        assert want.shape == (2, size, size, 3)
        print(size, 'max diff / scale', golden.difference(image, want))
        assert golden.difference(image, want) < TOLERANCE


@pytest.mark.parametrize('blurs', [False, True])
def test_discriminators(blurs):
    net, label = progressive.Discriminator(blur=blurs, **WIDE), np.int32([1, 0, 2])
    images = [normal(size, 3, size, size, 2) for size in (16, 8, 4)]
    of_net = variables(net, images[0], label)
    run = partial(net.apply, train=True, alpha=ALPHA)
    got = jax.jit(lambda v, images: [run(v, x, label) for x in images])(of_net, images)
    for logits, x in zip(got, images, strict=True):
        want = discriminator(of_net['params'], x, label, blurs)
        print('max diff / scale', golden.difference(logits, want))
        assert golden.difference(logits, want) < TOLERANCE


def test_mean_of_w_moves_as_the_authors_say():
    net, z = stylegan.Generator(latent_dim=5, w_dim=4, mapping_layers=1), jnp.ones((3, 5))
    mapping = partial(net.apply, method='mapping', mutable=True)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), z, method='mapping'))
    of_net = jax.tree.map(lambda x: normal(0, *x.shape), shapes)
    ws, changed = mapping(of_net, z, train=True)
    want = 0.995 * of_net['w_avg']['w_avg'] + 0.005 * ws[:, 0].mean(0)
    np.testing.assert_allclose(changed['w_avg']['w_avg'], want, rtol=1e-4)
