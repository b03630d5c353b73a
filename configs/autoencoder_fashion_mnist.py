"""An autoencoder on Fashion-MNIST, 28x28 grey: 32 numbers an image, half the squared error.

    python main.py --config=configs/autoencoder_fashion_mnist.py

Networks are those of configs/vae_fashion_mnist.py.
Cost: 5,000 steps of 128 images; 11 minutes on 2 CPU cores.
Number: no paper has one for this data set. Ours: see README.

Variants:
  denoising: half of the pixels that the encoder sees are grey (Vincent et al. 2010).
  tiny: on the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('autoencoders.autoencoder')
    config.steps = 5_000
    config.batch_size = 128
    config.log_every = 100
    config.sample_every = 1_000
    config.checkpoint_every = 1_000
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 28
    config.optimizer.decay_steps = 5_000
    config.eval.network = 'fashion_mnist'
    config.eval.metrics = ('per_example', 'reconstruction', 'rfid', 'probe')
    tiny = TINY | {
        'data.source': 'digits',
        'data.image_size': 8,
        'model.channels': 8,
        'model.hidden': 16,
        'model.latent_dim': 4,
        'optimizer.decay_steps': 4,
        'eval.metrics': ('per_example',),
    }
    return vary(config, variant, denoising={'autoencoder.masked': 0.5}, tiny=tiny)
