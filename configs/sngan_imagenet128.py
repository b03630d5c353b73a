"""SNGAN on ImageNet 128x128 by class (Miyato and Koyama 2018), StudioGAN's recipe.

    python main.py --config=configs/sngan_imagenet128.py --workdir=runs/sngan_imagenet128

Recipe of github.com/POSTECH-CVLab/PyTorch-StudioGAN (configs/ImageNet/SNGAN-256.yaml at 947b35e):
hinge, 2 steps of the discriminator for one of the generator, each on 256 images of its own.
Cost: 500,000 steps of 2 x 256 images.
Plan: on 8 chips of v5e, 15 hours at best (120 chip-hours); 4.66 GiB a chip (docs/plan.md).
Networks: 41,996,931 and 39,443,137 parameters.
Paper: Inception score 36.8; FID 27.62 as Zhang et al. 2019 measure it. StudioGAN: FID 31.49, 31.42
in its benchmark, 28.39, 32.40 in its comparison with papers.
Ours: not trained here. The networks agree with StudioGAN's (tests/parity/test_gan_resnets.py).
StudioGAN's numbers are of its best checkpoint, trained in mixed precision and sampled with standing
statistics, and of images that Pillow's bilinear filter enlarges for Inception. Here samples are of
the last, in float32, with running statistics (--config.sample.standing=N: standing ones), and
enlarged by FID's own filter (--config.eval.resize=studiogan: by theirs).
What differs: images are made smaller by a bicubic filter, there by Lanczos's.

Variants:
  sagan: spectral normalisation in both networks, and attention at 64x64 (Zhang et al. 2019), one
    step of the discriminator at four times the rate, 1,000,000 steps: 42,017,412 and 39,448,258
    parameters; the paper has FID 18.65, Inception score 52.52, which StudioGAN did not reproduce.
  tiny: drawn shapes and nets of a few thousand parameters; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('gans.adversarial', network='resnet')
    config.steps = 500_000
    config.batch_size = 2 * 256
    config.sample_every = 10_000
    config.checkpoint_every = 10_000

    config.data.source = 'tfds:imagenet2012'
    config.data.eval_split = 'validation'
    config.data.image_size = 128
    config.data.channels = 3
    config.data.num_classes = 1000
    config.data.flip = True
    config.data.threads = 16

    config.model.g_multipliers = (16, 16, 8, 4, 2, 1)
    config.model.d_multipliers = (1, 2, 4, 8, 16, 16)
    config.model.d_halvings = 5

    config.gan.objective = 'hinge'
    config.gan.n_critic = 2
    config.gan.d_rate_ratio = 4.0
    config.optimizer.learning_rate = 5e-5
    config.optimizer.b1 = 0.0
    config.optimizer.eps = 1e-6
    config.ema_decay = 0.0
    config.eval.metrics = ('fid', 'is')

    sagan = {
        'steps': 1_000_000,
        'batch_size': 256,
        'model.g_spectral': True,
        'model.attention': (64,),
        'gan.n_critic': 1,
        'optimizer.learning_rate': 1e-4,
    }
    tiny = TINY | {
        'data.source': 'shapes',
        'data.eval_split': 'test',
        'data.image_size': 16,
        'data.num_classes': 6,
        'data.threads': 2,
        'model.latent_dim': 8,
        'model.channels': 4,
        'model.g_multipliers': (2, 2),
        'model.d_multipliers': (2, 2),
        'model.d_halvings': 1,
        'eval.metrics': ('diversity',),
    }
    return vary(config, variant, sagan=sagan, tiny=tiny)
