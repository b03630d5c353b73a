"""Growing (Karras et al. 2018, section 2): networks are trained on small images first."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax.gans.progressive import faded
from gen_jax.gans.style_layers import sizes_up_to
from gen_jax.method import Net
from gen_jax.nn.resize import double, halve


class Growth(NamedTuple):
    """How networks grow: each size for some steps, then as many in which the next fades in.

    Karras et al. 2018, figure 2.

    Attributes:
      steps: of each size, and of each way to the next.
      first: the size that is trained first, pixels.
      image_size: the last.
      rates: learning rate of each size, over that of the optimiser; (): the same for all.
    """

    steps: int
    first: int
    image_size: int
    rates: tuple[float, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """From the first on, each twice the one before."""
        return [size for size in sizes_up_to(self.image_size) if size >= self.first]

    def at(self, step) -> tuple:
        """What a step trains: which of the sizes, and how far it is faded in.

        Args:
          step: an array of NumPy or of JAX.

        Returns:
          (number from 0, alpha in [0, 1]), of the same kind.
        """
        xp = np if isinstance(step, np.generic) else jnp
        last, phase = len(self.sizes) - 1, step // self.steps
        number = (phase + 1) // 2
        fading = (number <= last) & (phase % 2 == 1)
        return xp.minimum(number, last), xp.where(fading, (step % self.steps) / self.steps, 1.0)

    def begins(self, step: jax.Array) -> jax.Array:
        """Whether a size begins to fade in at this step, or stands alone from it on.

        There the authors' players forget the moments of Adam (their training loop's
        `reset_opt_for_new_lod`).
        """
        phases = 2 * (len(self.sizes) - 1)
        return (step > 0) & (step % self.steps == 0) & (step // self.steps <= phases)

    def scheduled(self, moves: float) -> optax.GradientTransformation:
        """Scales what an optimiser does by `rates`; it moves `moves` times in a training step."""
        rates = jnp.asarray(self.rates, jnp.float32)
        return optax.scale_by_schedule(lambda count: rates[self.at(jnp.int32(count / moves))[0]])


def growth_of(rules, image_size: int) -> Growth | None:
    """That of `config.gan`; None where all is trained at full size."""
    if not rules.get('grow_steps', 0):
        return None
    return Growth(rules.grow_steps, rules.grow_from, image_size, tuple(rules.grow_rates))


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
