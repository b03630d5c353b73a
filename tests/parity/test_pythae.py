"""Objectives of autoencoders against pythae's, with the same weights, images and noise."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import config as house
from gen_jax.autoencoders import vae, vq_vae
from gen_jax.autoencoders.quantizer import VectorQuantizer, moved

torch = pytest.importorskip('torch')
pytest.importorskip('pythae')

from pythae import models  # noqa: E402
from pythae.models.base.base_utils import ModelOutput  # noqa: E402
from pythae.models.nn import BaseDecoder, BaseEncoder  # noqa: E402
from pythae.models.vq_vae.vq_vae_utils import Quantizer, QuantizerEMA  # noqa: E402

SIZE, LATENT, WIDTHS, N = 6, 4, (13, 9), 8
LOSSES = {'bernoulli': 'bce', 'gaussian': 'mse'}


class Encoder(BaseEncoder):
    def __init__(self, binary):
        super().__init__()
        self.binary = binary  # sees [-1, 1] of images in [0, 1]
        sizes = SIZE**2, *WIDTHS
        pairs = itertools.pairwise(sizes)
        self.hidden = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairs)
        self.out = torch.nn.Linear(WIDTHS[-1], 2 * LATENT)

    def forward(self, x):
        x = x.reshape(len(x), -1)
        x = 2 * x - 1 if self.binary else x
        for layer in self.hidden:
            x = layer(x).tanh()
        mu, log_var = self.out(x).chunk(2, 1)
        return ModelOutput(embedding=mu, log_covariance=log_var)


class Decoder(BaseDecoder):
    def __init__(self, binary):
        super().__init__()
        sizes = LATENT, *WIDTHS[::-1]
        pairs = itertools.pairwise(sizes)
        self.hidden = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairs)
        self.out, self.binary = torch.nn.Linear(WIDTHS[0], SIZE**2), binary

    def forward(self, z):
        for layer in self.hidden:
            z = layer(z).tanh()
        x = self.out(z).reshape(-1, 1, SIZE, SIZE)
        return ModelOutput(reconstruction=x.sigmoid() if self.binary else x)


def setup(objective, likelihood, name, **changes):
    """Our config, method and state, and pythae's model with the same weights."""
    config = house.default('autoencoders.vae', network='mlp', objective=objective)
    config.data.image_size = SIZE
    config.model.update({'widths': WIDTHS, 'latent_dim': LATENT})
    config.vae.update(changes)
    config.pixels.likelihood = likelihood
    if likelihood == 'gaussian':
        config.pixels.sigma = 1.0
    config.batch_size = N
    method = vae.create(config)
    state = jax.jit(method.init)(jax.random.key(0), {'image': jnp.zeros((N, SIZE, SIZE, 1))})
    options = {'input_dim': (1, SIZE, SIZE), 'latent_dim': LATENT}
    options |= {'reconstruction_loss': LOSSES[likelihood]}
    known = {'beta', 'gamma'} & set(config.vae)
    options |= {field: config.vae[field] for field in known if name != 'VAE'}
    if objective == 'capacity':  # what we call gamma it calls beta
        options |= {'beta': options.pop('gamma'), 'C': config.vae.capacity, 'warmup_epoch': 1}
    if objective == 'beta_tc':
        options |= {'use_mss': False}
    if objective == 'iwae':
        options |= {'number_samples': config.vae.samples}
    sizes = getattr(models, f'{name}Config')(**options)
    binary = likelihood == 'bernoulli'
    nets = {'encoder': Encoder(binary), 'decoder': Decoder(binary)}
    model = getattr(models, name)(sizes, **nets)
    for net, ours in state.net.params.items():
        copy_dense(ours, getattr(model, net))
    return config, method, state, model


def copy_dense(ours, theirs):
    for i, layer in enumerate(theirs.hidden):
        copy_layer(ours['hidden'][f'dense_{i}'], layer)
    copy_layer(ours['out'], theirs.out)


def copy_layer(ours, layer):
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(ours['kernel'].T)))
        layer.bias.copy_(torch.from_numpy(np.array(ours['bias'])))


def batch_of(likelihood):
    """Ours in [-1, 1], and theirs: in [0, 1] where a cross-entropy needs it."""
    image = np.random.default_rng(0).uniform(-1, 1, (N, SIZE, SIZE, 1)).astype(np.float32)
    theirs = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    return {'image': jnp.asarray(image)}, (theirs + 1) / 2 if likelihood == 'bernoulli' else theirs


def noise_of(key, samples=0):
    """That of a training step's key: [b, d], or [b, samples, d]."""
    keys = [jax.random.split(each)[1] for each in jax.random.split(key, N)]
    if samples:
        keys = [[jax.random.fold_in(each, j) for j in range(samples)] for each in keys]
        drawn = [[jax.random.normal(each, (LATENT,)) for each in row] for row in keys]
    else:
        drawn = [jax.random.normal(each, (LATENT,)) for each in keys]
    return torch.from_numpy(np.array(drawn))


def told_noise(model, noise):
    """Makes the model draw this noise, in turn where it draws more than once."""
    left = [noise] if torch.is_tensor(noise) else list(noise)

    def sample(mu, std):
        epsilon = left.pop(0)
        return mu + epsilon * std, epsilon

    model._sample_gauss = sample


CASES = [
    ('elbo', 'VAE', {}),
    ('elbo', 'BetaVAE', {'beta': 4.0}),
    ('capacity', 'DisentangledBetaVAE', {'gamma': 7.0, 'capacity': 3.0, 'capacity_steps': 1}),
    ('beta_tc', 'BetaTCVAE', {'beta': 5.0, 'data_size': 1000}),
]


@pytest.mark.parametrize('likelihood', LOSSES)
@pytest.mark.parametrize(('objective', 'name', 'changes'), CASES)
def test_losses(objective, name, changes, likelihood):
    _, method, state, model = setup(objective, likelihood, name, **changes)
    key = jax.random.key(3)
    batch, data = batch_of(likelihood)
    told_noise(model, noise_of(key))
    found = model({'data': data}, dataset_size=1000, epoch=99)
    moved = state
    # C is above all images' KLs: the mean of their distances, as theirs, is that of their mean.
    if objective == 'capacity':  # it has grown after a step, of which nothing else is kept
        moved, _ = method.train_step(key, state, batch)
        moved = moved.replace(net=moved.net.replace(params=state.net.params))
    _, metrics = method.train_step(key, moved, batch)
    # A density of deviation 1 is half the squared error and a constant.
    constant = SIZE**2 * np.log(2 * np.pi) / 2 if likelihood == 'gaussian' else 0.0
    np.testing.assert_allclose(metrics['loss'] - constant, found.loss.item(), rtol=1e-5)
    if name != 'BetaTCVAE':
        np.testing.assert_allclose(metrics['kl'], found.reg_loss.item(), rtol=1e-5)


def test_factor_vae(monkeypatch):
    changes = {'gamma': 6.0}
    config, method, state, model = setup('factor', 'bernoulli', 'FactorVAE', **changes)
    layers = [layer for layer in model.discriminator.layers if isinstance(layer, torch.nn.Linear)]
    for name, layer in zip([*(f'dense_{i}' for i in range(5)), 'out'], layers, strict=True):
        copy_layer(state.judge.params[name], layer)
    key = jax.random.key(3)
    batch, data = batch_of('bernoulli')
    noise, half = noise_of(key), N // 2
    told_noise(model, (noise[:half], noise[half:]))
    order = torch.arange(N).roll(half)  # its second half is what it trains the model on
    monkeypatch.setattr(torch, 'randperm', lambda n: order)
    model._permute_dims = lambda z: torch.from_numpy(
        np.array(vae.shuffled(key, jnp.asarray(z.detach().numpy())))
    )
    found = model({'data': data})
    _, metrics = method.train_step(key, state, batch)
    np.testing.assert_allclose(metrics['loss'], found.autoencoder_loss.item(), rtol=1e-5)
    z, apart = (jnp.asarray(x.detach().numpy()) for x in (found.z, found.z_bis_permuted))
    ours = vae.judged(vae.Judge(6, 1000), state.judge.variables(), z, apart)
    np.testing.assert_allclose(ours, found.discriminator_loss.item(), rtol=1e-5)
    assert config.vae.gamma == model.gamma


def test_importance_weighted():
    """By its gradients: pythae's loss has the same, and another value."""
    samples = 5
    config, method, state, model = setup('iwae', 'bernoulli', 'IWAE', samples=samples)
    key = jax.random.key(3)
    batch, data = batch_of('bernoulli')
    told_noise(model, noise_of(key, samples))
    model({'data': data}).loss.backward()
    keys = jax.vmap(lambda key: jax.random.split(key)[1])(jax.random.split(key, N))
    module = vae._module(config)
    question = vae.Question(keys, batch['image'])

    def loss(params):
        return -vae.weighed(question, module, {'params': params}, samples).mean()

    value, gradient = jax.value_and_grad(loss)(state.net.params)
    _, metrics = method.train_step(key, state, batch)
    np.testing.assert_allclose(value, metrics['loss'], rtol=1e-6)
    for net in ('encoder', 'decoder'):
        layers = getattr(model, net)
        pairs = [(f'dense_{i}', layer) for i, layer in enumerate(layers.hidden)]
        ours = [gradient[net]['hidden'][name] for name, _ in pairs] + [gradient[net]['out']]
        for mine, layer in zip(ours, [*layers.hidden, layers.out], strict=True):
            want = layer.weight.grad.numpy().T
            np.testing.assert_allclose(mine['kernel'], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_autoencoder():
    config = house.default('autoencoders.autoencoder', network='mlp')
    config.data.image_size = SIZE
    config.model.update({'widths': WIDTHS, 'latent_dim': LATENT})
    method = house.create(config)
    batch, data = batch_of('gaussian')
    state = jax.jit(method.init)(jax.random.key(0), batch)
    encoder, decoder = Encoder(False), Decoder(False)
    encoder.out = torch.nn.Linear(WIDTHS[-1], LATENT)
    encoder.forward = lambda x: ModelOutput(embedding=encoder.out(hidden(encoder, x)))
    sizes = models.AEConfig(input_dim=(1, SIZE, SIZE), latent_dim=LATENT)
    model = models.AE(sizes, encoder=encoder, decoder=decoder)
    copy_dense(state.net.params['encoder'], encoder)
    copy_dense(state.net.params['decoder'], decoder)
    found = model({'data': data})
    _, metrics = method.train_step(jax.random.key(0), state, batch)
    # theirs is the whole squared error
    ours = 2 * metrics['loss'] - SIZE**2 * np.log(2 * np.pi)
    np.testing.assert_allclose(ours, found.loss.item(), rtol=1e-5)


def hidden(encoder, x):
    x = x.reshape(len(x), -1)
    for layer in encoder.hidden:
        x = layer(x).tanh()
    return x


def copy_codes(theirs, variables, decay):
    """Of a `VectorQuantizer`, or of what holds one as 'quantizer'."""

    def told(collection):
        found = variables[collection]
        return {k: torch.from_numpy(np.array(x)) for k, x in found.get('quantizer', found).items()}

    if decay:
        kept = told('codebook')
        theirs.embeddings.copy_(kept['codes'])
        theirs.cluster_size.copy_(kept['counts'])
        theirs.ema_embed.copy_(kept['sums'])
    else:
        theirs.embeddings.weight.data.copy_(told('params')['codes'])


@pytest.mark.parametrize('decay', [0.0, 0.9])
def test_vector_quantisation(decay):
    shape, codes = (4, 3, 2, 5), 7
    options = {'num_embeddings': codes, 'use_ema': decay > 0, 'decay': decay}
    sizes = models.VQVAEConfig(**options)
    sizes.embedding_dim = shape[-1]
    theirs = (QuantizerEMA if decay else Quantizer)(sizes)
    z = jax.random.normal(jax.random.key(1), shape)
    ours = VectorQuantizer(codes, shape[-1], decay > 0)
    variables = ours.init(jax.random.key(0), z)
    given = torch.from_numpy(np.array(z)).requires_grad_()
    copy_codes(theirs, variables, decay)
    found = theirs(given)
    rngs = {'restart': jax.random.key(2)}
    mine, told = ours.apply(variables, z, train=True, mutable=['assigned'], rngs=rngs)
    np.testing.assert_array_equal(mine.indices, found.quantized_indices[:, 0])
    np.testing.assert_allclose(
        mine.z, found.quantized_vector.permute(0, 2, 3, 1).detach(), atol=1e-6
    )
    loss = (mine.codebook + sizes.commitment_loss_factor * mine.commitment).mean()
    np.testing.assert_allclose(loss, found.loss.item(), rtol=1e-5)
    if decay:
        after = moved(variables['codebook'], told['assigned'], decay)
        np.testing.assert_allclose(after['codes'], theirs.embeddings, rtol=1e-5, atol=1e-6)


class Given(BaseEncoder, BaseDecoder):
    """A net of ours in pythae's model: its values, without a gradient."""

    def __init__(self, called, kind):
        super().__init__()
        self.called, self.kind = called, kind

    def forward(self, x):
        y = self.called(x.detach().numpy().transpose(0, 2, 3, 1))
        y = torch.from_numpy(np.array(y).transpose(0, 3, 1, 2))
        return ModelOutput(**{self.kind: y})


@pytest.mark.parametrize('decay', [0.0, 0.9])
def test_vq_vae(decay):
    """The whole loss, and where a step of training moves codes that follow an average."""
    config = house.default('autoencoders.vq_vae')
    config.data.image_size = 8
    config.model.update({'channels': 8, 'hidden': 4, 'halvings': 1})
    config.vq.update({'codes': 7, 'dim': 5, 'decay': decay})
    config.pixels.sigma = (2 * 8 * 8) ** -0.5  # theirs is the whole squared error
    method = house.create(config)
    images = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
    state = jax.jit(method.init)(jax.random.key(0), {'image': jnp.asarray(images)})
    module = vq_vae.module_of(config)
    encode, decode = (
        jax.jit(partial(module.apply, state.net.variables(), method=name))
        for name in ('encode', 'mean')
    )
    sizes = models.VQVAEConfig(
        input_dim=(1, 8, 8), latent_dim=5, num_embeddings=7, use_ema=decay > 0, decay=decay
    )
    nets = {'encoder': Given(encode, 'embedding'), 'decoder': Given(decode, 'reconstruction')}
    theirs = models.VQVAE(sizes, **nets)
    copy_codes(theirs.quantizer, state.net.variables(), decay)
    found = theirs({'data': torch.from_numpy(images.transpose(0, 3, 1, 2).copy())})
    after, metrics = method.train_step(jax.random.key(1), state, {'image': jnp.asarray(images)})
    constant = 0.5 * np.log(2 * np.pi * config.pixels.sigma**2)
    np.testing.assert_allclose(metrics['loss'] - constant, found.loss.item(), rtol=1e-5)
    if decay:
        codes = after.net.extra['codebook']['quantizer']['codes']
        np.testing.assert_allclose(codes, theirs.quantizer.embeddings, rtol=1e-5, atol=1e-6)
