"""StyleGAN2 on CIFAR-10 by class (Karras et al. 2020), StudioGAN's recipe.

    python main.py --config=configs/stylegan2_cifar10.py --workdir=runs/stylegan2_cifar10

Recipe of github.com/POSTECH-CVLab/PyTorch-StudioGAN (configs/CIFAR10/StyleGAN2.yaml at 947b35e),
whose networks and rates are those of Karras et al. 2020b, "Training Generative Adversarial Networks
with Limited Data", without adaptive augmentation: no style mixing, no path length regularisation.
Cost: 200,000 steps of 64 images.
Plan: on 8 chips of v5e, 0.57 hours at best (4.6 chip-hours); 0.98 GiB a chip (docs/plan.md).
Networks: 20,215,315 and 23,089,664 parameters.
StudioGAN: FID 3.78, Inception score 10.17 in its benchmark, 3.69, 10.28 in its comparison with
papers. They are of its best checkpoint, trained in mixed precision, and of images that Pillow's
bilinear filter enlarges for Inception. Here samples are of the last, in float32, enlarged by FID's
own filter (--config.eval.resize=studiogan: by theirs).
Ours: not trained here. Networks and penalties agree with the authors'
(tests/parity/test_stylegan2.py).
What differs: the authors' generator has beta_2 = 0.99 ** 0.8 = 0.992, here 0.99, for steps of path
length regularisation that it takes neither there nor here; its learning rate, lowered for the same
reason, is theirs. Theirs moves before the discriminator, whose lazy penalty comes after its step,
here before it. StudioGAN holds activations within 256.

Variants:
  unconditional: 19,947,539 and 20,720,641 parameters.
  diffaug: with DiffAugment (Zhao et al. 2020), 1,000,000 steps (StyleGAN2-DiffAug.yaml).
  tiny: drawn shapes and nets of a few thousand parameters; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary

# Seconds of each mode, with all that a StyleGAN2 has.
TINY_NETS = TINY | {
    'data.source': 'shapes',
    'data.image_size': 16,
    'model.latent_dim': 8,
    'model.w_dim': 8,
    'model.channel_base': 64,
    'model.channel_max': 8,
    'model.mapping_layers': 1,
    'model.label_layers': 1,
    'model.mbstd_group': 4,
    'gan.penalty_every': 2,
    'gan.style_mixing': 0.5,
    'gan.path_length': 2.0,
    'gan.path_length_every': 2,
    'eval.metrics': ('diversity',),
}


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('gans.adversarial', network='stylegan2')
    config.steps = 200_000
    config.batch_size = 64
    config.sample_every = 5_000
    config.checkpoint_every = 5_000

    config.data.source = 'tfds:cifar10'
    config.data.image_size = 32
    config.data.channels = 3
    config.data.num_classes = 10
    config.data.flip = True

    config.model.latent_dim = 512
    config.model.w_dim = 512
    config.model.channel_base = 32768
    config.model.channel_max = 512
    config.model.mapping_layers = 2
    config.model.label_layers = 8
    config.model.d_architecture = 'orig'
    config.model.mbstd_group = 32

    config.gan.penalty = 'r1'
    config.gan.penalty_weight = 0.01
    config.gan.penalty_every = 16
    config.gan.style_mixing = 0.0
    config.gan.path_length = 0.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.99
    config.gan.d_rate_ratio = 1.25
    config.ema_decay = 0.9999113  # a half-life of 500,000 images
    config.ema_rampup = 0.05
    config.eval.metrics = ('fid', 'is')

    return vary(
        config,
        variant,
        unconditional={'data.num_classes': 0},
        diffaug={'steps': 1_000_000, 'gan.augment': ('color', 'translation', 'cutout')},
        tiny=TINY_NETS | {'data.num_classes': 6},
    )
