"""EDM on ImageNet at 64x64, with classes (Karras et al. 2022, configuration F of ADM's network).

    python main.py --config=configs/edm_imagenet64.py --workdir=runs/edm_imagenet64

Cost: 610,352 steps of 4096 images, 2500 million in all; about 13 days on 32 A100 in the
paper.
Plan: on 32 chips of v6e, 55 hours at best (1,700 chip-hours); 29.93 GiB a chip (docs/plan.md); 32
of v5e or v4 take the batch in two parts (accumulate=2).
Network: ADM's without variances, 295,899,267 parameters.
Paper: FID 1.36 (50,000 samples in 511 calls of the network, stochastic; the least of three).
The hyperparameters are those that the authors' README lists (github.com/NVlabs/edm). No images are
mirrored or augmented.

Data: TFDS wants ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in its folder
downloads/manual. Images are cropped to their middle and made smaller as they are read, as the
authors did beforehand (they by Lanczos' filter, we by the bicubic one), and that is what FID has to
be compared with. tfds:imagenet_resized/64x64 downloads by itself and reads quicker, but its images
are squeezed whole into a square: another data set, whose FID is not the paper's.

Differences: bfloat16 instead of float16, so that the loss needs no scale. Their loss is a hundred
times the sum over values, 1,228,800 times our mean: Adam's epsilon is divided by it, and so each
step is theirs.
Ours: not trained here. The network agrees with the authors' (tests/parity/test_adm_unet.py), and so
does the sampler (tests/parity/test_samplers_reference.py).

Variants:
  deterministic: 40 steps without churn, 79 calls, as for FFHQ.
  tiny: drawn shapes and a net of a few thousand parameters; each mode takes seconds.
"""

from configs import edm_cifar10
from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or its variant `deterministic` or `tiny`."""
    config = default('diffusion.continuous', network='adm')
    config.steps = 610_352
    config.batch_size = 4096
    config.sample_every = 5000
    config.checkpoint_every = 5000

    config.data.source = 'tfds:imagenet2012'
    config.data.eval_split = 'validation'
    config.data.image_size = 64
    config.data.channels = 3
    config.data.num_classes = 1000
    config.data.threads = 16

    config.model.channels = 192
    config.model.multipliers = (1, 2, 3, 4)
    config.model.blocks = 3
    config.model.attention = (32, 16, 8)
    config.model.dropout = 0.1
    config.model.groups = 32
    config.model.head_channels = 64
    config.model.dtype = 'bfloat16'

    config.diffusion.update(edm_cifar10.get_config().diffusion)
    config.diffusion.augment = 0.0

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 2441  # 10 million images
    config.optimizer.clip = 0.0
    config.optimizer.eps = 8.138021e-15  # 1e-8 / 1_228_800
    config.ema_decay = 0.99994322  # 0.5 ** (4096 / 50_000_000)
    config.ema_rampup = 0.05

    config.sampler.name = 'heun'
    config.sampler.spacing = 'karras'
    config.sampler.churn_range = (0.05, 50.0)
    config.sampler.churn_noise = 1.003
    config.sample.knobs.steps = 256
    config.sample.knobs.churn = 40.0

    config.eval.metrics = ('fid',)

    deterministic = {'sample.knobs.steps': 40, 'sample.knobs.churn': 0.0}
    tiny = TINY | {
        'data.source': 'shapes',
        'data.eval_split': 'test',
        'data.image_size': 8,
        'data.num_classes': 6,
        'model.channels': 8,
        'model.multipliers': (1, 2),
        'model.blocks': 1,
        'model.attention': (4,),
        'model.groups': 4,
        'model.head_channels': 8,
        'optimizer.warmup': 0,
        'sample.knobs.steps': 3,
        'eval.metrics': ('per_example',),
    }
    return vary(config, variant, deterministic=deterministic, tiny=tiny)
