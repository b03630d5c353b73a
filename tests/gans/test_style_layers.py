"""Layers by themselves; agreement with the authors' networks is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.gans.style_layers import (
    EqualizedConv,
    EqualizedDense,
    convolved,
    lrelu,
    minibatch_std,
    modulated_conv,
    pixel_norm,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def test_pixel_norm_and_activation():
    x = pixel_norm(3 * normal(0, 2, 5))
    np.testing.assert_allclose(jnp.square(x).mean(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(x[0, 0] / x[0, 1], normal(0, 2, 5)[0, 0] / normal(0, 2, 5)[0, 1])
    np.testing.assert_allclose(lrelu(jnp.float32([3, -5])), np.sqrt(2) * np.float32([3, -1]))


def test_minibatch_std():
    """Written out: image i is of group i modulo the number of groups."""
    x = normal(0, 6, 2, 2, 3)
    got = jax.jit(minibatch_std, static_argnums=1)(x, 3)
    np.testing.assert_array_equal(got[..., :3], x)
    for i in range(6):
        want = np.std(x[i % 2 :: 2], 0).mean()
        np.testing.assert_allclose(got[i, ..., 3], np.full((2, 2), want), rtol=1e-5)
    np.testing.assert_allclose(minibatch_std(x, 64)[..., 3], np.std(x, 0).mean(), rtol=1e-5)
    alone = minibatch_std(x[:1], 4)[..., 3]
    np.testing.assert_allclose(alone, 1e-4, rtol=1e-5)
    with pytest.raises(UserError, match='groups of 4 got 6 of them: expected a multiple'):
        minibatch_std(x, 4)


@pytest.mark.parametrize('resample', ['', 'up'])
def test_modulation_is_a_kernel_for_each_image(resample):
    """Karras et al. 2020, equations 1 and 3, written out."""
    x, style, kernel = normal(0, 3, 4, 4, 2), normal(1, 3, 2), normal(2, 3, 3, 2, 5)

    def each(x, style, demodulate):
        scaled = style[:, None] * kernel  # w'_ijk, [3, 3, c, o]
        norms = jnp.sqrt(jnp.square(scaled).sum((0, 1, 2)) + 1e-8)
        return convolved(x[None], scaled / norms if demodulate else scaled, resample)[0]

    @jax.jit
    def run(x, style):
        return [
            (modulated_conv(x, kernel, style, demodulate, resample),
             jnp.stack([each(x[i], style[i], demodulate) for i in range(3)]))
            for demodulate in (True, False)
        ]  # fmt: skip

    for got, want in run(x, style):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_equalized_layers_keep_the_mean_square():
    x = normal(0, 64, 4, 4, 32)
    for layer in (EqualizedConv(128, 1), EqualizedDense(128), EqualizedDense(128, 0.01)):
        y, variables = layer.init_with_output(jax.random.key(0), x)
        assert np.std(y) == pytest.approx(1, rel=0.05)
        spread = 1 / getattr(layer, 'rate', 1)
        assert np.std(variables['params']['kernel']) == pytest.approx(spread, rel=0.05)
    params = EqualizedConv(64).init(jax.random.key(0), x)['params']
    assert np.std(params['kernel']) == pytest.approx(1, rel=0.05)
    inside = EqualizedConv(64).apply({'params': params}, x)[:, 1:-1, 1:-1]
    assert np.std(inside) == pytest.approx(1, rel=0.1)


def test_rate_slows_what_the_optimiser_does():
    """A step of the same length in the parameters moves the result `rate` times as far."""
    x = normal(0, 1, 9)
    moved = []
    for rate in (1.0, 0.01):
        layer = EqualizedDense(3, rate)
        params = layer.init(jax.random.key(0), x)
        step = jax.tree.map(lambda p: p + 1.0, params)
        moved.append(layer.apply(step, x) - layer.apply(params, x))
    np.testing.assert_allclose(0.01 * moved[0], moved[1], rtol=1e-4)
    y = EqualizedDense(3, bias_init=1.0).init_with_output(jax.random.key(0), 0 * x)[0]
    np.testing.assert_allclose(y, 1)
