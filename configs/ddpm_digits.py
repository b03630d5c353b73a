"""Class-conditional DDPM (Ho et al. 2020) on 1,501 handwritten digits: the main job.

    python main.py

Cost: 3,000 steps of 64 images; 2 minutes on 2 CPU cores, from the command to the last grid.
Network: 396,697 parameters.
Number: the paper has none for this data. Ours: see README.

Variants:
  edm: EDM (Karras et al. 2022) in place of DDPM, Heun in 18 steps; not trained to the end yet.
  tiny, tiny_edm: a net of a few thousand parameters; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    edm = variant.endswith('edm')
    config = default('diffusion.continuous' if edm else 'diffusion.gaussian')
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
    config.model.groups = 4
    config.diffusion.label_dropout = 0.1
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = 100
    config.optimizer.decay_steps = 3000
    config.ema_decay = 0.995
    config.sample.knobs.guidance = 1.5
    if not edm:
        config.sampler.name = 'ddim'
        config.sample.knobs.steps = 50
    config.eval.network = 'digits'
    config.eval.metrics = ('per_example', 'fid', 'kid', 'prdc', 'accuracy', 'modes')
    config.eval.n = 1501
    config.eval.every = 3000
    config.eval.every_metrics = ('fid', 'prdc', 'accuracy')
    tiny = TINY | {
        'model.channels': 8,
        'model.blocks': 1,
        'sample.knobs.steps': 2,
        'eval.every': 4,
    }
    few = {'diffusion.timesteps': 20, 'diffusion.beta_max': 0.5}
    return vary(config, variant, edm={}, tiny=tiny | few, tiny_edm=tiny)
