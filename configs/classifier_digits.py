"""A small classifier of the 8x8 digits: the network behind `fid_digits`.

    python main.py --config=configs/classifier_digits.py

and, after it, with the same flags, `--mode=evaluate`; `experiments/ship_classifier.py` makes the
package's file of it.

Cost: 2,000 steps of 64 images; 11 seconds on 2 CPU cores. Network: 35,914 parameters.
Number: 98.99% of the 296 test images (3 wrong).
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('metrics.features.classifier')
    config.steps = 2000
    config.batch_size = 64
    config.sample_every = 0
    config.checkpoint_every = 1000
    config.data.source = 'digits'
    config.data.num_classes = 10
    config.model.widths = (32, 64)
    config.model.features = 64
    config.model.dropout = 0.3
    config.shift = 1
    config.optimizer.learning_rate = 2e-3
    config.optimizer.decay_steps = 2000
    config.ema_decay = 0.99
    return vary(
        config,
        variant,
        tiny=TINY
        | {
            'sample_every': 0,
            'model.widths': (4, 4),
            'model.features': 8,
            'optimizer.decay_steps': 4,
        },
    )
