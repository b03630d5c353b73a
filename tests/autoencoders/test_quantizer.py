"""Vector quantisation: nearest codes, what each gradient reaches, codes that follow an average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.autoencoders.quantizer import VectorQuantizer, nearest_codes, perplexity

Z = jax.random.normal(jax.random.key(0), (3, 4, 2, 5))


def started(**options):
    quantizer = VectorQuantizer(7, 5, **options)
    return quantizer, quantizer.init({'params': jax.random.key(1), 'restart': jax.random.key(2)}, Z)


@pytest.mark.parametrize('shape', [(6, 5), (2, 3, 4, 5), (1, 1, 5)])
def test_codes_are_the_nearest(shape):
    rng = np.random.default_rng(0)
    z, codes = rng.normal(size=shape), rng.normal(size=(9, 5))
    distances = ((z[..., None, :] - codes) ** 2).sum(-1)
    found = nearest_codes(jnp.float32(z), jnp.float32(codes))
    np.testing.assert_array_equal(found, distances.argmin(-1))
    assert found.dtype == jnp.int32


@pytest.mark.parametrize('decay', [0.0, 0.9])
def test_gradients_pass_straight_through(decay):
    """That of what is decoded goes to the encoder; each distance moves what it is meant to."""
    quantizer, variables = started(decay=decay)
    weights = jax.random.normal(jax.random.key(3), Z.shape)
    back = jax.grad(lambda z: (quantizer.apply(variables, z).z * weights).sum())(Z)
    np.testing.assert_array_equal(back, weights)
    found = quantizer.apply(variables, Z)
    codes = variables['codebook']['codes'] if decay else variables['params']['codes']
    np.testing.assert_allclose(found.z, codes[found.indices], atol=1e-6)
    square = ((Z - codes[found.indices]) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(found.commitment, square, rtol=1e-5)
    np.testing.assert_allclose(found.codebook, 0 * square if decay else square, rtol=1e-5)

    def by(field):
        loss = lambda variables, z: getattr(quantizer.apply(variables, z), field).sum()  # noqa: E731
        return jax.grad(loss, (0, 1))(variables, Z)

    of_codes, of_z = by('commitment')
    assert jnp.abs(of_z).max() > 0
    assert not any(x.any() for x in jax.tree.leaves(of_codes))
    of_codes, of_z = by('codebook')
    assert not of_z.any()
    assert any(x.any() for x in jax.tree.leaves(of_codes)) == (decay == 0)


def test_the_moving_average_is_the_papers():
    """Equations 6 to 8, by loops."""
    gamma = 0.8
    quantizer, variables = started(decay=gamma)
    kept = jax.tree.map(np.asarray, variables['codebook'])
    found, changed = quantizer.apply(variables, Z, train=True, mutable=['codebook'])
    vectors, used = np.reshape(Z, (-1, 5)), np.ravel(found.indices)
    counts, sums = kept['counts'].copy(), kept['sums'].copy()
    for k in range(7):
        counts[k] = gamma * counts[k] + (1 - gamma) * (used == k).sum()
        sums[k] = gamma * sums[k] + (1 - gamma) * vectors[used == k].sum(0)
    np.testing.assert_allclose(changed['codebook']['counts'], counts, rtol=1e-5)
    np.testing.assert_allclose(changed['codebook']['sums'], sums, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        changed['codebook']['codes'], sums / counts[:, None], rtol=1e-3, atol=1e-5
    )
    # What was given are codes of before.
    np.testing.assert_allclose(found.z, kept['codes'][found.indices], atol=1e-6)
    # Nothing moves in evaluation.
    _, same = quantizer.apply(variables, Z, mutable=['codebook'])
    jax.tree.map(np.testing.assert_array_equal, same['codebook'], variables['codebook'])


@pytest.mark.slow
def test_averaged_codes_settle_in_the_middle_of_what_they_stand_for():
    """As those of k-means, none unused."""
    rng = np.random.default_rng(0)
    centres = 5 * rng.normal(size=(7, 5))
    z = centres[rng.integers(0, 7, 700)] + 0.01 * rng.normal(size=(700, 5))
    quantizer, variables = started(decay=0.9, restart=0.5)
    step = jax.jit(
        lambda variables, key: quantizer.apply(
            variables, jnp.float32(z), train=True, mutable=['codebook'], rngs={'restart': key}
        )[1]
    )
    for i in range(200):
        variables = step(variables, jax.random.key(i))
    codes = np.asarray(variables['codebook']['codes'])
    used = ((z[:, None] - codes) ** 2).sum(-1).argmin(1)
    middles = np.stack([z[used == k].mean(0) for k in range(7)])
    np.testing.assert_allclose(codes, middles, atol=0.02)


def test_dead_codes_restart_at_vectors_of_the_batch():
    quantizer, variables = started(decay=0.5, restart=1e-3)
    far = variables['codebook']['codes'].at[2].set(1e3)
    counts = jnp.ones(7).at[2].set(1e-3)
    variables = {'codebook': variables['codebook'] | {'codes': far, 'counts': counts}}
    _, changed = quantizer.apply(
        variables, Z, train=True, mutable=['codebook'], rngs={'restart': jax.random.key(5)}
    )
    new = changed['codebook']['codes'][2]
    assert jnp.abs(Z.reshape(-1, 5) - new).sum(-1).min() < 1e-4
    assert changed['codebook']['counts'][2] == 1


def test_perplexity():
    assert perplexity(jnp.zeros((2, 3), jnp.int32), 4) == pytest.approx(1)
    assert perplexity(jnp.arange(8).reshape(2, 4) % 4, 4) == pytest.approx(4, rel=1e-5)
    shares = np.array([0.5, 0.25, 0.25])
    want = np.exp(-(shares * np.log(shares)).sum())
    assert perplexity(jnp.array([0, 0, 1, 2]), 5) == pytest.approx(want, rel=1e-5)
