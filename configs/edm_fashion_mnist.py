"""Class-conditional EDM (Karras et al. 2022) on Fashion-MNIST, with guidance, for CPUs.

    python main.py --config=configs/edm_fashion_mnist.py --workdir=runs/edm_fashion_mnist

Process, preconditioning, loss and sampler (Heun, 18 steps, 35 calls) are the paper's; network,
data and optimiser are those of configs/ddpm_fashion_mnist.py.
Cost: 5,000 steps of 64 images, under half an hour on 2 CPU cores.
Number: the paper has none for this data set. Ours: see README.

Variants:
  flow: rectified flow (Liu et al. 2023) instead, times as Esser et al. 2024, Euler in 50 steps.
  vp, ve: the SDEs of Song et al. 2021, ancestral sampling in 50 steps. Their ODE carries along what
    so little training leaves wrong where noise is strong: by Heun a third of VE's images are noise.
  tiny: on the embedded digits; each mode takes seconds.
"""

from configs import ddpm_fashion_mnist
from gen_jax.config import TINY, default, vary

PARTS = ('batch_size', 'sample_every', 'checkpoint_every', 'data', 'model', 'optimizer', 'eval')


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config, ddpm = default('diffusion.continuous'), ddpm_fashion_mnist.get_config()
    config.update({name: ddpm[name] for name in PARTS})
    config.steps = 5000
    config.optimizer.decay_steps = 5000
    config.ema_decay = 0.999
    config.ema_rampup = 0.05
    config.diffusion.label_dropout = 0.1
    config.sample.knobs.guidance = 2.0
    config.eval.n = 5_000
    config.likelihood.divergence = 'rademacher'
    config.likelihood.tolerance = 1e-3
    vp = {
        'diffusion.process': 'vp_linear',
        'diffusion.prediction': 'eps',
        'diffusion.told': 'time',
        'diffusion.times': 'uniform',
        'sampler.name': 'ancestral',
        'sampler.spacing': 'linear',
        'sample.knobs.steps': 50,
    }
    ve = vp | {
        'diffusion.process': 've',
        'diffusion.prediction': 'score',
        'diffusion.told': 'log_ratio',
    }
    flow = {
        'diffusion.process': 'flow',
        'diffusion.prediction': 'velocity',
        'diffusion.told': 'time',
        'diffusion.times': 'logit_normal',
        'diffusion.times_mean': 0.0,
        'diffusion.times_std': 1.0,
        'sampler.name': 'ddim',
        'sampler.spacing': 'trailing',
        'sample.knobs.steps': 50,
    }
    tiny = TINY | {
        'data.source': 'digits',
        'data.fit': 'pad',
        'model.channels': 8,
        'model.blocks': 1,
        'model.multipliers': (1, 2),
        'model.attention': (),
        'sample.knobs.steps': 2,
        'eval.network': 'digits',
    }
    return vary(config, variant, flow=flow, vp=vp, ve=ve, tiny=tiny)
