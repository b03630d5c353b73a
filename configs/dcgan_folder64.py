r"""DCGAN (Radford et al. 2016) at the paper's size, on your folder of images, 64x64 RGB.

    python main.py --config=configs/dcgan_folder64.py --workdir=runs/dcgan64 \
        --config.data.source=folder:/data/faces

The nets, the optimiser and the batch are the paper's: 3,576,704 parameters in the generator and
2,765,568 in the discriminator. Cost: 40000 steps of 128 images (25 passes over 200 thousand).
Number: the paper measures no sample quality. Ours: not trained here; the nets agree with PyTorch's
(tests/parity/test_dcgan.py).
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('gans.adversarial', network='dcgan')
    config.steps = 40000
    config.batch_size = 128
    config.log_every = 100
    config.sample_every = 2000
    config.checkpoint_every = 2000
    config.data.source = 'folder:PATH'
    config.data.image_size = 64
    config.data.channels = 3
    config.eval.metrics = ('fid', 'kid', 'prdc', 'diversity')
    return vary(
        config,
        variant,
        tiny=TINY
        | {
            'data.source': 'shapes',
            'data.image_size': 16,
            'model.width': 4,
            'model.latent_dim': 8,
            'eval.metrics': ('diversity',),
        },
    )
