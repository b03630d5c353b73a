"""BigGAN on ImageNet by class (Brock et al. 2019), the author's recipe in PyTorch; at 128x128.

    python main.py --config=configs/biggan_imagenet.py --workdir=runs/biggan_imagenet

Recipe of github.com/ajbrock/BigGAN-PyTorch (scripts/launch_BigGAN_bs256x8.sh at 9845943): hinge,
2,048 images a step in 8 parts, one step of the discriminator for one of the generator, Adam with
beta_1 0 at 1e-4 and 4e-4. The paper has 5e-5 and 2e-4, and 2 steps of the discriminator.
Cost: 150,000 steps of 2,048 images.
Plan: on 32 chips of v5e, 21 hours at best (670 chip-hours); 3.93 GiB a chip (docs/plan.md).
Networks: 70,433,988 and 87,982,370 parameters.
Paper: FID 8.7, Inception score 98.8; the author's PyTorch: Inception score 97.35, at its
best, after 138,000 steps; StudioGAN: FID 8.35, 97.76 (configs/sngan_imagenet128.py says of what).
Ours: not trained here. The networks agree with the author's (tests/parity/test_gan_resnets.py).
Samples take running statistics of the averaged generator, as the script's; with
--config.sample.standing=100 standing ones, as the paper's.
What differs: the author's parts of a batch each have images of their own for the generator, and
batch norm there sees the 32 images that a GPU has of a part, here all 256 of it; images are made
smaller by a bicubic filter, there by a bilinear one.

Variants:
  deep: BigGAN-deep, 50,244,484 and 34,590,210 parameters (scripts/launch_BigGAN_deep.sh).
  at_256: 256x256, attention at 64x64 in both networks, which is the default of the author's code:
    82,235,844 and 99,225,890 parameters. The published generator has it at 128x128
    (TFHub/converter.py).
  at_256_deep: BigGAN-deep, 55,736,708 and 38,247,426 parameters. Paper: FID 6.95, precision 0.87
    and recall 0.28 (as Dhariwal and Nichol 2021 measure the published weights).
  at_512_deep: BigGAN-deep at 512x512, 56,019,780 and 38,301,122 parameters. Paper: FID 8.43 (the
    same). The author's PyTorch stops at 256. Widths are the published generator's (as read by
    pytorch-pretrained-BigGAN, which counts as many once the outputs of the last convolution that
    it throws away are left out); the discriminator's mirror them.
  There are no scripts for these sizes: the recipe is that of 128x128.
  tiny: drawn shapes and nets of a few thousand parameters; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('gans.adversarial', network='biggan')
    config.steps = 150_000
    config.batch_size = 2048
    config.accumulate = 8
    config.sample_every = 1_000
    config.checkpoint_every = 1_000

    config.data.source = 'tfds:imagenet2012'
    config.data.eval_split = 'validation'
    config.data.image_size = 128
    config.data.channels = 3
    config.data.num_classes = 1000
    config.data.flip = False  # the script asks for no augmentation
    config.data.threads = 16

    config.model.latent_dim = 120
    config.model.channels = 96
    config.model.g_multipliers = (16, 16, 8, 4, 2, 1)
    config.model.d_multipliers = (1, 2, 4, 8, 16, 16)
    config.model.d_halvings = 5
    config.model.attention = (64,)
    config.model.norm_epsilon = 1e-5

    config.gan.objective = 'hinge'
    config.gan.d_rate_ratio = 4.0
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b1 = 0.0
    config.optimizer.eps = 1e-6
    config.ema_decay = 0.9999
    config.ema_start = 20_000
    config.eval.metrics = ('fid', 'is')

    deep = {'model.deep': True, 'model.latent_dim': 128, 'model.channels': 128}
    at_256 = {
        'data.image_size': 256,
        'model.latent_dim': 140,
        'model.g_multipliers': (16, 16, 8, 8, 4, 2, 1),
        'model.d_multipliers': (1, 2, 4, 8, 8, 16, 16),
        'model.d_halvings': 6,
    }
    at_512 = {
        'data.image_size': 512,
        'model.g_multipliers': (16, 16, 8, 8, 4, 2, 1, 1),
        'model.d_multipliers': (1, 1, 2, 4, 8, 8, 16, 16),
        'model.d_halvings': 7,
    }
    tiny = TINY | {
        'accumulate': 2,
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
        'model.attention': (),
        'model.shared_dim': 4,
        'eval.metrics': ('diversity',),
    }
    return vary(
        config,
        variant,
        deep=deep,
        at_256=at_256,
        at_256_deep=at_256 | deep,
        at_512_deep=at_512 | deep,
        tiny=tiny,
    )
