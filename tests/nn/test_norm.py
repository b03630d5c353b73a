import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.nn.norm import GroupNorm


@pytest.mark.slow
@pytest.mark.parametrize(
    ('shape', 'groups'), [((2, 5, 7, 12), 4), ((1, 1, 1, 8), 2), ((3, 4, 4, 6), 6)]
)
def test_value_gradients_and_parameters_are_flaxs(shape, groups):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), shape)
    g = jax.random.normal(jax.random.key(1), shape)
    reference = nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)
    ours = GroupNorm(groups, epsilon=1e-5)
    variables = jax.tree.map(
        lambda p: p + jax.random.normal(jax.random.key(2), p.shape),
        reference.init(jax.random.key(3), x),
    )
    made = ours.init(jax.random.key(3), x)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, variables)

    def both(module):
        y, back = jax.vjp(lambda v, x: module.apply(v, x), variables, x)
        return y, back(g)

    for a, b in zip(jax.tree.leaves(both(ours)), jax.tree.leaves(both(reference)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * float(jnp.abs(b).max()))


def test_a_large_mean_costs_no_digits():
    x = 1e3 + jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    exact = np.asarray(x, np.float64).reshape(2, 64, 2, 2)
    exact = (exact - exact.mean((1, 3), keepdims=True)) / exact.std((1, 3), keepdims=True)
    y = GroupNorm(2).apply({'params': {'scale': jnp.ones(4), 'bias': jnp.zeros(4)}}, x)
    np.testing.assert_allclose(y, exact.reshape(2, 8, 8, 4), atol=2e-3)


def test_bfloat16_has_float32_statistics():
    x = (100 + jax.random.normal(jax.random.key(0), (2, 8, 8, 4))).astype(jnp.bfloat16)
    norm = GroupNorm(2, dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)
    y = norm.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    exact = GroupNorm(2).apply(variables, x.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.02)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(TypeError):
        GroupNorm(5).init(jax.random.key(0), jnp.zeros((1, 2, 2, 8)))
