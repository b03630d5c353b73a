"""Progressive GAN on CIFAR-10, unconditional (Karras et al. 2018).

    python main.py --config=configs/progan_cifar10.py --workdir=runs/progan_cifar10

The recipe is that of the authors' config.py ("Section 6.5: CIFAR10 inception scores", in the branch
original-theano-version of github.com/tkarras/progressive_growing_of_gans): 400,000 images of each
size from 4x4 on, as many until the next has faded in, and a gradient penalty whose target is 750,
of the gradient by images of full size, also while small ones are trained.
Cost: 1,250,000 steps of 16 images.
Plan: on 8 chips of v5e, 0.55 hours at best (4.4 chip-hours); 0.11 GiB a chip (docs/plan.md).
Paper: Inception score 8.80; FID 15.52 (as quoted by others).
Ours: not trained here. The networks agree with code written from the paper
(tests/parity/test_growing_gans.py). What differs: the authors' players take their steps at once,
ours one after the other. The networks are those of the authors' TensorFlow: its discriminator
halves before bias and activation, that of the branch above after them.

Variants:
  tiny: drawn shapes and nets of a few thousand parameters; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary

# Networks that grow, of a few thousand parameters.
TINY_NETS = TINY | {
    'steps': 6,
    'data.source': 'shapes',
    'data.image_size': 16,
    'model.latent_dim': 8,
    'model.channel_base': 64,
    'model.channel_max': 8,
    'model.mbstd_group': 4,
    'gan.grow_steps': 1,
    'eval.metrics': ('diversity',),
}


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('gans.adversarial', network='progressive')
    config.steps = 1_250_000
    config.batch_size = 16
    config.sample_every = 25_000
    config.checkpoint_every = 25_000

    config.data.source = 'tfds:cifar10'
    config.data.image_size = 32
    config.data.channels = 3

    config.model.latent_dim = 128
    config.model.channel_base = 8192  # 128 channels everywhere
    config.model.channel_max = 128
    config.model.mbstd_group = 16

    config.gan.objective = 'wasserstein'
    config.gan.penalty = 'wgan_gp'
    config.gan.penalty_target = 750.0
    config.gan.drift = 0.001
    config.gan.grow_steps = 25_000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.99
    config.ema_decay = 0.999
    config.eval.metrics = ('fid', 'is')

    return vary(config, variant, tiny=TINY_NETS)
