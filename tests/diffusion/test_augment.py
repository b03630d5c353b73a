import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import augment
from gen_jax.diffusion.augment import Augmentation

NONE = Augmentation(*jnp.zeros((8, 1)))


def smooth(h=24, w=24):
    """A blob right of and above the middle, which the filters leave as it is."""
    y, x = np.meshgrid(np.arange(h) - (h - 1) / 2, np.arange(w) - (w - 1) / 2, indexing='ij')
    return x, y, jnp.float32(blob(x, y))[None, :, :, None]


def blob(x, y):
    return np.exp(-((x - 4) ** 2) / 18 - (y + 3) ** 2 / 8)


def one(**changes):
    return NONE._replace(**{name: jnp.full(1, value) for name, value in changes.items()})


@pytest.mark.parametrize(
    ('done', 'want'),
    [
        (NONE, lambda x, y: blob(x, y)),
        (one(flip_x=1.0), lambda x, y: blob(-x, y)),
        (one(flip_y=1.0), lambda x, y: blob(x, -y)),
        (one(scale=-2.0), lambda x, y: blob(x * 2**0.4, y * 2**0.4)),
        (one(rotation=np.pi / 2), lambda x, y: blob(-y, x)),  # right goes up, as rows count down
        (one(stretch=1.0), lambda x, y: blob(x / 2**0.2, y * 2**0.2)),
        (one(stretch=1.0, stretch_angle=np.pi / 2), lambda x, y: blob(x * 2**0.2, y / 2**0.2)),
        (one(shift_x=-1.0, shift_y=1.0), lambda x, y: blob(x + 3, y - 3)),
        (one(shift_x=0.5), lambda x, y: blob(x - 1.5, y)),
    ],
)
def test_each_kind_moves_the_image_as_it_says(done, want):
    x, y, image = smooth()
    found = jax.jit(augment.apply)(image, done)[0, :, :, 0]
    inner = slice(3, -3)  # of the mirror images beyond the edges, little comes this far
    np.testing.assert_allclose(found[inner, inner], want(x, y)[inner, inner], atol=0.02)


def test_draws_are_as_likely_as_they_should_be():
    n, p = 20_000, 0.12
    done = jax.jit(augment.draw, static_argnums=(1, 2))(jax.random.key(0), n, p)
    some = {name: np.mean(np.asarray(x) != 0) for name, x in done._asdict().items()}
    want = dict.fromkeys(some, p) | {'flip_x': 0.5, 'flip_y': p / 2, 'stretch_angle': 0.5}
    assert some == pytest.approx(want, abs=0.012)
    given = {name: np.asarray(x)[np.asarray(x) != 0] for name, x in done._asdict().items()}
    for name in ('scale', 'stretch', 'shift_x', 'shift_y'):
        assert given[name].std() == pytest.approx(1, abs=0.05)
    assert given['rotation'].std() == pytest.approx(np.pi / 3**0.5, rel=0.03)
    assert np.corrcoef(done.shift_x != 0, done.shift_y != 0)[0, 1] == pytest.approx(1)
    apart = np.corrcoef([np.asarray(x) != 0 for x in done[:5]]) - np.eye(5)
    assert np.abs(apart).max() < 0.03


def test_labels():
    assert not np.asarray(NONE.labels()).any()
    done = one(flip_x=1.0, rotation=np.pi / 2, stretch=-2.0, stretch_angle=np.pi, shift_y=3.0)
    want = [1, 0, 0, -1, 1, 2, 0, 0, 3]
    np.testing.assert_allclose(done.labels(), [want], atol=1e-6)
    assert len(want) == augment.LABELS


@pytest.mark.slow
def test_images_do_not_mix():
    done = augment.draw(jax.random.key(1), 3, 1.0)
    image = jax.random.normal(jax.random.key(2), (3, 6, 4, 2))
    apply = jax.jit(augment.apply)
    whole = apply(image, done)
    alone = apply(image[1:2], Augmentation(*(x[1:2] for x in done)))
    np.testing.assert_allclose(whole[1], alone[0], atol=1e-5)
