"""Guidance, as functions of estimates of x_0: they know no networks and no samplers.

Guidance multiplies densities at one noise level, so it adds scores. By Tweedie's formula
x_0 = (x_t + sigma^2 score) / alpha, where x_t = alpha x_0 + sigma eps, and weights that sum to 1
leave x_t as it is: what holds for scores holds for x_0, eps, v and velocities alike.

All take estimates [n, ...] of any shape, and their numbers as float [n], one per sample; they can
be traced. With a negative condition in place of none, `classifier_free` is guidance away from it.

What ends with -d makes of one `denoise(x_t, t) -> x_0` another, which every sampler takes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.errors import UserError


def classifier_free(x0_label: jax.Array, x0_null: jax.Array, guidance: jax.Array) -> jax.Array:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6, with guidance = 1 + w).

    The density is p(x) (p(x | label) / p(x))^guidance, so score = null + guidance (label - null).

    Args:
      x0_label: the estimate given the label, [n, ...].
      x0_null: the estimate given the null class, or a negative condition, [n, ...].
      guidance: [n]; 0 is x0_null, 1 is x0_label.

    Returns:
      The guided estimate, [n, ...].
    """
    return x0_null + _each(guidance, x0_null) * (x0_label - x0_null)


def autoguidance(x0_good: jax.Array, x0_bad: jax.Array, guidance: jax.Array) -> jax.Array:
    """Guidance of a model by a bad version of itself (Karras et al. 2024), smaller or less trained.

    The density is p_good (p_good / p_bad)^(guidance - 1): `classifier_free` of two models that are
    given the same condition.

    Args:
      x0_good: the model's estimate, [n, ...].
      x0_bad: the worse model's for the same x_t, noise and condition, [n, ...].
      guidance: [n]; 1 is x0_good.
    """
    return classifier_free(x0_good, x0_bad, guidance)


def classifier(
    x0: jax.Array, grad_log_prob: jax.Array, scale: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Classifier guidance (Dhariwal and Nichol 2021, eq. 13-14, written by x_0).

    The density is p(x) p(label | x)^scale: the score gains scale * grad_log_prob, hence x_0
    sigma^2 / alpha times that.

    Args:
      x0: the estimate, [n, ...].
      grad_log_prob: gradient with respect to x_t of log p(label | x_t, t), [n, ...].
      scale: [n]; 0 is x0.
      alpha, sigma: of x_t = alpha x_0 + sigma eps, [n].
    """
    scale, alpha, sigma = (_each(number, x0) for number in (scale, alpha, sigma))
    return x0 + scale * sigma**2 / alpha * grad_log_prob


def interval(guidance: jax.Array, sigma: jax.Array, low: float, high: float) -> jax.Array:
    """Guidance in a limited interval of noise (Kynkäänniemi et al. 2024), outside of it none.

    Args:
      guidance: [n], 1 for none, as the other functions count; a classifier's scale is one less.
      sigma: ratio of noise to signal, sigma / alpha, [n].
      low, high: `guidance` holds for low < sigma <= high.

    Returns:
      [n], `guidance` or 1.
    """
    return jnp.where((low < sigma) & (sigma <= high), guidance, 1.0)


def rescale(guided: jax.Array, conditional: jax.Array, phi: jax.Array) -> jax.Array:
    """Takes back the contrast that guidance adds (Lin et al. 2024, eq. 15-16).

    guided * std(conditional) / std(guided) has the conditional estimate's deviation; phi mixes it
    with what was. Unlike guidance itself this depends on what is rescaled: the paper's is the
    network's v. Where `guided` is constant there is nothing to rescale.

    Args:
      guided: an estimate of x_0 or another quantity, [n, ...].
      conditional: the same quantity without guidance, [n, ...].
      phi: [n], 0 (nothing changes) to 1; the paper's is 0.7.
    """
    axes = tuple(range(1, guided.ndim))
    now, want = (jnp.var(x, axes, keepdims=True) for x in (guided, conditional))  # [n, 1, ...]
    # A root has no gradient at 0, and what is divided by 0 has none even where it is not taken.
    some = (now > 0) & (want > 0)
    ratio = jnp.sqrt(jnp.where(some, want, 1.0) / jnp.where(some, now, 1.0))
    ratio = jnp.where((now > 0) & (want == 0), 0.0, ratio)
    phi = _each(phi, guided)
    return guided * (phi * ratio + (1 - phi))


def by_label(
    said: Callable,
    x_t: jax.Array,
    t: jax.Array,
    label: jax.Array,
    other: jax.Array,
    guidance: jax.Array,
    phi: jax.Array,
) -> jax.Array:
    """`classifier_free` and `rescale` of what one network says, of x_0 or another quantity.

    Args:
      said: (x_t, t, label) -> [n, ...]; called once, on a doubled batch, or on `label` alone while
        no sample is guided. What it says in more channels than x_t has, of the variance, remains
        that for the label.
      x_t: [n, ...].
      t: [n].
      label: int32 [n].
      other: int32 [n], the null class, or a negative condition.
      guidance: [n]; 0 is what is said of `other`, 1 of `label`.
      phi: [n], of `rescale`; 0 for none.

    Returns:
      [n, ...].
    """

    def both():
        twice = [jnp.concatenate([x, x]) for x in (x_t, t)]  # [2n, ...]
        pair = said(*twice, jnp.concatenate([label, other]))
        given, instead = jnp.split(pair[..., : x_t.shape[-1]], 2)  # [n, ...]
        guided = rescale(classifier_free(given, instead, guidance), given, phi)
        return jnp.concatenate([guided, pair[: len(x_t), ..., x_t.shape[-1] :]], -1)

    return jax.lax.cond(jnp.all(guidance == 1), lambda: said(x_t, t, label), both)


def classified(
    denoise: Callable, log_prob: Callable, level: Callable, scale: jax.Array
) -> Callable:
    """A model guided by a classifier of noised images, see `classifier`.

    Args:
      denoise: (x_t, t) -> x_0, of the model.
      log_prob: (x_t, t) -> [n], each sample's log p(label | x_t, t), of its own x_t only.
      level: t -> (alpha, sigma), each [n]; alpha > 0.
      scale: [n].
    """

    def guided(x_t, t):
        gradient = jax.grad(lambda x_t: jnp.sum(log_prob(x_t, t)))(x_t)
        return classifier(denoise(x_t, t), gradient, scale, *level(t))

    return guided


def _each(number: jax.Array, x: jax.Array) -> jax.Array:
    """Numbers [n], one per sample -> [n, 1, ...], to be multiplied with x [n, ...]."""
    if jnp.shape(number) != x.shape[:1]:
        raise UserError(
            f'numbers of shape {jnp.shape(number)} for estimates of shape {x.shape}: expected one '
            f'per sample, [{len(x)}]; jnp.broadcast_to(number, {len(x)}) makes them of one for all'
        )
    return jnp.reshape(number, (-1, *[1] * (x.ndim - 1)))
