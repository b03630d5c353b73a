"""Halving and doubling, by hand."""

import jax.numpy as jnp
import numpy as np

from gen_jax.nn.resize import double, halve


def test_resizing():
    x = jnp.arange(16.0).reshape(1, 2, 4, 2)
    small = [[[5, 6], [9, 10]]]
    np.testing.assert_array_equal(halve(x)[0], small)
    np.testing.assert_array_equal(double(halve(x))[0], np.repeat(np.repeat(small, 2, 0), 2, 1))
