"""Class-conditional EDM (Karras et al. 2022) on Fashion-MNIST, with guidance, for CPUs.

    python main.py --config=configs/edm_fashion_mnist.py --workdir=runs/edm_fashion_mnist

Process, preconditioning, loss and sampler (Heun, 18 steps, 35 calls) are the paper's; the network
is the small one of configs/ddpm_fashion_mnist.py, and so is all else, for the two to be compared.
Number: the paper has none for this data set, and ours is not measured yet.

Variants:
  flow: rectified flow (Liu et al. 2023) instead, times as Esser et al. 2024, Euler in 50 steps.
  vp, ve: the SDEs of Song et al. 2021, sampled by Heun.
  tiny: on the embedded digits; each mode takes seconds.
"""

from configs import ddpm_fashion_mnist
from gen_jax.config import TINY, default, vary

ALIKE = ('steps', 'batch_size', 'sample_every', 'checkpoint_every', 'ema_decay')
PARTS = ('data', 'model', 'optimizer', 'eval')


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config, ddpm = default('diffusion.continuous'), ddpm_fashion_mnist.get_config()
    config.update({name: ddpm[name] for name in (*ALIKE, *PARTS)})
    config.diffusion.label_dropout = 0.1
    config.sample.knobs.guidance = 2.0
    vp = {
        'diffusion.process': 'vp_linear',
        'diffusion.prediction': 'eps',
        'diffusion.told': 'time',
        'diffusion.times': 'uniform',
        'sampler.spacing': 'log_snr',
    }
    ve = vp | {
        'diffusion.process': 've',
        'diffusion.prediction': 'score',
        'diffusion.told': 'log_ratio',
        'sampler.spacing': 'karras',
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
        'sample.knobs.steps': 2,
        'eval.network': 'digits',
    }
    return vary(config, variant, flow=flow, vp=vp, ve=ve, tiny=tiny)
