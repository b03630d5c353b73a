"""What --mode=plan says of scaling, as the tables of docs/plan.md.

  python experiments/plan_scaling.py

Needs libtpu (the extra `tpu`) and no TPU; an hour of two CPU cores. `--studies` chooses some:

  relative  DDPM's CIFAR-10 on the paper's TPU v3-8 and on its successors
  fsdp      memory of a chip by how many chips share parameters and optimiser
  weak      FLOPs and traffic of a chip as chips and batch grow together
  configs   two configs of papers compile for v4, v5e and v6e
"""

import re
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from gen_jax import plan
from gen_jax.config import create
from gen_jax.runtime import topology
from gen_jax.runtime.program import Program

ROOT = Path(__file__).resolve().parents[1]
FLAGS = flags.FLAGS
config_flags.DEFINE_config_file('ddpm', str(ROOT / 'configs/ddpm_cifar10.py'), 'DDPM.')
config_flags.DEFINE_config_file('dcgan', str(ROOT / 'configs/dcgan_folder64.py'), 'DCGAN.')
flags.DEFINE_list('studies', ['relative', 'fsdp', 'weak', 'configs'], 'Which to run.')
flags.DEFINE_string('out', str(ROOT / 'docs/plan.md'), 'Whose tables to replace.')
MIB = 2**20


def train_step(config, name: str) -> dict:
    """`train_step` of plan.json for one topology."""
    (where,) = topology.parse(name)
    program = Program(config, create(config), topology.devices(where))
    return plan.part(program, where, 'train_step')


def relative() -> Iterator[tuple]:
    """The paper trained for 10.6 hours on a v3-8."""
    yield 'topology', 'GFLOPs a step and device', 'step at best, ms', 'hours at best', "paper's"
    for name in ('v3:2x2', 'v4:2x2x1', 'v5e:2x4', 'v6e:2x4'):
        step = train_step(FLAGS.ddpm, name)
        hours = FLAGS.ddpm.steps * step['seconds'] / 3600
        yield (
            name,
            f'{step["flops"] / 1e9:.1f}',
            f'{step["seconds"] * 1e3:.2f}',
            f'{hours:.2f}',
            '10.6' if name == 'v3:2x2' else '-',
        )


def fsdp() -> Iterator[tuple]:
    """16 chips of v5e, the batch of the paper."""
    yield 'fsdp', 'arguments, MiB', 'of fsdp=1', 'temporaries, MiB', 'collectives, MB'
    whole = None
    for slices in (1, 16):
        step = train_step(plan.changed(FLAGS.ddpm, {'mesh.fsdp': slices}), 'v5e:4x4')
        arguments = step['memory']['arguments']
        whole = whole or arguments
        yield (
            str(slices),
            f'{arguments / MIB:.1f}',
            f'1/{whole / arguments:.2f}',
            f'{step["memory"]["temporaries"] / MIB:.1f}',
            f'{sent(step) / 1e6:.1f}',
        )


def weak() -> Iterator[tuple]:
    """16 images a chip of v5e."""
    yield 'chips', 'GFLOPs a chip', 'of 8 chips', 'collectives a chip, MB', 'of 8 chips'
    first = None
    for name in ('2x4', '8x16', '16x16'):
        (where,) = topology.parse(f'v5e:{name}')
        sizes = {'batch_size': 16 * where.chips, 'sample.batch_size': where.chips}
        step = train_step(plan.changed(FLAGS.ddpm, sizes), where.name)
        first = first or step
        yield (
            str(where.chips),
            f'{step["flops"] / 1e9:.2f}',
            f'{step["flops"] / first["flops"]:.4f}',
            f'{sent(step) / 1e6:.3f}',
            f'{sent(step) / sent(first):.4f}',
        )


def configs() -> Iterator[tuple]:
    """The papers' batches; a GiB figure is memory of a device."""
    yield 'config', 'topology', 'train_step, GiB', 'sample_step, GiB', 'images/s, training at best'
    for config, label in ((FLAGS.ddpm, 'ddpm_cifar10'), (FLAGS.dcgan, 'dcgan_folder64')):
        for name in ('v4:2x2x1', 'v5e:2x4', 'v6e:2x4'):
            (where,) = topology.parse(name)
            found = plan.plan(config, where, topology.devices(where))
            memory = (found[x]['memory']['total'] for x in ('train_step', 'sample_step'))
            gib = (f'{x / topology.GIB:.2f}' for x in memory)
            yield (label, name, *gib, f'{found["train_images_per_second"]:,.0f}')


def sent(step: dict) -> int:
    """Bytes of all collectives' results."""
    return sum(kind['bytes'] for kind in step['collectives'].values())


def replace(name: str, rows: list[tuple]) -> None:
    """Puts a table between the page's markers of this name."""
    head, *body = (f'| {" | ".join(row)} |' for row in rows)
    table = '\n'.join([head, '|---' * len(rows[0]) + '|', *body])
    page = Path(FLAGS.out)
    around = rf'(<!-- {name} -->\n).*?(<!-- /{name} -->)'
    page.write_text(re.sub(around, rf'\g<1>{table}\n\g<2>', page.read_text(), flags=re.DOTALL))


def main(_) -> None:
    """Runs the studies; each line is printed as it is found."""
    logging.set_verbosity(logging.ERROR)
    for name in FLAGS.studies:
        rows = []
        for row in {'relative': relative, 'fsdp': fsdp, 'weak': weak, 'configs': configs}[name]():
            print(name, *row, sep=' | ', flush=True)
            rows.append(row)
            replace(name, rows)


if __name__ == '__main__':
    app.run(main)
