"""gen_jax: deep generative image models in JAX and Flax, every family in one house."""

__version__ = '0.1.0'
