"""Perceptual Path Length: how abruptly images change along latent paths (Karras et al. 2019).

Lower is smoother. The number depends on the latent space, the path, epsilon, and the distance and
the size at which it sees the images: name them beside it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.errors import NotFinite, UserError
from gen_jax.metrics.diversity import over_batches


def path_length(
    generate: Callable,
    distance: Callable,
    latents_a: np.ndarray,
    latents_b: np.ndarray,
    t: np.ndarray,
    path: str = 'slerp',
    epsilon: float = 1e-4,
    batch_size: int = 32,
    discard: bool = True,
) -> dict[str, float]:
    """The mean of d(g(path(a, b; t)), g(path(a, b; t + epsilon))) / epsilon^2 (sec. 4.1, eq. 2).

    As torch-fidelity has it, whose t is 0 throughout; points on the path are computed in float64,
    then rounded to float32. Its default path is 'lerp', also for normal latents, and it sees images
    as uint8 at 64x64: compose `distance` with `resize` for the latter.

    Args:
      generate: (latents [2b, d], index [2b]) -> images [2b, h, w, c], jitted. `index` says which
        sample each row belongs to, for labels and keys: both ends of a step must get the same.
      distance: (x, y) -> [b], the paper's being LPIPS over VGG-16, jitted.
      latents_a: [n, d], where paths begin.
      latents_b: [n, d], where they end.
      t: [n], in [0, 1].
      path: 'slerp', for normal latents; 'lerp', for spaces without a preferred radius ('w').
      epsilon: length of a step in t. Squares of rounding errors are divided by its square: in
        float32 much less than 1e-4 measures noise.
      batch_size: samples at a time; the result depends on it by rounding only.
      discard: leaves out what lies below percentile 1 and above percentile 99, as StyleGAN does.

    Returns:
      `path_length`, and `path_length_std`, the samples' (not the mean's) standard deviation.

    Raises:
      UserError: for latents or t of other shapes, an unknown path, an epsilon that is not positive,
        or distances that are not finite.
    """
    _check(latents_a, latents_b, t, path, epsilon)
    a, b = np.asarray(latents_a, np.float64), np.asarray(latents_b, np.float64)
    t = np.asarray(t, np.float64)[:, None]
    starts, ends = (PATHS[path](a, b, s).astype(np.float32) for s in (t, t + epsilon))

    def measure(at):
        latents = np.concatenate([starts[at], ends[at]])
        return distance(*jnp.split(generate(latents, np.concatenate([at, at])), 2))

    lengths = over_batches(measure, len(a), batch_size) / epsilon**2
    if not np.isfinite(lengths).all():
        raise NotFinite(
            f'{(~np.isfinite(lengths)).sum()} of {len(a)} path lengths are not finite: '
            'look at the images that the generator gives'
        )
    if discard:
        low = np.percentile(lengths, 1, method='lower')
        high = np.percentile(lengths, 99, method='higher')
        lengths = lengths[(low <= lengths) & (lengths <= high)]
    return {'path_length': float(lengths.mean()), 'path_length_std': float(lengths.std())}


def draw(
    key: jax.Array, n: int, dim: int, sampling: str = 'full'
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ends of n paths and a place on each; sample i depends on fold_in(key, i), not on n.

    Args:
      key: of all samples.
      n: number of samples.
      dim: of a latent.
      sampling: 'full', t uniform in [0, 1); or 'end', t = 0.

    Returns:
      latents_a and latents_b, standard normal, float32 [n, dim]; t, float32 [n].

    Raises:
      UserError: for another sampling.
    """
    if sampling not in ('full', 'end'):
        raise UserError(f"path length with sampling={sampling!r}, expected 'full' or 'end'")

    a, b, t = _draw(key, n, dim)
    return a, b, t if sampling == 'full' else jnp.zeros(n)


@functools.partial(jax.jit, static_argnames=('n', 'dim'))
def _draw(key, n, dim):
    def one(i):
        ends, place = jax.random.split(jax.random.fold_in(key, i))
        return *jax.random.normal(ends, (2, dim)), jax.random.uniform(place)

    return jax.vmap(one)(jnp.arange(n))


def lerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The straight line a + (b - a) t; t of shape [n, 1] for [n, d]."""
    return a + (b - a) * t


def slerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Along the arc (Shoemake 1985), of ends of any length; a line where no arc is defined.

    That is where directions are the same or opposite to 1e-7, or an end is 0. Float64 [n, d].
    """
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = (a * b).sum(-1) / np.maximum(lengths, 1e-14)
    curved = ((np.abs(cosine) <= 1 - 1e-7) & (lengths > 1e-14))[:, None]
    omega = np.arccos(np.where(curved, cosine[:, None], 0.0))
    arc = (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)
    return np.where(curved, arc, lerp(a, b, t))


PATHS = {'slerp': slerp, 'lerp': lerp}


def resize(images: jax.Array, side: int) -> jax.Array:
    """Images [b, h, w, c] at side x side, as torch-fidelity brings them before LPIPS (there 64).

    Where both sides are larger, the mean over the area of each new pixel (StyleGAN's, where they
    are multiples); otherwise bilinear with half-pixel centres.
    """
    b, height, width, c = images.shape
    if min(height, width) <= side:
        return jax.image.resize(images, (b, side, side, c), 'bilinear', antialias=False)
    rows, columns = _areas(height, side), _areas(width, side)
    return jnp.einsum('ih,jw,bhwc->bijc', rows, columns, images, precision='highest')


def _areas(size, side):
    """[side, size]: row i averages the pixels that [i, i + 1) * size / side touches."""
    i, pixel = np.arange(side)[:, None], np.arange(size)
    inside = (i * size // side <= pixel) & (pixel < -(-(i + 1) * size // side))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def _check(a, b, t, path, epsilon):
    n = len(a)
    if np.ndim(a) != 2 or np.shape(a) != np.shape(b) or np.shape(t) != (n,) or not n:
        raise UserError(
            f'path length of latents {np.shape(a)} and {np.shape(b)} with t {np.shape(t)}, '
            'expected [n, d], [n, d] and [n], n at least 1'
        )
    if path not in PATHS:
        raise UserError(f'path length along path={path!r}, expected one of {", ".join(PATHS)}')
    if not epsilon > 0:
        raise UserError(f'path length with epsilon={epsilon}, expected a positive step')
