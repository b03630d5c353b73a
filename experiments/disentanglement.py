"""Disentanglement: which known factors beta-VAE, beta-TCVAE and FactorVAE tell apart.

  python experiments/disentanglement.py

Needs no data. Leaves disentanglement.json, .md and .png in --out; started again, it goes on where
it was. A row is one objective and strength. Its seeds are one program, trained and judged on all
11,520 sprites of 32x32 (gen_jax/data/sprites.py; 3 shapes, 6 scales, 10 rotations, 8 x 8 places).

Strengths are those with which the total correlation of the posteriors weighs as much: beta of
beta-VAE (Higgins et al. 2017) and of beta-TCVAE (Chen et al. 2018) is 1 + gamma of FactorVAE (Kim
and Mnih 2018). Scores are those of gen_jax/metrics/disentanglement.py with the numbers of Locatello
et al. 2019, but DCI's by a random forest of 2,000 images. Images, networks (two hidden layers) and
training are much smaller than in these papers, whose numbers are therefore not quoted.
"""

import functools
import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scripts
from absl import flags
from scripts import Column, Rows

from gen_jax.config import create, default
from gen_jax.data import sprites
from gen_jax.metrics.disentanglement import active_units, beta_vae, dci, factor_vae, looked_up, mig
from gen_jax.runtime import workdir

FLAGS = flags.FLAGS
SIZES = (3, 6, 10, 8, 8)  # values of each factor
BATCH = 64  # images that a model learns from in one step
TOGETHER = 256  # images that are encoded at once
PREDICTED = 2000  # images that DCI's forest learns from, and is asked of
STRENGTHS = (2, 4, 8)


class Setting(NamedTuple):
    """A row: an objective of `autoencoders.vae`, changes of `config.vae`, whether it learns."""

    objective: str
    changes: dict
    learns: bool = True


SETTINGS = {
    'untrained': Setting('elbo', {}, learns=False),
    'vae': Setting('elbo', {}),
    **{f'beta_vae_{b}': Setting('elbo', {'beta': float(b)}) for b in STRENGTHS},
    **{f'beta_tcvae_{b}': Setting('beta_tc', {'beta': float(b)}) for b in STRENGTHS},
    **{f'factor_vae_{b - 1}': Setting('factor', {'gamma': b - 1.0}) for b in STRENGTHS},
}
MEASURES = {  # of a row's lists: what the table calls them, and digits after the point
    'reconstruction': ('reconstruction, nats', 1),
    'kl': ('KL, nats', 1),
    'mig': ('MIG', 2),
    'factor_vae': ('FactorVAE', 2),
    'beta_vae': ('beta-VAE', 2),
    'disentanglement': ('DCI: D', 2),
    'completeness': ('C', 2),
    'informativeness': ('I', 2),
    'active': ('units', 1),
}
PLOTTED = ('mig', 'factor_vae', 'beta_vae', 'disentanglement')


def define_flags() -> None:
    """Rows, and those of this study alone."""
    scripts.define_rows()
    flags.DEFINE_integer('steps', 6000, 'Training steps.', lower_bound=1)
    flags.DEFINE_integer('seeds', 4, 'Models of each row.', lower_bound=1)
    flags.DEFINE_integer('image_size', 32, 'Pixels; divides 64.')
    flags.DEFINE_string('out', str(scripts.ROOT / 'runs/disentanglement'), 'The results.')


def main() -> None:
    """Trains, measures, prints, writes."""
    names = scripts.chosen(SETTINGS, FLAGS.rows)
    sprites.check_size(FLAGS.image_size)
    if FLAGS.plot:
        scripts.figure(1)  # before the work, what it needs
    out = scripts.folder(FLAGS.out)
    asked = {'steps': FLAGS.steps, 'seeds': FLAGS.seeds, 'image_size': FLAGS.image_size}
    rows, images = Rows(out / 'disentanglement.json', asked), every_image(FLAGS.image_size)
    settings = settings_of(FLAGS.image_size, FLAGS.steps)
    for name in names:
        make = functools.partial(measured, name, images, FLAGS.steps, FLAGS.seeds)
        rows(name, settings[name], make)
    done = rows.of(settings)
    scripts.write(out / 'disentanglement', report(done), plotted(done) if FLAGS.plot else None)


def settings_of(image_size: int, steps: int) -> dict[str, dict]:
    """All that each row depends on, but for seeds."""
    shared = {'factors': SIZES, 'predicted': PREDICTED}
    configs = {name: configured(setting, image_size, steps) for name, setting in SETTINGS.items()}
    return {
        name: {**shared, 'learns': SETTINGS[name].learns, **workdir.flat(config)}
        for name, config in configs.items()
    }


def every_image(size: int) -> np.ndarray:
    """One image of each combination of the factors, uint8 [n, size, size, 1]."""
    every = sprites.factors(np.arange(math.prod(SIZES)), SIZES)
    return sprites.render(sprites.values(every, SIZES), size)[..., None]


def configured(setting: Setting, image_size: int, steps: int):
    """The config of a setting: two hidden layers, Adam whose rate falls to 0."""
    config = default('autoencoders.vae', network='mlp', objective=setting.objective)
    config.update_from_flattened_dict(
        {
            'batch_size': BATCH,
            'data.image_size': image_size,
            'model.widths': (256, 128),
            'model.activation': 'relu',
            'model.latent_dim': 10,
            'optimizer.learning_rate': 1e-3,
            'optimizer.decay_steps': steps,
            'ema_decay': 0.0,
        }
    )
    config.vae.update(setting.changes)
    if setting.objective == 'beta_tc':
        config.vae.data_size = math.prod(SIZES)
    if setting.objective == 'factor':
        config.batch_size = 2 * BATCH  # its judge has the other half
        config.vae.update({'judge_layers': 4, 'judge_width': 256, 'judge_rate': 1e-3})
    return config


def measured(name: str, images: np.ndarray, steps: int, seeds: int) -> dict:
    """A row: seconds of training and of judging, and lists of one number for each seed."""
    begin, setting = time.monotonic(), SETTINGS[name]
    config = configured(setting, images.shape[1], steps)
    run = jax.jit(jax.vmap(trained(config, images, steps if setting.learns else 0)))
    codes, terms = jax.tree.map(np.asarray, run(jnp.arange(seeds)))
    learnt = time.monotonic()
    found = [scores(each, seed) for seed, each in enumerate(codes)]
    row = {'seconds': round(learnt - begin, 1), 'judged': round(time.monotonic() - learnt, 1)}
    row |= {term: value.tolist() for term, value in terms.items()}
    row |= {score: [each[score] for each in found] for score in found[0]}
    told = ', '.join(f'{score} {np.mean(row[score]):.2f}' for score in ('reconstruction', *PLOTTED))
    print(f'{name}: {told}; {row["seconds"]:.0f} s and {row["judged"]:.0f} s', flush=True)
    return row


def trained(config, images: np.ndarray, steps: int):
    """(seed) -> (codes [n, d] of all images, {'reconstruction', 'kl': nats}) of a model."""
    method, n = create(config), len(images)

    def batch(which):
        return {'image': jnp.asarray(images)[which].astype(jnp.float32) / 127.5 - 1}

    def whole(seed):
        start, along, judging = jax.random.split(jax.random.key(seed), 3)

        def step(state, i):
            data, key = jax.random.split(jax.random.fold_in(along, i))
            which = jax.random.randint(data, config.batch_size, 0, n)
            return method.train_step(key, state, batch(which))[0], None

        def judge(which):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(judging, which)
            terms = method.evaluate_step(keys, state, batch(which))
            return method.encode(state, batch(which)), -terms['log_likelihood'], terms['kl']

        state, _ = jax.lax.scan(step, method.init(start, batch(jnp.arange(2))), jnp.arange(steps))
        parts = jnp.arange(-(-n // TOGETHER) * TOGETHER) % n  # the last part begins anew
        codes, *terms = jax.lax.map(judge, parts.reshape(-1, TOGETHER))
        reconstruction, kl = (x.reshape(-1)[:n].mean() for x in terms)
        codes = codes.reshape(-1, codes.shape[-1])[:n]
        return codes, {'reconstruction': reconstruction, 'kl': kl}

    return whole


def scores(codes: np.ndarray, seed: int) -> dict:
    """{score: number} of codes [n, d] of all images."""
    every = sprites.factors(np.arange(len(codes)), SIZES)
    represent, rng = looked_up(codes, SIZES), np.random.default_rng(seed)
    asked = rng.permutation(len(codes))[: 2 * PREDICTED].reshape(2, -1)
    sets = [x[which] for which in asked for x in (codes, every)]
    found = dci(*sets, predictor='forest', seed=seed)
    return {
        'mig': mig(codes, every),
        'factor_vae': factor_vae(represent, SIZES, rng),
        'beta_vae': beta_vae(represent, SIZES, rng),
        **{name: value for name, value in found._asdict().items() if name != 'importance'},
        'active': active_units(codes),
    }


def report(rows: dict) -> str:
    """Markdown: means and standard deviations over seeds."""
    columns = [Column('', lambda item: item[0])]
    for measure, (heading, digits) in MEASURES.items():
        columns.append(Column(heading, functools.partial(_cell, measure, digits)))
    columns.append(Column('seconds', lambda item: f'{item[1]["seconds"] + item[1]["judged"]:.0f}'))
    return scripts.table(columns, rows.items())


def _cell(measure: str, digits: int, item: tuple) -> str:
    return scripts.told(item[1][measure], digits)


def plotted(rows: dict):
    """The figure: scores against reconstruction, a point for each seed, a line through means.

    What is untrained reconstructs nothing: its mean score is a line across.
    """
    page, axes = scripts.figure(len(PLOTTED), 1, (4, 3.5))
    families = {}
    for name in rows:
        families.setdefault(name.rstrip('_0123456789'), []).append(name)
    for ax, measure in zip(np.ravel(axes), PLOTTED, strict=True):
        ax.set(xlabel='reconstruction, nats', ylabel=MEASURES[measure][0])
        for i, (family, names) in enumerate(families.items()):
            label = family.replace('_', ' ')
            points = [(rows[x]['reconstruction'], rows[x][measure]) for x in names]
            means = np.mean(points, -1)  # [names, 2]
            if family == 'untrained':
                ax.axhline(means[0, 1], color='grey', linestyle=':', label=label)
                continue
            ax.plot(*np.hstack(points), '.', color=f'C{i}')
            ax.plot(*means.T, '-', color=f'C{i}', alpha=0.5, label=label)
            for name, place in zip(names, means, strict=True):
                ax.annotate(name.removeprefix(family).strip('_'), place)
    scripts.legends(np.ravel(axes)[:1])
    return page


if __name__ == '__main__':
    scripts.start(define_flags, main)
