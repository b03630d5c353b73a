"""Improved DDPM on CIFAR-10, unconditional (Nichol and Dhariwal 2021), with L_hybrid.

    python main.py --config=configs/improved_ddpm_cifar10.py --workdir=runs/improved_ddpm_cifar10

Cost: 500,000 steps of 128 images.
Plan: on 8 chips of v5e, 2.6 hours at best (20 chip-hours); 1.81 GiB a chip (docs/plan.md).
Network: 52,546,438 parameters.
Paper: FID 3.19 and 3.17 bits per dimension; with L_vlb FID 11.47 and 2.94 (50,000 samples,
ancestral sampling of all 4000 steps with the learned variance). No images are mirrored.
Ours: not trained here. Losses, bound, respacing and time sampling agree with the authors' code
(tests/parity/test_improved_diffusion.py), and so does the network (tests/parity/test_adm_unet.py),
whose published weights --config.init_from takes (docs/diffusion.md).
Few steps: --config.sample.knobs.steps=100 visits the times of their --timestep_respacing 100.
--mode=evaluate finds FID; with --config.eval.metrics="('fid', 'per_example')" the bits too, for
which each of the 10,000 test images takes 4000 calls of the network.

Variants:
  vlb: the whole bound as the loss, its times drawn by how large their losses were.
  tiny: drawn shapes and a net of a few thousand parameters; each mode takes seconds.
"""

from gen_jax import config as base


def get_config(variant: str = ''):
    """The config, or its variant `vlb` or `tiny`."""
    config = base.default('diffusion.gaussian', network='adm')
    config.steps = 500_000
    config.batch_size = 128
    config.sample_every = 10_000
    config.checkpoint_every = 10_000

    config.data.source = 'tfds:cifar10'
    config.data.image_size = 32
    config.data.channels = 3

    config.model.channels = 128
    config.model.multipliers = (1, 2, 2, 2)
    config.model.blocks = 3
    config.model.attention = (16, 8)
    config.model.dropout = 0.3
    config.model.groups = 32
    config.model.heads = 4
    config.model.head_channels = 0
    config.model.scale_shift = True
    config.model.resample_in_blocks = False

    config.diffusion.timesteps = 4000
    config.diffusion.betas = 'cosine'
    config.diffusion.told = 'thousandths'
    config.diffusion.learned_variance = True
    config.diffusion.loss = 'hybrid'

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 0
    config.optimizer.clip = 0.0
    config.ema_decay = 0.9999

    config.sampler.name = 'ancestral'
    config.sampler.variance = 'learned_range'
    config.sampler.spacing = 'linspace'
    config.sample.knobs.steps = 4000

    config.eval.metrics = ('fid',)

    vlb = {'diffusion.loss': 'vlb', 'diffusion.times': 'loss_second_moment'}
    tiny = base.TINY | {
        'data.source': 'shapes',
        'data.image_size': 8,
        'model.channels': 8,
        'model.multipliers': (1, 2),
        'model.blocks': 1,
        'model.attention': (4,),
        'model.groups': 4,
        'model.heads': 2,
        'diffusion.timesteps': 20,
        'sample.knobs.steps': 5,
        'eval.metrics': ('per_example',),
    }
    return base.vary(config, variant, vlb=vlb, tiny=tiny)
