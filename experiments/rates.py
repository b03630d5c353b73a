"""How fast a config's parts run, in one run: the loader alone, training, sampling.

  python experiments/rates.py --config=configs/ddpm_digits.py

Each figure is the median of several repeats, after one that is not counted.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from gen_jax.config import create
from gen_jax.data import pipeline, sources
from gen_jax.runtime.program import Program

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file('config', None, 'The config.', lock_config=True)
flags.DEFINE_integer('batches', 50, 'Batches in one repeat of the loader and of training.')
flags.DEFINE_integer('repeats', 5, 'Repeats.')


def seconds(work) -> float:
    """The median time of a call, the first left out."""
    times = []
    for _ in range(FLAGS.repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main(_) -> None:
    """Measures and prints."""
    logging.set_verbosity(logging.ERROR)
    config = FLAGS.config
    program = Program(config, create(config))
    source = sources.open_source(config.data, config.data.split)
    images = FLAGS.batches * config.batch_size

    alone = pipeline.train_iterator(config, source)
    loading = seconds(lambda: [next(alone) for _ in range(FLAGS.batches)])

    batches = pipeline.train_iterator(config, source)
    state = program.init()

    def train():
        nonlocal state
        for step in range(FLAGS.batches):
            state, _ = program.train_step(step, state, program.to_global(next(batches)))
        jax.block_until_ready(state)

    training = seconds(train)
    n = config.sample.batch_size
    sampling = seconds(lambda: program.sample(state, np.arange(n)))
    print(f'loader alone:  {images / loading:,.0f} images/s')
    print(
        f'training:      {images / training:,.0f} images/s, {FLAGS.batches / training:.1f} steps/s'
    )
    print(f'loader / training: {training / loading:.1f}')
    print(f'sampling:      {n} images in {sampling:.2f} s')


if __name__ == '__main__':
    app.run(main)
