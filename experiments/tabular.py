"""A VAE of a table: numbers and categories side by side, and rows that it draws.

  python experiments/tabular.py --table=rows.csv --target=COLUMN

Without --table the measurements of breast cancer that scikit-learn ships: 569 rows of 30 numbers
and a diagnosis. Of a CSV with a header a column whose cells are all numbers, of more than --values
different ones, is numbers; any other is categories. Leaves synthetic.csv, as many rows as were
learned from, tabular.json and .md in --out.

Numbers become normal scores: a VAE of numbers that are not centred leaves the middle of its z far
from 0, and draws other rows than it learned. p(x|z) is a Gaussian for each number, with a scale of
its own, and a categorical distribution for each other column (`pixels.likelihood = 'table'`). Of
rows drawn by the VAE, and beside them of the training rows themselves, of a Gaussian copula (the
columns as they are, bound by the correlations of their normal scores) and of columns shuffled by
themselves, it is told, against held-out rows:

* numbers: the Kolmogorov-Smirnov statistic, a mean over columns;
* categories: the total variation distance, a mean over columns;
* correlations: the mean absolute difference between those of all pairs of columns;
* accuracy: of a logistic regression that learned --target from these rows.
"""

import csv
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scripts
from absl import flags
from scipy.stats import norm, rankdata
from scripts import Column
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import QuantileTransformer

from gen_jax.config import create, default, nearest
from gen_jax.errors import UserError
from gen_jax.runtime import workdir

FLAGS = flags.FLAGS
BATCH, HELD_OUT = 256, 5  # rows of a training step; every fifth row is held out
FAR = 5.2  # normal scores that are 1 in what the VAE sees; the least chance is 1e-7
MEASURES = 'numbers', 'categories', 'correlations', 'accuracy'


class Table(NamedTuple):
    """Columns by name.

    Attributes:
      names: in order.
      values: of each, float [n]; of a column of categories the category's number.
      kinds: of each its categories in order; None of numbers.
    """

    names: list[str]
    values: np.ndarray  # [n, columns]
    kinds: list[tuple[str, ...] | None]


def define_flags() -> None:
    """Those of this study alone."""
    flags.DEFINE_string('table', '', 'A CSV with a header; empty: breast cancer.')
    flags.DEFINE_string('target', '', 'The column of categories to tell; empty: the last one.')
    flags.DEFINE_integer('values', 10, 'So many different numbers are categories.', lower_bound=0)
    flags.DEFINE_integer('steps', 2000, 'Training steps.', lower_bound=1)
    flags.DEFINE_integer('latent_dim', 8, 'Numbers of z.', lower_bound=1)
    flags.DEFINE_string('out', str(scripts.ROOT / 'runs/tabular'), 'The folder of results.')


def main() -> None:
    """Trains, draws, measures, prints, writes."""
    table = read(Path(FLAGS.table), FLAGS.values) if FLAGS.table else breast_cancer()
    target = target_of(table, FLAGS.target)
    held = np.arange(len(table.values)) % HELD_OUT == 0
    train, test = table.values[~held], table.values[held]
    if len(train) < 2 or len({*train[:, target]}) < 2:
        raise UserError(f'--table={FLAGS.table}: expected more rows, of two categories or more')
    out = scripts.folder(FLAGS.out)
    code = Code(table, train)
    drawn, elbo = learned(code, train, test, FLAGS.steps, FLAGS.latent_dim)
    rng = np.random.default_rng(0)
    sets = {
        'training rows': train,
        'VAE': drawn,
        'Gaussian copula': gaussian(train, rng),
        'columns alone': rng.permuted(train, axis=0),
    }
    rows = {name: measured(table.kinds, x, test, target) for name, x in sets.items()}
    write(out / 'synthetic.csv', table, drawn)
    found = {'held_out_elbo': elbo, 'rows': rows, 'target': table.names[target]}
    workdir.write_json(out / 'tabular.json', found)
    scripts.write(out / 'tabular', report(rows, elbo))


# --- tables --------------------------------------------------------------------------------------


def breast_cancer() -> Table:
    """UCI's breast cancer Wisconsin (diagnostic), as scikit-learn ships it."""
    from sklearn.datasets import load_breast_cancer

    file = load_breast_cancer()
    values = np.column_stack([file.data, file.target])
    kinds = [*[None] * file.data.shape[1], tuple(map(str, file.target_names))]
    return Table([*map(str, file.feature_names), 'diagnosis'], values, kinds)


def read(path: Path, few: int) -> Table:
    """A CSV with a header.

    Raises:
      UserError: no such file, or rows that do not fit it.
    """
    try:
        with path.open(newline='', encoding='utf-8-sig') as file:
            names, *rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f'--table={path}: expected a CSV with a header ({error})') from None
    for i, row in enumerate(rows):
        if len(row) != len(names):
            says = f'row {i + 1} has {len(row)} cells, the header {len(names)}'
            raise UserError(f'--table={path}: {says}')
    columns = [column_of(cells, few) for cells in zip(*rows, strict=True)]
    if not columns:
        raise UserError(f'--table={path}: expected rows below the header')
    for name, cells in zip(names, zip(*rows, strict=True), strict=True):
        words = [i for i, cell in enumerate(cells) if not is_number(cell)]
        if 0 < len(words) < len(cells) / 2:
            says = f'row {words[0] + 1} of column {name!r} is {cells[words[0]]!r}, most are numbers'
            raise UserError(f'--table={path}: {says}: mend or leave out what is not')
    for name, (_, kinds) in zip(names, columns, strict=True):
        if names.count(name) > 1:
            raise UserError(f'--table={path}: several columns are called {name!r}: rename them')
        if kinds and len(kinds) == 1:
            says = f'column {name!r} is {kinds[0]!r} in every row: expected two values or more'
            raise UserError(f'--table={path}: {says}; leave it out')
    values = np.column_stack([values for values, _ in columns])
    return Table(names, values, [kinds for _, kinds in columns])


def is_number(cell: str) -> bool:
    """Whether it is a finite one."""
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def column_of(cells: tuple[str, ...], few: int) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Numbers and None; or each cell's place among the categories, and these."""
    numbers = np.array(cells, float) if all(map(is_number, cells)) else None
    if numbers is not None and len({*numbers}) > few:
        return numbers, None
    kinds = tuple(sorted({*cells}))
    return np.array([kinds.index(cell) for cell in cells], float), kinds


def target_of(table: Table, name: str) -> int:
    """The place of a column of categories."""
    known = [x for x, kinds in zip(table.names, table.kinds, strict=True) if kinds]
    if not known:
        raise UserError('expected a column of categories, which the accuracy is of: see --values')
    if name and name not in known:
        raise UserError(
            f'--target={name}: no column of categories of that name{nearest(name, known)}'
        )
    return table.names.index(name or known[-1])


def write(path: Path, table: Table, values: np.ndarray) -> None:
    """Rows as the table has them."""
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(table.names)
        for row in values:
            writer.writerow(
                f'{x:.6g}' if kinds is None else kinds[int(x)]
                for x, kinds in zip(row, table.kinds, strict=True)
            )


# --- the VAE -------------------------------------------------------------------------------------


class Code:
    """Rows as images of one pixel, and back."""

    def __init__(self, table: Table, train: np.ndarray):
        """Takes the distribution of numbers from the training rows."""
        self.columns = tuple(len(kinds) if kinds else 1 for kinds in table.kinds)
        self._kinds = table.kinds
        self._normal = QuantileTransformer(
            n_quantiles=min(1000, len(train)), output_distribution='normal', subsample=None
        ).fit(train)

    def images(self, values: np.ndarray) -> np.ndarray:
        """[n, columns] -> float32 [n, 1, 1, channels] in [-1, 1]."""
        scaled = np.clip(self._normal.transform(values) / FAR, -1, 1)
        parts = [
            scaled[:, i : i + 1] if kinds is None else 2 * one_hot(values[:, i], kinds) - 1
            for i, kinds in enumerate(self._kinds)
        ]
        return np.concatenate(parts, 1).astype(np.float32)[:, None, None]

    def values(self, images: np.ndarray) -> np.ndarray:
        """The rows of images; of categories the likeliest."""
        parts = np.split(images[:, 0, 0].astype(float), np.cumsum(self.columns)[:-1], 1)
        numbers = self._normal.inverse_transform(np.column_stack([x[:, 0] for x in parts]) * FAR)
        return np.column_stack(
            [
                numbers[:, i] if kinds is None else part.argmax(1)
                for i, (part, kinds) in enumerate(zip(parts, self._kinds, strict=True))
            ]
        )


def one_hot(values: np.ndarray, kinds: tuple[str, ...]) -> np.ndarray:
    """Which of the categories, [n, k]."""
    return np.eye(len(kinds))[values.astype(int)]


def configured(columns: tuple[int, ...], steps: int, latent_dim: int):
    """The VAE's config: two hidden layers."""
    config = default('autoencoders.vae', network='mlp')
    config.update_from_flattened_dict(
        {
            'batch_size': BATCH,
            'data.image_size': 1,
            'data.channels': sum(columns),
            'pixels.likelihood': 'table',
            'pixels.columns': columns,
            'model.widths': (128, 128),
            'model.activation': 'relu',
            'model.latent_dim': latent_dim,
            'vae.drawn': True,
            'optimizer.learning_rate': 3e-3,
            'optimizer.clip': 10.0,
            'optimizer.decay_steps': steps,
            'ema_decay': 0.99,
        }
    )
    return config


def learned(code: Code, train: np.ndarray, test: np.ndarray, steps: int, latent_dim: int) -> tuple:
    """As many rows as there are training rows, drawn of p(x|z), and the held-out ELBO, nats."""
    config = configured(code.columns, steps, latent_dim)
    method, images = create(config), jnp.asarray(code.images(train))
    key, drawing, asking = jax.random.split(jax.random.key(0), 3)

    def batch(key):
        return {'image': images[jax.random.randint(key, BATCH, 0, len(images))]}

    def step(state, i):
        data, noise = jax.random.split(jax.random.fold_in(key, i))
        state, metrics = method.train_step(noise, state, batch(data))
        return state, metrics['loss']

    state = method.init(key, batch(key))
    state, losses = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(steps)))(state)
    if not np.isfinite(losses[-1]):
        raise FloatingPointError(f'loss is {losses[-1]} after {steps} steps')
    keys = jax.random.split(drawing, len(train))
    rows = code.values(np.asarray(method.sample_step(keys, state, {})))
    keys = jax.random.split(asking, len(test))
    elbo = method.evaluate_step(keys, state, {'image': jnp.asarray(code.images(test))})['elbo']
    return rows, float(elbo.mean())


# --- what rows are worth -------------------------------------------------------------------------


def gaussian(train: np.ndarray, rng) -> np.ndarray:
    """As many rows of a Gaussian copula: its columns are distributed as those of the training rows.

    A value, be it a number or, in their order, a category, stands for its share of a standard
    normal: its score is the middle of that share, and what falls in it is drawn as that value.
    """
    scores = np.column_stack([norm.ppf((rankdata(x) - 0.5) / len(x)) for x in train.T])
    bound = correlations(scores)
    drawn = rng.multivariate_normal(np.zeros(len(bound)), bound, len(train), check_valid='ignore')
    pairs = zip(train.T, norm.cdf(drawn).T, strict=True)
    return np.column_stack([np.quantile(x, share, method='inverted_cdf') for x, share in pairs])


def measured(kinds: list, rows: np.ndarray, test: np.ndarray, target: int) -> dict:
    """What `MEASURES` are of rows against held-out ones; None of columns that are not there."""
    apart = {'numbers': [], 'categories': []}
    for i, each in enumerate(kinds):
        if each is None:
            apart['numbers'].append(kolmogorov_smirnov(rows[:, i], test[:, i]))
        else:
            ours, theirs = (one_hot(x[:, i], each).mean(0) for x in (rows, test))
            apart['categories'].append(np.abs(ours - theirs).sum() / 2)
    found = {name: float(np.mean(x)) if x else None for name, x in apart.items()}
    a, b = (correlations(x) for x in (rows, test))
    pairs = np.triu_indices(len(a), 1)
    found['correlations'] = float(np.abs(a - b)[pairs].mean()) if len(a) > 1 else None
    return {**found, 'accuracy': accuracy(kinds, rows, test, target)}


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference between two empirical distribution functions."""
    at = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(x), at, 'right') / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def correlations(rows: np.ndarray) -> np.ndarray:
    """Pearson's, of all pairs of columns; 0 where a column never changes."""
    centred = rows - rows.mean(0)
    norm = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(norm > 0, norm, 1)
    return unit.T @ unit


def accuracy(kinds: list, rows: np.ndarray, test: np.ndarray, target: int) -> float:
    """Of a logistic regression that learned the target from rows, on held-out ones."""
    mean, std = rows.mean(0), rows.std(0)

    def inputs(x):
        scaled = (x - mean) / np.where(std > 0, std, 1)
        parts = [
            scaled[:, i : i + 1] if each is None else one_hot(x[:, i], each)
            for i, each in enumerate(kinds)
            if i != target
        ]
        return np.concatenate([np.ones((len(x), 1)), *parts], 1)

    truth = test[:, target]
    if len({*rows[:, target]}) < 2:
        return float((truth == rows[0, target]).mean())
    model = LogisticRegression(max_iter=5000).fit(inputs(rows), rows[:, target])
    return float((model.predict(inputs(test)) == truth).mean())


def report(rows: dict, elbo: float) -> str:
    """Markdown."""

    def cell(row, name):
        if row[name] is None:
            return '-'
        return f'{100 * row[name]:.1f}%' if name == 'accuracy' else f'{row[name]:.3f}'

    columns = [Column('rows', lambda x: x[0])]
    columns += [Column(name, lambda x, name=name: cell(x[1], name)) for name in MEASURES]
    text = scripts.table(columns, rows.items())
    return f'{text}\nHeld-out ELBO {elbo:.2f} nats a row, of normal scores over {FAR}.\n'


if __name__ == '__main__':
    scripts.start(define_flags, main)
