"""A config made runnable: its method on its mesh, each step under jit with its shardings."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.data import pipeline
from gen_jax.errors import NotFinite
from gen_jax.method import Method
from gen_jax.runtime import operations, random, sharding
from gen_jax.runtime.compilation import compiler_options

# Knobs that may help where images are not finite, {name: (what it is at least, what to do)}.
HELP = {
    'tolerance': (0, 'a larger config.sample.knobs.tolerance'),
    'steps': (0, 'more config.sample.knobs.steps'),
    'guidance': (1, 'less config.sample.knobs.guidance'),
}


class Program:
    """What the modes share. Making one compiles nothing.

    Attributes:
      config, method, mesh: as given.
      batch_spec: the least that a global batch holds, as ShapeDtypeStructs.
      batch_sharding: how a global batch lies on the mesh.
      state_shape: the state as ShapeDtypeStructs with their shardings.
    """

    def __init__(self, config, method: Method, devices: list | None = None):
        """Lays the method's state out on the mesh.

        Args:
          config: a validated config.
          method: what it names.
          devices: of the mesh; None: all there are. Programs for devices that are only described
            (`jax.experimental.topologies`) can be lowered and compiled, not run.
        """
        self.config, self.method = config, method
        self.mesh = sharding.make_mesh(config.mesh, devices)
        sharding.check_divides(config.batch_size, self.mesh, 'batch_size', config.accumulate)
        sharding.check_divides(config.sample.batch_size, self.mesh, 'sample.batch_size')
        self.batch_sharding = sharding.batch_sharding(self.mesh)
        self.batch_spec = pipeline.batch_spec(config)
        self._everywhere = sharding.replicated(self.mesh)

        @jax.jit  # its shapes are found by the trace that is compiled: one, not two
        def init():
            batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.batch_spec)
            return method.init(random.stream(config.seed, 'init'), batch)

        with self._known():
            shapes = jax.eval_shape(init)
        sharding.check_rules(config.mesh.rules, shapes)
        placed = sharding.state_shardings(self.mesh, shapes, config.mesh.rules)
        self.state_shape = sharding.laid_out(shapes, placed)
        self._gathered = functools.partial(sharding.gathered, shardings=placed)
        jit = self._jit
        self._init = self._jit(init, once=True, out_shardings=placed)
        # Donation lets the new state take the old one's memory. The seed is traced in all three:
        # another one needs no other program.
        train = functools.partial(
            jit,
            in_shardings=(None, None, placed, self.batch_sharding),
            out_shardings=(placed, self._everywhere),
            donate_argnums=2,
        )
        self._train = functools.cache(lambda stage: train(self._stepping(stage)))
        self._sample = jit(
            self._sample_step,
            in_shardings=(None, placed, None, None),
            out_shardings=self._everywhere,
        )
        self._settle = method.settle and jit(
            self._settling, in_shardings=(None, placed), out_shardings=placed
        )
        self._evaluate = jit(
            self._evaluate_step,
            in_shardings=(None, placed, None, self.batch_sharding),
            out_shardings=self._everywhere,
        )
        split = self.batch_sharding
        self._encode = method.encode and jit(
            self._whole(method.encode, spread=True),
            in_shardings=(placed, None),
            out_shardings=self._everywhere,
        )
        self._decode = method.decode and jit(
            self._whole(method.decode, spread=True),
            in_shardings=(placed, None, None),
            out_shardings=self._everywhere,
        )
        self._denoise = method.denoise and jit(
            self._whole(method.denoise),
            in_shardings=(placed, split, split, split),
            out_shardings=split,
        )

    @property
    def num_classes(self) -> int:
        """What samples can be asked for; 0: nothing."""
        return self.method.num_classes or self.config.data.num_classes

    @property
    def noised(self) -> tuple[int, int, int]:
        """(h, w, c) of what `denoise` takes for a sample."""
        data = self.config.data
        return self.method.noised or (data.image_size, data.image_size, data.channels)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Those of a batch that this process reads, int [n], ascending."""
        return sharding.rows(self.batch_sharding, self.config.batch_size)

    def init(self):
        """The state before the first step."""
        state = self._init()
        self._init.clear_cache()  # large, and of no further use
        gc.collect()
        return state

    def _known(self):
        """In it, what is traced knows the mesh."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    def _jit(self, function, once: bool = False, **options):
        """`jax.jit` of what is traced knowing the mesh, as `gen_jax.nn.conv` wants to."""

        @functools.wraps(function)
        def on_mesh(*args):
            with self._known():
                return function(*args)

        return jax.jit(on_mesh, compiler_options=compiler_options(self.mesh, once), **options)

    def _whole(self, function, spread: bool = False):
        """What sees whole parameters; with `spread` each device works on its share of the rest."""

        @functools.wraps(function)
        def with_gathered(state, *args):
            return function(self._gathered(state), *(self._spread(args) if spread else args))

        return with_gathered

    def stage(self, step: int | None = None):
        """`Method.stage` of a training step, None: the last one; None where there are none."""
        step = self.config.steps - 1 if step is None else step
        return self.method.stage and self.method.stage(step)

    def _stepping(self, stage):
        """What a training step computes in this stage; None where there are none."""
        of_stage = self._of_stage(stage)

        def _train_step(seed, step, state, batch):
            key, state = (
                random.step_key(seed, 'train', step),
                self._gathered(state, parts=('params',)),
            )
            return of_stage(key, state, batch)

        return _train_step

    def _of_stage(self, stage):
        told = {} if self.method.stage is None else {'stage': stage}
        return functools.partial(self.method.train_step, **told)

    def _floats(self, seed, state, indices, condition):
        keys = random.sample_keys(seed, 'sample', indices)
        state, condition = self._gathered(state), self._spread(condition)
        return self.method.sample_step(self._spread(keys), state, condition)

    def _sample_step(self, seed, state, indices, condition):
        images = self._floats(seed, state, indices, condition)
        finite = jnp.isfinite(images)
        images = jnp.clip(jnp.where(finite, images, -1.0), -1.0, 1.0)
        levels = jnp.round((images + 1.0) * 127.5).astype(jnp.uint8)
        return levels, jnp.all(finite, tuple(range(1, finite.ndim)))

    def _settling(self, seed, state):
        return self.method.settle(random.stream(seed, 'settle'), self._gathered(state))

    def _evaluate_step(self, seed, state, indices, batch):
        keys = random.sample_keys(seed, 'evaluate', indices)
        return self.method.evaluate_step(self._spread(keys), self._gathered(state), batch)

    def _spread(self, tree):
        spread = functools.partial(jax.lax.with_sharding_constraint, shardings=self.batch_sharding)
        return jax.tree.map(spread, tree)

    def to_global(self, batch: dict) -> dict:
        """The global batch of which each process has read its `rows`."""
        return sharding.to_global(batch, self.batch_sharding, self.rows, self.config.batch_size)

    @functools.cached_property
    def _seed(self) -> jax.Array:
        return self._put(np.int32(self.config.seed))

    def _put(self, tree):
        """What every process holds whole, on every device: explicitly, as transfer guards ask."""
        whole = functools.partial(jax.make_array_from_process_local_data, self._everywhere)
        return jax.tree.map(lambda x: whole(x, np.shape(x)), tree)

    def _described(self, tree):
        """What `_put` would give, as shapes: lowered with it, a program is the one that runs."""
        where = self._everywhere
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=where), tree
        )

    def train_step(self, step: int, state, batch: dict):
        """(state, metrics) after step `step`, counted from 0; the old state's memory is gone."""
        train = self._train(self.stage(step))
        return train(self._seed, self._put(np.int32(step)), state, batch)

    def evaluated(self) -> list[str]:
        """The names of the numbers that `evaluate` gives."""
        indices = jax.ShapeDtypeStruct((self.config.batch_size,), np.int32)
        spec = self.state_shape, indices, self.batch_spec
        return sorted(jax.eval_shape(self._evaluate, 0, *spec))

    def lower_train(self, step: int | None = None) -> jax.stages.Lowered:
        """train_step of a step, None: the last one, ready to compile for the mesh's devices."""
        scalar, train = self._described(np.int32(0)), self._train(self.stage(step))
        return train.lower(scalar, scalar, self.state_shape, self.batch_spec)

    def lower_sample(self) -> jax.stages.Lowered:
        """sample_step of `sample.batch_size` images, ready to compile for the mesh's devices."""
        indices = np.arange(self.config.sample.batch_size, dtype=np.int32)
        asked = self._described((indices, self.condition(indices)))
        return self._sample.lower(self._described(np.int32(0)), self.state_shape, *asked)

    def lower_call(self) -> jax.stages.Lowered:
        """`denoise` of `sample.batch_size` images, ready to compile for the mesh's devices."""
        n = self.config.sample.batch_size
        x_t = jax.ShapeDtypeStruct((n, *self.noised), np.float32)
        t = jax.ShapeDtypeStruct((n,), np.int32)
        condition = self.condition(np.arange(n, dtype=np.int32))
        return self._denoise.lower(self.state_shape, x_t, t, condition)

    def flops(self, step: int | None = None) -> int:
        """Operations of one train_step, as of `lower_train`, of all devices: `operations.flops`."""
        key = jax.eval_shape(lambda: random.stream(0, 'train'))
        train = self._of_stage(self.stage(step))
        return operations.flops(jax.make_jaxpr(train)(key, self.state_shape, self.batch_spec))

    def condition(self, indices: np.ndarray) -> dict:
        """What the samples of these indices are asked for: labels in turn, and the knobs."""
        sample = self.config.sample
        condition = {
            name: np.full(len(indices), value, np.int32 if isinstance(value, int) else np.float32)
            for name, value in sample.knobs.items()
        }
        if classes := self.num_classes:
            condition['label'] = asked_labels(indices, sample.label, classes)
        return condition

    def settled(self, state):
        """The state that samples are drawn of: see `Method.settle`."""
        return self._settle(self._seed, state) if self._settle else state

    def sample(self, state, indices: np.ndarray) -> np.ndarray:
        """The images of these indices, uint8 [n, h, w, c], `sample.batch_size` at a time.

        Every process gets all of them. The last batch is filled up, so that one program serves.

        Raises:
          NotFinite: some hold values that are no numbers.
        """
        images, finite = self.sampled(state, indices)
        self.require_finite(finite)
        return images

    def sampled(self, state, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `sample` gives, black where it is not finite; and which images are, bool [n]."""
        size = self.config.sample.batch_size
        images, finite = [], []
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            filled = np.resize(part, size).astype(np.int32)
            asked = self._put((filled, self.condition(filled)))
            made = jax.device_get(self._sample(self._seed, state, *asked))
            images.append(made[0][: len(part)])
            finite.append(made[1][: len(part)])
        return np.concatenate(images), np.concatenate(finite)

    def require_finite(self, finite: np.ndarray) -> None:
        """Raises NotFinite unless all of some images, bool [n], are finite."""
        if lost := np.count_nonzero(~finite):
            knobs = self.config.sample.knobs
            ways = [way for name, (least, way) in HELP.items() if knobs.get(name, least) > least]
            raise NotFinite(
                f'{lost} of {len(finite)} images hold values that are not finite: try '
                f'{"".join(f"{way}, " for way in ways)}another checkpoint (--step), or '
                'training with a lower config.optimizer.learning_rate'
            )

    def denoise(self, state, x_t: jax.Array, t: jax.Array, condition: dict) -> jax.Array:
        """The method's estimate of clean images; all but the state lie as a batch does."""
        return self._denoise(state, x_t, t, condition)

    def given(self, examples: list[dict]) -> dict[str, np.ndarray]:
        """A source's examples as `encode` takes them: with labels, where the config has classes."""
        batch = {'image': pipeline.to_float(np.stack([x['image'] for x in examples]))}
        if self.config.data.num_classes:
            batch['label'] = np.array([x['label'] for x in examples], np.int32)
        return batch

    def encode(self, state, batch: dict) -> np.ndarray:
        """The method's latents of a batch that every process holds whole."""
        filled, n = self._filled(batch)
        return jax.device_get(self._encode(state, self._put(filled)))[:n]

    def decode(self, state, latents: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
        """The method's images of latents that every process holds whole, float32 in [-1, 1].

        Where the model knows classes, `label` is int32 [n].

        Raises:
          NotFinite: as `sample`.
        """
        filled, n = self._filled((latents, {} if label is None else {'label': label}))
        images = jax.device_get(self._decode(state, *self._put(filled)))[:n]
        self.require_finite(np.isfinite(images).all(tuple(range(1, images.ndim))))
        return images

    def _filled(self, tree):
        """Arrays [n, ...], some rows again at the end, so that the mesh divides them; and n."""
        n, parts = len(jax.tree.leaves(tree)[0]), sharding.parts(self.mesh)
        if n % parts == 0:
            return tree, n
        at = np.resize(np.arange(n), -(-n // parts) * parts)
        return jax.tree.map(lambda x: x[at], tree), n

    def evaluate(self, state, indices: np.ndarray, batch: dict) -> dict[str, np.ndarray]:
        """The method's numbers for one global batch, each float32 [b]."""
        return jax.device_get(self._evaluate(self._seed, state, self._put(indices), batch))


def asked_labels(indices: np.ndarray, label: int, classes: int) -> np.ndarray:
    """The classes, int32 [n], that samples of these indices are to be of.

    Args:
      indices: [n].
      label: `config.sample.label`: one class for all, or -1: all in turn.
      classes: how many there are.
    """
    in_turn = indices % classes if label == -1 else np.full_like(indices, label)
    return in_turn.astype(np.int32)
