"""What a trained model can do to given images: encode, interpolate, complete, colour, vary them.

All of it is written as the samplers are, with `denoise(x_t [n, h, w, c], t [n]) -> x_0` and the
times that each sample visits; gen_jax.diffusion.samplers says what these are. Steps are DDIM's. A
step after which i more follow draws from fold_in(keys[j], i), and x_T from fold_in(keys[j], 0);
whatever else is drawn comes from keys of its own (`_apart`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_jax.diffusion.processes import Path
from gen_jax.diffusion.samplers import ddim_step, follow, noise, normal
from gen_jax.diffusion.schedules import Trajectory
from gen_jax.errors import UserError


def generate(
    denoise: Callable,
    trajectory: Path | Trajectory,
    keys: jax.Array,
    x_t: jax.Array,
    start: jax.Array,
    eta: jax.Array,
) -> jax.Array:
    """x_0 from x_t, by DDIM.

    Args:
      denoise, trajectory, keys: see gen_jax.diffusion.samplers.
      x_t: [n, h, w, c], each at the `start`-th of the times that it visits.
      start: int32 [n], 1 .. trajectory.count.
      eta: float32 [n] in [0, 1]; 0 draws nothing.
    """
    shape = x_t.shape[1:]

    def step(i, x_t):
        return ddim_step(denoise, trajectory.at(i), x_t, eta, noise(keys, i, shape))

    return follow(trajectory._replace(count=start), step, keys, shape, lambda _: x_t)


def invert(denoise: Callable, trajectory: Path | Trajectory, image: jax.Array) -> jax.Array:
    """DDIM inversion: the x_T from which DDIM with eta = 0 leads to the image.

    The ODE is followed from the image up, along the same times (Song et al. 2021, section 4.3;
    Dhariwal and Nichol 2021, appendix F). At the first time x_t is the image, scaled: eps, which is
    -sigma score, vanishes with sigma. An image comes back with an error that falls as 1 / count.

    Args:
      denoise, trajectory: see gen_jax.diffusion.samplers; called once less than times are visited.
      image: [n, h, w, c] in [-1, 1].

    Returns:
      x_T, float32 [n, h, w, c].
    """
    count = trajectory.count[:, None, None, None]

    def step(i, x_t):
        now, following = trajectory.at(i - 1), trajectory.at(i)
        x_0 = denoise(x_t, now.t)
        eps = (x_t - now.scale * x_0) / now.noise_std
        return jnp.where(i < count, following.scale * x_0 + following.noise_std * eps, x_t)

    return jax.lax.fori_loop(1, jnp.max(count), step, trajectory.at(0).scale * image)


def slerp(a: jax.Array, b: jax.Array, u: jax.Array) -> jax.Array:
    """Spherical interpolation of noise (Song et al. 2021, appendix D.5, after Shoemake 1985).

    Args:
      a, b: [n, h, w, c].
      u: [n]; 0 is a, 1 is b.

    Returns:
      [n, h, w, c]; of the length of a and b where these are of one length. Straight where there is
      no arc: from a to itself, to -a, or where one of both is 0.
    """
    u = u[:, None, None, None]
    length_a, length_b = (jnp.sqrt(jnp.sum(x**2, (1, 2, 3), keepdims=True)) for x in (a, b))
    # The angle by the chords: arccos of a product near 1 has half of its digits.
    some = (length_a > 0) & (length_b > 0)
    unit_a, unit_b = a / jnp.where(some, length_a, 1.0), b / jnp.where(some, length_b, 1.0)
    apart, along = (
        jnp.sqrt(jnp.sum(x**2, (1, 2, 3), keepdims=True))
        for x in (unit_a - unit_b, unit_a + unit_b)
    )
    theta = 2 * jnp.arctan2(apart, along)
    straight = ~some | (jnp.sin(theta) < 1e-6)
    sine = jnp.where(straight, 1.0, jnp.sin(theta))
    of_a = jnp.where(straight, 1 - u, jnp.sin((1 - u) * theta) / sine)
    of_b = jnp.where(straight, u, jnp.sin(u * theta) / sine)
    return of_a * a + of_b * b


def noised(
    trajectory: Path | Trajectory, keys: jax.Array, image: jax.Array, strength: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where SDEdit begins (Meng et al. 2022, Algorithm 1).

    Args:
      trajectory, keys: see gen_jax.diffusion.samplers.
      image: [n, h, w, c] in [-1, 1]: a photograph, or one painted over with strokes.
      strength: float32 [n] in (0, 1]: the share of the visited times to go through, the paper's t_0
        where these are spaced linearly; at least one of them.

    Returns:
      (x_t, start) for `generate`: [n, h, w, c] and int32 [n].
    """
    count = trajectory.count
    start = jnp.clip(jnp.round(strength * count).astype(jnp.int32), 1, count)
    now = trajectory.at(start - 1)
    return now.scale * image + now.noise_std * normal(keys, 0, image.shape[1:]), start


def masked(mask: jax.Array) -> Callable:
    """What `complete` is told to keep: the pixels where mask, float32 [n, h, w, 1], is 1, not 0."""
    return lambda x: mask * x


def gray(x: jax.Array) -> jax.Array:
    """What `complete` is told to keep of an image whose colours are sought, [n, h, w, 3].

    It is the mean of the channels, in each of them: the part of x along (1, 1, 1) / sqrt(3), the
    first vector of an orthonormal basis (Song et al. 2021 score SDE, appendix I.3).
    """
    if x.shape[-1] != 3:
        raise UserError(f'images of {x.shape[-1]} channel(s) cannot be coloured: expected 3')
    return jnp.broadcast_to(jnp.mean(x, -1, keepdims=True), x.shape)


def complete(
    denoise: Callable,
    trajectory: Path | Trajectory,
    keys: jax.Array,
    image: jax.Array,
    known: Callable,
    eta: jax.Array,
    jump: jax.Array,
    repeats: jax.Array,
) -> jax.Array:
    """An image of which a part is known: RePaint (Lugmayr et al. 2022, Algorithm 1).

    After each step the known part is replaced by its own noised version. With repeats = 1 that is
    all, which is the imputation of Song et al. 2021 (score SDE, appendices I.2 and I.3), whose
    samples are biased: the unknown part has not been told of the known part of its own time. More
    repeats let both agree.

    Args:
      denoise, trajectory, keys: see gen_jax.diffusion.samplers.
      image: [n, h, w, c] in [-1, 1]; only `known(image)` matters.
      known: x [n, h, w, c] -> the part of x that is known, an orthogonal projection: `masked(mask)`
        or `gray`.
      eta: float32 [n] in [0, 1] of DDIM; the papers' ancestral sampling is 1.
      jump: int32 [n], at least 1; j of the paper, 10 there.
      repeats: int32 [n], at least 1; r of the paper, 10 there.

    Returns:
      x_0, float32 [n, h, w, c], with the known part of the image.
    """
    shape, walk = image.shape[1:], Walk(trajectory.count, jump, repeats)
    keys_known, keys_jump = _apart(keys, 0), _apart(keys, 1)

    def step(i, x_t):
        now = trajectory.at(walk.level(i) - 1)
        x = ddim_step(denoise, now, x_t, eta, noise(keys, i, shape))
        part = now.scale_prev * image + now.noise_std_prev * normal(keys_known, i, shape)
        x = x - known(x) + known(part)
        # Up again, all at once: what the paper's single steps of q(x_t | x_prev) amount to.
        higher = trajectory.at(walk.level(i - 1) - 1)
        kept = higher.scale / now.scale_prev
        std, carried = higher.noise_std, kept * now.noise_std_prev
        added = jnp.sqrt(jnp.maximum((std - carried) * (std + carried), 0.0))
        raised = kept * x + added * normal(keys_jump, i, shape)
        return jnp.where(walk.jumps(i)[:, None, None, None], raised, x)

    return follow(trajectory._replace(count=walk.total), step, keys, shape)


class Walk(NamedTuple):
    """The order in which RePaint visits its times, up and down (Lugmayr et al. 2022, section 4.2).

    With L = jump, the stretch of L steps from the (1 + m + L)-th time down to the (1 + m)-th is
    walked `repeats` times, for m = 0, L, 2 L, ... as far as there are times.

    Attributes:
      count: times to visit.
      jump: L.
      repeats: r; 1 walks straight down.
    All int32 [n], at least 1, traced.
    """

    count: jax.Array
    jump: jax.Array
    repeats: jax.Array

    @property
    def _repeated(self) -> jax.Array:
        """How many steps lie in stretches that are repeated."""
        return (self.count - 1) // self.jump * self.jump

    @property
    def total(self) -> jax.Array:
        """Steps down, which are calls of the network."""
        return self.count + self._repeated * (self.repeats - 1)

    def level(self, i: jax.Array) -> jax.Array:
        """From which time the step leads after which i more follow: 1 .. count, the first is 1."""
        before = i - 1  # of the last step, which nothing repeats
        low = before // (self.jump * self.repeats) * self.jump + before % self.jump
        high = before - self._repeated * (self.repeats - 1)
        within = before < self._repeated * self.repeats
        level = jnp.where(i <= 0, 1, 2 + jnp.where(within, low, high))
        return jnp.minimum(level, self.count)  # those that have not begun wait at their last time

    def jumps(self, i: jax.Array) -> jax.Array:
        """Whether that step is followed by a way up."""
        return (i > 0) & (self.level(i - 1) >= self.level(i))


def _apart(keys: jax.Array, which: int) -> jax.Array:
    """Other keys [n], which no sampler gets to by counting."""
    return jax.vmap(lambda key: jax.random.fold_in(key, jnp.uint32(2**32 - 1 - which)))(keys)


def edits(denoise: Callable, trajectory: Callable, score: bool = True) -> dict[str, Callable]:
    """`Method.edits` of a diffusion method.

    Args:
      denoise: `Method.denoise`.
      trajectory: (condition, n) -> the times that n samples visit.
      score: see `solvers.check`; without it there are only those tasks that add no noise.
    """

    def made(task):
        def edit(keys, state, condition):
            def asked(x_t, t):
                return denoise(state, x_t, t, condition)

            pair = task(asked, trajectory(condition, len(keys)), keys, condition)
            return tuple(jnp.clip(x, -1.0, 1.0) for x in pair)

        return edit

    return {name: made(TASKS[name]) for name in (TASKS if score else NOISELESS)}


def _reconstruct(denoise, trajectory, keys, condition):
    x_T = invert(denoise, trajectory, condition['image'])
    return x_T, generate(denoise, trajectory, keys, x_T, trajectory.count, jnp.zeros(len(keys)))


def _interpolate(denoise, trajectory, keys, condition):
    ends = (invert(denoise, trajectory, condition[name]) for name in ('image', 'other'))
    x_T = slerp(*ends, condition['fraction'])
    return x_T, generate(denoise, trajectory, keys, x_T, trajectory.count, jnp.zeros(len(keys)))


def _completed(denoise, trajectory, keys, condition, known, jump, repeats):
    image, eta = condition['image'], condition['eta']
    x_0 = complete(denoise, trajectory, keys, image, known, eta, jump, repeats)
    return known(image), x_0


def _inpaint(denoise, trajectory, keys, condition):
    known, once = masked(condition['mask']), jnp.ones(len(keys), jnp.int32)
    return _completed(denoise, trajectory, keys, condition, known, once, once)


def _repaint(denoise, trajectory, keys, condition):
    known, walk = masked(condition['mask']), (condition['jump'], condition['repeats'])
    return _completed(denoise, trajectory, keys, condition, known, *walk)


def _colorize(denoise, trajectory, keys, condition):
    once = jnp.ones(len(keys), jnp.int32)
    return _completed(denoise, trajectory, keys, condition, gray, once, once)


def _vary(denoise, trajectory, keys, condition):
    x_t, start = noised(trajectory, keys, condition['image'], condition['strength'])
    return x_t, generate(denoise, trajectory, keys, x_t, start, condition['eta'])


TASKS = {
    'reconstruct': _reconstruct,
    'interpolate': _interpolate,
    'inpaint': _inpaint,
    'repaint': _repaint,
    'colorize': _colorize,
    'vary': _vary,
}
NOISELESS = ('reconstruct', 'interpolate')
