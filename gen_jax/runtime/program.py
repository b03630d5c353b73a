"""A config made runnable: its method on its mesh, each step under jit with its shardings."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.method import Method
from gen_jax.runtime import random, sharding


class Program:
    """What the modes share. Making one compiles nothing.

    Attributes:
      config, method, mesh: as given.
      batch_sharding: how a global batch lies on the mesh.
      state_shape: the state as ShapeDtypeStructs with their shardings.
    """

    def __init__(self, config, method: Method, batch_spec: dict):
        """Lays the method's state out on the mesh.

        Args:
          config: a validated config.
          method: what it names.
          batch_spec: the global batch, as ShapeDtypeStructs.
        """
        self.config, self.method = config, method
        self.mesh = sharding.make_mesh(config.mesh)
        sharding.check_divides(config.batch_size, self.mesh, 'batch_size')
        sharding.check_divides(config.sample.batch_size, self.mesh, 'sample.batch_size')
        self.batch_sharding = sharding.batch_sharding(self.mesh)
        self._everywhere = sharding.replicated(self.mesh)

        def init():
            batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch_spec)
            return method.init(random.stream(config.seed, 'init'), batch)

        shapes = jax.eval_shape(init)
        placed = sharding.state_shardings(self.mesh, shapes, config.mesh.rules)
        self.state_shape = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, placed
        )
        self.init = jax.jit(init, out_shardings=placed)
        # Donation lets the new state take the old one's memory.
        self.train_step = jax.jit(
            self._train_step,
            in_shardings=(None, placed, self.batch_sharding),
            out_shardings=(placed, self._everywhere),
            donate_argnums=1,
        )
        self._sample_step = jax.jit(
            self._sample, in_shardings=(placed, None, None), out_shardings=self._everywhere
        )
        self._evaluate_step = jax.jit(
            self._evaluate,
            in_shardings=(placed, None, self.batch_sharding),
            out_shardings=self._everywhere,
        )

    def _train_step(self, step, state, batch):
        return self.method.train_step(
            random.step_key(self.config.seed, 'train', step), state, batch
        )

    def _sample(self, state, indices, condition):
        keys, condition = self._spread((self._keys('sample', indices), condition))
        images = self.method.sample_step(keys, state, condition)
        return jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)

    def _evaluate(self, state, indices, batch):
        return self.method.evaluate_step(
            self._spread(self._keys('evaluate', indices)), state, batch
        )

    def _keys(self, name: str, indices):
        return random.sample_keys(self.config.seed, name, indices)

    def _spread(self, tree):
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, self.batch_sharding), tree
        )

    def condition(self, indices: np.ndarray) -> dict:
        """What the samples of these indices are asked for: labels in turn, and the knobs."""
        sample = self.config.sample
        condition = {
            name: np.full(len(indices), value, np.float32) for name, value in sample.knobs.items()
        }
        if classes := self.config.data.num_classes:
            labels = (
                indices % classes if sample.label == -1 else np.full_like(indices, sample.label)
            )
            condition['label'] = labels.astype(np.int32)
        return condition

    def sample(self, state, indices: np.ndarray) -> np.ndarray:
        """The images of these indices, uint8 [n, h, w, c], `sample.batch_size` at a time.

        Every process gets all of them. The last batch is filled up, so that one program serves.
        """
        size = self.config.sample.batch_size
        images = []
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            filled = np.resize(part, size).astype(np.int32)
            made = self._sample_step(state, filled, self.condition(filled))
            images.append(np.asarray(made)[: len(part)])
        return np.concatenate(images)

    def evaluate(self, state, indices: np.ndarray, batch: dict) -> dict[str, np.ndarray]:
        """The method's numbers for one global batch, each float32 [b]."""
        return jax.device_get(self._evaluate_step(state, indices, batch))
