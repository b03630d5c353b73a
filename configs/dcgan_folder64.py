r"""DCGAN (Radford et al. 2016) on your folder of images, 64x64 RGB, with dcgan.torch's networks.

    python main.py --config=configs/dcgan_folder64.py --workdir=runs/dcgan64 \
        --config.data.source=folder:/data/faces

Networks and z are those of github.com/soumith/dcgan.torch (main.lua): 3,576,704 parameters in the
generator and 2,765,568 in the discriminator. The optimiser and batches of 128 are the paper's.
What differs from the paper's own code (github.com/Newmu/dcgan_code, faces/train_uncond_dcgan.py):
that has twice as many channels, 5x5 kernels, z uniform in (-1, 1), an L2 penalty of 1e-5, and draws
samples by statistics of the batch, here by running ones. dcgan.torch has batches of 64, crops at
random, and mirrors images. Like both, this samples from the weights of now.
Cost: 40000 steps of 128 images (25 passes over 200 thousand).
Plan: on 8 chips of v5e, 0.017 hours at best (0.13 chip-hours); 0.16 GiB a chip (docs/plan.md).
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
    config.ema_decay = 0.0
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
