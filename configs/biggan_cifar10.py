"""BigGAN on CIFAR-10 by class (Brock et al. 2019), StudioGAN's recipe.

    python main.py --config=configs/biggan_cifar10.py --workdir=runs/biggan_cifar10

Recipe of github.com/POSTECH-CVLab/PyTorch-StudioGAN (configs/CIFAR10/BigGAN.yaml at 947b35e).
Cost: 100,000 steps of 5 x 64 images.
Plan: on 8 chips of v5e, 0.36 hours at best (2.9 chip-hours); 0.58 GiB a chip (docs/plan.md).
Networks: 9,416,196 and 2,415,170 parameters.
Paper: FID 14.73, Inception score 9.22; StudioGAN: FID 4.16, 9.96.
Ours: not trained here. The networks agree with StudioGAN's (tests/parity/test_gan_resnets.py).
StudioGAN's numbers are of its best checkpoint, trained in mixed precision and sampled with standing
statistics, and of images that Pillow's bilinear filter enlarges for Inception. Here samples are of
the last, in float32, with running statistics of the averaged generator
(--config.sample.standing=N: standing ones, as the paper's too), and enlarged by FID's own filter
(--config.eval.resize=studiogan: by theirs).

Variants:
  authors: the authors' script for CIFAR-10 (github.com/ajbrock/BigGAN-PyTorch at 9845943):
    4,304,387 and 4,207,361 parameters, 4 x 50 images a step, beta_1 0; 500 epochs.
  diffaug: with DiffAugment (Zhao et al. 2020), 200,000 steps (BigGAN-DiffAug.yaml).
  cr: with consistency regularisation (Zhang et al. 2020), weight 10.
  tiny: drawn shapes and nets of a few thousand parameters; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('gans.adversarial', network='biggan')
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
    config.ema_decay = 0.9999
    config.ema_start = 1_000
    config.eval.metrics = ('fid', 'is')

    authors = {
        'steps': 125_000,
        'batch_size': 4 * 50,
        'data.flip': False,
        'gan.n_critic': 4,
        'optimizer.b1': 0.0,
        'optimizer.eps': 1e-8,
        'model.latent_dim': 128,
        'model.channels': 64,
        'model.d_multipliers': (4, 4, 4, 4),
        'model.attention': (),
        'model.shared_dim': 0,
        'model.hierarchical': False,
        'model.weight_init': 'normal',
        'model.norm_epsilon': 1e-5,
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
        'model.attention': (),
        'model.shared_dim': 4,
        'eval.metrics': ('diversity',),
    }
    return vary(
        config,
        variant,
        authors=authors,
        diffaug={'steps': 200_000, 'gan.augment': ('color', 'translation', 'cutout')},
        cr={'gan.consistency': 10.0},
        tiny=tiny,
    )
