"""VQ-VAE (van den Oord et al. 2017) on Fashion-MNIST, 28x28 grey: 7x7 codes of 512.

    python main.py --config=configs/vq_vae_fashion_mnist.py
    python main.py --config=configs/vq_vae_fashion_mnist.py:diffusion
    python main.py --config=configs/vq_vae_fashion_mnist.py:diffusion --mode=sample

The first command trains networks and codes in runs/vq_vae_fashion_mnist, the second a diffusion
model of where an image's codes lie, told the class; the third draws with both.
Networks and codes are those of the authors' example (sonnet's vqvae_example.ipynb), a quarter as
wide: codes of 16 numbers, not 64, of which the second stage's network, no wider than that, made
little.
What differs: the paper draws codes by a PixelCNN.
Cost: 6,000 steps of 64 images, 8 minutes on 2 CPU cores; then 5,000, 15.
Number: no paper has one for this data set. Ours: see README.

Variants:
  diffusion: EDM (Karras et al. 2022) on the codes that runs/vq_vae_fashion_mnist learned.
  gradient: codes that learn by gradients, as in the paper's equation 3.
  logistic: pixels are probabilities of levels, so that there are bits per dimension.
  tiny, tiny_diffusion: both stages on the embedded digits, in seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    second = variant.endswith('diffusion')
    config = _second() if second else _first()
    config.batch_size = 64
    config.log_every = 100
    config.sample_every = 1_000
    config.checkpoint_every = 1_000
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 28
    config.eval.network = 'fashion_mnist'
    tiny = TINY | {'data.source': 'digits', 'data.image_size': 8, 'eval.network': 'digits'}
    if second:
        tiny |= {
            'model.channels': 8,
            'model.attention': (),
            'model.blocks': 1,
            'model.groups': 4,
            'sample.knobs.steps': 2,
        }
    else:
        tiny |= {
            'model.channels': 8,
            'model.hidden': 4,
            'model.blocks': 1,
            'vq.codes': 16,
            'vq.dim': 4,
            'eval.metrics': ('per_example',),
        }
    return vary(
        config,
        variant,
        diffusion={},
        gradient={'vq.decay': 0.0, 'vq.restart': 0.0},
        logistic={'pixels.likelihood': 'logistic', 'pixels.sigma': 0.0},
        tiny=tiny,
        tiny_diffusion=tiny,
    )


def _first():
    config = default('autoencoders.vq_vae')
    config.steps = 6_000
    config.model.channels = 32
    config.vq.dim = 16
    config.pixels.sigma = 0.5  # as in the example: its square is half of the data's variance, 0.5
    config.vq.restart = 0.03  # of codes that stand for fewer vectors of a step than that
    config.eval.metrics = ('per_example', 'reconstruction', 'rfid', 'probe')
    return config


def _second():
    config = default('diffusion.continuous')
    config.steps = 5_000
    config.data.num_classes = 10
    config.latent.workdir = 'runs/vq_vae_fashion_mnist'
    config.model.channels = 64
    config.model.multipliers = (1,)
    config.model.attention = (7,)
    config.model.groups = 8
    # EDM's numbers are of a deviation of 0.5, latents have 1.
    config.diffusion.sigma_data = 1.0
    config.diffusion.times_mean = -0.5
    config.diffusion.label_dropout = 0.1
    config.sampler.clip = False
    config.sample.knobs.guidance = 1.5
    config.eval.metrics = ('fid', 'kid', 'prdc', 'accuracy')
    config.eval.n = 10_000
    return config
