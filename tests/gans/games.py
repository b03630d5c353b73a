"""Small games for tests: networks of two dense layers, which compile quickly, and others."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import config as house
from gen_jax.gans.adversarial import game_of
from gen_jax.gans.game import Judge

MLP = {
    'data.image_size': 4,
    'model.latent_dim': 3,
    'model.g_widths': (6,),
    'model.d_widths': (5,),
    'model.pieces': (1,),
    'model.dropout': 0.0,
    'batch_size': 8,
}
DCGAN = {'data.image_size': 16, 'model.width': 4, 'model.latent_dim': 6, 'batch_size': 4}
STYLEGAN2 = {
    'data.image_size': 8,
    'model.latent_dim': 4,
    'model.w_dim': 4,
    'model.channel_base': 32,
    'model.channel_max': 4,
    'model.mapping_layers': 1,
    'batch_size': 4,
    'gan.style_mixing': 0.0,
    'gan.path_length': 0.0,
}
GROWING = {
    'data.image_size': 8,
    'model.latent_dim': 4,
    'model.channel_base': 32,
    'model.channel_max': 4,
    'batch_size': 4,
    'gan.grow_steps': 2,
}
SMALL = {'mlp': MLP, 'dcgan': DCGAN, 'stylegan2': STYLEGAN2, 'progressive': GROWING}
SMALL['stylegan'] = GROWING
SMALL['resnet'] = {
    'data.image_size': 8,
    'model.latent_dim': 6,
    'model.channels': 4,
    'model.g_multipliers': (2, 2),
    'model.d_multipliers': (2, 2),
    'model.d_halvings': 1,
    'gan.objective': 'hinge',
    'batch_size': 4,
}
SMALL['deep_conv'] = {'data.image_size': 32, 'batch_size': 4}
NOISE = jnp.float32(0)


def small(network='mlp', **changes):
    config = house.default('gans.adversarial', network=network)
    changes = {name.replace('__', '.'): value for name, value in changes.items()}
    config.update_from_flattened_dict(SMALL[network] | changes)
    return config


def batch_of(config, n=None):
    data, n = config.data, n or config.batch_size
    shape = (n, data.image_size, data.image_size, data.channels)
    image = np.random.default_rng(5).uniform(-1, 1, shape).astype(np.float32)
    return {'image': jnp.asarray(image), 'label': jnp.arange(n, dtype=jnp.int32) % 3}


def started(config):
    """(method, fresh state)."""
    method = house.create(config)
    return method, jax.jit(method.init)(jax.random.key(0), batch_of(config))


def stepped(**changes):
    """(state before, state after, metrics) of one training step."""
    config = small(**changes)
    method, state = started(config)
    return state, *jax.jit(method.train_step)(jax.random.key(1), state, batch_of(config))


def judge_of(config, key=None, noise=NOISE):
    """A round of the whole batch."""
    game, batch = game_of(config), batch_of(config)
    asked = game.draw(jax.random.key(1) if key is None else key, batch['image'], batch['label'])
    return Judge(game, asked, noise)


def is_finer_than_bfloat16(x):
    """Whether numbers are float32, and not by their name alone."""
    return x.dtype == jnp.float32 and jnp.nanmedian(jnp.abs(x / x.astype(jnp.bfloat16) - 1)) > 1e-4


def differ(a, b):
    """Which leaves differ anywhere."""
    return jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), a, b))


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)
