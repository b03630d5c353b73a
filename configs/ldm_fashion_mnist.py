"""Latent diffusion (Rombach et al. 2022) of Fashion-MNIST, padded to 32x32 grey, for CPUs.

    python main.py --config=configs/ldm_fashion_mnist.py
    python main.py --config=configs/ldm_fashion_mnist.py:diffusion
    python main.py --config=configs/ldm_fashion_mnist.py:diffusion --mode=sample

The first command trains a first stage in runs/ldm_fashion_mnist: Gaussian latents of 8x8 places
with 3 numbers, by the absolute error and a patch discriminator (LPIPS's weights are a download:
with them add --config.first_stage.perceptual=vgg). The second trains EDM (Karras et al. 2022) on
these latents, told the class; the third draws with both.
Cost: 2,000 steps of 32 images in 28 minutes, then 6,000 of 64 in 32, on 2 slow CPU cores that other
work shared.
Number: no paper has one. Ours: README and docs/autoencoders.md.

Variants:
  diffusion: the second stage, of what runs/ldm_fashion_mnist learned.
  pixels: the second stage's model, the same network, of the images themselves.
  tiny, tiny_diffusion: both stages on the embedded digits, in seconds.
"""

from configs import vq_vae_fashion_mnist
from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    second = variant.endswith(('diffusion', 'pixels'))
    config = _second() if second else _first()
    config.log_every = 100
    config.sample_every = 1_000
    config.checkpoint_every = 1_000
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 32
    config.data.fit = 'pad'
    config.eval.network = 'fashion_mnist'
    tiny = TINY | {
        'data.source': 'digits',
        'data.image_size': 8,
        'data.fit': 'resize',
        'eval.network': 'digits',
    }
    if second:
        tiny |= {
            'model.channels': 8,
            'model.multipliers': (1,),
            'model.attention': (),
            'model.blocks': 1,
            'model.groups': 4,
            'optimizer.warmup': 0,
            'sample.knobs.steps': 2,
        }
    else:
        tiny |= {
            'model.channels': 4,
            'model.groups': 2,
            'judge.width': 4,
            'judge.layers': 1,
            'first_stage.judged_from': 2,
            'eval.metrics': ('per_example',),
        }
    # EDM's own numbers, which are of images.
    pixels = {
        'steps': 700,  # as long as the second stage takes
        'ema_rampup': 0.05,  # of so few steps a decay of 0.999 keeps the first weights
        'latent.workdir': '',
        'model.attention': (16,),  # the smaller maps', as there
        'sampler.clip': True,
        'diffusion.sigma_data': 0.5,
        'diffusion.times_mean': -1.2,
    }
    return vary(config, variant, diffusion={}, pixels=pixels, tiny=tiny, tiny_diffusion=tiny)


def _first():
    config = default('autoencoders.first_stage')
    config.steps = 2_000
    config.batch_size = 32
    config.model.channels = 16
    config.model.multipliers = (1, 2, 4)
    config.model.blocks = 1
    config.model.groups = 8
    config.model.latent_channels = 3
    config.judge.width = 16
    config.judge.layers = 2
    config.first_stage.judged_from = 1_000
    config.optimizer.learning_rate = 4e-4
    config.eval.metrics = ('per_example', 'reconstruction', 'rfid', 'probe')
    return config


def _second():
    config = vq_vae_fashion_mnist.get_config('diffusion')
    config.steps = 6_000
    config.latent.workdir = 'runs/ldm_fashion_mnist'
    config.model.channels = 32
    config.model.multipliers = (1, 2)
    config.model.attention = (4,)
    return config
