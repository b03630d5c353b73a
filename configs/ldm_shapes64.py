"""Latent diffusion (Rombach et al. 2022) of drawn shapes at 64x64, for CPUs: both stages.

    python main.py --config=configs/ldm_shapes64.py
    python main.py --config=configs/ldm_shapes64.py:diffusion
    python main.py --config=configs/ldm_shapes64.py:diffusion --mode=sample

The first command trains a first stage in runs/ldm_shapes64: Gaussian latents of 16x16 places with 3
numbers, by the absolute error and a patch discriminator (LPIPS's weights are a download: with them
add --config.first_stage.perceptual=vgg). The second trains a diffusion model of these latents, told
the shape; the third draws with both.
Cost: 4,000 steps of 16 images, then 5,000 of 64; not timed.
Number: no paper has one. Ours: not trained yet.

Variants:
  diffusion: the second stage, of what runs/ldm_shapes64 learned.
  pixels: the second stage's model of the images themselves.
  tiny, tiny_diffusion: both stages at 16x16, in seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    second = variant.endswith(('diffusion', 'pixels'))
    config = _second() if second else _first()
    config.log_every = 100
    config.sample_every = 1_000
    config.checkpoint_every = 1_000
    config.data.source = 'shapes'
    config.data.image_size = 64
    config.data.channels = 3
    tiny = TINY | {'data.image_size': 16}
    if second:
        tiny |= {
            'model.channels': 8,
            'model.multipliers': (1,),
            'model.attention': (),
            'model.blocks': 1,
            'model.groups': 4,
            'diffusion.timesteps': 20,
            'optimizer.warmup': 0,
            'sample.knobs.steps': 5,
        }
    else:
        tiny |= {
            'model.channels': 4,
            'model.groups': 2,
            'judge.width': 4,
            'judge.layers': 1,
            'first_stage.judged_from': 2,
        }
    pixels = {'latent.workdir': '', 'sampler.clip': True}
    return vary(config, variant, diffusion={}, pixels=pixels, tiny=tiny, tiny_diffusion=tiny)


def _first():
    config = default('autoencoders.first_stage')
    config.steps = 4_000
    config.batch_size = 16
    config.model.channels = 32
    config.model.multipliers = (1, 2, 2)
    config.model.blocks = 1
    config.model.groups = 8
    config.model.latent_channels = 3
    config.judge.width = 16
    config.judge.layers = 2
    config.first_stage.judged_from = 2_000
    config.optimizer.learning_rate = 2e-4
    config.eval.metrics = ('per_example', 'reconstruction')
    return config


def _second():
    config = default('diffusion.gaussian')
    config.steps = 5_000
    config.batch_size = 64
    config.data.num_classes = 6
    config.latent.workdir = 'runs/ldm_shapes64'
    config.model.channels = 32
    config.model.multipliers = (1, 2, 2)
    config.model.attention = (8,)
    config.model.groups = 8
    config.diffusion.label_dropout = 0.1
    config.optimizer.warmup = 500
    config.sampler.clip = False
    config.sample.knobs.guidance = 2.0
    config.eval.metrics = ('diversity',)
    return config
