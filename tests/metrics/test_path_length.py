import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.metrics.path_length import draw, lerp, path_length, resize, slerp

N, D = 40, 6
MATRIX = np.random.default_rng(7).normal(size=(D, 12)).astype(np.float32)


def linear(z, index):
    return (z @ MATRIX).reshape(-1, 2, 2, 3)


def squared(x, y):
    return ((x - y) ** 2).sum((1, 2, 3))


def ends(n=N, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, D)), rng.normal(size=(n, D)), rng.uniform(size=n)


def test_linear_generator_along_lines():
    """|W (b - a)|^2, whatever t and epsilon."""
    a, b, t = ends()
    want = (((b - a) @ MATRIX) ** 2).sum(1)
    for epsilon in (0.5, 1e-2):
        found = path_length(linear, squared, a, b, t, 'lerp', epsilon, discard=False)
        np.testing.assert_allclose(found['path_length'], want.mean(), rtol=1e-4)
        np.testing.assert_allclose(found['path_length_std'], want.std(), rtol=1e-4)


def test_the_papers_epsilon():
    """Rounding of float32 latents stays below a thousandth at 1e-4."""
    a, b, t = ends()
    want = (((b - a) @ MATRIX) ** 2).sum(1).mean()
    exact = lambda z, index: np.float64(z) @ MATRIX  # noqa: E731
    distance = lambda x, y: ((np.asarray(x) - np.asarray(y)) ** 2).sum(1)  # noqa: E731
    with jax.enable_x64(True):
        found = path_length(exact, distance, a, b, t, 'lerp', discard=False)
    np.testing.assert_allclose(found['path_length'], want, rtol=1e-3)


def test_arcs():
    """Over ends of length r at an angle w, a step is a chord of 2 r sin(w epsilon / 2)."""
    epsilon, angle, r = 0.1, 1.2, 3.0
    a = np.tile(r * np.eye(D)[0], (N, 1))
    b = np.tile(r * (np.cos(angle) * np.eye(D)[0] + np.sin(angle) * np.eye(D)[1]), (N, 1))
    straight = lambda z, index: jnp.asarray(z)[:, None, None]  # noqa: E731
    found = path_length(straight, squared, a, b, np.linspace(0, 1, N), 'slerp', epsilon)
    want = (2 * r * np.sin(angle * epsilon / 2) / epsilon) ** 2
    np.testing.assert_allclose(found['path_length'], want, rtol=1e-5)
    np.testing.assert_allclose(found['path_length_std'], 0, atol=1e-4)


def test_slerp():
    a, b, t = ends()
    np.testing.assert_allclose(slerp(a, b, np.zeros((N, 1))), a, atol=1e-12)
    np.testing.assert_allclose(slerp(a, b, np.ones((N, 1))), b, atol=1e-12)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    np.testing.assert_allclose(np.linalg.norm(slerp(a, b, t[:, None]), axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize('factor', [2.0, -1.0, 0.0])
def test_slerp_without_an_arc_is_a_line(factor):
    a, _, t = ends()
    b, t = factor * a, t[:, None]
    np.testing.assert_array_equal(slerp(a, b, t), lerp(a, b, t))


def test_any_batch_size():
    a, b, t = ends(11)
    found = [
        path_length(linear, squared, a, b, t, epsilon=0.01, batch_size=size)['path_length']
        for size in (1, 4, 11, 50)
    ]
    np.testing.assert_allclose(found, found[0], rtol=1e-5)


def test_both_ends_of_a_step_know_their_sample():
    """Labels and noise, looked up by index, cancel."""
    a, b, t = ends(11)
    noise = np.random.default_rng(1).normal(size=(11, 2, 2, 3))
    noisy = lambda z, index: linear(z, index) + noise[index]  # noqa: E731
    plain = path_length(linear, squared, a, b, t, epsilon=0.1, batch_size=4)
    found = path_length(noisy, squared, a, b, t, epsilon=0.1, batch_size=4)
    np.testing.assert_allclose(found['path_length'], plain['path_length'], rtol=1e-4)


def test_extremes_are_left_out():
    """Of 200 lengths, percentile 1 lies between the second and third, 99 likewise at the top."""
    lengths = np.arange(200.0) ** 2
    lengths[[0, 199]] = -1e9, 1e9
    order = np.random.default_rng(0).permutation(200)
    carry = lambda z, index: jnp.asarray(index, jnp.float32)[:, None, None, None]  # noqa: E731
    distance = lambda x, y: lengths[order][np.asarray(x, int)[:, 0, 0, 0]]  # noqa: E731
    found = path_length(carry, distance, *ends(200), epsilon=1.0)
    kept = np.arange(1, 199.0) ** 2
    np.testing.assert_allclose(found['path_length'], kept.mean(), rtol=1e-12)
    np.testing.assert_allclose(found['path_length_std'], kept.std(), rtol=1e-12)
    found = path_length(carry, distance, *ends(200), epsilon=1.0, discard=False)
    np.testing.assert_allclose(found['path_length'], lengths.mean(), rtol=1e-12)


def test_one_sample():
    a, b, t = ends(1)
    found = path_length(linear, squared, a, b, t, 'lerp', 0.1)
    np.testing.assert_allclose(found['path_length'], (((b - a) @ MATRIX) ** 2).sum(), rtol=1e-4)
    assert found['path_length_std'] == 0


def test_draw():
    few, many = (
        draw(jax.random.key(3), 5, D),
        [np.asarray(x) for x in draw(jax.random.key(3), 400, D)],
    )
    for x, y in zip(few, many, strict=True):
        np.testing.assert_allclose(x, y[:5], atol=1e-6)
    a, b, t = many
    assert a.shape == b.shape == (400, D)
    np.testing.assert_allclose([a.mean(), b.mean(), (a * b).mean()], 0, atol=0.08)
    np.testing.assert_allclose([a.std(), b.std()], 1, atol=0.06)
    assert 0 <= t.min() < 0.05
    assert 0.95 < t.max() < 1
    x, y, end = draw(jax.random.key(3), 400, D, 'end')
    np.testing.assert_array_equal([x, y], [a, b])
    assert end.shape == (400,)
    assert not end.any()


def test_resize_down_is_a_mean_over_areas():
    x = np.random.default_rng(0).normal(size=(2, 12, 6, 3)).astype(np.float32)
    want = x.reshape(2, 3, 4, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(resize(x, 3), want, atol=1e-6)
    # Five pixels into two: both new ones touch the middle.
    line = np.broadcast_to(np.arange(5.0, dtype=np.float32)[:, None, None], (1, 5, 5, 1))
    np.testing.assert_allclose(resize(line, 2)[0, :, 0, 0], [1, 3], rtol=1e-6)


def test_resize_up_is_bilinear():
    x = np.array([0.0, 4.0], np.float32).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(resize(x, 4)[0, :, 2, 0], [0, 1, 3, 4])


def test_refuses():
    a, b, t = ends()
    with pytest.raises(UserError, match=r'expected \[n, d\]'):
        path_length(linear, squared, a, b[:, 1:], t)
    with pytest.raises(UserError, match=r'expected \[n, d\]'):
        path_length(linear, squared, a, b, t[1:])
    with pytest.raises(UserError, match=r'expected \[n, d\]'):
        path_length(linear, squared, a[:0], b[:0], t[:0])
    with pytest.raises(UserError, match='expected one of slerp, lerp'):
        path_length(linear, squared, a, b, t, 'spline')
    with pytest.raises(UserError, match='positive step'):
        path_length(linear, squared, a, b, t, epsilon=0.0)
    with pytest.raises(UserError, match='40 of 40 path lengths are not finite'):
        path_length(lambda z, index: linear(z, index) * np.nan, squared, a, b, t)
    with pytest.raises(UserError, match="expected 'full' or 'end'"):
        draw(jax.random.key(0), 2, D, 'start')
