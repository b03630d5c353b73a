"""Mode collapse: which modes of a ring and of a grid each objective and stabiliser finds.

  python experiments/mode_collapse.py

Needs no data. Leaves mode_collapse.json, .md and .png in --out, and the first seed's samples beside
them; started again, it goes on where it was. A row is one setting of `gans.adversarial`. Its runs,
of both mixtures and all seeds, are one program.

Mixtures, sample counts and measures are those of VEEGAN (Srivastava et al. 2017, section 4.1) with
the numbers of PacGAN (Lin et al. 2018, the authors' code): 8 modes of standard deviation 0.01 on a
circle of radius 1, and 5 x 5 of standard deviation 0.05 at distances of 2. Of 2,500 samples one is
of high quality within 3 standard deviations of a mode, which is then found; reverse KL is
KL(q || p) of the modes' shares among these. Runs that found no mode have none: where there are any,
the table says how many it is of. Networks are smaller and training is much shorter than
there (4 hidden layers of 400 units against 3 of 200 maxout units, 400,000 steps), and samples are
those of averaged weights (`ema_decay`), so the papers' numbers, which stand between ours, say what
is usual and not what is to be met.
"""

import math
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scripts
from absl import flags
from scripts import Rows

from gen_jax.config import create, default
from gen_jax.metrics.modes import by_centres
from gen_jax.runtime import workdir

FLAGS = flags.FLAGS
SAMPLES = 2500
BATCH = 128  # what the discriminator judges in one step: images, or packs of them
FAR = 1e6  # where samples that are not finite are counted


class Mixture(NamedTuple):
    """Gaussians of equal weight.

    Attributes:
      centres: [k, 2].
      std: of each, along each axis.
    """

    centres: np.ndarray
    std: float

    @property
    def reach(self) -> float:
        """What stands at 1 in the images that networks see, where samples are cut off."""
        return 1.25 * float(np.abs(self.centres).max())


ANGLES = 2 * np.pi * np.arange(8) / 8
MIXTURES = {
    'ring': Mixture(np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1), 0.01),
    'grid': Mixture(np.array([(x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)]), 0.05),
}

# At the rate of the others, WGAN-GP's generator never settles on the grid (0.8 of 25 modes).
CRITIC = {
    'gan.objective': 'wasserstein',
    'gan.n_critic': 5,
    'optimizer.learning_rate': 5e-4,
}
SETTINGS = {
    'minimax': {'gan.objective': 'minimax'},
    'non_saturating': {},
    'two_sided_smoothing': {'gan.label_smoothing': 0.1, 'gan.fake_smoothing': 0.1},
    'least_squares': {'gan.objective': 'least_squares'},
    'hinge': {'gan.objective': 'hinge'},
    'spectral_norm': {'gan.objective': 'hinge', 'model.d_spectral': True},
    'wgan_clip': {**CRITIC, 'gan.clip_weights': 0.1},
    'wgan_gp': {**CRITIC, 'gan.penalty': 'wgan_gp', 'gan.penalty_weight': 1.0},
    'dragan': {'gan.penalty': 'dragan', 'gan.penalty_weight': 1.0},
    'r1': {'gan.penalty': 'r1', 'gan.penalty_weight': 0.1},
    'instance_noise': {'gan.instance_noise': 0.2},
    'feature_matching': {'gan.feature_matching': 1.0},
    'minibatch_discrimination': {'model.minibatch_kernels': 4},
    'unrolled_5': {'gan.objective': 'minimax', 'gan.unroll': 5},
    'pacgan_2': {'model.packing': 2},
    'pacgan_4': {'model.packing': 4},
}


class Published(NamedTuple):
    """A row of a paper: of ring and grid the modes found, % of high quality, reverse KL if told."""

    name: str
    ring: tuple[str, ...]
    grid: tuple[str, ...]


# PacGAN's table 1 has means and standard errors of 10 runs, VEEGAN's table 1 means of 5. Metz et
# al. 2017 show unrolled GANs on a ring, and no numbers; these are VEEGAN's of 5 steps.
PACGAN, VEEGAN = 'Lin et al. 2018', 'Srivastava et al. 2017'
PUBLISHED = {
    'non_saturating': [
        Published(
            f'GAN, {PACGAN}',
            ('6.3 ± 0.5', '98.2 ± 0.2', '0.45 ± 0.09'),
            ('17.3 ± 0.8', '94.8 ± 0.7', '0.70 ± 0.07'),
        ),
        Published(f'GAN, {VEEGAN}', ('1', '99.3'), ('3.3', '0.5')),
    ],
    'unrolled_5': [
        Published(f'unrolled GAN, {VEEGAN}', ('7.6', '35.6'), ('23.6', '16')),
    ],
    'pacgan_2': [
        Published(
            f'PacGAN2, {PACGAN}',
            ('7.9 ± 0.1', '95.6 ± 2.0', '0.07 ± 0.03'),
            ('23.8 ± 0.7', '91.3 ± 0.8', '0.13 ± 0.04'),
        )
    ],
    'pacgan_4': [
        Published(
            f'PacGAN4, {PACGAN}',
            ('7.8 ± 0.1', '95.9 ± 1.4', '0.07 ± 0.02'),
            ('24.8 ± 0.2', '93.6 ± 0.6', '0.04 ± 0.01'),
        )
    ],
}


def define_flags() -> None:
    """Rows, and those of this study alone."""
    scripts.define_rows()
    flags.DEFINE_integer('steps', 4000, 'Training steps of the generator.', lower_bound=1)
    flags.DEFINE_integer('seeds', 5, 'Runs of each setting and mixture.', lower_bound=1)
    flags.DEFINE_string('out', str(scripts.ROOT / 'runs/mode_collapse'), 'The folder of results.')


def main() -> None:
    """Trains, measures, prints, writes."""
    names = scripts.chosen(SETTINGS, FLAGS.rows)
    if FLAGS.plot:
        scripts.figure(1)  # before the work, what it needs
    out = scripts.folder(FLAGS.out)
    asked = {'steps': FLAGS.steps, 'seeds': FLAGS.seeds}
    rows, settings = Rows(out / 'mode_collapse.json', asked), settings_of(FLAGS.steps)
    for name in [name for name in rows.found if not (out / f'{name}.npy').exists()]:
        del rows.found[name]  # of which there would be nothing to plot
    for name in names:
        make = partial(measured, name, out, FLAGS.steps, FLAGS.seeds)
        rows(name, settings[name], make)
    done = rows.of(settings)
    scripts.write(out / 'mode_collapse', report(done), plotted(done, out) if FLAGS.plot else None)


def settings_of(steps: int) -> dict[str, dict]:
    """All that each row depends on, but for seeds."""
    configs = {name: configured(changes, steps) for name, changes in SETTINGS.items()}
    return {name: {'samples': SAMPLES, **workdir.flat(x)} for name, x in configs.items()}


def configured(changes: dict, steps: int):
    """The config of a setting: two hidden layers, Adam whose rate falls to 0."""
    config = default('gans.adversarial', network='mlp')
    config.update_from_flattened_dict(
        {
            'data.image_size': 1,
            'data.channels': 2,
            'model.latent_dim': 2,
            'model.g_widths': (64, 64),
            'model.d_widths': (64, 64),
            'model.pieces': (1, 1),
            'model.dropout': 0.0,
            'model.output': 'linear',
            'gan.instance_noise_steps': steps // 2,
            'optimizer.learning_rate': 2e-3,
            'optimizer.decay_steps': steps,
            'ema_decay': 0.99,
            **changes,
        }
    )
    config.batch_size = BATCH * config.gan.n_critic * config.model.packing
    return config


def measured(name: str, out: Path, steps: int, seeds: int) -> dict:
    """A row: seconds, and of each mixture what seeds found; leaves the first's samples."""
    begin = time.monotonic()
    samples = drawn(configured(SETTINGS[name], steps), steps, seeds)  # [mixtures, seeds, n, 2]
    row = {'seconds': round(time.monotonic() - begin, 1)}
    for mixture, each in zip(MIXTURES, samples, strict=True):
        row[mixture] = worth(MIXTURES[mixture], each)
    np.save(out / f'{name}.npy', samples[:, 0])
    found = ', '.join(f'{mixture} {row[mixture]["modes"]}' for mixture in MIXTURES)
    print(f'{name}: modes of {found} after {row["seconds"]:.0f} s', flush=True)
    return row


def drawn(config, steps: int, seeds: int) -> np.ndarray:
    """Samples [mixtures, seeds, n, 2] of generators trained on each mixture with each seed."""
    mixtures = MIXTURES.values()
    # As many of all centres, each as often as the others of its mixture.
    count = math.lcm(*(len(mixture.centres) for mixture in mixtures))
    centres = jnp.stack([np.resize(x.centres / x.reach, (count, 2)) for x in mixtures])
    std, reach = (np.array([getattr(x, name) for x in mixtures]) for name in ('std', 'reach'))
    of_seeds = jax.vmap(trained(config, steps), (None, None, 0))
    whole = jax.jit(jax.vmap(of_seeds, (0, 0, None)))
    samples = whole(centres, jnp.array(std / reach), jnp.arange(seeds))
    return np.asarray(samples) * reach[:, None, None, None]


def trained(config, steps: int):
    """(centres [k, 2], std, seed) -> samples [n, 2] of a generator trained on that mixture."""
    method = create(config)

    def image(key, centres, std):
        which, noise = jax.random.split(key)
        centre = centres[jax.random.randint(which, config.batch_size, 0, len(centres))]
        x = centre + std * jax.random.normal(noise, centre.shape)  # [b, 2]
        return {'image': x.reshape(-1, 1, 1, 2)}  # [b, 1, 1, 2]

    def whole(centres, std, seed):
        start, along, sampling = jax.random.split(jax.random.key(seed), 3)

        def step(state, i):
            data, key = jax.random.split(jax.random.fold_in(along, i))
            return method.train_step(key, state, image(data, centres, std))[0], None

        state = method.init(start, image(start, centres, std))
        state, _ = jax.lax.scan(step, state, jnp.arange(steps))
        keys = jax.random.split(sampling, SAMPLES)
        return method.sample_step(keys, state, {}).reshape(SAMPLES, 2)

    return whole


def worth(mixture: Mixture, samples: np.ndarray) -> dict:
    """{measure: one number for each seed} of samples [seeds, n, 2]; no reverse KL is infinite."""
    samples = np.where(np.isfinite(samples), samples, FAR)
    found = [by_centres(x, mixture.centres, mixture.std) for x in samples]
    return {
        'modes': [x.found for x in found],
        'high_quality': [x.high_quality for x in found],
        'reverse_kl': [x.kl for x in found if x.found],
    }


def cells(row: dict) -> list[str]:
    """What the table says of one mixture."""
    share, kl, n = [100 * x for x in row['high_quality']], row['reverse_kl'], len(row['modes'])
    few = f' ({len(kl)} of {n})' if 0 < len(kl) < n else ''
    return [scripts.told(row['modes'], 1), scripts.told(share, 1), scripts.told(kl, 2) + few]


def report(rows: dict) -> str:
    """Markdown: means and standard deviations over seeds, and papers' rows below ours."""
    lines = []
    for name, row in rows.items():
        lines.append([name, *cells(row['ring']), *cells(row['grid']), f'{row["seconds"]:.0f}'])
        for paper in PUBLISHED.get(name, ()):
            each = [(*x, '')[:3] for x in (paper.ring, paper.grid)]
            lines.append([f'*{paper.name}*', *each[0], *each[1], ''])
    measures = 'modes of {}', 'high quality, %', 'reverse KL'
    headings = ['']
    for name, mixture in MIXTURES.items():
        headings += [f'{name}: {x.format(len(mixture.centres))}' for x in measures]
    headings.append('seconds')
    return scripts.table_of(headings, lines)


def plotted(rows: dict, out: Path, across: int = 4):
    """The figure: samples of the first seed, of ring and grid side by side."""
    down = math.ceil(len(rows) / across)
    page, axes = scripts.figure(2 * across, down, (1.4, 1.5))
    axes = np.reshape(axes, (-1, 2))
    for ax in axes.flat:
        ax.axis('off')
    for name, pair in zip(rows, axes, strict=False):
        samples = np.load(out / f'{name}.npy')  # [mixtures, n, 2]
        for mixture, ax, points in zip(MIXTURES.values(), pair, samples, strict=True):
            ax.plot(*mixture.centres.T, 'o', color='tab:orange', markersize=3)
            ax.plot(*points.T, ',', color='tab:blue')
            ax.set(xlim=(-mixture.reach, mixture.reach), ylim=(-mixture.reach, mixture.reach))
            ax.set_aspect('equal')
        pair[0].set_title(name.replace('_', ' '), fontsize='small', loc='left')
    return page


if __name__ == '__main__':
    scripts.start(define_flags, main)
