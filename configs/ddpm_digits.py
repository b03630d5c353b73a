"""Class-conditional DDPM on scikit-learn's 1,797 handwritten digits: the main job.

Command: python main.py
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('diffusion.gaussian')
    config.steps = 3000
    config.batch_size = 64
    config.sample_every = 1000
    config.checkpoint_every = 1000
    config.data.source = 'digits'
    config.data.num_classes = 10
    config.model.channels = 24
    config.model.multipliers = (1, 2)
    config.model.blocks = 1
    config.model.attention = (4,)
    config.model.dropout = 0.0
    config.model.groups = 8
    config.diffusion.label_dropout = 0.1
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = 100
    config.optimizer.decay_steps = 3000
    config.ema_decay = 0.995
    config.sample.knobs.guidance = 1.5
    config.sampler.name = 'ddim'
    config.sampler.steps = 50
    return vary(
        config,
        variant,
        tiny=TINY
        | {
            'model.channels': 8,
            'sampler.steps': 2,
        },
    )
