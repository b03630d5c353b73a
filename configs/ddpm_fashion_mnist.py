"""Class-conditional DDPM (Ho et al. 2020) on Fashion-MNIST, with guidance and DDIM, for CPUs.

    python main.py --config=configs/ddpm_fashion_mnist.py --workdir=runs/ddpm_fashion_mnist

Cost: 6,000 steps of 64 images (6 passes over the data); 52 minutes on 2 CPU cores
that other work shared.
Network: 1,018,321 parameters.
Number: the paper has none for this data set. Ours: see README. The average of the weights still
holds a seventh of the first, random ones after 2,000 steps: until then grids show noise.

Variants:
  short: the 5,000 steps and the average of weights of configs/edm_fashion_mnist.py: see README.
  tiny: on the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('diffusion.gaussian')
    config.steps = 6000
    config.batch_size = 64
    config.sample_every = 1000
    config.checkpoint_every = 500
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 28
    config.data.num_classes = 10
    config.model.channels = 24
    config.model.multipliers = (1, 2, 3)
    config.model.attention = (7,)
    config.model.dropout = 0.0
    config.diffusion.label_dropout = 0.1
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 200
    config.optimizer.decay_steps = 6000
    config.ema_decay = 0.999
    config.sample.knobs.guidance = 2.0
    config.eval.network = 'fashion_mnist'
    config.eval.metrics = ('fid', 'kid', 'prdc', 'accuracy', 'modes')
    config.eval.n = 10_000
    return vary(
        config,
        variant,
        short={
            'steps': 5000,
            'optimizer.decay_steps': 5000,
            'ema_rampup': 0.05,
            'eval.n': 5_000,
        },
        tiny=TINY
        | {
            'data.source': 'digits',
            'data.fit': 'pad',
            'model.channels': 8,
            'model.multipliers': (1, 2),
            'model.attention': (),
            'diffusion.timesteps': 20,
            'diffusion.beta_max': 0.5,
            'sample.knobs.steps': 2,
            'eval.network': 'digits',
        },
    )
