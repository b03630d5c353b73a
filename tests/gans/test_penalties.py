"""Penalties on gradients that are known: of linear and quadratic discriminators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.gans.penalties import PENALTIES, dragan, path_lengths, wgan_gp

RNG = np.random.default_rng(0)
W = RNG.normal(size=(3, 3, 2)).astype(np.float32)
REAL, FAKE = RNG.normal(size=(2, 4, 3, 3, 2)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 4)
LENGTH = np.linalg.norm(W)


def linear(x):
    return (x * W).sum((1, 2, 3))


def quadratic(x):
    """Whose gradient is x."""
    return 0.5 * (x**2).sum((1, 2, 3))


def squares(x):
    return (x**2).sum((1, 2, 3)).mean()


@pytest.mark.parametrize('name', PENALTIES)
def test_of_a_linear_function_it_is_the_same_everywhere(name):
    got = jax.jit(lambda keys: PENALTIES[name].value(linear, REAL, FAKE, keys))(KEYS)
    want = {'r1': LENGTH**2 / 2, 'r2': LENGTH**2 / 2, 'r1_r2': LENGTH**2}
    np.testing.assert_allclose(got, want.get(name, (LENGTH - 1) ** 2), rtol=1e-5)


def test_places_are_real_ones_and_generated_ones():
    for name, want in (
        ('r1', squares(REAL) / 2),
        ('r2', squares(FAKE) / 2),
        ('r1_r2', (squares(REAL) + squares(FAKE)) / 2),
    ):
        got = PENALTIES[name].value(quadratic, REAL, FAKE, KEYS)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_places_between_a_real_and_a_generated_image():
    share = np.stack([jax.random.uniform(key) for key in KEYS])[:, None, None, None]
    lengths = np.sqrt(((share * REAL + (1 - share) * FAKE) ** 2).sum((1, 2, 3)))
    got = wgan_gp(quadratic, REAL, FAKE, KEYS)
    np.testing.assert_allclose(got, ((lengths - 1) ** 2).mean(), rtol=1e-5)
    got = wgan_gp(quadratic, REAL, FAKE, KEYS, target=5.0)
    np.testing.assert_allclose(got, ((lengths - 5) ** 2).mean() / 25, rtol=1e-5)


def test_places_near_a_real_image():
    """A share of half a deviation's uniform noise away (Kodali et al.'s code)."""
    draw = lambda i, shape: np.stack(  # noqa: E731
        [jax.random.uniform(jax.random.fold_in(key, i), shape) for key in KEYS]
    )
    share = draw(0, ())[:, None, None, None]
    places = REAL + share * 0.5 * REAL.std() * draw(1, (3, 3, 2))
    lengths = np.sqrt((places**2).sum((1, 2, 3)))
    got = dragan(quadratic, jnp.asarray(REAL), None, KEYS)
    np.testing.assert_allclose(got, ((lengths - 1) ** 2).mean(), rtol=1e-5)


def test_gradients_are_finite_where_the_discriminator_is_flat():
    flat = jax.grad(lambda a: wgan_gp(lambda x: a * x.sum((1, 2, 3)), REAL, FAKE, KEYS))
    assert np.isfinite(flat(0.0))


def test_path_lengths_of_a_linear_synthesis():
    """G(w) = A w for each layer: J^T y = A^T y."""
    A = RNG.normal(size=(3 * 3 * 2, 5)).astype(np.float32)
    noise = RNG.normal(size=(4, 3, 3, 2)).astype(np.float32)
    ws = jnp.zeros((4, 2, 5))
    synthesis = lambda ws: (ws.sum(1) @ A.T).reshape(-1, 3, 3, 2)  # noqa: E731
    want = np.linalg.norm(noise.reshape(4, -1) @ A, axis=1) / 3  # over sqrt(h w)
    np.testing.assert_allclose(path_lengths(synthesis, ws, noise), want, rtol=1e-5)
