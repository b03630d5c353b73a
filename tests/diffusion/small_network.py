"""A network of a few layers, for tests of what stands on networks: it compiles in no time.

`default(METHOD, network='small')` finds it in test files that use the fixture `small_network`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class Small(nn.Module):
    """Two convolutions; noise and label shift and scale what is between them."""

    width: int
    num_classes: int
    out_channels: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x, t, label=None, train=False):
        waves = jnp.float32([1.0, 0.1, 0.01])
        angles = t[:, None] * waves  # [b, 3]
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
        shift = nn.Dense(2 * self.width, name='time_embedding')(waves)
        if self.num_classes:
            table = nn.Embed(self.num_classes, 2 * self.width, name='class_embedding')
            shift = shift + table(label)
        shift, scale = jnp.split(shift[:, None, None, :], 2, -1)
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype, name='conv_in')(x)
        h = jnp.tanh(h * (1 + scale) + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        last = nn.Conv(
            self.out_channels,
            (3, 3),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name='conv_out',
        )
        return last(h).astype(jnp.float32)


def defaults():
    return {'channels': 8, 'dropout': 0.0, 'dtype': 'float32'}


def from_config(config, num_classes):
    model = config.model
    dtype = jnp.dtype(model.dtype)
    return Small(model.channels, num_classes, config.data.channels, model.dropout, dtype)
