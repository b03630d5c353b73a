"""VQ-VAE on CIFAR-10 (van den Oord et al. 2017), the recipe of the authors' example.

    python main.py --config=configs/vq_vae_cifar10.py --workdir=runs/vq_vae_cifar10

Recipe of sonnet's examples/vqvae_example.ipynb: 8x8 codes of 512 that follow an average.
Cost: 10,000 steps of 32 images; the notebook took 4.5 minutes on a GPU.
Plan: on 8 chips of v5e, 0.00045 hours at best (0.0036 chip-hours); 0.02 GiB a chip (docs/plan.md).
Networks: 662,723 parameters, and 512 codes of 64 numbers.
Number: after 10,000 steps the notebook prints a squared error of 0.056 of the data's variance and
a perplexity of 326, means of its last 100 batches. Here the error is 'squared_error', of test
images, over 0.25308. The paper's 4.67 bits per dimension are of other networks (256 channels,
250,000 steps of 128) and of codes that it does not tell in full; they have no config.
Ours: not trained here. Networks agree with the notebook's layers in PyTorch, codes with pythae's
(tests/parity/test_vq_vae.py, test_pythae.py). What differs: how codes begin, and that the
notebook's average of them begins at 0 and is divided by 1 - 0.99^t.

Variants:
  tiny: drawn shapes and nets of a few thousand parameters; each mode takes seconds.
"""

import math

from gen_jax.config import TINY, default, vary

VARIANCE = 4 * 0.06327  # of the training images' numbers in [-1, 1]


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('autoencoders.vq_vae')
    config.steps = 10_000
    config.batch_size = 32
    config.checkpoint_every = 1_000
    config.data.source = 'tfds:cifar10'
    config.data.split = 'train[:40000]'
    config.data.image_size = 32
    config.data.channels = 3
    config.pixels.sigma = math.sqrt(VARIANCE / 2)  # -log p / D is then the error over it
    config.ema_decay = 0.0
    config.eval.metrics = ('per_example', 'reconstruction')
    tiny = TINY | {
        'data.source': 'shapes',
        'data.split': 'train',
        'data.image_size': 16,
        'model.channels': 8,
        'model.hidden': 4,
        'model.blocks': 1,
        'vq.codes': 16,
        'vq.dim': 4,
    }
    return vary(config, variant, tiny=tiny)
