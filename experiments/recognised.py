"""What a classifier of the real data says of a run's samples.

  python experiments/recognised.py --config=configs/ddpm_digits.py --workdir=runs/ddpm_digits

A support-vector machine learns the real training split; its accuracy on the real test split is
reported beside what it says of the samples: where the model knows classes, the share named as the
class asked for, in all and per class; where it does not, how the samples spread over the classes.
Writes recognised.json to the workdir.
"""

import json
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from gen_jax.config import create
from gen_jax.data import sources
from gen_jax.runtime import workdir
from gen_jax.runtime.program import Program
from gen_jax.sample import load

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file('config', None, 'The config of the run.', lock_config=True)
flags.DEFINE_string('workdir', None, 'The run.', required=True)
flags.DEFINE_integer('n', 1000, 'Samples to judge.')
# A model that knows nothing of classes and has them all gives each a tenth of its samples.
COVERED = 0.02


def pixels(images: np.ndarray) -> np.ndarray:
    """[n, h, w, c] uint8 -> [n, h * w * c] in [0, 1]."""
    return images.reshape(len(images), -1) / np.float32(255)


def real(data, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a split."""
    source = sources.open_source(data, split)
    examples = [source[i] for i in range(len(source))]
    images = np.stack([example['image'] for example in examples])
    return pixels(images), np.array([example['label'] for example in examples])


def main(_) -> None:
    """Trains the classifier, samples, reports."""
    logging.set_verbosity(logging.ERROR)
    config, folder = FLAGS.config, Path(FLAGS.workdir).absolute()
    images, labels = real(config.data, 'train')
    # 99% of the variance in few numbers makes the kernel fast and loses no accuracy.
    classifier = make_pipeline(PCA(min(60, images.shape[1] - 1), random_state=0), SVC(C=10.0))
    classifier.fit(images, labels)
    accuracy = classifier.score(*real(config.data, 'test'))

    program = Program(config, create(config))
    step, state = load(program, folder)
    indices = np.arange(FLAGS.n)
    named = classifier.predict(pixels(program.sample(state, indices)))
    spread = np.bincount(named, minlength=labels.max() + 1) / FLAGS.n
    report = {
        'classifier': 'SVC(C=10) on 60 principal components',
        'accuracy_on_real_test': accuracy,
        'step': step,
        'n': FLAGS.n,
        'seed': config.seed,
        'sampler': workdir.plain(config.get('sampler', {})) | {**config.sample.knobs},
        'share_per_class': spread.round(4).tolist(),
        'classes_covered': float((spread >= COVERED).mean()),
    }
    asked = program.condition(indices).get('label')
    if asked is not None:
        right = named == asked
        report['recognised'] = float(right.mean())
        report['recognised_per_class'] = [
            round(float(right[asked == label].mean()), 4) for label in np.unique(asked)
        ]
    (folder / 'recognised.json').write_text(json.dumps(report, indent=1) + '\n')
    for name, value in report.items():
        print(f'{name}: {value}')


if __name__ == '__main__':
    app.run(main)
