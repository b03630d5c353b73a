"""Makes the package's file of a classifier from a run.

  python experiments/ship_classifier.py --config=configs/classifier_digits.py --workdir=RUN

Takes the averaged weights of the newest checkpoint, measures them on the eval split, and writes
weights and metadata to gen_jax/metrics/features/NAME.safetensors, where NAME is the config's
without `classifier_`.
"""

from pathlib import Path

import scripts
from absl import flags
from ml_collections import config_flags

from gen_jax.config import create
from gen_jax.errors import UserError
from gen_jax.judge import per_example
from gen_jax.metrics.features import classifier
from gen_jax.runtime.program import Program
from gen_jax.sample import load

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The config of the run, and what belongs to it."""
    scripts.define_config('classifier_digits')
    flags.DEFINE_string('workdir', None, 'The run.', required=True)
    flags.DEFINE_string('out', None, "Another file to write than the package's.")


def main() -> None:
    """Measures, writes."""
    config, folder = FLAGS.config, Path(FLAGS.workdir).absolute()
    if config.method != 'metrics.features.classifier':
        raise UserError(f'config.method={config.method!r}: expected metrics.features.classifier')
    name = Path(config_flags.get_config_filename(FLAGS['config'])).stem
    package = Path(classifier.__file__).parent
    out = package / f'{name.removeprefix("classifier_")}.safetensors'
    out = scripts.file(FLAGS.out or out)
    program = Program(config, create(config))
    step, state = load(program, folder)
    measured = per_example(program, state)['accuracy']
    metadata = {
        'image_size': config.data.image_size,
        'channels': config.data.channels,
        'classes': config.data.num_classes,
        'widths': list(config.model.widths),
        'features': config.model.features,
        'accuracy': measured['value'],
        'n': measured['n'],
        'data': measured['data'],
        'source': config.data.source,
        'config': name,
        'steps': step,
    }
    classifier.save(out, state.net.variables(ema=True)['params'], metadata)
    print(f'{out}: {out.stat().st_size:,} bytes')
    for field, value in metadata.items():
        print(f'{field}: {value}')


if __name__ == '__main__':
    scripts.start(define_flags, main)
