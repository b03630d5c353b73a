"""VQ-VAE-2 (Razavi et al. 2019) on Fashion-MNIST, padded to 32x32 grey: 4x4 and 8x8 codes of 512.

    python main.py --config=configs/vq_vae2_fashion_mnist.py --workdir=runs/vq_vae2_fashion_mnist

Networks are a quarter as wide as the paper's, codes as many and as long.
Cost: 6,000 steps of 64 images (6.4 passes over the data); 13 minutes on 2 CPU cores that other work
shared.
Number: no paper has one for this data set. Ours: see README.

Variants:
  logistic: pixels are probabilities of levels, so that there are bits per dimension.
  tiny: on the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('autoencoders.vq_vae2')
    config.steps = 6_000
    config.batch_size = 64
    config.log_every = 100
    config.sample_every = 1_000
    config.checkpoint_every = 1_000
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 32
    config.data.fit = 'pad'
    config.model.channels = 32
    config.model.hidden = 16
    config.vq.restart = 0.03  # of codes that stand for fewer vectors of a step than that
    config.eval.network = 'fashion_mnist'
    config.eval.metrics = ('per_example', 'reconstruction', 'rfid', 'probe')
    tiny = TINY | {
        'data.source': 'digits',
        'data.image_size': 8,
        'data.fit': 'resize',
        'model.channels': 8,
        'model.hidden': 4,
        'model.blocks': 1,
        'vq.codes': 16,
        'vq.dim': 4,
        'eval.metrics': ('per_example',),
    }
    logistic = {'pixels.likelihood': 'logistic', 'pixels.sigma': 0.0}
    return vary(config, variant, logistic=logistic, tiny=tiny)
