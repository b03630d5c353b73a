"""A small classifier of Fashion-MNIST, 28x28 grey: the network behind `fid_fashion_mnist`.

    python main.py --config=configs/classifier_fashion_mnist.py

and, after it, with the same flags, `--mode=evaluate`; `experiments/ship_classifier.py` makes the
package's file of it.

Cost: 9,000 steps of 128 images (19 passes over the data); 10 minutes on 2 CPU cores, 16 on cores
that other work shared. Network: 186,218 parameters.
Number: 92.59% of the 10,000 test images (standard error 0.26%).
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('metrics.features.classifier')
    config.steps = 9000
    config.batch_size = 128
    config.log_every = 100
    config.sample_every = 0
    config.checkpoint_every = 1000
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 28
    config.data.num_classes = 10
    config.data.flip = True
    config.model.widths = (32, 64, 96)
    config.model.features = 128
    config.model.dropout = 0.3
    config.shift = 2
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = 200
    config.optimizer.decay_steps = 9000
    config.optimizer.weight_decay = 0.02
    config.ema_decay = 0.998
    return vary(
        config,
        variant,
        tiny=TINY
        | {
            'sample_every': 0,
            'data.source': 'digits',
            'data.image_size': 8,
            'model.widths': (4, 4),
            'model.features': 8,
            'optimizer.warmup': 2,
            'optimizer.decay_steps': 4,
        },
    )
