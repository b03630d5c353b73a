"""FactorVAE's second net (Kim and Mnih 2018): what of z is not independent, told by a classifier.

The net learns to tell z of the posterior from z whose numbers are of different images. Where it
knows both alike z's numbers are independent; its log odds estimate their total correlation.
"""

import jax
import optax
from flax import linen as nn

# Of `config.vae`.
OPTIONS = {
    'gamma': 35.0,  # weight of the total correlation
    # Of the second net (Kim and Mnih, appendix A): layers, their width, Adam's rate.
    'judge_layers': 6,
    'judge_width': 1000,
    'judge_rate': 1e-4,
}
B1, B2 = 0.5, 0.9  # of its Adam


class Judge(nn.Module):
    """Two logits of z: that it is the posterior's, and that its numbers are of different images.

    Kim and Mnih 2018, appendix A.

    Attributes:
      layers: how many there are.
      width: of all but the last.
    """

    layers: int
    width: int

    @nn.compact
    def __call__(self, z):
        """[b, d] -> [b, 2]."""
        for i in range(self.layers - 1):
            z = nn.leaky_relu(nn.Dense(self.width, name=f'dense_{i}')(z), 0.2)
        return nn.Dense(2, name='out')(z)


def optimizer(options) -> optax.GradientTransformation:
    """What trains the net that `OPTIONS` describe."""
    return optax.adam(options.judge_rate, B1, B2)


def correlation(judge: Judge, variables: dict, z: jax.Array) -> jax.Array:
    """The log odds that z [b, d] is the posterior's, [b]: of total correlation in nats the mean."""
    logits = judge.apply(variables, z)
    return logits[:, 0] - logits[:, 1]


def judged(judge: Judge, variables: dict, z: jax.Array, apart: jax.Array) -> jax.Array:
    """The judge's cross-entropy of z [b, d] and of shuffled ones (Kim and Mnih, algorithm 2)."""
    of_z, of_apart = (jax.nn.log_softmax(judge.apply(variables, x)) for x in (z, apart))
    return -(of_z[:, 0].mean() + of_apart[:, 1].mean()) / 2


def shuffled(key: jax.Array, z: jax.Array) -> jax.Array:
    """Each number of z [b, d] from another image of the batch (Kim and Mnih 2018, algorithm 1)."""
    keys = jax.random.split(key, z.shape[-1])
    return jax.vmap(jax.random.permutation, (0, 1), 1)(keys, z)
