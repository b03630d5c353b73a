"""What --mode=plan says of scaling, as the tables of docs/plan.md.

  python experiments/plan_scaling.py

Needs libtpu (the extra `tpu`) and no TPU; hours of two CPU cores. `--studies` chooses some:

  relative  DDPM's CIFAR-10 on the paper's TPU v3-8 and on its successors
  fsdp      memory of a chip by how many chips share parameters and optimiser
  weak      FLOPs and traffic of a chip as chips and batch grow together
  configs   every config of a paper compiles for v4, v5e and v6e; rows that the page has are kept
"""

import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import scripts
from absl import flags

from gen_jax import latent, plan
from gen_jax.config import create
from gen_jax.errors import UserError
from gen_jax.interop import weights
from gen_jax.runtime import process, topology, workdir
from gen_jax.runtime.config_file import ConfigFile
from gen_jax.runtime.program import Program

FLAGS = flags.FLAGS
MIB = 2**20

# The chips of a config's table: a host's, some of them where these do not divide a batch, or more
# where it needs these.
HOST = ('v4:2x2x1', 'v5e:2x4', 'v6e:2x4')
FOUR = ('v4:2x2x1', 'v5e:2x2', 'v6e:2x2')
MORE = ('v4:2x4x4', 'v5e:4x8', 'v6e:4x8')
PAPERS = {
    'ddpm_cifar10': HOST,
    'dcgan_folder64': HOST,
    'dcgan_cifar10': HOST,
    'sngan_cifar10': HOST,
    'biggan_cifar10': HOST,
    'stylegan2_cifar10': HOST,
    'progan_cifar10': HOST,
    'vae_sprites': HOST,
    'iwae_mnist': FOUR,
    'vq_vae_cifar10': HOST,
    'improved_ddpm_cifar10': HOST,
    'rectified_flow_cifar10': HOST,
    'edm_cifar10': HOST,
    'score_sde_cifar10': HOST,
    'ncsnv2_cifar10': HOST,
    'vdvae_cifar10': HOST,
    'sngan_imagenet128': HOST,
    'adm_classifier_imagenet': HOST,
    'edm_ffhq64': HOST,
    'first_stage_256': FOUR,
    'vq_vae2_256': HOST,
    'biggan_imagenet': MORE,
    'adm_imagenet': MORE,
    'edm_imagenet64': MORE,
    'dit_imagenet': MORE,
    'progan_celebahq1024': HOST,
    'stylegan_ffhq1024': HOST,
    'stylegan2_ffhq1024': HOST,
}
# Whose latents a config's model learns: a plan reads the config of that run, and no more.
STAGES = {'dit_imagenet': 'first_stage_256'}


def define_flags() -> None:
    """Which studies, and where they go."""
    flags.DEFINE_list('studies', [*STUDIES], 'Which to run.')
    known = f'known are {", ".join(STUDIES)}'
    flags.register_validator('studies', lambda names: {*names} <= STUDIES.keys(), known)
    flags.DEFINE_string('out', str(scripts.ROOT / 'docs/plan.md'), 'Whose tables to replace.')


def train_step(name: str, **changes) -> dict:
    """`train_step` of plan.json of ddpm_cifar10 with changes, for one topology."""
    changes = {field.replace('__', '.'): value for field, value in changes.items()}
    config = plan.changed(configured('ddpm_cifar10'), changes)
    (where,) = topology.parse(name)
    program = Program(config, create(config), topology.devices(where))
    return plan.part(program, where, 'train_step')


def relative() -> Iterator[tuple]:
    """The paper trained for 10.6 hours on a v3-8."""
    yield 'topology', 'GFLOPs a step and device', 'step at best, ms', 'hours at best', "paper's"
    for name in ('v3:2x2', 'v4:2x2x1', 'v5e:2x4', 'v6e:2x4'):
        step = train_step(name)
        hours = configured('ddpm_cifar10').steps * step['seconds'] / 3600
        yield (
            name,
            f'{step["flops"] / 1e9:.1f}',
            f'{step["seconds"] * 1e3:.2f}',
            f'{hours:.2f}',
            '10.6' if name == 'v3:2x2' else '-',
        )


def fsdp() -> Iterator[tuple]:
    """16 chips of v5e, the batch of the paper."""
    yield 'fsdp', 'arguments, MiB', 'of fsdp=1', 'temporaries, MiB', 'sent, MB'
    whole = None
    for slices in (1, 16):
        step = train_step('v5e:4x4', mesh__fsdp=slices)
        arguments = step['memory']['arguments']
        whole = whole or arguments
        yield (
            str(slices),
            f'{arguments / MIB:.1f}',
            f'1/{whole / arguments:.2f}',
            f'{step["memory"]["temporaries"] / MIB:.1f}',
            f'{of_collectives(step, "sent") / 1e6:.1f}',
        )


def weak() -> Iterator[tuple]:
    """16 images a chip of v5e."""
    yield 'chips', 'GFLOPs a chip', 'of 8 chips', 'results of collectives a chip, MB', 'of 8 chips'
    first = None
    for name in ('2x4', '8x16', '16x16'):
        (where,) = topology.parse(f'v5e:{name}')
        sizes = {'batch_size': 16 * where.chips, 'sample__batch_size': where.chips}
        step = train_step(where.name, **sizes)
        first = first or step
        yield (
            str(where.chips),
            f'{step["flops"] / 1e9:.2f}',
            f'{step["flops"] / first["flops"]:.4f}',
            f'{of_collectives(step, "bytes") / 1e6:.3f}',
            f'{of_collectives(step, "bytes") / of_collectives(first, "bytes"):.4f}',
        )


def configs() -> Iterator[tuple]:
    """The papers' batches; a GiB figure is memory of a device."""
    topology.require_compiler()
    kept = written(Path(FLAGS.out).read_text(), 'configs')
    yield 'config', 'topology', 'train_step, GiB', 'sample_step, GiB', 'images/s, training at best'
    yield from kept  # first, so that a run that is stopped leaves them
    for label, name in missing(kept):
        try:
            yield planned(label, name)
        except UserError as error:
            logging.warning('no row of %s on %s: %s', label, name, error)


def missing(rows: list[tuple]) -> list[tuple[str, str]]:
    """(config, topology) of which there is no row yet."""
    there = {row[:2] for row in rows}
    every = [(label, name) for label, topologies in PAPERS.items() for name in topologies]
    return [one for one in every if one not in there]


def configured(label: str):
    """The config of this name."""
    return ConfigFile().parse(str(scripts.ROOT / f'configs/{label}.py'))


def of_paper(label: str, folder: Path):
    """The config of this name; where it learns latents, with a first stage in an empty folder."""
    config = configured(label)
    if label in STAGES:
        stage = configured(STAGES[label])
        workdir.claim(stage, folder)
        config.latent.workdir = str(folder)
    return config


def planned(label: str, name: str) -> tuple:
    """The row of one config and topology, or why it has no figures.

    Raises:
      UserError: what the config needs, such as weights of LPIPS's network, is not here.
    """
    (where,) = topology.parse(name)
    with tempfile.TemporaryDirectory() as folder:
        config = of_paper(label, Path(folder))
        with weights.shapes_only():
            Program(config, latent.method(config))
        try:
            found = process.apart(plan.plan, config, where)
        except UserError as refused:
            return (label, name, str(refused), '-', '-')
    sample = found.get('sample_step')
    images = found.get('train_images_per_second')
    return (
        *(label, name, gib(found['train_step']), gib(sample) if sample else 'draws nothing'),
        f'{images:,.0f}' if images else '-',
    )


def gib(part: dict) -> str:
    """Memory in all of a part of plan.json, or with what it would fit."""
    if 'memory' in part:
        return f'{part["memory"]["total"] / topology.GIB:.2f}'
    ways = [', '.join(f'{k}={v}' for k, v in changes.items()) for changes in part['fitting']]
    needed = f'{part["needed"] / topology.GIB:.1f} of {part["available"] / topology.GIB:.1f}'
    return f'{needed}: {" or ".join(ways) or "nothing"} fits'


def written(page: str, name: str) -> list[tuple]:
    """The rows of a table that a page has, without its heads."""
    table = re.search(rf'<!-- {name} -->\n(.*?)<!-- /{name} -->', page, re.DOTALL)
    lines = table[1].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip('|').split('|')) for line in lines]


def of_collectives(step: dict, what: str) -> float:
    """All collectives' results ('bytes'), or what a device sends for them ('sent')."""
    return sum(kind[what] for kind in step['collectives'].values())


def replace(name: str, rows: list[tuple]) -> None:
    """Puts a table between the page's markers of this name."""
    head, *body = (f'| {" | ".join(row)} |' for row in rows)
    table = '\n'.join([head, '|---' * len(rows[0]) + '|', *body])
    page = Path(FLAGS.out)
    around = rf'(<!-- {name} -->\n).*?(<!-- /{name} -->)'
    text = re.sub(around, lambda x: f'{x[1]}{table}\n{x[2]}', page.read_text(), flags=re.DOTALL)
    page.write_text(text)


STUDIES = {'relative': relative, 'fsdp': fsdp, 'weak': weak, 'configs': configs}


def main() -> None:
    """Runs the studies; each line is printed as it is found."""
    page = Path(FLAGS.out)
    if not page.is_file() or any(f'<!-- {x} -->' not in page.read_text() for x in FLAGS.studies):
        raise UserError(f'--out={page}: expected a page with the marks of docs/plan.md')
    # What was compiled for a TPU can be kept and cannot be read where there is none.
    jax.config.update('jax_enable_compilation_cache', False)
    for name in FLAGS.studies:
        rows = []
        for row in STUDIES[name]():
            print(name, *row, sep=' | ', flush=True)
            rows.append(row)
            if name == 'configs':  # which takes hours
                replace(name, rows)
        replace(name, rows)


if __name__ == '__main__':
    scripts.start(define_flags, main)
