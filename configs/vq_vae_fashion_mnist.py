"""VQ-VAE (van den Oord et al. 2017) on Fashion-MNIST, 28x28 grey: 7x7 codes of 512.

    python main.py --config=configs/vq_vae_fashion_mnist.py --workdir=runs/vq_vae_fashion_mnist

Networks and codes are those of the authors' example (sonnet's vqvae_example.py), a quarter as wide.
Cost: 3,000 steps of 64 images; not timed.
Number: no paper has one for this data set. Ours: not trained yet.

Variants:
  gradient: codes that learn by gradients, as in the paper's equation 3.
  logistic: pixels are probabilities of levels, so that there are bits per dimension.
  tiny: on the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('autoencoders.vq_vae')
    config.steps = 3_000
    config.batch_size = 64
    config.log_every = 100
    config.sample_every = 1_000
    config.checkpoint_every = 1_000
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 28
    config.model.channels = 32
    config.vq.restart = 0.03  # of codes that stand for fewer vectors of a step than that
    config.eval.metrics = ('per_example', 'reconstruction')
    tiny = TINY | {
        'data.source': 'digits',
        'data.image_size': 8,
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
        gradient={'vq.decay': 0.0, 'vq.restart': 0.0},
        logistic={'pixels.likelihood': 'logistic'},
        tiny=tiny,
    )
