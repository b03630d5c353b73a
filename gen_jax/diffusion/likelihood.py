"""Likelihood by the probability-flow ODE (Song et al. 2021, section 4.3 and appendix D.2).

A deterministic path leads from an image at t_min to its latent x_T at t_max,

    dx/dt = f(x, t)        d log p_t(x_t) / dt = -div f(x_t, t)

so that the image's density is that of x_T under the prior, times how much volume grew on the way
(the instantaneous change of variables; Grathwohl et al. 2019, FFJORD).

The image is taken for x_t at t_min: the density is that of data with the noise of t_min on them,
which blurs what is finer than sigma(t_min). The reference (github.com/yang-song/score_sde,
likelihood.py) starts at t = 1e-5, `process._replace(t_min=1e-5)` here. Nearer to 0 the network is
asked at noise that it may not have been trained on.

As a sampler does, it sees `denoise(x_t [b, h, w, c], t [b]) -> x_0`, which has to be differentiable
and without clipping, and calls it for all examples at once. Each example has steps of its own that
do not depend on the others: `denoise` is called as often as the one with the most steps needs.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from gen_jax.config import nearest
from gen_jax.diffusion import ode
from gen_jax.diffusion.processes import Process
from gen_jax.errors import UserError
from gen_jax.metrics.bits_per_dim import from_nats

DIVERGENCES = ('rademacher', 'gaussian', 'exact')
DEQUANTISATIONS = ('uniform', 'none')
# Width of one of 256 cells that share [-1, 1]; the offset of bits per dimension is its log2, 7.
CELL = 2 / 256
# Of 'exact': each evaluation of the slope goes back through the network once per dimension.
MOST_DIMS = 1024


def bits_per_dim(
    denoise: Callable,
    process: Process,
    keys: jax.Array,
    image: jax.Array,
    dequantisation: str = 'uniform',
    divergence: str = 'rademacher',
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> dict[str, jax.Array]:
    """Bits per dimension of each example, for 256 levels in [-1, 1].

    The mean over keys has no bias for 'none'; for 'uniform' it is an upper bound on the bits of the
    levels themselves (Theis et al. 2016, section 3.1). Example i depends on keys[i] only: noise
    within the cells is drawn from fold_in(keys[i], 0), probes from fold_in(keys[i], 1).

    Args:
      denoise: see above.
      process: whose t that is.
      keys: [b].
      image: float32 [b, h, w, c] in [-1, 1].
      dequantisation: 'uniform' as `dequantised`; 'none' for data that are continuous.
      divergence: how it is found, see `directions`.
      probes: of each example; more take more time and leave less variance.
      rtol, atol: of the solver, as in `log_likelihood`.

    Returns:
      `bits_per_dim` float32 [b], NaN where the solver gave up; `nfe` int32 [b], calls of `denoise`.

    Raises:
      UserError: an unknown name, an impossible tolerance or number of probes, or 'exact' for images
        of more than MOST_DIMS.
    """
    asked = {'dequantisation': dequantisation, 'divergence': divergence, 'probes': probes}
    check(image.shape[1:], {**asked, 'rtol': rtol, 'atol': atol})
    each = jax.vmap(jax.random.fold_in, (0, None))
    if dequantisation == 'uniform':
        image = dequantised(each(keys, 0), image)
    v = directions(each(keys, 1), image.shape[1:], divergence, probes)  # [b, k, h, w, c]
    log_p, _, nfe = log_likelihood(denoise, process, image, v, rtol, atol)
    return {'bits_per_dim': from_nats(-log_p, image[0].size, CELL), 'nfe': nfe}


def check(shape: tuple[int, ...], asked: Mapping, where: str = '') -> None:
    """Raises UserError where what is asked of images of that shape (h, w, c) cannot be had.

    Args:
      shape: see above.
      asked: `dequantisation`, `divergence` and `probes` of `bits_per_dim`; the rest are tolerances.
      where: what an error puts before these names, such as 'config.likelihood.'.
    """

    def refuse(name, expected):
        raise UserError(f'{where}{name}={asked[name]!r}: expected {expected}')

    known = {'dequantisation': DEQUANTISATIONS, 'divergence': DIVERGENCES}
    for name, choices in known.items():
        if asked[name] not in choices:
            refuse(name, f'a known name{nearest(asked[name], choices)}')
    for name in asked:
        if name not in (*known, 'probes') and not ode.LEAST_TOLERANCE <= asked[name] < 1:
            refuse(name, f'a tolerance below 1, of {ode.LEAST_TOLERANCE:g} (of float32) or more')
    if asked['probes'] < 1:
        refuse('probes', 'a whole number of at least 1')
    dims, exact = shape[0] * shape[1] * shape[2], asked['divergence'] == 'exact'
    if exact and asked['probes'] != 1:
        refuse('probes', "1, as divergence='exact' draws none")
    if exact and dims > MOST_DIMS:
        most = f'images of at most {MOST_DIMS} dimensions, and these have {dims}'
        refuse('divergence', f"'rademacher' or 'gaussian': 'exact' is for {most}")


def dequantised(keys: jax.Array, image: jax.Array) -> jax.Array:
    """Each of 256 levels becomes a point of its own cell of [-1, 1], uniformly.

    Level i, which is i / 127.5 - 1 in the image, becomes (i + u) / 128 - 1 as in the reference.

    Args:
      keys: [b].
      image: float32 [b, h, w, c].
    """
    u = jax.vmap(lambda key, x: jax.random.uniform(key, x.shape, x.dtype))(keys, image)
    level = (image + 1) * 127.5
    return (level + u) * CELL - 1


def directions(keys: jax.Array, shape: tuple[int, ...], divergence: str, probes: int) -> jax.Array:
    """Directions v [b, k, h, w, c] along which a Jacobian J is looked at: E[v v^T] = I.

    The mean of v^T J v over them estimates the trace of J without bias (Hutchinson 1990).

    Args:
      keys: [b].
      shape: (h, w, c).
      divergence: 'rademacher', each element -1 or 1, and 'gaussian', standard normal, draw them;
        'exact' goes along all h * w * c axes, with the trace itself as the mean.
      probes: k of the first two.
    """
    if divergence == 'exact':
        dims = shape[0] * shape[1] * shape[2]
        axes = dims**0.5 * jnp.eye(dims).reshape(dims, *shape)  # [dims, h, w, c]
        return jnp.broadcast_to(axes, (len(keys), *axes.shape))  # [b, dims, h, w, c]
    draw = jax.random.rademacher if divergence == 'rademacher' else jax.random.normal
    return jax.vmap(lambda key: draw(key, (probes, *shape), jnp.float32))(keys)


def log_likelihood(
    denoise: Callable,
    process: Process,
    image: jax.Array,
    v: jax.Array,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The log-density of each image at t_min, and where its path leads.

    Args:
      denoise, process: as in `bits_per_dim`.
      image: float32 [b, h, w, c], points of a continuous space.
      v: [b, k, h, w, c], the `directions` along which the divergence is found.
      rtol, atol: each step of the solver, Dormand and Prince's of fifth order, keeps its error
        below atol + rtol * |value| in the root mean square over pixels and log-density.

    Returns:
      Nats [b], x_T [b, h, w, c], and the calls of `denoise` that each needed, int32 [b]. The first
      two are NaN where `ode.MOST_STEPS` were not enough.
    """

    def slopes(t, state, v):
        x, _ = state
        f, pull = jax.vjp(partial(ode.velocity, denoise, process, t), x)
        (v_J,) = jax.vmap(pull, 1, 1)(v)  # [b, k, h, w, c]
        return f, jnp.sum(v_J * v, (2, 3, 4)).mean(1)

    start = image, jnp.zeros(len(image), image.dtype)
    (x_T, growth), steps = _to_noise(slopes, process, start, v, rtol, atol)
    log_prior = jax.scipy.stats.norm.logpdf(x_T, scale=process.prior_std)
    # A step's last stage is the next one's first.
    return jnp.sum(log_prior, (1, 2, 3)) + growth, x_T, 1 + 6 * steps


def latent(
    denoise: Callable,
    process: Process,
    image: jax.Array,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> jax.Array:
    """The x_T [b, h, w, c] from which the same ODE leads to the images: their encoding.

    Args and what is NaN are those of `log_likelihood`, which gives this x_T beside the density.
    """

    def slopes(t, x, _):
        return ode.velocity(denoise, process, t, x)

    return _to_noise(slopes, process, image, None, rtol, atol)[0]


def _to_noise(slopes, process, start, args, rtol, atol):
    ends = process.t_min, process.t_max
    return ode.solve(slopes, *ends, start, args, (rtol, atol), 'dopri5')
