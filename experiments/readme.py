r"""Fills the README's pictures and tables from finished runs.

  python experiments/readme.py --runs=runs --throughput=throughput.md

Each row of the results needs RUNS/CONFIG/, of a variant RUNS/CONFIG_VARIANT/, as training and
--mode=evaluate leave it; a row whose run is missing, or not evaluated, is left as it is, and so is
the table of experiments/throughput.py. For bits per dimension, evaluate a second time:

  python main.py --config=configs/edm_fashion_mnist.py --mode=evaluate \
      --config.eval.metrics="('per_example',)" --config.data.eval_split='test[:1000]'
"""

import json
import re
import shutil
from pathlib import Path

import scripts
from absl import flags

from gen_jax.errors import UserError

README = scripts.ROOT / 'README.md'
PICTURES = scripts.ROOT / 'docs' / 'pictures'
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Where the numbers are."""
    flags.DEFINE_string('runs', 'runs', 'The folder whose subfolders are the runs, by config.')
    flags.DEFINE_string('machine', '2 CPU cores', 'What the runs were trained on.')
    flags.DEFINE_string('throughput', '', 'The table that experiments/throughput.py wrote.')


def minutes(run: Path) -> str:
    """What the steps of a run took, from its metrics: drawing and saving left out."""
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    seconds, before = 0.0, 0
    for row in rows:
        if 'steps_per_second' not in row:
            continue  # an evaluation
        seconds += (row['step'] - before) / row['steps_per_second']
        before = row['step']
    return f'{before:,} steps, {seconds / 60:.1f} min on {FLAGS.machine}'


def metrics(run: Path) -> dict[str, dict]:
    """What --mode=evaluate found."""
    return json.loads((run / 'metrics.json').read_text())


def likeness(found: dict[str, dict]) -> str:
    """How near the samples are to the data, beside what real test images get."""
    name = next(name for name in found if name.startswith('fid_'))
    network = name.removeprefix('fid_')
    row = found[name]
    precision, recall = (found[f'{x}_{network}']['value'] for x in ('precision', 'recall'))
    return (
        f'{name} {row["value"]:.2f} of {row["n"]:,} samples ({row["floor_n"]:,} real test images: '
        f'{row["floor"]:.2f}), precision {precision:.2f}, recall {recall:.2f}'
    )


def recognised(found: dict[str, dict]) -> str:
    """How many samples the classifier names as the class asked for; '' where none was."""
    row = next((row for name, row in found.items() if name.startswith('accuracy_')), None)
    if row is None:
        return ''
    worst = min(row['per_class'].values())
    return (
        f'; {row["value"]:.1%} recognised as the class asked for, {worst:.0%} in the worst class '
        f'(real test images: {row["floor"]:.1%})'
    )


def conditional(run: Path) -> str:
    """Likeness, and how many samples the classifier names as the class asked for."""
    found = metrics(run)
    return f'{likeness(found)}{recognised(found)}'


def diffusion(run: Path) -> str:
    """What `conditional` says, and bits per dimension."""
    found = metrics(run)
    kinds = {'vlb': 'the bound', 'ode': 'the probability-flow ODE'}
    for short, kind in kinds.items():
        if row := found.get(f'{short}_bits_per_dim'):
            bits = f'{row["value"]:.3f} ± {row["standard_error"]:.3f}'
            return f'{conditional(run)}; {bits} bits per dimension by {kind} ({row["n"]:,} images)'
    return conditional(run)


def adversarial(run: Path) -> str:
    """Likeness, how many classes a GAN's samples have, how well its discriminator did over time."""
    found = metrics(run)
    row = next(row for name, row in found.items() if name.startswith('modes_'))
    shares = [count / row['n'] for count in row['counts']]
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    rows = [row for row in rows if 'd_real_accuracy' in row]  # the others are evaluations
    told = [(row['d_real_accuracy'] + row['d_fake_accuracy']) / 2 for row in rows]
    over_time = [f'{told[i]:.0%}' for i in (0, len(told) // 4, len(told) // 2, -1)] if told else []
    right = (
        f'; discriminator right on {", ".join(over_time)} of images at the start, a quarter, half '
        'and the end'
    )
    return (
        f'{likeness(found)}{recognised(found)}; {row["found"]} of {row["modes"]} classes, with '
        f'shares of '
        f'{min(shares):.1%} to {max(shares):.1%}; SSIM diversity '
        f'{found["diversity_ssim"]["ratio"]:.2f} of that of real images{right if told else ""}'
    )


def autoencoder(run: Path) -> str:
    """Bounds, bits per dimension, reconstructions, and the likeness of samples; what there is."""
    found, parts = metrics(run), []
    for name, title, unit in BOUNDS:
        if row := found.get(name):
            digits = 3 if 'bits' in name else 1
            value = f'{row["value"]:.{digits}f} ± {row["standard_error"]:.{digits}f}'
            parts.append(f'{title} {value} {unit} ({row["n"]:,})')
    if 'reconstruction_psnr' in found:
        psnr, ssim = (found[f'reconstruction_{name}']['value'] for name in ('psnr', 'ssim'))
        rfid = [f', rFID {row["value"]:.2f}' for name, row in found.items() if 'rfid' in name]
        parts.append(f'reconstructions PSNR {psnr:.1f} dB, SSIM {ssim:.3f}' + ''.join(rfid))
    if 'probe' in found:
        latents, pixels = (found[name]['value'] for name in ('probe', 'probe_of_pixels'))
        parts.append(f'a linear probe of latents {latents:.1%} (of pixels {pixels:.1%})')
    if row := found.get('active_units'):
        parts.append(f'{row["value"]} of {row["of"]} units active')
    if used := perplexities(run):
        parts.append('perplexity of codes ' + ' and '.join(f'{x:.0f}' for x in used))
    if any(name.startswith('fid_') for name in found):
        parts.append(likeness(found))
    return '; '.join(parts)


def perplexities(run: Path) -> list[float]:
    """Of the codes of each level, as training last logged them; none where there are no codes."""
    lines = (run / 'metrics.jsonl').read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    logged = [row for row in logged if 'steps_per_second' in row]  # the others are evaluations
    return [x for name, x in logged[-1].items() if name.startswith('perplexity')]


# What an autoencoder's evaluation may hold.
BOUNDS = (
    ('elbo', 'test ELBO', 'nats'),
    ('iw_bound', 'importance-weighted bound', 'nats'),
    ('elbo_bits_per_dim', 'by the ELBO', 'bits per dimension'),
    ('iw_bits_per_dim', 'by the importance-weighted bound', 'bits per dimension'),
)
# config, what it reports, what it has to be compared with
ROWS = (
    ('ddpm_digits', conditional, 'none'),
    ('ddpm_fashion_mnist', diffusion, 'none'),
    ('ddpm_fashion_mnist:short', diffusion, 'none'),
    ('edm_fashion_mnist', diffusion, 'none'),
    ('edm_fashion_mnist:flow', diffusion, 'none'),
    ('edm_fashion_mnist:vp', diffusion, 'none'),
    ('edm_fashion_mnist:ve', diffusion, 'none'),
    ('vae_fashion_mnist', autoencoder, 'none with this likelihood'),
    ('autoencoder_fashion_mnist', autoencoder, 'none'),
    ('vae_fashion_mnist:logistic', autoencoder, 'none'),
    ('vq_vae_fashion_mnist', autoencoder, 'none'),
    ('vq_vae_fashion_mnist:diffusion', conditional, 'none'),
    ('vq_vae2_fashion_mnist', autoencoder, 'none'),
    ('vae_gan_fashion_mnist', autoencoder, 'none'),
    ('vdvae_fashion_mnist', autoencoder, 'none'),
    ('ldm_fashion_mnist', autoencoder, 'none'),
    ('ldm_fashion_mnist:diffusion', conditional, 'none'),
    ('ldm_fashion_mnist:pixels', conditional, 'none'),
    ('dcgan_fashion_mnist', adversarial, 'none'),
    ('gan_fashion_mnist', adversarial, 'none'),
    ('gan_fashion_mnist:hinge', adversarial, 'none'),
    ('gan_fashion_mnist:wgan_gp', adversarial, 'none'),
    ('gan_fashion_mnist:r1', adversarial, 'none'),
    ('gan_fashion_mnist:projection', adversarial, 'none'),
    ('gan_fashion_mnist:biggan', adversarial, 'none'),
    ('gan_fashion_mnist:stylegan2', adversarial, 'none'),
)


def command(name: str) -> str:
    """What trains a config, 'FILE' or 'FILE:VARIANT'."""
    file, colon, variant = name.partition(':')
    return f'`python main.py --config=configs/{file}.py{colon}{variant}`'


def placed(text: str, name: str, row: str) -> str:
    """The text with the row of a config in place of the old one, or after the row before it."""

    def lines(name):
        return re.search(rf'^\| {re.escape(command(name))} .*$', text, re.MULTILINE)

    if old := lines(name):
        return text.replace(old.group(), row)
    names = [other for other, *_ in ROWS]
    before = next(x for x in reversed(names[: names.index(name)]) if lines(x))
    return text.replace(lines(before).group(), f'{lines(before).group()}\n{row}')


def main() -> None:
    """Writes README.md and docs/pictures."""
    if FLAGS.throughput and not Path(FLAGS.throughput).is_file():
        raise UserError(f'--throughput={FLAGS.throughput}: expected the table of throughput.py')
    text, done = README.read_text(), []
    for name, report, paper in ROWS:
        run = Path(FLAGS.runs) / name.replace(':', '_')
        if not all((run / left).exists() for left in ('metrics.jsonl', 'metrics.json')):
            print(f'no run {run}, or none that was evaluated: its row stays as it is')
            continue
        row = f'| {command(name)} | {minutes(run)} | {paper} | {report(run)} |'
        text = placed(text, name, row)
        done.append(run)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for run in done:
        for kind in ('samples', 'reconstruction', 'interpolation'):
            # Of samples the last grid of training, or that of --mode=sample where there is one.
            names = ('step', 'grid') if kind == 'samples' else (kind,)
            grids = [x for name in names for x in sorted((run / 'samples').glob(f'{name}_*.png'))]
            if grids:
                shutil.copy(grids[-1], PICTURES / f'{run.name}_{kind}.png')
        for page in sorted((run / 'explore').glob('*.png')):  # TASK_STEP.png, the newest last
            shutil.copy(page, PICTURES / f'{run.name}_{page.stem.rpartition("_")[0]}.png')
    if FLAGS.throughput:
        table = Path(FLAGS.throughput).read_text()
        text = re.sub(r'\| task \| best of.*?\n\n', lambda _: f'{table}\n', text, flags=re.DOTALL)
    README.write_text(text)


if __name__ == '__main__':
    scripts.start(define_flags, main)
