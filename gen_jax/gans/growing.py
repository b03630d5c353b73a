"""Growing (Karras et al. 2018, section 2): networks are trained on small images first."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax.gans.progressive import faded
from gen_jax.gans.style_layers import sizes_up_to
from gen_jax.method import Net
from gen_jax.nn.resize import double, halve


def growth(n: int, image_size: int, step) -> tuple:
    """What a step trains: which of the sizes 4, 8, ..., and how far it is faded in.

    Each size is trained for n steps, then the next fades in over n (Karras et al. 2018, figure 2).

    Args:
      n: `gan.grow_steps`.
      image_size: the last of the sizes.
      step: an array of NumPy or of JAX.

    Returns:
      (number from 0, alpha in [0, 1]), of the same kind.
    """
    xp = np if isinstance(step, np.generic) else jnp
    last = len(sizes_up_to(image_size)) - 1
    number = (step // n + 1) // 2
    fading = (number <= last) & ((step // n) % 2 == 1)
    return xp.minimum(number, last), xp.where(fading, (step % n) / n, 1.0)


def begins(n: int, image_size: int, step: jax.Array) -> jax.Array:
    """Whether a size begins to fade in at this step, or stands alone from it on; args of `growth`.

    There the authors' players forget the moments of Adam (their training loop's
    `reset_opt_for_new_lod`).
    """
    phases = 2 * (len(sizes_up_to(image_size)) - 1)
    return (step > 0) & (step % n == 0) & (step // n <= phases)


def forgotten(net: Net, when: jax.Array) -> Net:
    """A net whose Adam has taken no step yet `when`, bool, is true; its schedule goes on."""

    def is_adam(part):
        return isinstance(part, optax.ScaleByAdamState)

    def forget(part):
        if not is_adam(part):
            return part
        return jax.tree.map(lambda x: jnp.where(when, jnp.zeros_like(x), x), part)

    return net.replace(opt_state=jax.tree.map(forget, net.opt_state, is_leaf=is_adam))


def shown(image: jax.Array, size: int, alpha: jax.Array) -> jax.Array:
    """Real images [b, s, s, c] as they are while `size` fades in, [b, size, size, c].

    Karras et al. 2018, figure 2: they are mixed with themselves at half the size as well.
    """
    while image.shape[1] > size:
        image = halve(image)
    return image if size == 4 else faded(double(halve(image)), image, alpha)


def enlarged(image: jax.Array, size: int) -> jax.Array:
    """Images of any size on the way, [b, s, s, c], in squares: [b, size, size, c]."""
    while image.shape[1] < size:
        image = double(image)
    return image
