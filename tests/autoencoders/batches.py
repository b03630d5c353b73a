"""What the tests of autoencoders share."""

import jax
import jax.numpy as jnp


def batch_of(n=4, size=8, channels=1):
    """Random images, and labels of three classes."""
    shape = (n, size, size, channels)
    image = jax.random.uniform(jax.random.key(5), shape, minval=-1.0)
    return {'image': image, 'label': jnp.arange(n, dtype=jnp.int32) % 3}


def same(a, b):
    """Whether two trees hold the same numbers."""
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))
