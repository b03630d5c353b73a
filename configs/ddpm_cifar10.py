"""DDPM on CIFAR-10, unconditional (Ho et al. 2020).

    python main.py --config=configs/ddpm_cifar10.py --workdir=runs/ddpm_cifar10

Cost: 800,000 steps of 128 images, 10.6 hours on a TPU v3-8 in the paper.
Plan: on 8 chips of v5e, 2.3 hours at best (18 chip-hours); 1.19 GiB a chip (docs/plan.md).
Network: 35,746,307 parameters.
Paper: FID 3.17, Inception score 9.46, at most 3.75 bits per dimension (50,000 samples, ancestral
sampling of 1000 steps with the large variance). --mode=evaluate finds the bits of the bound with
--config.eval.metrics="('per_example',)", for which each test image takes 1000 calls of the network.
Ours: not trained here. The network, the samplers and the schedule agree with diffusers
(tests/parity/test_ddpm_unet.py); its published weights, google/ddpm-cifar10-32, can be loaded.
Differs: gradients are clipped for the whole batch; the authors clip those of each TPU core's part.

Variants:
  ddim: the same network sampled by DDIM in 50 steps (Song et al. 2021: FID 4.67).
  bound: trained by the bound L itself (table 1: FID 13.51, Inception score 7.67, at most 3.70 bits
    per dimension). The authors' loss is a term of it, ours 1000 times that: clip and Adam's epsilon
    are multiplied by 1000, and so each step is theirs.
  tiny: drawn shapes and a net of a few thousand parameters; each mode takes seconds.
"""

from gen_jax import config as base


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = base.default('diffusion.gaussian')
    config.steps = 800_000
    config.batch_size = 128
    config.sample_every = 10_000
    config.checkpoint_every = 10_000

    config.data.source = 'tfds:cifar10'
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = True

    config.model.channels = 128
    config.model.multipliers = (1, 2, 2, 2)
    config.model.blocks = 2
    config.model.attention = (16,)
    config.model.dropout = 0.1
    config.model.groups = 32

    config.diffusion.timesteps = 1000
    config.diffusion.beta_min = 1e-4
    config.diffusion.beta_max = 0.02

    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup = 5000
    config.optimizer.clip = 1.0
    config.ema_decay = 0.9999

    config.sampler.name = 'ancestral'
    config.sampler.variance = 'fixed_large'
    config.sample.knobs.steps = 1000

    config.eval.metrics = ('fid', 'is')

    ddim = {
        'sampler.name': 'ddim',
        'sample.knobs.steps': 50,
        'sampler.spacing': 'quadratic',
        'sampler.clip': False,  # as the authors' code
    }
    bound = {'diffusion.loss': 'vlb', 'optimizer.clip': 1000.0, 'optimizer.eps': 1e-5}
    tiny = base.TINY | {
        'data.source': 'shapes',
        'data.image_size': 8,
        'model.channels': 8,
        'model.multipliers': (1, 2),
        'model.blocks': 1,
        'model.attention': (4,),
        'model.groups': 4,
        'diffusion.timesteps': 20,
        'diffusion.beta_max': 0.5,
        'optimizer.warmup': 0,
        'sample.knobs.steps': 5,
        'eval.metrics': ('per_example',),
    }
    return base.vary(config, variant, ddim=ddim, bound=bound, tiny=tiny)
