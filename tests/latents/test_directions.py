import numpy as np
import pytest

from gen_jax.errors import UserError
from gen_jax.latents.directions import boundary, principal


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_the_boundary_is_the_plane_that_made_the_labels():
    """Neither offset nor scale matter, nor how rare the attribute is."""
    truth = np.float32([3, 4, 0]) / 5
    w = 7.0 + 0.01 * normal(3000, 3)
    has = (w - 7.0) @ truth > 0.01  # 16%
    found = boundary(w, has)
    assert found.direction @ truth > 0.99
    assert found.accuracy > 0.95
    assert found.n == 600


def test_a_rare_attribute_counts_as_much_as_its_absence():
    """One in 20, which overlaps with the rest: to call all of them the rest is right for 95%."""
    generator = np.random.default_rng(2)
    has = generator.random(4000) < 0.05
    w = normal(4000, 3) + 2.0 * has[:, None] * np.float32([1, 0, 0])
    found = boundary(w, has)
    assert found.direction[0] > 0.95
    assert 0.78 < found.accuracy < 0.9  # best: Phi(1) = 0.84 of each kind


def test_labels_that_w_does_not_decide_are_parted_by_chance():
    found = boundary(normal(2000, 4), np.random.default_rng(1).random(2000) < 0.3)
    assert abs(found.accuracy - 0.5) < 0.06


def test_an_attribute_of_every_tenth_sample_is_learned_and_held_out_too():
    """As that of one label is, where labels follow each other in turn."""
    has, w = np.arange(400) % 10 == 0, normal(400, 3)
    found = boundary(w + 6.0 * has[:, None] * np.float32([0, 1, 0]), has)
    assert found.direction[1] > 0.95
    assert found.accuracy > 0.95


def test_too_few_with_the_attribute_are_told():
    with pytest.raises(UserError, match='9 of 200 samples have the attribute'):
        boundary(normal(200, 2), np.arange(200) < 9)


def test_components_are_those_of_the_covariance():
    """By the eigenvectors of the covariance, as NumPy finds them."""
    w = normal(500, 4) @ normal(4, 4, seed=1)
    found, explained, scales = principal(w, 3)
    values, vectors = np.linalg.eigh(np.cov(w.astype(float), rowvar=False))
    np.testing.assert_allclose(scales**2, values[::-1][:3], rtol=1e-5)
    np.testing.assert_allclose(explained, values[::-1][:3] / values.sum(), rtol=1e-5)
    np.testing.assert_allclose(np.abs(found @ vectors[:, ::-1]), np.eye(3, 4), atol=1e-4)
    largest = np.take_along_axis(found, np.abs(found).argmax(1)[:, None], 1)
    assert (largest > 0).all()


def test_more_components_than_dimensions_are_told():
    with pytest.raises(UserError, match='5 components of 4 dimensions'):
        principal(normal(50, 4), 5)
