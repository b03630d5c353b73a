"""What scripts share: flags, a user's mistakes, tables, what is kept of results.

Of studies of one trained model also its draws and what they are worth.
"""

import functools
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from gen_jax import latent
from gen_jax.config import create, nearest
from gen_jax.data import pipeline, sources
from gen_jax.errors import UserError, in_one_line, is_users
from gen_jax.method import Method
from gen_jax.metrics import compare
from gen_jax.metrics.accuracy import accuracy
from gen_jax.metrics.features.extract import open_extractor
from gen_jax.metrics.fid import Moments, fid
from gen_jax.metrics.prdc import prdc
from gen_jax.runtime import config_file, random, workdir
from gen_jax.runtime.compilation import keep_compiled, return_memory, spare_threads
from gen_jax.runtime.program import Program, asked_labels
from gen_jax.sample import claimed, load, stored
from gen_jax.yardsticks import Reference, check

ROOT = Path(__file__).resolve().parents[1]
FLAGS = flags.FLAGS
METRICS = ('fid', 'prdc')
GROUPS = 20  # parts of the samples, each left out once, that tell the error of a distance


def start(define: Callable[[], None], main: Callable[[], None]) -> None:
    """Runs a script as a command; a user's mistake ends in one line and exit code 2.

    Args:
      define: defines its flags: `define_run`, `define_config` and `define_rows` have those that
        several share.
      main: what it does, which finds its flags parsed.
    """
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    absl_logging.set_verbosity(absl_logging.FATAL)
    try:
        _read_flags(define)
        keep_compiled()
        return_memory()
        spare_threads()
        main()
    except (UserError, OSError) as error:
        if not is_users(error):
            raise
        print(f'{Path(sys.argv[0]).name}: {error}', file=sys.stderr, flush=True)
        sys.exit(2)


def _read_flags(define: Callable[[], None]) -> None:
    try:
        define()
        if {'-h', '--help'} & set(sys.argv):
            known = (FLAGS.module_help(module) for module in (sys.argv[0], __name__))
            print(sys.modules['__main__'].__doc__, *known, sep='\n')
            sys.exit()
        extra = FLAGS(sys.argv)[1:]
    except Exception as error:  # flags can be wrong in many a way
        raise UserError(in_one_line(error)) from None
    if extra:
        raise UserError(f'unexpected argument {extra[0]!r}: flags are written --name=value')


def define_run() -> None:
    """The flags of what is about a trained model."""
    define_config('edm_fashion_mnist')
    flags.DEFINE_string('workdir', None, 'The run (default: runs/CONFIG_VARIANT).')
    flags.DEFINE_string('step', None, 'The checkpoint: a number, or best (default: newest).')
    flags.DEFINE_integer('n', 1000, 'Samples of a row.', lower_bound=8)


def define_config(name: str) -> None:
    """The flag `config`: configs/NAME.py unless another is given."""
    # Configs begin from other configs; this folder is no package.
    sys.path.insert(0, str(ROOT))
    known = str(ROOT / f'configs/{name}.py')
    config_file.define_config(known, 'FILE[:variant]; fields: --config.a.b=1')


def define_rows() -> None:
    """The flags of what makes rows by name, and a figure of them."""
    flags.DEFINE_list('rows', [], 'Those to do, by name (default: all).')
    flags.DEFINE_bool('plot', True, 'Whether to draw a figure, which needs matplotlib.')


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


def chosen(known: Iterable[str], asked: list[str]) -> list[str]:
    """The names asked for in the order they are known in, all where none are; else a UserError."""
    for name in asked:
        if name not in known:
            raise UserError(f'--rows: no row {name!r}{nearest(name, known)}')
    return [name for name in known if not asked or name in asked]


def numbers(flag: str, kind: type = int, least: float = 1) -> tuple:
    """The numbers that a flag lists."""
    values = FLAGS[flag].value
    try:
        found = tuple(kind(value) for value in values)
    except ValueError:
        found = (least - 1,)
    if not all(least <= value < float('inf') for value in found):
        raise UserError(
            f'--{flag}={",".join(map(str, values))}: expected numbers of at least {least}'
        )
    return found


def folder(path: str) -> Path:
    """The folder of results, made where it is not there; UserError where a file is in its place."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f'--out={path}: expected a folder') from None
    return Path(path)


def file(path: str) -> Path:
    """The file of results, which may be there; UserError, before the work, where it cannot be."""
    if Path(path).is_dir() or not Path(path).parent.is_dir():
        raise UserError(f'--out={path}: expected a file in a folder that is there')
    return Path(path)


def told(values: list, digits: int) -> str:
    """Mean and standard deviation, of as many as there are."""
    if not values:
        return '-'
    spread = f' ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else ''
    return f'{np.mean(values):.{digits}f}{spread}'


def figure(columns: int, rows: int = 1, size: tuple = (6.5, 5)) -> tuple[Any, Any]:
    """An empty figure of matplotlib and its axes; UserError where that is missing.

    Args:
      columns, rows: of axes.
      size: width and height of one, inches.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        mend = 'pip install matplotlib, or leave the figure out with --noplot'
        raise UserError(f'matplotlib is missing, which draws the figure: {mend}') from None
    page = Figure((size[0] * columns, size[1] * rows), layout='constrained')
    return page, page.subplots(rows, columns)


def legends(axes) -> None:
    """One for each of the axes that has something to name."""
    for each in axes:
        if each.get_legend_handles_labels()[0]:
            each.legend(fontsize='small')


def write(path: Path, text: str, page=None) -> None:
    """Leaves a table, path.md, and a figure if there is one, path.png; prints the table."""
    path.with_suffix('.md').write_text(text)
    if page is not None:
        page.savefig(path.with_suffix('.png'), dpi=100)
    print(text)


class Drawer(Program):
    """A `Program` whose samples can be had before they are rounded to 8 bits."""

    def _sample_step(self, seed, state, indices, condition):
        keys = random.sample_keys(seed, 'sample', indices)
        state, condition = self._gathered(state), self._spread(condition)
        return self.method.sample_step(self._spread(keys), state, condition)

    def floats(self, state, indices: np.ndarray) -> np.ndarray:
        """The images of these indices, float32 [n, h, w, c] in [-1, 1]."""
        return super().sample(state, indices)

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
        return table(columns, [*rows, {**real, names[0]: 'real images'}] if real else rows)

    def write(self, text: str, page=None) -> None:
        """Leaves a table, and a figure if there is one, beside the json."""
        write(self.folder / self.folder.name, text, page)


class Rows:
    """Results by name, in a json that holds each and its settings as soon as it is there.

    Attributes:
      found: {name: row}.
    """

    def __init__(self, path: Path, asked: dict):
        """Reads what an earlier run left.

        Args:
          path: the file.
          asked: what all rows depend on, of JSON's types.

        Raises:
          UserError: the file holds rows of other settings.
        """
        self._path, self._asked, self._settings, self.found = path, asked, {}, {}
        if not path.exists():
            return
        have = {'settings': {}, **workdir.read_json(path)}
        if not all(isinstance(have.get(x), dict) for x in ('asked', 'settings', 'rows')):
            raise UserError(f'{path} holds no rows of a study: move it away')
        for name, value in asked.items():
            if (was := have['asked'].get(name)) != value:
                raise UserError(
                    f'{path} holds rows of other settings ({name} was {was!r}, is {value!r}): '
                    'move it away, or set that back'
                )
        self._settings = have['settings']
        self.found = {name: row for name, row in have['rows'].items() if name in self._settings}

    def __call__(self, name: str, settings: dict, make: Callable[[], dict]) -> dict:
        """The row of that name and of these settings, made where it is not there."""
        if not self.has(name, settings):
            self.found[name] = workdir.finite(make())
            self._settings[name] = workdir.finite(settings)
            found = {'asked': self._asked, 'settings': self._settings, 'rows': self.found}
            workdir.write_json(self._path, found)
        return self.found[name]

    def has(self, name: str, settings: dict) -> bool:
        """Whether there is a row of that name and of these settings, of JSON's types or tuples."""
        return name in self.found and self._settings[name] == workdir.finite(settings)

    def of(self, settings: dict[str, dict]) -> dict[str, dict]:
        """{name: row} of those that are there of {name: settings}, in its order."""
        return {name: self.found[name] for name, x in settings.items() if self.has(name, x)}


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


class Column(NamedTuple):
    """A column of a table: its heading, and what it says of a row."""

    heading: str
    cell: Callable[[Any], str]


def table(columns: Iterable[Column], rows: Iterable) -> str:
    """Markdown."""
    columns = list(columns)
    lines = [[c.heading for c in columns], ['---'] * len(columns)]
    lines += [[c.cell(row) for c in columns] for row in rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def table_of(headings: Iterable[str], lines: Iterable[list[str]]) -> str:
    """Markdown of lines of cells."""
    return table([Column(x, lambda line, i=i: line[i]) for i, x in enumerate(headings)], lines)
