"""Anomaly detection: each class of Fashion-MNIST in turn is normal, and all others are not.

  python experiments/anomaly.py

Reads --source, which TFDS has prepared. Leaves anomaly.json, .md and .png in --out; started again,
it goes on where it was. A row is a class: a VAE and a PCA see its training images alone, and
test images of all classes are ranked by how unusual they are to each (one against all, as Golan and
El-Yaniv 2018, section 5). AUROC is the chance that an image of another class ranks above one of the
normal class:

* pca: squared error of what so many components as z has numbers leave of an image;
* reconstruction: squared error of the decoder's mean at the posterior's mean;
* elbo: the negative evidence lower bound of one sample;
* iw_bound: the negative importance-weighted bound of --samples.

Row `all` is a VAE of all classes beside images of other kinds: written digits, flat grey and noise.
Pixels are probabilities of levels ('logistic'), so that bits per dimension can be told. A
likelihood is higher where images are simpler, not where they are usual (Nalisnick et al. 2019), and
what it makes of the first two says how far.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import scripts
from absl import flags
from scripts import Rows
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from gen_jax.config import create, default
from gen_jax.data import pipeline
from gen_jax.data.sources import Digits, open_source
from gen_jax.errors import UserError
from gen_jax.runtime import workdir

FLAGS = flags.FLAGS
BATCH, PART = 128, 250  # images of a training step, and those that are scored at a time
FIELDS = {'source': 'source', 'image_size': 'size', 'channels': 'channels'}  # of data: flags
SCORES = 'pca', 'reconstruction', 'elbo', 'iw_bound'
FASHION = (
    *('T-shirt', 'trouser', 'pullover', 'dress', 'coat'),
    *('sandal', 'shirt', 'sneaker', 'bag', 'boot'),
)
# Means over the ten classes of Fashion-MNIST, %: table 1 of Golan and El-Yaniv 2018, second-hand.
# The first two saw the test set when their numbers were chosen.
PUBLISHED = {
    'one-class SVM on pixels': 92.8,
    'one-class SVM on an autoencoder': 91.7,
    'DSEBM (Zhai et al. 2016)': 86.6,
    'ADGAN (Deecke et al. 2018)': 88.4,
    'geometric transformations (Golan and El-Yaniv 2018)': 93.5,
}


def define_flags() -> None:
    """Rows, and those of this study alone."""
    scripts.define_rows()
    flags.DEFINE_string('source', 'tfds:fashion_mnist', 'Of images with labels, as data.source.')
    flags.DEFINE_integer('size', 28, 'Their height and width.', lower_bound=4)
    flags.DEFINE_integer('channels', 1, '1: grey; 3: colour.', lower_bound=1)
    flags.DEFINE_integer('steps', 1000, 'Training steps of each VAE.', lower_bound=1)
    flags.DEFINE_integer('samples', 20, 'Of z, in the importance-weighted bound.', lower_bound=1)
    flags.DEFINE_string('out', str(scripts.ROOT / 'runs/anomaly'), 'The folder of results.')


def main() -> None:
    """Trains, ranks, prints, writes."""
    asked = {x: getattr(FLAGS, x) for x in ('source', 'size', 'channels', 'steps', 'samples')}
    detector, train, test = opened(**asked)
    classes = [str(label) for label in np.unique(train[1])]
    names = scripts.chosen([*classes, 'all'], FLAGS.rows)
    page = scripts.figure(1) if FLAGS.plot else None
    out = scripts.folder(FLAGS.out)
    rows, settings = Rows(out / 'anomaly.json', asked), workdir.flat(configured(**asked))
    for name in names:
        rows(name, settings, functools.partial(measured, detector, name, train, test))
    done = rows.of(dict.fromkeys([*classes, 'all'], settings))
    scripts.write(out / 'anomaly', report(done, FLAGS.source), page and plotted(done, *page))


def opened(**asked) -> tuple:
    """A Detector, and both splits as `read` has them.

    Args:
      **asked: what `configured` takes.

    Raises:
      UserError: there are no such images, or not of two classes; it names flags.
    """
    try:
        config = configured(**asked)
        detector, splits = Detector(config), [read(config, split) for split in ('train', 'test')]
    except UserError as error:
        said = str(error)
        for field, flag in FIELDS.items():
            said = said.replace(f'config.data.{field}', f'--{flag}')
        raise UserError(said) from None
    seen, there = ({*labels.tolist()} for _, labels in splits)
    if len(there) < 2 or not seen <= there:
        raise UserError(
            f'--source={config.data.source} has images of classes {sorted(seen)} to train on and '
            f'{sorted(there)} to test: expected two or more to test, and all that are trained on'
        )
    return detector, *splits


def configured(source: str, size: int, channels: int, steps: int, samples: int):
    """The config of every VAE: networks of configs/vae_fashion_mnist.py."""
    config = default('autoencoders.vae')
    config.update_from_flattened_dict(
        {
            'batch_size': BATCH,
            'steps': steps,
            'data.source': source,
            'data.image_size': size,
            'data.channels': channels,
            'pixels.likelihood': 'logistic',
            'vae.weighed': samples,
            'optimizer.decay_steps': steps,
            'ema_decay': 0.99,
        }
    )
    return config


def read(config, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images uint8 [n, h, w, c] of a split and their labels [n]."""
    source = open_source(config.data, split)
    if not source.num_classes:
        raise UserError(f'--source={config.data.source}: expected images with labels')
    examples = [source[i] for i in range(len(source))]
    return np.stack([x['image'] for x in examples]), np.array([x['label'] for x in examples])


class Detector:
    """VAEs of one config, trained and asked by programs that are compiled once."""

    def __init__(self, config):
        self._config, method = config, create(config)
        self._init = jax.jit(method.init)
        self._step = jax.jit(method.train_step, donate_argnums=1)
        self._components = config.model.latent_dim

        def scores(state, keys, x):
            found = method.evaluate_step(keys, state, {'image': x})
            back = method.decode(state, method.encode(state, {'image': x}), {})
            return {
                'reconstruction': jnp.square(back - x).mean((1, 2, 3)),
                'elbo': -found['elbo'],
                'iw_bound': -found['iw_bound'],
                'bits': found['iw_bits_per_dim'],
            }

        self._scores = jax.jit(scores)

    def trained(self, images: np.ndarray):
        """The state of a VAE that saw images uint8 [n, h, w, c] alone."""
        key, rng = jax.random.key(0), np.random.default_rng(0)

        def batch():
            return {'image': pipeline.to_float(images[rng.integers(len(images), size=BATCH)])}

        state = self._init(key, batch())
        for step in range(self._config.steps):
            state, metrics = self._step(jax.random.fold_in(key, step), state, batch())
        if not np.isfinite(metrics['loss']):
            raise FloatingPointError(f'loss is {metrics["loss"]} after {self._config.steps} steps')
        return state

    def scores(self, state, images: np.ndarray) -> dict[str, np.ndarray]:
        """How unusual images are, [n] by score but pca, and their `bits` per dimension."""
        keys = jax.random.split(jax.random.key(1), len(images))
        parts = []
        for start in range(0, len(images), PART):
            at = np.resize(np.arange(start, min(start + PART, len(images))), PART)
            found = self._scores(state, keys[at], pipeline.to_float(images[at]))
            parts.append({k: np.asarray(v)[: len(images) - start] for k, v in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def left_by_pca(self, images: np.ndarray, of: np.ndarray):
        """(uint8 [n, h, w, c]) -> squared errors [n] of a PCA of images `of`."""
        flat = [pipeline.to_float(x).reshape(len(x), -1) for x in (of, images)]
        components = min(self._components, *flat[0].shape)
        pca = PCA(components, svd_solver='covariance_eigh').fit(flat[0])
        back = pca.inverse_transform(pca.transform(flat[1]))
        return np.square(back - flat[1]).mean(1)


def measured(detector: Detector, name: str, train: tuple, test: tuple) -> dict:
    """A row: seconds and AUROC by score; of `all` AUROC and bits per dimension by kind of image."""
    begin = time.monotonic()
    (images, labels), (asked, truth) = train, test
    if name != 'all':
        images = images[labels == int(name)]
    state = detector.trained(images)

    def scored(x):
        return {'pca': detector.left_by_pca(x, images), **detector.scores(state, x)}

    found = scored(asked)
    if name != 'all':
        row = {score: roc_auc_score(truth != int(name), found[score]) for score in SCORES}
    else:
        row = {'usual': {'bits': float(found['bits'].mean())}}
        for kind, others in unusual(asked.shape[1:]).items():
            other = scored(others)
            row[kind] = {score: auroc(found[score], other[score]) for score in SCORES}
            row[kind]['bits'] = float(other['bits'].mean())
    seconds = round(time.monotonic() - begin, 1)
    print(f'{name}: {seconds:.0f} s', flush=True)
    return {**row, 'seconds': seconds}


def auroc(usual: np.ndarray, unusual: np.ndarray) -> float:
    """The chance that an unusual image has the higher score."""
    truth = np.r_[np.zeros(len(usual)), np.ones(len(unusual))]
    return float(roc_auc_score(truth, np.r_[usual, unusual]))


def unusual(shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Images of other kinds, uint8 [n, *shape], by name."""
    digits = Digits('all', shape[0], 'resize')
    written = np.stack([digits[i]['image'] for i in range(len(digits))])
    flat = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, *shape))
    noise = np.random.default_rng(0).integers(256, size=(1000, *shape)).astype(np.uint8)
    written = np.broadcast_to(written, (len(written), *shape))
    return {'digits': written, 'flat': flat, 'noise': noise}


def report(rows: dict, source: str) -> str:
    """Markdown: AUROC by class, % and their means with the papers', then other kinds of images."""
    fashion, lines = source == 'tfds:fashion_mnist', []
    classes = [name for name in rows if name != 'all']
    for name in classes:
        title = FASHION[int(name)] if fashion else name
        lines.append([title, *(f'{100 * rows[name][score]:.1f}' for score in SCORES)])
    if len(classes) > 1:
        means = (100 * np.mean([rows[name][score] for name in classes]) for score in SCORES)
        lines.append([f'mean of {len(classes)}', *(f'{mean:.1f}' for mean in means)])
    text = scripts.table_of(['normal, AUROC %', *SCORES], lines) if lines else ''
    if fashion and len(classes) == len(FASHION):
        means = ', '.join(f'{name} {mean}' for name, mean in PUBLISHED.items())
        text += f'\nPublished means: {means}.\n'
    if 'all' in rows:
        kinds, lines = rows['all'], []
        for kind in ('usual', 'digits', 'flat', 'noise'):
            told = (100 * kinds[kind][score] if score in kinds[kind] else None for score in SCORES)
            cells = ['' if x is None else f'{x:.1f}' for x in told]
            lines.append([kind, f'{kinds[kind]["bits"]:.2f}', *cells])
        text += '\n' + scripts.table_of(
            ['all classes against', 'bits per dimension', *SCORES], lines
        )
    return text


def plotted(rows: dict, page, ax):
    """The figure: AUROC of each class by score."""
    classes = [name for name in rows if name != 'all']
    for i, score in enumerate(SCORES):
        at = np.arange(len(classes)) + (i - 1.5) / 5
        ax.bar(at, [rows[name][score] for name in classes], 1 / 5, label=score.replace('_', ' '))
    ax.set(ylabel='AUROC', ylim=(0, 1), xlabel='normal class')
    ax.set_xticks(range(len(classes)), classes)
    ax.axhline(0.5, color='grey', linewidth=0.5)
    scripts.legends([ax])
    return page


if __name__ == '__main__':
    scripts.start(define_flags, main)
