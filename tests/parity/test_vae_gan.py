"""VAE-GAN against pythae's losses and PyTorch's layers, with the same weights, images and noise.

The networks are written here a second time, by the paper's table 1.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import config as house
from gen_jax.autoencoders import vae_gan, vae_gan_networks
from gen_jax.method import Net

torch = pytest.importorskip('torch')
pytest.importorskip('pythae')

from pythae.models import VAEGAN, VAEGANConfig  # noqa: E402
from pythae.models.base.base_utils import ModelOutput  # noqa: E402
from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder  # noqa: E402

nn = torch.nn
N, SIZE, CHANNELS, LATENT, SHARE = 5, 8, 3, 4, 0.2
WIDTHS = {'encoder': (5, 6), 'decoder': (7, 6, 4), 'discriminator': (3, 4, 6)}
HIDDEN = {'encoder': 9, 'discriminator': 8}


def normed(layer, width, flat=False):
    return [layer, (nn.BatchNorm1d if flat else nn.BatchNorm2d)(width), nn.ReLU()]


def halving(before, after):
    return normed(nn.Conv2d(before, after, 5, 2, 2, bias=False), after)


class Encoder(BaseEncoder):
    def __init__(self, widths, hidden, size, channels, latent):
        super().__init__()
        pairs = itertools.pairwise((channels, *widths))
        flat = widths[-1] * (size // 2 ** len(widths)) ** 2
        self.net = nn.Sequential(
            *itertools.chain.from_iterable(halving(*pair) for pair in pairs),
            ByPixel(),
            *normed(nn.Linear(flat, hidden, bias=False), hidden, flat=True),
            nn.Linear(hidden, 2 * latent),
        )

    def forward(self, x):
        mu, log_var = self.net(x).chunk(2, 1)
        return ModelOutput(embedding=mu, log_covariance=log_var)


class Decoder(BaseDecoder):
    def __init__(self, widths, size, channels, latent):
        super().__init__()
        first, side = widths[0], size // 2 ** (len(widths) - 1)
        flat = first * side**2
        layers = [*normed(nn.Linear(latent, flat, bias=False), flat, flat=True), ToMap(side)]
        for a, b in itertools.pairwise(widths):
            layers += normed(nn.ConvTranspose2d(a, b, 5, 2, 2, 1, bias=False), b)
        self.net = nn.Sequential(*layers, nn.Conv2d(widths[-1], channels, 5, 1, 2), nn.Tanh())

    def forward(self, z):
        return ModelOutput(reconstruction=self.net(z))


class Discriminator(BaseDiscriminator):
    def __init__(self, widths, hidden, layer, size, channels):
        super().__init__()
        self.depth, flat = 1, widths[-1] * (size // 2 ** (len(widths) - 1)) ** 2
        self.net = nn.Sequential(
            nn.Conv2d(channels, widths[0], 5, 1, 2),
            nn.ReLU(),
            *itertools.chain.from_iterable(halving(*pair) for pair in itertools.pairwise(widths)),
            ByPixel(),
            *normed(nn.Linear(flat, hidden, bias=False), hidden, flat=True),
            nn.Linear(hidden, 1),
        )
        self.compared = 2 + 3 * (layer - 1)

    def forward(self, x, output_layer_levels=None):
        features = self.net[: self.compared + 1](x)
        logits = self.net[self.compared + 1 :](features)
        return ModelOutput(embedding=logits.sigmoid(), embedding_layer_1=features, logits=logits)


class ByPixel(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class ToMap(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.side = side

    def forward(self, x):
        return x.reshape(len(x), self.side, self.side, -1).permute(0, 3, 1, 2)


def tensor(x):
    return torch.from_numpy(np.array(x))


def nchw(x):
    return tensor(jnp.transpose(x, (0, 3, 1, 2)))


def fill(net, params, stats, order):
    """Puts our numbers, by the names in `order`, into a torch net's layers, which stand so."""
    layers = [layer for layer in net if list(layer.parameters())]
    assert len(layers) == len(order) == len(params)
    with torch.no_grad():
        for name, layer in zip(order, layers, strict=True):
            if name.startswith('norm'):
                layer.weight.copy_(tensor(params[name]['bn']['scale']))
                layer.running_mean.copy_(tensor(stats[name]['bn']['mean']))
                layer.running_var.copy_(tensor(stats[name]['bn']['var']))
                layer.bias.copy_(tensor(params[name]['bn']['bias']))
                continue
            kernel = params[name]['kernel']
            axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            layer.weight.copy_(tensor(kernel.transpose(axes)))
            if layer.bias is not None:
                layer.bias.copy_(tensor(params[name]['bias']))


def named(numbers):
    return [f'{name}_{i}' for i in numbers for name in ('conv', 'norm')]


ORDERS = {
    'encoder': lambda n: [*named(range(n)), 'hidden', 'norm_hidden', 'out'],
    'decoder': lambda n: ['in', 'norm_in', *named(range(n)), 'out'],
    'discriminator': lambda n: [
        'conv_0',
        *named(range(1, n + 1)),
        'hidden',
        'norm_hidden',
        'out',
    ],
}


def setup(layer=1):
    """Our method and a state of numbers that all matter; pythae's model with the same."""
    config = house.default('autoencoders.vae_gan')
    config.update_from_flattened_dict(
        {
            'batch_size': N,
            'data.image_size': SIZE,
            'data.channels': CHANNELS,
            'model.latent_dim': LATENT,
            'model.layer': layer,
            'vae_gan.gamma': (1 - SHARE) / SHARE,
            'vae_gan.judge_reconstructions': False,
            **{f'model.{net}_widths': widths for net, widths in WIDTHS.items()},
            **{f'model.{net}_hidden': width for net, width in HIDDEN.items()},
        }
    )
    method = house.create(config)
    x = jax.random.uniform(jax.random.key(5), (N, SIZE, SIZE, CHANNELS), minval=-1.0)
    state = jax.jit(method.init)(jax.random.key(0), {'image': x})
    random = np.random.default_rng(0)

    def shaken(net):
        def moved(leaf):
            other = leaf + 0.2 * random.normal(size=leaf.shape) * (leaf.ndim == 1)
            return jnp.float32(abs(other))

        params = jax.tree.map(lambda p: moved(p) if p.ndim == 1 else p, net.params)
        return net.replace(params=params, extra=jax.tree.map(moved, net.extra))

    is_net = lambda x: isinstance(x, Net)  # noqa: E731
    state = jax.tree.map(shaken, state, is_leaf=is_net)
    nets = {
        'encoder': Encoder(WIDTHS['encoder'], HIDDEN['encoder'], SIZE, CHANNELS, LATENT),
        'decoder': Decoder(WIDTHS['decoder'], SIZE, CHANNELS, LATENT),
        'discriminator': Discriminator(
            WIDTHS['discriminator'], HIDDEN['discriminator'], layer, SIZE, CHANNELS
        ),
    }
    for name, net in nets.items():
        ours = getattr(state, name)
        fill(net.net, ours.params, ours.extra['batch_stats'], ORDERS[name](2))
    sizes = VAEGANConfig(
        input_dim=(CHANNELS, SIZE, SIZE), latent_dim=LATENT, adversarial_loss_scale=SHARE
    )
    return config, method, state, VAEGAN(sizes, **nets), x


def close(ours, theirs, tolerance=1e-5):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize('layer', [1, 2])
def test_networks(layer):
    """In evaluation, by running statistics."""
    config, _, state, model, x = setup(layer)
    model.eval()
    encoder, decoder, discriminator = vae_gan_networks.from_config(config)

    @jax.jit
    def run(state, x):
        mu, log_var = encoder.apply(state.encoder.variables(), x, train=False)
        image = decoder.apply(state.decoder.variables(), mu, train=False)
        judged = discriminator.apply(state.discriminator.variables(), x, train=False)
        return mu, log_var, image, *judged

    mu, log_var, image, logits, features = run(state, x)
    found = model.encoder(nchw(x))
    close(mu, found.embedding)
    close(log_var, found.log_covariance)
    close(image, model.decoder(found.embedding).reconstruction.permute(0, 2, 3, 1))
    found = model.discriminator(nchw(x))
    close(logits, found.logits[:, 0])
    close(features, found.embedding_layer_1.permute(0, 2, 3, 1).flatten(1))


@pytest.mark.slow
def test_losses_and_gradients(monkeypatch):
    """In training, by each batch's statistics; pythae's decoder has the whole loss times SHARE."""
    config, method, state, model, x = setup()
    key = jax.random.key(3)
    keys = [jax.random.split(each) for each in jax.random.split(key, N)]
    noise = [tensor([jax.random.normal(each[i], (LATENT,)) for each in keys]) for i in (0, 1)]
    model._sample_gauss = lambda mu, std: (mu + noise[0] * std, noise[0])
    monkeypatch.setattr(torch, 'randn_like', lambda *args, **options: noise[1].clone())
    found = model({'data': nchw(x)})
    _, metrics = jax.jit(method.train_step)(key, state, {'image': x})
    scales = {'encoder': 1.0, 'decoder': SHARE, 'discriminator': 1.0}
    for name, scale in scales.items():
        loss = getattr(found, f'{name}_loss')
        ours = scale * metrics[f'{name}_loss']
        print(name, float(ours), loss.item())
        np.testing.assert_allclose(ours, loss.item(), rtol=1e-5)
        parameters = list(getattr(model, name).parameters())
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        norm = math.sqrt(sum(float(part.square().sum()) for part in gradients))
        np.testing.assert_allclose(scale * metrics[f'{name}_grad_norm'], norm, rtol=1e-4)
    np.testing.assert_allclose(
        metrics['encoder_feature_distance'], found.recon_loss.item(), rtol=1e-5
    )
    costs = [metrics[f'discriminator_{kind}_cost'] for kind in ('real', 'fake')]
    seen = set()
    for equilibrium, margin in itertools.product((0.3, 0.68, 3.0), (0.02, 0.1, 0.4)):
        model.equilibrium, model.margin = equilibrium, margin
        found = model({'data': nchw(x)})
        config.vae_gan.update({'equilibrium': equilibrium, 'margin': margin})
        rest = tuple(map(bool, vae_gan.resting(config.vae_gan, *costs)))
        assert rest == (not found.update_decoder, not found.update_discriminator)
        seen.add(rest)
    assert len(seen) == 3


def test_sizes_of_the_authors_networks():
    """Table 1, of 64x64 images in colour, and architectures.py: an encoder of 1,024, not 2,048."""
    config = house.default('autoencoders.vae_gan')
    config.data.update({'image_size': 64, 'channels': 3})
    state = jax.eval_shape(
        house.create(config).init, jax.random.key(0), {'image': jnp.zeros((2, 64, 64, 3))}
    )
    with torch.device('meta'):
        theirs = {
            'encoder': Encoder((64, 128, 256), 1024, 64, 3, 128),
            'decoder': Decoder((256, 256, 128, 32), 64, 3, 128),
            'discriminator': Discriminator((32, 128, 256, 256), 512, 3, 64, 3),
        }
    for name, net in theirs.items():
        ours = sum(math.prod(x.shape) for x in jax.tree.leaves(getattr(state, name).params))
        assert ours == sum(x.numel() for x in net.parameters()), name
