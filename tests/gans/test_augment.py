"""What the discriminator sees: each change against its description."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.gans.augment import (
    AUGMENTATIONS,
    augmented,
    brightness,
    contrast,
    cutout,
    moved,
    saturation,
    translation,
)

N = 64
KEYS = jax.random.split(jax.random.key(0), N)
X = np.random.default_rng(0).uniform(-1, 1, (16, 16, 3)).astype(np.float32)


def many(change, x=X):
    return np.asarray(jax.jit(jax.vmap(change, (0, None)))(KEYS, x))


def test_brightness_adds_one_number():
    added = many(brightness) - X
    assert added.std((1, 2, 3)).max() < 1e-6
    each = added.mean((1, 2, 3))
    assert -0.5 < each.min() < -0.4 < 0.4 < each.max() < 0.5


def test_saturation_keeps_the_mean_of_channels():
    changed = many(saturation)
    np.testing.assert_allclose(
        changed.mean(-1), np.broadcast_to(X.mean(-1), (N, 16, 16)), atol=1e-6
    )
    spread = changed.std(-1).mean((1, 2)) / X.std(-1).mean()
    assert 0 < spread.min() < 0.2
    assert 1.8 < spread.max() < 2


def test_contrast_keeps_the_mean():
    changed = many(contrast)
    np.testing.assert_allclose(changed.mean((1, 2, 3)), X.mean(), atol=1e-5)
    spread = changed.std((1, 2, 3)) / X.std()
    assert 0.5 < spread.min() < 0.6
    assert 1.4 < spread.max() < 1.5


def shift(x, dy, dx):
    """x moved down and right, zeros around."""
    padded = np.pad(x, ((2, 2), (2, 2), (0, 0)))
    return padded[2 - dy : 18 - dy, 2 - dx : 18 - dx]


def test_translation_moves_by_up_to_an_eighth():
    places = {(dy, dx): shift(X, dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    found = set()
    for changed in many(translation):
        (place,) = [at for at, x in places.items() if np.array_equal(x, changed)]
        found.add(place)
    assert len(found) > 15  # of 25
    assert {dy for dy, _ in found} == {dx for _, dx in found} == {-2, -1, 0, 1, 2}


def test_cutout_leaves_out_half_the_size():
    gone = many(cutout) == 0
    assert (gone == gone[..., :1]).all()
    rows, columns = gone[..., 0].any(2).sum(1), gone[..., 0].any(1).sum(1)
    np.testing.assert_array_equal(gone[..., 0].sum((1, 2)), rows * columns)  # a rectangle
    for sides in (rows, columns):
        # Its centre is anywhere, its border included: a square of 8 may reach out by 4.
        assert (sides.min(), sides.max()) == (4, 8)


def test_consistency_moves_and_mirrors():
    x = np.broadcast_to(np.arange(16.0)[:, None, None], (N, 16, 16, 1))
    both = np.concatenate([x, np.swapaxes(x, 1, 2)], -1)  # the row, and the column, of a pixel
    row, column = np.moveaxis(np.asarray(jax.jit(moved)(KEYS, both)), -1, 0)
    # Rows go on rising by one in the middle, columns rise or fall: some images are flipped.
    assert (np.diff(row[:, 4:12], axis=1) == 1).all()
    turned = np.diff(column[:, :, 4:12], axis=2)[:, 0, 0]
    assert set(turned) == {-1, 1}
    assert set(row[:, 8, 8] - 8) == {-2, -1, 0, 1, 2}
    assert row.min() >= 0
    assert row.max() <= 15


@pytest.mark.slow
@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_each_image_has_a_key_of_its_own_and_gradients_pass(name):
    x = jnp.broadcast_to(X, (4, *X.shape))
    changed = augmented(KEYS[:4], x, (name,))
    assert len(np.unique(np.asarray(changed).reshape(4, -1), axis=0)) > 1
    np.testing.assert_allclose(augmented(KEYS[2:3], x[:1], (name,))[0], changed[2], atol=1e-6)
    gradient = jax.grad(lambda x: augmented(KEYS[:4], x, (name,)).sum())(x)
    assert np.abs(gradient).max() > 0


def test_no_name_is_no_change():
    np.testing.assert_array_equal(augmented(KEYS[:1], X[None], ()), X[None])
