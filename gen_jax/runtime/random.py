"""Keys as a function of (seed, name, index): none is stored, none depends on a batch size."""

import zlib

import jax


def stream(seed: int, name: str) -> jax.Array:
    """The key that everything called `name` is drawn from."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def step_key(seed: int, name: str, step) -> jax.Array:
    """The key of one step, `fold_in(fold_in(key(seed), name), step)`; `step` may be traced."""
    return jax.random.fold_in(stream(seed, name), step)


def sample_keys(seed: int, name: str, indices: jax.Array) -> jax.Array:
    """One key per sample, keys[n]: the i-th depends on (seed, name, indices[i]) alone."""
    return jax.vmap(lambda index: jax.random.fold_in(stream(seed, name), index))(indices)
