"""How guidance trades diversity for fidelity: precision and recall by guidance scale.

  python experiments/guidance.py --config=configs/edm_fashion_mnist.py

Needs the run, runs/edm_fashion_mnist or --workdir, of a diffusion model trained with
`diffusion.label_dropout`. Leaves guidance.json, .md and .png in RUN/guidance, and the samples
beside them; started again, it goes on where it was. It prints at the start what it will take.

All scales start from the same noise, and are drawn by the config's own sampler. Scale 0 is the
unconditional model, 1 the conditional one. Rows: `plain`; `interval`, guided only where sigma /
alpha lies in --interval (Kynkäänniemi et al. 2024); `rescale`, with phi = --rescale (Lin et al.
2024). The last two differ from the first for scales above 1 only.
"""

from typing import NamedTuple

import scripts
import studies
from absl import flags
from studies import Study

from gen_jax.errors import UserError

FLAGS = flags.FLAGS
MODES = ('plain', 'interval', 'rescale')


class Draw(NamedTuple):
    """One row: a way to guide, and how much."""

    mode: str
    scale: float
    changes: dict

    @property
    def name(self) -> str:
        """Of the row."""
        return f'{self.mode}_{self.scale:g}'.replace(' ', '_')


def define_flags() -> None:
    """A run, rows, and those of this study alone."""
    scripts.define_run()
    scripts.define_rows()
    flags.DEFINE_list('scales', [0, 0.5, 1, 1.5, 2, 3, 4, 6], 'Guidance scales.')
    flags.DEFINE_list('interval', [0.28, 2.9], 'Least and most sigma / alpha that is guided.')
    flags.DEFINE_float('rescale', 0.7, 'phi, 0 to 1.')


def main() -> None:
    """Measures, prints, writes."""
    modes = scripts.chosen(MODES, FLAGS.rows)
    scales, ends = (scripts.numbers(name, float, 0) for name in ('scales', 'interval'))
    page = scripts.figure(2) if FLAGS.plot else None
    study = studies.opened('guidance', FLAGS.config)
    draws = planned(modes, scales, ends, FLAGS.rescale)
    if why := next(filter(None, (study.misfit(draw.changes) for draw in draws)), ''):
        raise UserError(why)
    run(study, draws)
    study.write(report(study), page and plotted(study, *page))


def planned(names: list[str], scales: tuple, interval: tuple, phi: float) -> list[Draw]:
    """The rows; those of `interval` and `rescale` where they differ from `plain`."""
    own = {
        'plain': ('plain', {}),
        'interval': (
            f'interval {" to ".join(f"{end:g}" for end in interval)}',
            {'sampler.guidance_interval': interval},
        ),
        'rescale': (f'rescale {phi:g}', {'sample.knobs.guidance_rescale': phi}),
    }
    neither = {'sampler.guidance_interval': (), 'sample.knobs.guidance_rescale': 0.0}
    draws = []
    for name in names:
        mode, how = own[name]
        for scale in scales:
            if scale > 1 or name == 'plain':
                draws.append(Draw(mode, scale, {**neither, **how, 'sample.knobs.guidance': scale}))
    return draws


def run(study: Study, draws: list[Draw]) -> None:
    """Makes the rows that are not there."""
    new = [draw for draw in draws if not study.rows.has(draw.name, draw.changes)]
    # Outside of an interval a call is not guided: there the announced is the most.
    each = (study.method(x.changes).network_calls * study.passes(x.changes) for x in new)
    study.announce(study.n * sum(each))
    study.real()
    for draw in new:
        told = {'mode': draw.mode, 'scale': draw.scale}
        study.row(draw.name, draw.changes, lambda told=told: told)


def found(study: Study) -> dict[str, list[dict]]:
    """The rows of each mode, by rising scale."""
    rows = [row for row in study.rows.found.values() if 'mode' in row]
    modes = dict.fromkeys(row['mode'] for row in rows)
    rows.sort(key=lambda row: row['scale'])
    return {mode: [row for row in rows if row['mode'] == mode] for mode in modes}


def report(study: Study) -> str:
    """Markdown."""
    rows = [row for own in found(study).values() for row in own]
    return study.every_row(rows, ['mode', 'scale'])


def plotted(study: Study, page, axes):
    """The figure: precision over recall, and the distance over the scale."""
    (precision, recall, *_), distance = study.worth.shares, study.worth.distance
    for mode, rows in found(study).items():
        axes[0].plot([r[recall] for r in rows], [r[precision] for r in rows], 'o-', label=mode)
        axes[1].plot([r['scale'] for r in rows], [r[distance] for r in rows], 'o-', label=mode)
        for row in rows:
            axes[0].annotate(f'{row["scale"]:g}', (row[recall], row[precision]))
    if real := study.rows.found['real']:
        axes[0].plot(real[recall], real[precision], 'k*', label='real images')
        axes[1].axhline(real[distance], color='black', linestyle=':', label='real images')
    axes[0].set(xlabel=recall, ylabel=precision)
    axes[1].set(xlabel='guidance scale', ylabel=f'{distance} of {study.n:,} samples')
    scripts.legends(axes)
    return page


if __name__ == '__main__':
    scripts.start(define_flags, main)
