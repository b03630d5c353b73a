"""DCGAN on CIFAR-10 (Radford et al. 2016), StudioGAN's recipe and networks.

    python main.py --config=configs/dcgan_cifar10.py --workdir=runs/dcgan_cifar10

Recipe of github.com/POSTECH-CVLab/PyTorch-StudioGAN (configs/CIFAR10/DCGAN.yaml at 947b35e): the
non-saturating game without labels, 2 steps of the discriminator for one of the generator, each on
64 images of its own. Its networks are not the paper's, which has none of this size.
Cost: 200,000 steps of 2 x 64 images.
Plan: on 8 chips of v5e, 0.093 hours at best (0.74 chip-hours); 0.17 GiB a chip (docs/plan.md).
Networks: 3,812,355 and 2,931,009 parameters.
StudioGAN: FID 48.29, Inception score 6.11.
Ours: not trained here. The networks agree with StudioGAN's (tests/parity/test_gan_resnets.py).
StudioGAN's numbers are of its best checkpoint, trained in mixed precision and sampled with standing
statistics, and of images that Pillow's bilinear filter enlarges for Inception. Here samples are of
the last, in float32, with running statistics (--config.sample.standing=N: standing ones), and
enlarged by FID's own filter (--config.eval.resize=studiogan: by theirs).

Variants:
  lsgan: least squares (Mao et al. 2017); StudioGAN has FID 40.22, Inception score 6.55.
  tiny: drawn shapes and nets of a few thousand parameters; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('gans.adversarial', network='deep_conv')
    config.steps = 200_000
    config.batch_size = 2 * 64
    config.sample_every = 5_000
    config.checkpoint_every = 5_000

    config.data.source = 'tfds:cifar10'
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = True

    config.gan.n_critic = 2
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b1 = 0.5
    config.optimizer.eps = 1e-6
    config.ema_decay = 0.0
    config.eval.metrics = ('fid', 'is')

    tiny = TINY | {
        'data.source': 'shapes',
        'model.latent_dim': 8,
        'model.width': 4,
        'eval.metrics': ('diversity',),
    }
    return vary(config, variant, lsgan={'gan.objective': 'least_squares'}, tiny=tiny)
