"""StyleGAN on faces of FFHQ at 1024x1024 (Karras et al. 2019), the authors' recipe.

    python main.py --config=configs/stylegan_ffhq1024.py --workdir=runs/stylegan_ffhq1024 \
        --config.data.source=folder:/data/ffhq1024

Recipe of github.com/NVlabs/stylegan (train.py as it stands, on 8 GPUs): 600,000 images of each size
from 8x8 on, as many until the next has faded in; the non-saturating loss with R1 (of the gradient
by images of full size, also while small ones are trained), style mixing 0.9.
Cost: 781,250 steps of 32 images, 25 million in all.
Plan: on 8 chips of v5e, 130 hours at best (1,100 chip-hours); 15.40 GiB a chip (docs/plan.md).
Networks: 26,219,627 and 23,087,249 parameters.
Paper: FID 4.40.
Ours: not trained here. The networks agree with code written from the paper
(tests/parity/test_growing_gans.py). What differs: batches of 32 at all sizes, where the authors
have 256, 128 and 64 images at 8, 16 and 32.

Variants:
  tiny: drawn shapes and nets of a few thousand parameters; each mode takes seconds.
"""

from configs import progan_cifar10
from gen_jax.config import default, vary


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('gans.adversarial', network='stylegan')
    config.steps = 781_250
    config.batch_size = 32
    config.sample_every = 5_000
    config.checkpoint_every = 5_000

    config.data.source = 'folder:PATH'
    config.data.eval_split = 'train'
    config.data.image_size = 1024
    config.data.channels = 3
    config.data.flip = True
    config.data.threads = 16

    config.model.latent_dim = 512
    config.model.w_dim = 512
    config.model.channel_base = 16384
    config.model.channel_max = 512
    config.model.mapping_layers = 8
    config.model.mbstd_group = 4

    config.gan.penalty = 'r1'
    config.gan.penalty_weight = 10.0
    config.gan.style_mixing = 0.9
    config.gan.grow_steps = 18_750
    config.gan.grow_from = 8
    config.gan.grow_rates = (1.0, 1.0, 1.0, 1.0, 1.5, 2.0, 3.0, 3.0)  # 8, 16, ..., 1024
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.99
    config.ema_decay = 0.99778439  # a half-life of 10,000 images
    config.eval.metrics = ('fid', 'kid', 'prdc')

    tiny = progan_cifar10.TINY_NETS | {
        'data.eval_split': 'test',
        'data.threads': 2,
        'model.w_dim': 8,
        'model.mapping_layers': 1,
        'gan.grow_rates': (1.0, 2.0),
    }
    return vary(config, variant, tiny=tiny)
