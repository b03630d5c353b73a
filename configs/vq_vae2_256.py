"""VQ-VAE-2 (Razavi et al. 2019) on images of 256x256: codes of 32x32 and 64x64 places.

    python main.py --config=configs/vq_vae2_256.py --workdir=runs/vq_vae2_256 \
        --config.data.source=folder:/data/imagenet

Numbers of the paper's table of hyperparameters for ImageNet: 128 channels, 64 within two residual
blocks, 512 codes of 64 numbers a level, commitment 0.25, batches of 128, 2,207,444 steps (the steps
from memory of the paper). It has no learning rate; that is the example's in sonnet.
Network: 1,716,803 parameters, 1,388,867 of them where blocks are half as wide, as in the port that
ours agrees with (tests/parity/test_vq_vae2.py).
Cost: not measured.
Plan: on 8 chips of v5e, 8 hours at best (64 chip-hours); 1.38 GiB a chip (docs/plan.md).
Paper: FID about 31 of samples on ImageNet (others' tables say 31.11), of an autoregressive prior
that is not here.
Ours: not trained here.

Variant:
  tiny: drawn shapes, nets of a few thousand parameters; seconds a mode.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('autoencoders.vq_vae2')
    config.steps = 2_207_444
    config.batch_size = 128
    config.sample_every = 10_000
    config.checkpoint_every = 10_000

    config.data.source = 'folder:PATH'
    config.data.eval_split = 'train'
    config.data.image_size = 256
    config.data.channels = 3
    config.data.threads = 16
    config.eval.metrics = ('per_example', 'reconstruction')

    tiny = TINY | {
        'data.source': 'shapes',
        'data.eval_split': 'test',
        'data.image_size': 16,
        'data.threads': 2,
        'model.channels': 8,
        'model.hidden': 4,
        'model.blocks': 1,
        'vq.codes': 16,
        'vq.dim': 4,
    }
    return vary(config, variant, tiny=tiny)
