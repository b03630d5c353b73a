"""Fills the README's pictures and results table from finished runs.

  python experiments/readme.py --runs=runs

Each row of the table needs RUNS/<config>/ as training, --mode=evaluate and
experiments/recognised.py leave it; a row whose run is missing is left as it is.
"""

import json
import re
import shutil
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).parents[1]
README = ROOT / 'README.md'
PICTURES = ROOT / 'docs' / 'pictures'
FLAGS = flags.FLAGS
flags.DEFINE_string('runs', 'runs', 'The folder whose subfolders are the runs, by config.')


def minutes(run: Path) -> str:
    """What the steps of a run took, from its metrics: drawing and saving left out."""
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    seconds, before = 0.0, 0
    for row in rows:
        seconds += (row['step'] - before) / row['steps_per_second']
        before = row['step']
    return f'{before:,} steps, {seconds / 60:.1f} min on 2 CPU cores'


def recognised(run: Path) -> str:
    """How many samples the classifier names as the class asked for."""
    found = json.loads((run / 'recognised.json').read_text())
    worst = min(found['recognised_per_class'])
    return (
        f'{found["recognised"]:.1%} of {found["n"]:,} samples recognised as the class asked for, '
        f'{worst:.0%} in the worst class (classifier: {found["accuracy_on_real_test"]:.1%} '
        'on real test images)'
    )


def covered(run: Path) -> str:
    """How many classes a GAN's samples have, and how well its discriminator did over time."""
    found = json.loads((run / 'recognised.json').read_text())
    shares = found['share_per_class']
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    told = [(row['d_real_accuracy'] + row['d_fake_accuracy']) / 2 for row in rows]
    over_time = ', '.join(f'{told[i]:.0%}' for i in (0, len(told) // 4, len(told) // 2, -1))
    return (
        f'{found["classes_covered"]:.0%} of classes covered (each at least 2% of '
        f'{found["n"]:,} samples; shares {min(shares):.1%} to {max(shares):.1%}); '
        f'discriminator right on {over_time} of images at the start, a quarter, half and the end'
    )


def elbo(run: Path) -> str:
    """The test ELBO."""
    found = json.loads((run / 'metrics.json').read_text())['elbo']
    return f'test ELBO {found["value"]:.1f} ± {found["standard_error"]:.1f} nats ({found["n"]:,})'


# config, what it reports, what it has to be compared with
ROWS = (
    ('ddpm_digits', recognised, 'none'),
    ('ddpm_fashion_mnist', recognised, 'none'),
    ('vae_fashion_mnist', elbo, 'none with this likelihood'),
    ('dcgan_fashion_mnist', covered, 'none'),
)


def row(run: Path, report, paper: str) -> str:
    """A line of the table."""
    command = f'`python main.py --config=configs/{run.name}.py`'
    return f'| {command} | {minutes(run)} | {paper} | {report(run)} |'


def main(_) -> None:
    """Writes README.md and docs/pictures."""
    text = README.read_text()
    runs = Path(FLAGS.runs)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, report, paper in ROWS:
        run = runs / name
        if not (run / 'metrics.jsonl').exists():
            print(f'no run {run}: its row stays as it is')
            continue
        old = re.search(
            rf'^\| `python main\.py --config=configs/{name}\.py` .*$', text, re.MULTILINE
        )
        text = text.replace(old.group(), row(run, report, paper))
        for kind in ('step', 'reconstruction', 'interpolation'):
            grids = sorted((run / 'samples').glob(f'{kind}_*.png'))
            if grids:
                shutil.copy(grids[-1], PICTURES / f'{name}_{kind.replace("step", "samples")}.png')
    README.write_text(text)


if __name__ == '__main__':
    app.run(main)
