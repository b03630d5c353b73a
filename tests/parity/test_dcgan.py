"""DCGAN against torch: the nets and losses are written here as PyTorch's own example has them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import config as house
from gen_jax.gans import dcgan
from gen_jax.gans.objectives import OBJECTIVES
from gen_jax.method import play

torch = pytest.importorskip('torch')
nn = torch.nn
bce = nn.functional.binary_cross_entropy_with_logits


def torch_generator(width, stages, channels, latent_dim):
    features = [width * 2**i for i in reversed(range(stages))]
    layers = [nn.ConvTranspose2d(latent_dim, features[0], 4, 1, 0, bias=False)]
    for a, b in zip(features, [*features[1:], channels], strict=True):
        layers += [nn.BatchNorm2d(a), nn.ReLU(), nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, nn.Tanh())


def torch_discriminator(width, stages, channels):
    features = [width * 2**i for i in range(stages)]
    layers = [nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    for a, b in itertools.pairwise(features):
        layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(features[-1], 1, 4, 1, 0, bias=False), nn.Flatten(0))


def randomize(net, seed=0):
    """Weights of a size at which every layer matters, and running statistics unlike 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.3, generator=generator)
        elif hasattr(module, 'weight'):
            module.weight.data.normal_(0, 0.05, generator=generator)
    return net


def array(tensor):
    return jnp.asarray(tensor.detach().numpy().copy())


def ours(net):
    """The torch net's weights as our variables: layers in order, numbered as ours are."""
    convs = [m for m in net if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    norms = [m for m in net if isinstance(m, nn.BatchNorm2d)]
    first = 0 if isinstance(convs[0], nn.ConvTranspose2d) else 1  # norm_i follows conv_i
    # [o, i, h, w], or transposed [i, o, h, w], becomes [h, w, i, o], or [h, w, o, i]: the same.
    params = {
        f'conv_{i}': {'kernel': array(m.weight.permute(2, 3, 1, 0))} for i, m in enumerate(convs)
    }
    stats = {}
    for i, m in enumerate(norms, first):
        params[f'norm_{i}'] = {'scale': array(m.weight), 'bias': array(m.bias)}
        stats[f'norm_{i}'] = {'mean': array(m.running_mean), 'var': array(m.running_var)}
    return {'params': params, 'batch_stats': stats}


def nchw(x):
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def assert_close(ours, theirs, tolerance=1e-4):
    """Agreement to a fraction of the largest value."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def noise(n, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def pixels(n, size, channels, seed=0):
    shape = (n, size, size, channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


SHAPES = [(8, 2, 1), (8, 3, 3), (16, 4, 3)]


@pytest.mark.parametrize(('width', 'stages', 'channels'), SHAPES)
@pytest.mark.parametrize('batch', [1, 3])
def test_eval_mode(width, stages, channels, batch):
    g = randomize(torch_generator(width, stages, channels, 10)).eval()
    d = randomize(torch_discriminator(width, stages, channels)).eval()
    z, x = noise(batch, 10), pixels(batch, 4 * 2**stages, channels)
    with torch.no_grad():
        images, logits = g(torch.from_numpy(z)[:, :, None, None]), d(nchw(x))
    module = dcgan.Generator(width, stages, channels)
    assert_close(module.apply(ours(g), z, train=False), images.permute(0, 2, 3, 1))
    assert_close(dcgan.Discriminator(width, stages).apply(ours(d), x, train=False), logits)


@pytest.mark.parametrize(('width', 'stages', 'channels'), SHAPES)
def test_train_mode(width, stages, channels):
    batch = 5
    g = randomize(torch_generator(width, stages, channels, 10))
    d = randomize(torch_discriminator(width, stages, channels))
    g_before, d_before = ours(g), ours(d)
    z, x = noise(batch, 10), pixels(batch, 4 * 2**stages, channels)
    with torch.no_grad():
        images, logits = g(torch.from_numpy(z)[:, :, None, None]), d(nchw(x))
    module = dcgan.Generator(width, stages, channels)
    out, g_after, _ = play(module, g_before, z)
    assert_close(out, images.permute(0, 2, 3, 1))
    assert_running(g_before, g_after, ours(g), batch, [4 * 2**i for i in range(stages)])
    out, d_after, _ = play(dcgan.Discriminator(width, stages), d_before, x)
    assert_close(out, logits)
    assert_running(
        d_before, d_after, ours(d), batch, [4 * 2 ** (stages - 1 - i) for i in range(stages)]
    )


def assert_running(before, after, theirs, batch, sides):
    """Running means agree; variances do once torch's n / (n - 1) is taken out."""
    for name, old in before['batch_stats'].items():
        n = batch * sides[int(name[-1])] ** 2
        new, other = after['batch_stats'][name], theirs['batch_stats'][name]
        assert_close(new['mean'], other['mean'])
        unbiased = (new['var'] - 0.9 * old['var']) * n / (n - 1)
        assert_close(0.9 * old['var'] + unbiased, other['var'])


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_losses(smoothing):
    real, fake = noise(2, 7, seed=3) * 5
    t_real, t_fake = torch.from_numpy(real), torch.from_numpy(fake)
    theirs = bce(t_real, torch.full_like(t_real, 1 - smoothing))
    theirs = theirs + bce(t_fake, torch.zeros_like(t_fake))
    game = OBJECTIVES['non_saturating']
    loss = game.discriminator(jnp.asarray(real), jnp.asarray(fake), (smoothing, 0.0))
    np.testing.assert_allclose(loss, theirs, rtol=1e-6)
    theirs = bce(t_fake, torch.ones_like(t_fake))
    np.testing.assert_allclose(game.generator(jnp.asarray(fake)), theirs, rtol=1e-6)


def torch_step(g, d, g_tx, d_tx, x, d_z, g_z, smoothing):
    """One alternation; both losses, each before its step."""
    real, fake = d(x), d(g(d_z).detach())
    d_loss = bce(real, torch.full_like(real, 1 - smoothing)) + bce(fake, torch.zeros_like(fake))
    d_tx.zero_grad()
    d_loss.backward()
    d_tx.step()
    logits = d(g(g_z))
    g_loss = bce(logits, torch.ones_like(logits))
    g_tx.zero_grad()
    g_loss.backward()
    g_tx.step()
    return d_loss.item(), g_loss.item()


def test_training_steps():
    """Three alternations from the same weights, images and noise give the same two losses."""
    config = house.default('gans.adversarial', network='dcgan')
    config.update_from_flattened_dict(
        {
            'data.image_size': 16,
            'data.channels': 3,
            'model.width': 8,
            'model.latent_dim': 10,
            'gan.label_smoothing': 0.1,
            'gan.d_rate_ratio': 2.0,
            'optimizer.eps': 1e-4,  # Adam's own 1e-8 makes a sign out of rounding noise
        }
    )
    method = house.create(config)
    g, d = randomize(torch_generator(8, 2, 3, 10)), randomize(torch_discriminator(8, 2, 3))
    g_tx = torch.optim.Adam(g.parameters(), 2e-4, (0.5, 0.999), 1e-4)
    d_tx = torch.optim.Adam(d.parameters(), 4e-4, (0.5, 0.999), 1e-4)
    image = pixels(6, 16, 3)
    state = jax.jit(method.init)(jax.random.key(0), {'image': jnp.asarray(image)})
    state = state.replace(generator=with_weights(state.generator, ours(g)))
    state = state.replace(discriminator=with_weights(state.discriminator, ours(d)))
    step = jax.jit(method.train_step)
    for i in range(3):
        key = jax.random.key(i)
        d_key, g_key = jax.random.split(key)
        d_z, g_z = (
            torch.from_numpy(np.array(jax.random.normal(k, (6, 10))))[:, :, None, None]
            for k in (jax.random.fold_in(d_key, 0), g_key)
        )
        state, metrics = step(key, state, {'image': image})
        theirs = torch_step(g, d, g_tx, d_tx, nchw(image), d_z, g_z, 0.1)
        np.testing.assert_allclose([metrics['d_loss'], metrics['g_loss']], theirs, rtol=1e-4)
    for net, theirs in ((state.generator, ours(g)), (state.discriminator, ours(d))):
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-3), net.params, theirs['params'])


def with_weights(net, variables):
    ema = None if net.ema is None else variables['params']
    return net.replace(
        params=variables['params'], ema=ema, extra={'batch_stats': variables['batch_stats']}
    )


def test_parameters_of_the_paper_size():
    """3,576,704 and 2,765,568 parameters, as PyTorch's example has at nf = 64, z = 100."""
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    assert count(torch_generator(64, 4, 3, 100)) == 3_576_704
    assert count(torch_discriminator(64, 4, 3)) == 2_765_568
