"""What studies of one trained model share: its draws, and what they are worth."""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scripts
from absl import flags
from ml_collections import config_flags
from scripts import Column, Rows

from gen_jax import latent
from gen_jax.config import create
from gen_jax.data import pipeline, sources
from gen_jax.errors import UserError, in_one_line
from gen_jax.method import Method
from gen_jax.metrics import compare
from gen_jax.metrics.accuracy import accuracy
from gen_jax.metrics.features.extract import open_extractor
from gen_jax.metrics.fid import Moments, fid
from gen_jax.metrics.prdc import prdc
from gen_jax.runtime import workdir
from gen_jax.runtime.program import Program, asked_labels
from gen_jax.sample import claimed, load, stored
from gen_jax.yardsticks import Reference, check

FLAGS = flags.FLAGS
METRICS = ('fid', 'prdc')
GROUPS = 20  # parts of the samples, each left out once, that tell the error of a distance


def opened(name: str, config, **told) -> 'Study':
    """The study that the flags ask for, of a model with `FLAGS.config` or nearly that.

    Args:
      name, config: see `Study`.
      **told: what else rows depend on, and do not say in their names.
    """
    file = config_flags.get_config_filename(FLAGS['config'])
    folder = Path(FLAGS.workdir or workdir.usual(file)).absolute()
    return Study(config, folder, name, FLAGS.n, FLAGS.step, told)


def check_draws_images(config) -> None:
    """Raises UserError unless a config is of a diffusion model that draws images."""
    if 'sampler' not in config or latent.stage_of(config):
        raise UserError(
            f'--config is of config.method={config.method!r}'
            f'{" and latents" if "sampler" in config else ""}: expected a diffusion model of '
            'images, such as configs/edm_fashion_mnist.py'
        )


class Drawer(Program):
    """A `Program` whose samples can be had before they are rounded to 8 bits."""

    def _sample_step(self, seed, state, indices, condition):
        images = self._floats(seed, state, indices, condition)
        return images, jnp.isfinite(images).all((1, 2, 3))

    def floats(self, state, indices: np.ndarray) -> np.ndarray:
        """The images of these indices, float32 [n, h, w, c] in [-1, 1]."""
        return self.sampled(state, indices)[0]

    def sample(self, state, indices: np.ndarray) -> np.ndarray:
        """As `Program.sample`; a value that is not finite is black, and a line says so."""
        images = self.floats(state, indices)
        finite = np.isfinite(images)
        if lost := int((~finite).any((1, 2, 3)).sum()):
            print(f'  {lost} of {len(images)} samples hold values that are not finite')
        return pipeline.to_uint8(np.where(finite, images, -1.0))


class Study:
    """A trained model, its draws by other samplers and knobs, and what they are worth.

    Attributes:
      config: the model's.
      step, state: of the checkpoint.
      folder: where the results go.
      images: where the draws lie, a folder for each row.
      n: samples of a row.
      rows: those done so far.
      worth: (uint8 [n, h, w, c]) -> the numbers of a row.
    """

    def __init__(
        self,
        config,
        run: Path,
        name: str,
        n: int,
        step: str | None = None,
        told: Mapping | None = None,
    ):
        """Draws nothing, and compiles nothing.

        Args:
          config: of a method with samplers, by which the run was trained.
          run: its folder.
          name: of the study; its folder within the run's.
          n: see above.
          step: see `gen_jax.sample.load`.
          told: what else the rows depend on, of JSON's types.

        Raises:
          UserError: whatever is missing or does not fit.
        """
        check_draws_images(config)
        self.config, self.n, self.folder = config, n, run / name
        self._drawers = {}
        program = self.drawer({})
        check(program, METRICS)
        workdir.check(config, run, after_training=True)
        self.worth = Worth(config, program.mesh, n)
        self.step, self.state = load(program, run, step)
        self.images = claimed(config, self.folder, self.step, self.state)
        asked = workdir.read_json(self.images / 'settings.json') | self.worth.told
        asked |= {'seed': config.seed, 'n': n, **(told or {})}
        self.rows = Rows(self.folder / f'{name}.json', asked)

    def varied(self, changes: dict):
        """The config with {'dotted.field': value} changed; UserError where there is no such."""
        config = self.config.copy_and_resolve_references()
        try:
            config.update_from_flattened_dict(changes)
        except (KeyError, AttributeError) as error:
            raise UserError(in_one_line(error)) from None
        return config

    def method(self, changes: dict) -> Method:
        """The method with these changes; UserError where they do not fit."""
        return create(self.varied(changes))

    def misfit(self, changes: dict) -> str:
        """Why the model cannot be sampled so; '' where it can."""
        try:
            self.method(changes)
        except UserError as error:
            return str(error)
        return ''

    def drawer(self, changes: dict) -> Drawer:
        """What draws with these changes; those of knobs alone need no other program."""
        config = self.varied(changes)
        decides = [item for item in workdir.flat(config).items() if 'sample.knobs' not in item[0]]
        key = json.dumps(decides)
        if key not in self._drawers:
            self._drawers[key] = Drawer(config, create(config))
        # Labels and knobs are traced, and come from here.
        self._drawers[key].config = config
        return self._drawers[key]

    def row(self, name: str, changes: dict, tell: Callable[[], dict]) -> dict:
        """The numbers of a row, from the json if they are there, and what `tell` says of it."""

        def measure():
            out = self.place(name, changes)
            out.mkdir(exist_ok=True)
            begin = time.monotonic()
            drawn = np.concatenate(list(stored(self.drawer(changes), self.state, out, self.n)))
            seconds = time.monotonic() - begin
            found = self.worth(drawn)
            print(f'{name}: {found[self.worth.distance]:.3f} after {seconds:.0f} s', flush=True)
            return {**tell(), **found}

        return self.rows(name, changes, measure)

    def real(self) -> dict:
        """The row of real images."""
        return self.rows('real', {'eval_split': self.config.data.eval_split}, self.worth.real)

    def place(self, name: str, changes: dict) -> Path:
        """Where what is drawn for a row with these changes lies."""
        text = json.dumps(changes, sort_keys=True)
        return self.images / f'{name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}'

    def passes(self, changes: dict) -> int:
        """How many times as long a call takes as one that is not guided: 2, told two labels."""
        config = self.varied(changes)
        return 1 + (config.diffusion.label_dropout > 0 and config.sample.knobs.guidance != 1)

    def announce(self, calls: int) -> None:
        """Prints what that many network calls, each for one sample and one label, take here."""
        if not calls:
            print('every row is there')
            return
        data, size = self.config.data, self.config.sample.batch_size
        x = np.zeros((size, data.image_size, data.image_size, data.channels), np.float32)
        drawer, t = self.drawer({'sample.knobs.guidance': 1.0}), np.ones(size, np.int32)
        condition = drawer.condition(np.arange(size))
        taken = []
        for _ in range(4):  # the first compiles
            begin = time.monotonic()
            jax.block_until_ready(drawer.denoise(self.state, x, t, condition))
            taken.append(time.monotonic() - begin)
        rate = size / min(taken[1:])
        print(
            f'{calls:,.0f} network calls for single samples, those that are guided counted twice, '
            f'at {rate:,.0f} a second: about {calls / rate / 60:.0f} minutes',
            flush=True,
        )

    def every_row(self, rows: list[dict], names: list[str]) -> str:
        """A table of rows, with `names` of theirs before the numbers, and real images below."""
        distance, real = self.worth.distance, self.rows.found.get('real')
        columns = [Column(name, lambda row, name=name: str(row.get(name, ''))) for name in names]

        def far(row):
            error = f' ± {jackknife(row["without"]):.3f}' if 'without' in row else ''
            return f'{row[distance]:.3f}{error}'

        def share(row, name):
            return f'{row[name]:.3f}' if name in row else ''

        columns.append(Column(distance, far))
        columns += [Column(x, functools.partial(share, name=x)) for x in self.worth.shares]
        return scripts.table(columns, [*rows, {**real, names[0]: 'real images'}] if real else rows)

    def write(self, text: str, page=None) -> None:
        """Leaves a table, and a figure if there is one, beside the json."""
        scripts.write(self.folder / self.folder.name, text, page)


class Worth:
    """What n samples of a model are worth, beside as many real ones.

    The Frechet distance is to all of `config.eval.reference`; precision and recall, which want sets
    of one size, are over n images spread over it.

    Attributes:
      distance: the name of the Frechet distance, such as 'fid_digits'.
      shares: the names of the other numbers.
      told: what all rows share, of JSON's types.
    """

    def __init__(self, config, mesh, n: int):
        """Opens network and data; UserError where they are missing or do not fit."""
        options, data = config.eval, config.data
        self._n, self._classes, self._label = n, data.num_classes, config.sample.label
        look = options.network, options.weights, options.resize
        # Only a classifier of this data names its classes.
        self._keep = ('logits',) if data.num_classes and options.network != 'inception' else ()
        self._extractor = open_extractor(
            *look, ('pool', *self._keep), options.dims, options.batch_size, mesh, data.fit == 'pad'
        )
        self._extractor.check((data.image_size, data.image_size, data.channels))
        self._reference = Reference(config, self._extractor, list(METRICS))
        suffix = self._extractor.suffix
        self.distance = f'fid{suffix}'
        self.shares = [f'precision{suffix}', f'recall{suffix}']
        self.shares += [f'accuracy{suffix}'] * len(self._keep)
        self.told = {'reference': self._reference.name, **self._extractor.provenance}

    def __call__(self, images: np.ndarray) -> dict:
        """The numbers of uint8 [n, h, w, c], of the classes that samples are asked to be of.

        Returns:
          {name: value}, and `without`: the Frechet distances with each of GROUPS parts left out.
        """
        features = compare.look([images], self._extractor, METRICS, self._keep).features
        found = prdc(self._some_real, features['pool'])
        numbers = [found['precision'], found['recall']]
        if self._keep:
            asked = asked_labels(np.arange(len(images)), self._label, self._classes)
            numbers.append(accuracy(features['logits'], asked).overall.value)
        return {
            self.distance: self._far(features['pool']),
            **dict(zip(self.shares, numbers, strict=True)),
            'without': leaving_out(self._far, features['pool']),
        }

    def real(self) -> dict:
        """The numbers of n real images that are not in the reference; {} where there are none."""
        source = self._reference.held_out
        if source is None or len(source) < self._n:
            return {}
        images = np.concatenate(list(sources.images_of(source)))[spread(len(source), self._n)]
        found = self(images)
        # They are of any class.
        return {name: found[name] for name in (self.distance, *self.shares[:2])}

    @functools.cached_property
    def _real(self) -> compare.Seen:
        return self._reference.look()

    @functools.cached_property
    def _some_real(self) -> np.ndarray:
        pool = self._real.features['pool']
        return pool[spread(len(pool), self._n)]

    def _far(self, features: np.ndarray) -> float:
        return fid(self._real.moments['pool'], Moments.of(features))


def spread(n: int, wanted: int) -> np.ndarray:
    """`wanted` of the indices 0 .. n-1, or all, evenly: a split may be sorted by class."""
    return np.linspace(0, n - 1, min(wanted, n)).astype(int)


def leaving_out(statistic: Callable, features: np.ndarray) -> list[float]:
    """A statistic of features [n, d] with each of GROUPS parts left out, in order.

    Parts are of neighbours, so that each holds all classes, which are asked for in turn.
    """
    parts = np.array_split(np.arange(len(features)), min(GROUPS, len(features)))
    return [statistic(np.delete(features, part, 0)) for part in parts]


def jackknife(without: Iterable[float]) -> float:
    """The standard error of a statistic, by what it is with each of g parts left out.

    Of the difference of two statistics, where `without` are the differences (the delete-a-group
    jackknife; Efron and Tibshirani 1993, section 11.5).
    """
    without = np.asarray(list(without), np.float64)
    return float(np.sqrt((len(without) - 1) * np.mean((without - without.mean()) ** 2)))
