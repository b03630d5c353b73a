"""Objectives against the papers' formulas, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.gans.objectives import OBJECTIVES

REAL, FAKE = np.random.default_rng(0).normal(size=(2, 9)) * 3
P_REAL, P_FAKE = 1 / (1 + np.exp(-REAL)), 1 / (1 + np.exp(-FAKE))
CROSS = -(np.log(P_REAL) + np.log(1 - P_FAKE)).mean()
WANT = {
    'minimax': (CROSS, np.log(1 - P_FAKE).mean()),
    'non_saturating': (CROSS, -np.log(P_FAKE).mean()),
    'least_squares': (((REAL - 1) ** 2 + FAKE**2).mean() / 2, ((FAKE - 1) ** 2).mean() / 2),
    'hinge': (
        (np.maximum(0, 1 - REAL) + np.maximum(0, 1 + FAKE)).mean(),
        -FAKE.mean(),
    ),
    'wasserstein': (FAKE.mean() - REAL.mean(), -FAKE.mean()),
}


@pytest.mark.parametrize('name', OBJECTIVES)
def test_the_papers_formulas(name):
    objective, want = OBJECTIVES[name], WANT[name]
    real, fake = jnp.float32(REAL), jnp.float32(FAKE)
    np.testing.assert_allclose(objective.discriminator(real, fake, (0, 0)), want[0], rtol=1e-5)
    np.testing.assert_allclose(objective.generator(fake), want[1], rtol=1e-5)
    far = jnp.float32([-1e4, 1e4])
    assert np.isfinite([objective.discriminator(far, far, (0, 0)), objective.generator(far)]).all()


def test_smoothing_moves_the_targets():
    real, fake = jnp.float32(REAL), jnp.float32(FAKE)
    loss = OBJECTIVES['non_saturating'].discriminator
    # -(1 - s) log D - s log(1 - D) = -log D + s * logit, and likewise of the fake ones.
    added = loss(real, fake, (0.2, 0.1)) - loss(real, fake, (0.0, 0.0))
    np.testing.assert_allclose(added, 0.2 * REAL.mean() - 0.1 * FAKE.mean(), rtol=1e-4)
    got = OBJECTIVES['least_squares'].discriminator(real, fake, (0.2, 0.1))
    want = ((REAL - 0.8) ** 2 + (FAKE - 0.1) ** 2).mean() / 2
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_where_an_image_counts_as_real():
    """Half way between the targets; a score has no such place."""
    found = {name: objective.boundary for name, objective in OBJECTIVES.items()}
    assert found == {
        'minimax': 0.0,
        'non_saturating': 0.0,
        'least_squares': 0.5,
        'hinge': 0.0,
        'wasserstein': None,
    }
