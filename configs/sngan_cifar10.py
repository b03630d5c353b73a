"""SNGAN on CIFAR-10 by class (Miyato et al. 2018; Miyato and Koyama 2018), StudioGAN's recipe.

    python main.py --config=configs/sngan_cifar10.py --workdir=runs/sngan_cifar10

The recipe decides the number, and this is that of github.com/POSTECH-CVLab/PyTorch-StudioGAN
(configs/CIFAR10/SNGAN.yaml at 947b35e): hinge, 5 steps of the discriminator for one of the
generator, each on 64 images of its own, Adam with beta_1 0.5. The papers' beta_1 is 0.
Cost: 100,000 steps of 5 x 64 images.
Plan: on 8 chips of v5e, 0.12 hours at best (1 chip-hour); 0.27 GiB a chip (docs/plan.md).
Networks: 4,304,387 and 1,055,105 parameters.
Paper: FID 17.5, Inception score 8.62 (Miyato and Koyama 2018); StudioGAN: FID 9.01, 8.83.
Ours: not trained here. The networks agree with StudioGAN's (tests/parity/test_gan_resnets.py).
StudioGAN's numbers are of its best checkpoint, trained in mixed precision and sampled with standing
statistics, and of images that Pillow's bilinear filter enlarges for Inception. Here samples are of
the last, in float32, with running statistics (--config.sample.standing=N: standing ones), and
enlarged by FID's own filter (--config.eval.resize=studiogan: by theirs).

Variants:
  unconditional: without labels; the paper has FID 21.7, Inception score 8.22.
  projection: with batch norm in the discriminator, no spectral norm (StudioGAN's ProjGAN.yaml):
    1,057,159 parameters; StudioGAN has FID 31.54.
  acgan: an auxiliary classifier of real and of generated images (Odena et al. 2017) instead of the
    projection. StudioGAN's ACGAN-Mod, FID 33.39, is another recipe: its discriminator has batch
    norm, no spectral norm, and learns to classify real images only.
  sagan: spectral normalisation in both networks, and attention at 16x16 (Zhang et al. 2019):
    4,386,308 and 1,075,586 parameters; StudioGAN has FID 10.35, Inception score 8.64.
  wgan_gp: unconditional Wasserstein distance with gradient penalty (Gulrajani et al. 2017), without
    batch norm in the critic, as the paper has it and StudioGAN has not; the paper, whose Adam has
    beta_1 0, beta_2 0.9 and a rate that falls to 0: Inception score 7.86; StudioGAN: FID 53.98,
    5.22 in its benchmark, 36.84, 6.71 in its comparison with papers.
  wgan: unconditional Wasserstein distance by clipping (Arjovsky et al. 2017), the critic with batch
    norm; StudioGAN has FID 107.68, Inception score 3.59.
  tiny: drawn shapes and nets of a few thousand parameters; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('gans.adversarial', network='resnet')
    config.steps = 100_000
    config.batch_size = 5 * 64
    config.sample_every = 5_000
    config.checkpoint_every = 5_000

    config.data.source = 'tfds:cifar10'
    config.data.image_size = 32
    config.data.channels = 3
    config.data.num_classes = 10
    config.data.flip = True

    config.gan.objective = 'hinge'
    config.gan.n_critic = 5
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b1 = 0.5
    config.optimizer.eps = 1e-6
    config.ema_decay = 0.0
    config.eval.metrics = ('fid', 'is')

    unconditional = {'model.condition': 'none', 'data.num_classes': 0}
    sagan = {'model.g_spectral': True, 'model.attention': (16,)}
    wgan_gp = unconditional | {
        'gan.objective': 'wasserstein',
        'gan.penalty': 'wgan_gp',
        'model.d_spectral': False,
    }
    wgan = unconditional | {
        'gan.objective': 'wasserstein',
        'gan.clip_weights': 0.01,
        'model.d_spectral': False,
        'model.d_batch_norm': True,
    }
    tiny = TINY | {
        'data.source': 'shapes',
        'data.image_size': 16,
        'data.num_classes': 6,
        'batch_size': 10,
        'model.latent_dim': 8,
        'model.channels': 4,
        'model.g_multipliers': (2, 2),
        'model.d_multipliers': (2, 2),
        'model.d_halvings': 1,
        'eval.metrics': ('diversity',),
    }
    return vary(
        config,
        variant,
        unconditional=unconditional,
        projection={'model.d_spectral': False, 'model.d_batch_norm': True},
        acgan={'model.condition': 'auxiliary'},
        sagan=sagan,
        wgan_gp=wgan_gp,
        wgan=wgan,
        tiny=tiny,
    )
