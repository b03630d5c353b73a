"""Vector quantisation: nearest codes, what each gradient reaches, codes that follow an average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.autoencoders.quantizer import VectorQuantizer, moved, nearest_codes, perplexity

Z = jax.random.normal(jax.random.key(0), (3, 4, 2, 5))


def started(averaged=True):
    quantizer = VectorQuantizer(7, 5, averaged)
    return quantizer, quantizer.init(jax.random.key(1), Z)


def stepped(quantizer, variables, z, decay, restart=0.0, seed=5):
    """What is found of each part of vectors [parts, ...], and the codebook after a step of all."""
    codebook, each = variables['codebook'], []
    variables = variables | {'assigned': jax.tree.map(jnp.zeros_like, codebook)}
    for part in z:
        found, changed = quantizer.apply(
            variables, part, True, mutable=['assigned'], rngs={'restart': jax.random.key(seed)}
        )
        variables |= changed
        each.append(found)
    return each, moved(codebook, variables['assigned'], decay, restart)


@pytest.mark.parametrize('shape', [(6, 5), (2, 3, 4, 5), (1, 1, 5)])
def test_codes_are_the_nearest(shape):
    rng = np.random.default_rng(0)
    z, codes = rng.normal(size=shape), rng.normal(size=(9, 5))
    distances = ((z[..., None, :] - codes) ** 2).sum(-1)
    found = nearest_codes(jnp.float32(z), jnp.float32(codes))
    np.testing.assert_array_equal(found, distances.argmin(-1))
    assert found.dtype == jnp.int32


@pytest.mark.parametrize('averaged', [False, True])
def test_gradients_pass_straight_through(averaged):
    """That of what is decoded goes to the encoder; each distance moves what it is meant to."""
    quantizer, variables = started(averaged)
    weights = jax.random.normal(jax.random.key(3), Z.shape)
    back = jax.grad(lambda z: (quantizer.apply(variables, z).z * weights).sum())(Z)
    np.testing.assert_array_equal(back, weights)
    found = quantizer.apply(variables, Z)
    codes = variables['codebook']['codes'] if averaged else variables['params']['codes']
    np.testing.assert_allclose(found.z, codes[found.indices], atol=1e-6)
    square = ((Z - codes[found.indices]) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(found.commitment, square, rtol=1e-5)
    np.testing.assert_allclose(found.codebook, 0 * square if averaged else square, rtol=1e-5)

    def by(field):
        loss = lambda variables, z: getattr(quantizer.apply(variables, z), field).sum()  # noqa: E731
        return jax.grad(loss, (0, 1))(variables, Z)

    of_codes, of_z = by('commitment')
    assert jnp.abs(of_z).max() > 0
    assert not any(x.any() for x in jax.tree.leaves(of_codes))
    of_codes, of_z = by('codebook')
    assert not of_z.any()
    assert any(x.any() for x in jax.tree.leaves(of_codes)) == (not averaged)


@pytest.mark.parametrize('parts', [1, 3])
def test_the_moving_average_is_the_papers(parts):
    """Equations 6 to 8, by loops over all vectors, however many parts these come in."""
    gamma = 0.8
    quantizer, variables = started()
    kept = jax.tree.map(np.asarray, variables['codebook'])
    each, after = stepped(quantizer, variables, jnp.split(Z, parts), gamma)
    vectors, used = np.reshape(Z, (-1, 5)), np.ravel([found.indices for found in each])
    counts, sums = kept['counts'].copy(), kept['sums'].copy()
    for k in range(7):
        counts[k] = gamma * counts[k] + (1 - gamma) * (used == k).sum()
        sums[k] = gamma * sums[k] + (1 - gamma) * vectors[used == k].sum(0)
    np.testing.assert_allclose(after['counts'], counts, rtol=1e-5)
    np.testing.assert_allclose(after['sums'], sums, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after['codes'], sums / counts[:, None], rtol=1e-3, atol=1e-5)
    # What was given are codes of before.
    np.testing.assert_allclose(each[-1].z, kept['codes'][each[-1].indices], atol=1e-6)


@pytest.mark.slow
def test_averaged_codes_settle_in_the_middle_of_what_they_stand_for():
    """As those of k-means, none unused."""
    rng = np.random.default_rng(0)
    centres = 5 * rng.normal(size=(7, 5))
    z = centres[rng.integers(0, 7, 700)] + 0.01 * rng.normal(size=(700, 5))
    quantizer, variables = started()
    step = jax.jit(
        lambda variables, i: stepped(quantizer, variables, jnp.float32(z)[None], 0.9, 0.5, i)[1]
    )
    for i in range(200):
        variables = {'codebook': step(variables, i)}
    codes = np.asarray(variables['codebook']['codes'])
    used = ((z[:, None] - codes) ** 2).sum(-1).argmin(1)
    middles = np.stack([z[used == k].mean(0) for k in range(7)])
    np.testing.assert_allclose(codes, middles, atol=0.02)


def test_dead_codes_restart_at_vectors_of_the_batch():
    quantizer, variables = started()
    far = variables['codebook']['codes'].at[2].set(1e3)
    counts = jnp.ones(7).at[2].set(1e-3)
    variables = {'codebook': variables['codebook'] | {'codes': far, 'counts': counts}}
    _, after = stepped(quantizer, variables, Z[None], 0.5, 1e-3)
    assert jnp.abs(Z.reshape(-1, 5) - after['codes'][2]).sum(-1).min() < 1e-4
    assert after['counts'][2] == 1


def test_perplexity():
    assert perplexity(jnp.zeros((2, 3), jnp.int32), 4) == pytest.approx(1)
    assert perplexity(jnp.arange(8).reshape(2, 4) % 4, 4) == pytest.approx(4, rel=1e-5)
    shares = np.array([0.5, 0.25, 0.25])
    want = np.exp(-(shares * np.log(shares)).sum())
    assert perplexity(jnp.array([0, 0, 1, 2]), 5) == pytest.approx(want, rel=1e-5)
