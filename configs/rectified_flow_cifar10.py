"""Flows along straight paths on CIFAR-10, unconditional (Lipman, Liu, Tong et al. 2023).

    python main.py --config=configs/rectified_flow_cifar10.py --workdir=runs/rectified_flow
    python main.py --config=configs/rectified_flow_cifar10.py:ot_cfm --workdir=runs/ot_cfm

1-rectified flow as configs/rectified_flow/cifar10_rf_gaussian_ddpmpp.py of the authors
(github.com/gnobitab/RectifiedFlow) has it, OT-CFM and I-CFM as examples/images/cifar10 of theirs
(github.com/atong01/conditional-flow-matching), FM-OT as table 3 of Lipman et al. does. FID of
50,000 samples by the adaptive solver of Dormand and Prince with tolerance 1e-5:

    variant  network             parameters   steps    FID
    (none)   DDPM++              61,804,419   800,000  2.58 (Inception score 9.60, 127 calls)
    icfm     guided-diffusion's  35,746,307   400,000  3.5, they say of both
    ot_cfm   guided-diffusion's  35,746,307   400,000  3.5; anew 3.8 (their issue 105)
    fm_ot    guided-diffusion's  171,268,099  391,000  6.35 (142 calls)

Liu et al.'s code trains for 1,300,000 steps unless stopped; of its checkpoints every 100,000 steps
the eighth is what they released as the model of FID 2.58.
Cost: 1,300,000 steps of 1-rectified flow about 5 days on one A100 (their issue 12), which makes 3
for 800,000; OT-CFM 60 hours on one V100 (their issue 105).
Plan: on 8 chips of v5e, 4 hours at best (32 chip-hours); 1.86 GiB a chip (docs/plan.md).

Of FM-OT the paper leaves open what follows. Its U-Net is that of ADM "with minimal changes", taken
for ADM's here; of attention it gives 4 heads and heads of 64 channels, of which ADM's code obeys
the latter. Nothing is said of averaged weights (here 0.9999) nor of mirrored images; 391,000 steps
of 256 in its 1000 epochs are 100,000 images an epoch, so that here half are mirrored. sigma_min,
the noise left in an image, is 0 here. Its 2.99 bits per dimension are by 50 draws of the
dequantised image together, of one each 3.11.

Differences: time runs from the image to the noise here, and the networks are told 999 t of that
time; Liu et al. tell 999 (1 - t), Tong et al. 1 - t. Training draws times in [1e-3, 1], away from
images, where Liu et al. stay as far away from noise, [0, 0.999] in this time, and Tong et al. from
neither; sampling ends at 1e-3 with one denoising, theirs starts and ends where their training does.
The solver's steps are each sample's own here, there one step serves a batch of 1,024, so that calls
and tolerance do not mean quite the same. Liu et al.'s moving average has a decay of 0.999999, but
no more than (1 + n) / (10 + n) at the n-th step, which in all their steps is less: ours is
exp(-9 / (n - 1)), within 60 / n^2 of it. OT-CFM pairs each noise once; the authors draw pairs of
the same coupling with replacement.
Ours: not trained here. The networks agree with the references
(tests/parity/test_song_unet.py, tests/parity/test_adm_unet.py), and so do the losses
(tests/parity/test_continuous_losses.py).

Variants: those of the table, and
  tiny: drawn shapes and a net of a few thousand parameters; each mode takes seconds.
"""

import math

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = _tong() if variant in ('icfm', 'ot_cfm', 'fm_ot') else _liu()
    config.batch_size = 128
    config.sample_every = 10_000
    config.checkpoint_every = 10_000

    config.data.source = 'tfds:cifar10'
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = True

    config.model.channels = 128
    config.model.multipliers = (1, 2, 2, 2)
    config.model.attention = (16,)

    config.diffusion.process = 'flow'
    config.diffusion.prediction = 'velocity'
    config.diffusion.told = 'time'
    config.diffusion.times = 'uniform'

    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup = 5000
    config.optimizer.clip = 1.0

    config.sampler.name = 'adaptive'
    config.sampler.solver = 'dopri5'
    config.sampler.spacing = 'linear'
    config.sample.knobs.steps = 0
    config.sample.knobs.tolerance = 1e-5

    config.eval.metrics = ('fid', 'is')

    fm_ot = {
        'steps': 391_000,
        'batch_size': 256,
        'model.channels': 256,
        'model.dropout': 0.0,
        'model.heads': 0,
        'model.head_channels': 64,
        'model.scale_shift': True,
        'model.resample_in_blocks': True,
        'optimizer.learning_rate': 5e-4,
        'optimizer.warmup': 45_000,
        'optimizer.decay': 'linear',
        'optimizer.decay_steps': 391_000,
        'optimizer.clip': 0.0,
    }
    tiny = TINY | {
        'data.source': 'shapes',
        'data.image_size': 8,
        'model.channels': 8,
        'model.multipliers': (1, 2),
        'model.blocks': 1,
        'model.attention': (4,),
        'optimizer.warmup': 0,
        'sample.knobs.tolerance': 1e-2,
        'eval.metrics': ('per_example',),
    }
    ot_cfm = {'diffusion.pairing': 'optimal'}
    return vary(config, variant, icfm={}, ot_cfm=ot_cfm, fm_ot=fm_ot, tiny=tiny)


def _liu():
    """What is peculiar to rectified flow."""
    config = default('diffusion.continuous', network='song')
    config.steps = 800_000
    config.model.blocks = 4
    config.model.dropout = 0.15
    config.ema_decay = 0.999999
    config.ema_rampup = math.log(2) / 9  # a decay of no more than exp(-9 / steps so far)
    return config


def _tong():
    """What is peculiar to I-CFM and OT-CFM, from which FM-OT differs as its variant says."""
    config = default('diffusion.continuous', network='adm')
    config.steps = 400_000
    config.model.blocks = 2
    config.model.dropout = 0.1
    config.model.groups = 32
    config.model.heads = 4
    config.model.head_channels = 0
    config.model.scale_shift = False
    config.model.resample_in_blocks = False
    config.ema_decay = 0.9999
    return config
