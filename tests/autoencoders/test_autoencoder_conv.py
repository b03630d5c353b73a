"""The convolutional encoder and decoder: shapes, widths, precision."""

import jax
import jax.numpy as jnp
import pytest

from gen_jax.autoencoders import conv


@pytest.mark.parametrize(('size', 'multipliers'), [(28, (1, 2)), (8, (1, 2, 2)), (12, (2,))])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_shapes_and_widths(size, multipliers, dtype):
    encoder = conv.Encoder(4, multipliers, 16, 6, dtype)
    decoder = conv.Decoder(4, multipliers, 16, size, 3, dtype)
    key, x, z = jax.random.key(0), jnp.zeros((2, size, size, 3)), jnp.zeros((2, 5))
    out, variables = jax.eval_shape(encoder.init_with_output, key, x)
    assert (out.shape, out.dtype) == ((2, 6), jnp.float32)
    widths = [variables['params'][f'conv_{i}']['bias'].shape for i in range(len(multipliers))]
    assert widths == [(4 * m,) for m in multipliers]
    out, variables = jax.eval_shape(decoder.init_with_output, key, z)
    assert (out.shape, out.dtype) == ((2, size, size, 3), jnp.float32)
    widths = [variables['params'][f'conv_{i}']['bias'].shape for i in range(len(multipliers))]
    assert widths == [(4 * m,) for m in multipliers]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
