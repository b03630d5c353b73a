"""The VAE against torch: nets, likelihoods and the loss are written here a second time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import config as house
from gen_jax.autoencoders import vae

torch = pytest.importorskip('torch')
nn = torch.nn
D = torch.distributions

SIZE, CHANNELS, LATENT = 12, 3, 5


class TorchVAE(nn.Module):
    """Widths 6 and 12, hidden 16."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 6, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(6, 12, 4, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * 3 * 3, 16),
            nn.ReLU(),
            nn.Linear(16, 2 * LATENT),
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 16),
            nn.ReLU(),
            nn.Linear(16, 12 * 3 * 3),
            nn.ReLU(),
            nn.Unflatten(1, (12, 3, 3)),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(12, 12, 3, 1, 1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(12, 6, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(6, CHANNELS, 3, 1, 1),
        )
        self.log_sigma = nn.Parameter(torch.tensor(-0.3))

    def terms(self, x, epsilon, likelihood, sigma):
        mu, log_var = self.encoder(x).chunk(2, dim=1)
        q = D.Normal(mu, (log_var / 2).exp())
        out = self.decoder(q.loc + q.scale * epsilon)
        if likelihood == 'bernoulli':
            p, target = D.Bernoulli(logits=out, validate_args=False), (x + 1) / 2
        else:
            p, target = D.Normal(out, sigma or self.log_sigma.exp()), x
        log_likelihood = p.log_prob(target).sum(dim=(1, 2, 3))
        kl = D.kl_divergence(q, D.Normal(0.0, 1.0)).sum(dim=1)
        return {'elbo': log_likelihood - kl, 'log_likelihood': log_likelihood, 'kl': kl}


def torch_model():
    torch.manual_seed(0)
    model = TorchVAE()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim > 1:
            nn.init.xavier_normal_(parameter, gain=1.5)
    return model


def array(tensor):
    return jnp.asarray(tensor.detach().numpy().copy())


def conv(layer):
    return {'kernel': array(layer.weight.permute(2, 3, 1, 0)), 'bias': array(layer.bias)}


def dense(layer):
    return {'kernel': array(layer.weight.T), 'bias': array(layer.bias)}


def ours(model, learned):
    """The torch model's weights as our parameters; torch flattens [c, h, w], we [h, w, c]."""
    e, d = model.encoder, model.decoder
    hidden, inward = dense(e[5]), dense(d[2])
    hidden['kernel'] = hidden['kernel'].reshape(12, 3, 3, 16).transpose(1, 2, 0, 3).reshape(-1, 16)
    inward['kernel'] = inward['kernel'].reshape(16, 12, 3, 3).transpose(0, 2, 3, 1).reshape(16, -1)
    inward['bias'] = inward['bias'].reshape(12, 3, 3).transpose(1, 2, 0).reshape(-1)
    encoder = {'conv_0': conv(e[0]), 'conv_1': conv(e[2]), 'hidden': hidden, 'out': dense(e[7])}
    decoder = {'hidden': dense(d[0]), 'in': inward, 'conv_1': conv(d[6]), 'conv_0': conv(d[9])}
    decoder['out'] = conv(d[11])
    params = {'encoder': encoder, 'decoder': decoder}
    return params | ({'log_sigma': array(model.log_sigma)} if learned else {})


def setup(likelihood, sigma):
    """Our method and its state with the torch model's weights, the model, and a batch."""
    config = house.default('autoencoders.vae')
    config.update_from_flattened_dict(
        {
            'data.image_size': SIZE,
            'data.channels': CHANNELS,
            'model.channels': 6,
            'model.hidden': 16,
            'model.latent_dim': LATENT,
            'pixels.likelihood': likelihood,
            'pixels.sigma': sigma,
            'optimizer.learning_rate': 1e-2,
            'optimizer.eps': 1e-3,
        }
    )
    method, model = vae.create(config), torch_model()
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (3, SIZE, SIZE, CHANNELS)).astype(np.float32)
    state = jax.jit(method.init)(jax.random.key(0), {'image': jnp.asarray(image)})
    params = ours(model, likelihood == 'gaussian' and sigma == 0)
    assert jax.tree.structure(params) == jax.tree.structure(state.net.params)
    return method, state.replace(net=state.net.replace(params=params, ema=params)), model, image


def nchw(x):
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def epsilon(keys):
    """The posterior's noise for per-example keys: a key is split into pixels' and z's."""
    z_keys = [jax.random.split(key)[1] for key in keys]
    return torch.from_numpy(np.stack([jax.random.normal(key, (LATENT,)) for key in z_keys]))


def assert_close(ours, theirs, tolerance=1e-4):
    """Agreement to a fraction of the largest value."""
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


CASES = [('bernoulli', 0.0), ('gaussian', 0.0), ('gaussian', 0.4)]


def test_encoder_and_decoder():
    method, state, model, image = setup('bernoulli', 0.0)
    mu = method.encode(state, {'image': jnp.asarray(image)})
    assert_close(mu, model.encoder(nchw(image))[:, :LATENT])
    images = method.decode(state, mu, {})
    theirs = 2 * model.decoder(torch.from_numpy(np.array(mu))).sigmoid() - 1
    assert_close(images, theirs.permute(0, 2, 3, 1))


@pytest.mark.parametrize(('likelihood', 'sigma'), CASES)
def test_elbo_and_its_terms(likelihood, sigma):
    method, state, model, image = setup(likelihood, sigma)
    keys = jax.random.split(jax.random.key(7), 3)
    terms = method.evaluate_step(keys, state, {'image': jnp.asarray(image)})
    theirs = model.terms(nchw(image), epsilon(keys), likelihood, sigma)
    assert terms.keys() == theirs.keys()
    for name, value in terms.items():
        assert_close(value, theirs[name])


@pytest.mark.parametrize(('likelihood', 'sigma'), CASES)
def test_training_steps(likelihood, sigma):
    """Three steps from the same weights, images and noise give the same losses and weights."""
    method, state, model, image = setup(likelihood, sigma)
    tx = torch.optim.Adam(model.parameters(), 1e-2, eps=1e-3)
    step = jax.jit(method.train_step)
    for i in range(3):
        key = jax.random.key(i)
        state, metrics = step(key, state, {'image': image})
        noise = epsilon(jax.random.split(key, 3))
        loss = -model.terms(nchw(image), noise, likelihood, sigma)['elbo'].mean()
        np.testing.assert_allclose(metrics['loss'], loss.item(), rtol=1e-4)
        tx.zero_grad()
        loss.backward()
        tx.step()
    theirs = ours(model, likelihood == 'gaussian' and sigma == 0)
    for a, b in zip(jax.tree.leaves(state.net.params), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * np.abs(b).max())
