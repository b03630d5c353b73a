"""Attention between the pixels of a feature map."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nn.norm import GroupNorm


class Attention(nn.Module):
    """Self-attention over pixels, with one head, after a group norm and around a shortcut.

    Attributes:
      groups: of the norm.
      dtype: of the computation; parameters, statistics and the softmax are float32.
      kernel_init: of queries, keys and values.
      out_init: of what is added.
    """

    groups: int
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()
    out_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h, w, c], the input plus what it attends to."""
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, dtype=self.dtype, name='group_norm')(x)
        options = {'dtype': self.dtype, 'kernel_init': self.kernel_init}
        q, k, v = (
            nn.Dense(c, name=name, **options)(y).reshape(b, h * w, 1, c)  # [b, hw, 1, c]
            for name in ('to_q', 'to_k', 'to_v')
        )
        y = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)  # [b, h, w, c]
        return x + nn.Dense(c, dtype=self.dtype, kernel_init=self.out_init, name='to_out')(y)
