"""What the discriminator sees instead of an image: changes that gradients pass through.

DiffAugment (Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training",
section 3.2, with the strengths of the authors' code) changes real and generated images alike, so
that the generator is not asked to draw what it does. Consistency regularisation (Zhang et al. 2020)
wants logits that do not change with `moved`. Each image is changed by a key of its own.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def brightness(key: jax.Array, x: jax.Array) -> jax.Array:
    """[h, w, c] plus a number from -0.5 to 0.5."""
    return x + jax.random.uniform(key, minval=-0.5, maxval=0.5)


def saturation(key: jax.Array, x: jax.Array) -> jax.Array:
    """Each pixel's distance from its mean over channels, times a number from 0 to 2."""
    mean = x.mean(-1, keepdims=True)
    return mean + jax.random.uniform(key, maxval=2.0) * (x - mean)


def contrast(key: jax.Array, x: jax.Array) -> jax.Array:
    """Distances from the image's mean, times a number from 0.5 to 1.5."""
    mean = x.mean()
    return mean + jax.random.uniform(key, minval=0.5, maxval=1.5) * (x - mean)


def translation(key: jax.Array, x: jax.Array) -> jax.Array:
    """[h, w, c] moved by up to an eighth of its size along each axis; what is new is 0."""
    return _shifted(key, x, [int(size / 8 + 0.5) for size in x.shape[:2]], 'constant')


def cutout(key: jax.Array, x: jax.Array) -> jax.Array:
    """A square of half the size at a random place, which may reach beyond the image, is 0."""
    h, w, _ = x.shape
    inside = [
        _within(jax.random.fold_in(key, axis), size, int(size * 0.5 + 0.5))
        for axis, size in enumerate((h, w))
    ]
    return jnp.where((inside[0][:, None] & inside[1][None])[..., None], 0.0, x)


def _within(key, size, length):
    """Which of `size` pixels lie in a stretch of `length` around a random one."""
    centre = jax.random.randint(key, (), 0, size + 1 - length % 2)
    at = jnp.arange(size) - centre + length // 2
    return (at >= 0) & (at < length)


def _shifted(key, x, most, mode):
    """Moved by up to `most` pixels along each axis; `mode` of `jnp.pad` says what comes in."""
    padded = jnp.pad(x, ((most[0],) * 2, (most[1],) * 2, (0, 0)), mode)
    start = [
        jax.random.randint(jax.random.fold_in(key, axis), (), 0, 2 * n + 1)
        for axis, n in enumerate(most)
    ]
    return jax.lax.dynamic_slice(padded, (*start, 0), x.shape)


def moved(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Images [b, h, w, c] flipped or not, then moved by up to an eighth and mirrored at the edge.

    The changes of CR-GAN (Zhang et al. 2020, section 3.1).
    """

    def move(key, x):
        flip = jax.random.bernoulli(jax.random.fold_in(key, 2))
        most = [size // 8 for size in x.shape[:2]]
        return _shifted(key, jnp.where(flip, x[:, ::-1], x), most, 'reflect')

    return jax.vmap(move)(keys, x)


AUGMENTATIONS: dict[str, Sequence[Callable]] = {
    'color': (brightness, saturation, contrast),
    'translation': (translation,),
    'cutout': (cutout,),
}


def augmented(keys: jax.Array, x: jax.Array, names: Sequence[str]) -> jax.Array:
    """Images [b, h, w, c], each changed by its key [b] in the ways named, in turn."""
    changes = [change for name in names for change in AUGMENTATIONS[name]]

    def change_all(key, x):
        for i, change in enumerate(changes):
            x = change(jax.random.fold_in(key, i), x)
        return x

    return jax.vmap(change_all)(keys, x)
