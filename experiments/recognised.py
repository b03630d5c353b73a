"""What a classifier of the real data says of a run's samples.

  python experiments/recognised.py --config=configs/ddpm_digits.py --workdir=runs/ddpm_digits

A classifier learns the real training split: a support-vector machine for the 8x8 digits, a small
convolutional network for larger images. Its accuracy on the real test split is reported beside
what it says of the samples: where the model knows classes, the share named as the class asked for,
in all and per class; where it does not, how the samples spread over the classes. Writes
recognised.json to the workdir.
"""

from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from ml_collections import config_flags
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
EPOCHS, BATCH = 4, 128


def real(data, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images [n, h, w, c] uint8 and labels [n] of a split."""
    source = sources.open_source(data, split)
    examples = [source[i] for i in range(len(source))]
    images = np.stack([example['image'] for example in examples])
    return images, np.array([example['label'] for example in examples])


def support_vectors(images: np.ndarray, labels: np.ndarray) -> Callable:
    """Images -> labels, by a Gaussian kernel on the pixels."""
    classifier = SVC(C=10.0).fit(images.reshape(len(images), -1), labels)
    return lambda images: classifier.predict(images.reshape(len(images), -1))


class Network(nn.Module):
    """Two convolutions, each halving the image, and two dense layers: logits [b, 10]."""

    @nn.compact
    def __call__(self, x):
        """Images [b, h, w, c] in [0, 1]."""
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3, 3))(x))  # [b, h, w, features]
            x = nn.max_pool(x, (2, 2), (2, 2))  # [b, h / 2, w / 2, features]
        x = nn.relu(nn.Dense(128)(x.reshape(len(x), -1)))  # [b, 128]
        return nn.Dense(10)(x)


def network(images: np.ndarray, labels: np.ndarray) -> Callable:
    """Images -> labels, by `Network` after four passes with Adam."""
    module = Network()
    batches = len(images) // BATCH
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, EPOCHS * batches))
    params = module.init(jax.random.key(0), images[:1] / np.float32(255))
    state = params, tx.init(params)

    @jax.jit
    def step(state, x, y):
        def loss_fn(params):
            logits = module.apply(params, x / 255.0)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        params, opt_state = state
        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        for part in np.array_split(rng.permutation(len(images))[: batches * BATCH], batches):
            state = step(state, images[part], labels[part])
    predict = jax.jit(lambda x: jnp.argmax(module.apply(state[0], x / 255.0), -1))
    return lambda images: np.concatenate(
        [predict(images[i : i + 1000]) for i in range(0, len(images), 1000)]
    )


def main(_) -> None:
    """Trains the classifier, samples, reports."""
    logging.set_verbosity(logging.ERROR)
    config, folder = FLAGS.config, Path(FLAGS.workdir).absolute()
    train = support_vectors if config.data.source == 'digits' else network
    images, labels = real(config.data, 'train')
    classify = train(images, labels)
    images, labels = real(config.data, 'test')
    accuracy = float((classify(images) == labels).mean())

    program = Program(config, create(config))
    step, state = load(program, folder)
    indices = np.arange(FLAGS.n)
    named = classify(program.sample(state, indices))
    spread = np.bincount(named, minlength=labels.max() + 1) / FLAGS.n
    report = {
        'classifier': train.__name__,
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
    workdir.write_json(folder / 'recognised.json', report)
    for name, value in report.items():
        print(f'{name}: {value}')


if __name__ == '__main__':
    app.run(main)
