"""GAN inversion by optimisation: the latents from which a generator comes nearest to an image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps in which the rate rises, and falls
NOISE, NOISE_SHARE = 0.05, 0.75  # of w's deviation, and the share of the steps until it is gone


def rate(share: float) -> float:
    """Of the learning rate, after this share of the steps (Karras et al. 2020, appendix D)."""
    down = 0.5 - 0.5 * np.cos(np.pi * min(1.0, (1 - share) / RAMP_DOWN))
    return down * min(1.0, share / RAMP_UP)


def project(
    synthesis: Callable,
    distance: Callable,
    target: jax.Array,
    samples: np.ndarray,
    key: jax.Array,
    steps: int,
    learning_rate: float,
    extended: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descends from the mean latent, as Karras et al. 2020, appendix D.

    There the noise inside of the generator is sought as well; here it stays as it is. Their
    distance is LPIPS of images of at most 256x256, to which larger ones are averaged; here it is
    the caller's.

    Args:
      synthesis: ws [n, layers, d] -> images [n, h, w, c].
      distance: (images, images) -> [n].
      target: [n, h, w, c] in [-1, 1].
      samples: ws [m, layers, d] of random latents, whose mean is where the search begins, and whose
        deviation scales the noise that it begins with.
      key: of that noise.
      steps: of Adam.
      learning_rate: at its highest.
      extended: whether each layer has a w of its own (W+; Abdal et al. 2019).

    Returns:
      ws float32 [n, layers, d], and the distances [n] of it and, before it, of the start.
    """
    n, layers = len(target), samples.shape[1]
    mean = samples[:, 0].mean(0)
    spread = float(np.sqrt(np.square(samples[:, 0] - mean).sum(1).mean()))
    w = jnp.broadcast_to(jnp.asarray(mean), (n, layers if extended else 1, len(mean)))

    def apart(w):
        return distance(synthesis(jnp.broadcast_to(w, (n, layers, w.shape[-1]))), target)

    # In pieces that are compiled one by one, so that what they stand on are arguments, not
    # constants of a program.
    gradient = jax.grad(lambda w, noise: apart(w + noise).sum())
    tx = optax.inject_hyperparams(optax.adam)(0.0)
    opt_state, update = tx.init(w), jax.jit(tx.update)
    start = apart(w)
    for i in range(steps):
        share = i / steps
        opt_state.hyperparams['learning_rate'] = jnp.float32(learning_rate * rate(share))
        strength = spread * NOISE * max(0.0, 1 - share / NOISE_SHARE) ** 2
        noise = strength * jax.random.normal(jax.random.fold_in(key, i), w.shape)
        updates, opt_state = update(gradient(w, noise), opt_state)
        w = optax.apply_updates(w, updates)
    found = np.broadcast_to(np.asarray(w), (n, layers, w.shape[-1]))
    return np.array(found), np.asarray(start), np.asarray(apart(w))
