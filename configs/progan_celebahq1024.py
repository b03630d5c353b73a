"""Progressive GAN on CelebA-HQ at 1024x1024 (Karras et al. 2018), the paper's recipe.

    python main.py --config=configs/progan_celebahq1024.py --workdir=runs/progan_celebahq1024 \
        --config.data.source=folder:/data/celebahq1024

The recipe is that of the authors' config.py ("Section 6.3: High-resolution image generation using
CelebA-HQ dataset", in the branch original-theano-version of their code) and the paper's
appendix A.1: 800,000 images of each size from 4x4 on, as many until the next has faded in; the
gradient penalty is of the gradient by images of full size, also while small ones are trained.
Cost: 1,187,500 steps of 16 images, 19 million in all.
Plan: on 8 chips of v5e, 70 hours at best (560 chip-hours); 10.49 GiB a chip (docs/plan.md).
Networks: 23,079,115 and 23,087,249 parameters.
Paper: FID 7.30.
Ours: not trained here. The networks agree with code written from the paper
(tests/parity/test_growing_gans.py). What differs: batches of 16 at all sizes, where the authors
have 14, 6 and 3 images at 256, 512 and 1024; a rate that rises evenly over the first 40,000 images
of training, where theirs is exp(-5 (1 - p)^2) of the whole after a share p of them. The networks
are those of the authors' TensorFlow: its discriminator halves before bias and activation, that of
the branch above after them.

Variants:
  tiny: drawn shapes and nets of a few thousand parameters; each mode takes seconds.
"""

from configs import progan_cifar10
from gen_jax.config import default, vary


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('gans.adversarial', network='progressive')
    config.steps = 1_187_500
    config.batch_size = 16
    config.sample_every = 25_000
    config.checkpoint_every = 25_000

    config.data.source = 'folder:PATH'
    config.data.eval_split = 'train'
    config.data.image_size = 1024
    config.data.channels = 3
    config.data.flip = True
    config.data.threads = 16

    config.model.latent_dim = 512
    config.model.channel_base = 16384
    config.model.channel_max = 512
    config.model.mbstd_group = 16

    config.gan.objective = 'wasserstein'
    config.gan.penalty = 'wgan_gp'
    config.gan.drift = 0.001
    config.gan.grow_steps = 50_000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 2_500  # 40,000 images
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.99
    config.ema_decay = 0.999
    config.eval.metrics = ('fid', 'kid', 'prdc')

    tiny = progan_cifar10.TINY_NETS | {
        'data.eval_split': 'test',
        'data.threads': 2,
        'optimizer.warmup': 2,
    }
    return vary(config, variant, tiny=tiny)
