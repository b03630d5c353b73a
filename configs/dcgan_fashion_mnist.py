"""DCGAN (Radford et al. 2016) on Fashion-MNIST, padded to 32x32 grey, half as wide as dcgan.torch.

    python main.py --config=configs/dcgan_fashion_mnist.py --workdir=runs/dcgan_fashion_mnist

Cost: 10,000 steps of 64 images (11 passes over the data); 20 minutes on 2 CPU cores
that other work shared.
Number: the paper has none for this data set. Ours: see README.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('gans.adversarial', network='dcgan')
    config.steps = 10000
    config.batch_size = 64
    config.log_every = 100
    config.sample_every = 2000
    config.checkpoint_every = 2000
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 32
    config.data.fit = 'pad'
    config.model.width = 32
    config.eval.network = 'fashion_mnist'
    config.eval.metrics = ('fid', 'kid', 'prdc', 'modes', 'diversity')
    config.eval.n = 10_000
    config.eval.every = 1_000
    config.eval.every_metrics = ('modes',)
    return vary(
        config,
        variant,
        tiny=TINY
        | {
            'data.source': 'digits',
            'data.image_size': 16,
            'data.fit': 'resize',
            'model.width': 4,
            'model.latent_dim': 8,
            'eval.every': 0,
            'eval.every_metrics': (),
            'eval.metrics': ('diversity',),
        },
    )
