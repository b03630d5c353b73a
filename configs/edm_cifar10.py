"""EDM on CIFAR-10 (Karras et al. 2022, configuration F), augmented.

    python main.py --config=configs/edm_cifar10.py --workdir=runs/edm_cifar10
    python main.py --config=configs/edm_cifar10.py:conditional --workdir=runs/edm_cifar10_cond

Cost: 390,625 steps of 512 images, 200 million in all; about 2 days on 8 V100 in the paper.
Plan: on 8 chips of v5e, 10 hours at best (80 chip-hours); 4.26 GiB a chip (docs/plan.md).
The hyperparameters are the defaults of the authors' train.py (github.com/NVlabs/edm). FID of 50,000
samples in 35 calls of the network, the least of three (the paper's table 2):

    variant          network  parameters  FID
    (none)           DDPM++   55,733,891  1.97
    conditional      DDPM++   55,735,299  1.79
    ve               NCSN++   56,397,827  1.98
    ve_conditional   NCSN++   56,400,643  1.79

Whoever trained it anew found 2.04 to 2.08 without classes (issue 16 of the authors' repository).

Differences: their loss is the sum over values, 3072 times our mean: Adam's epsilon is divided by
it, and so each step is theirs.
Ours: not trained here. The networks agree with the authors' (tests/parity/test_song_unet.py), and
so do the loss (tests/parity/test_continuous_losses.py), the augmentation
(tests/parity/test_augment.py) and the sampler (tests/parity/test_samplers_reference.py).
--config.init_from takes their networks' state dicts (docs/diffusion.md).

Variants: those of the table, and
  tiny: drawn shapes and a net of a few thousand parameters; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary

NCSNPP = {'model.embedding': 'fourier', 'model.encoder': 'residual', 'model.fir': True}
SMALL = TINY | {
    'data.source': 'shapes',
    'data.image_size': 8,
    'model.channels': 8,
    'model.multipliers': (1, 2),
    'model.blocks': 1,
    'model.attention': (4,),
    'optimizer.warmup': 0,
    'sample.knobs.steps': 3,
    'eval.metrics': ('per_example',),
}


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('diffusion.continuous', network='song')
    config.steps = 390_625
    config.batch_size = 512
    config.sample_every = 5000
    config.checkpoint_every = 5000

    config.data.source = 'tfds:cifar10'
    config.data.image_size = 32
    config.data.channels = 3

    config.model.channels = 128
    config.model.multipliers = (2, 2, 2)
    config.model.blocks = 4
    config.model.attention = (16,)
    config.model.dropout = 0.13

    config.diffusion.process = 'edm'
    config.diffusion.range = (0.002, 80.0)
    config.diffusion.prediction = 'edm'
    config.diffusion.told = 'log_ratio'
    config.diffusion.times = 'lognormal'
    config.diffusion.times_mean = -1.2
    config.diffusion.times_std = 1.2
    config.diffusion.sigma_data = 0.5
    config.diffusion.augment = 0.12

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 19_531  # 10 million images
    config.optimizer.clip = 0.0
    config.optimizer.eps = 3.255208e-12  # 1e-8 / 3072
    config.ema_decay = 0.99929047  # 0.5 ** (512 / 500_000)
    config.ema_rampup = 0.05

    config.sampler.name = 'heun'
    config.sampler.spacing = 'karras'
    config.sample.knobs.steps = 18

    config.eval.metrics = ('fid',)

    conditional = {'data.num_classes': 10}
    return vary(
        config,
        variant,
        conditional=conditional,
        ve=NCSNPP,
        ve_conditional=NCSNPP | conditional,
        tiny=SMALL,
    )
