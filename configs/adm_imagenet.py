"""ADM on ImageNet (Dhariwal and Nichol 2021, Diffusion Models Beat GANs), at 64x64 to 512x512.

    python main.py --config=configs/adm_imagenet.py --workdir=runs/adm_imagenet64
    python main.py --config=configs/adm_imagenet.py:at_256 --workdir=runs/adm_imagenet256

Networks and diffusion as the flags in the authors' README have them, learned variances and L_hybrid
(github.com/openai/guided-diffusion); batches, steps and learning rates as in the paper's table 11.
FID of 50,000 samples by ancestral sampling of 250 of the 1000 steps:

    variant               parameters   steps      batch  FID
    (none)                295,904,454    540,000   2048  2.07
    at_128                421,529,606  4,360,000    256  5.91; guided 2.97
    at_256                553,838,086  1,980,000    256  10.94; guided 4.59
    at_256_unconditional  552,814,086  1,980,000    256  26.21; guided 12.00
    at_512                558,997,638  1,940,000    256  23.24; guided 7.72

Plan: on 32 chips of v5e, 74 hours at best (2,400 chip-hours); 14.57 GiB a chip (docs/plan.md), of
64x64.

The guided numbers are by a run of configs/adm_classifier_imagenet.py of the same size: add to
--mode=evaluate --config.guide.workdir=runs/adm_classifier_imagenet_at_256 and the authors' scale,
--config.sample.knobs.guide=1, at_128 =0.5, at_512 =4, where the model is unconditional =10. The
authors' classifiers guide too (docs/diffusion.md).

Data: TFDS wants ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in its folder
downloads/manual. Images are cropped to their middle and made smaller as they are read; half are
mirrored. At 64x64 tfds:imagenet_resized/64x64 downloads by itself and reads quicker, but its images
are squeezed whole into a square: another data set, whose FID is not the paper's.

Differences: bfloat16 instead of float16. The authors halve images by means before their bicubic
filter. Guided ancestral steps: gen_jax/diffusion/guides.py.
Ours: not trained here. The networks agree with the authors' (tests/parity/test_adm_unet.py);
losses, bound and respacing do with their parent repository's
(tests/parity/test_improved_diffusion.py). --config.init_from takes their weights
(docs/diffusion.md).

Variants: those of the table, and
  classifier_free: guidance without a classifier (Ho and Salimans 2022, table 1), at 64x64. FID 1.55
    with w = 0.1, which is guidance 1.1 here, and 1.80 without (--config.sample.knobs.guidance=1);
    295,900,035 parameters, no variances among them and a null class; 400,000 steps, in continuous
    time. All else is ADM's, the paper says. It leaves open how the network is told the noise (here
    as EDM's are) and how many steps samples of this size take (here 256, on which it settles at
    128x128).
  tiny: a net of a few thousand parameters for the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary

LARGER = {  # than 64x64
    'batch_size': 256,
    'model.channels': 256,
    'model.blocks': 2,
    'model.dropout': 0.0,
    'diffusion.betas': 'linear',
    'optimizer.learning_rate': 1e-4,
}
AT_128 = LARGER | {
    'steps': 4_360_000,
    'data.image_size': 128,
    'model.multipliers': (1, 1, 2, 3, 4),
    'model.heads': 4,
    'model.head_channels': 0,
}
AT_256 = LARGER | {
    'steps': 1_980_000,
    'data.image_size': 256,
    'model.multipliers': (1, 1, 2, 2, 4, 4),
}
AT_512 = LARGER | {
    'steps': 1_940_000,
    'data.image_size': 512,
    'model.multipliers': (0.5, 1, 1, 2, 2, 4, 4),
}
SMALL = TINY | {
    'data.source': 'digits',
    'data.channels': 1,
    'data.eval_split': 'test',
    'data.image_size': 8,
    'data.num_classes': 10,
    'model.channels': 8,
    'model.multipliers': (1, 2),
    'model.blocks': 1,
    'model.attention': (4,),
    'model.groups': 4,
    'model.head_channels': 8,
    'diffusion.timesteps': 20,
    'sample.knobs.steps': 5,
    'eval.metrics': ('per_example',),
}


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = _classifier_free() if variant == 'classifier_free' else _guided()
    config.steps = 540_000
    config.batch_size = 2048
    config.sample_every = 10_000
    config.checkpoint_every = 10_000

    config.data.source = 'tfds:imagenet2012'
    config.data.eval_split = 'validation'
    config.data.image_size = 64
    config.data.channels = 3
    config.data.num_classes = 1000
    config.data.flip = True
    config.data.threads = 16

    config.model.channels = 192
    config.model.multipliers = (1, 2, 3, 4)
    config.model.blocks = 3
    config.model.attention = (32, 16, 8)
    config.model.dropout = 0.1
    config.model.groups = 32
    config.model.head_channels = 64
    config.model.dtype = 'bfloat16'

    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup = 0
    config.optimizer.clip = 0.0
    config.ema_decay = 0.9999

    config.sampler.name = 'ancestral'

    config.eval.metrics = ('fid', 'sfid', 'prdc')

    return vary(
        config,
        variant,
        at_128=AT_128,
        at_256=AT_256,
        at_256_unconditional=AT_256 | {'data.num_classes': 0},
        at_512=AT_512,
        classifier_free={'steps': 400_000},
        tiny=SMALL,
    )


def _guided():
    """What is peculiar to ADM, guided by a classifier or not."""
    config = default('diffusion.gaussian', network='adm')
    config.diffusion.timesteps = 1000
    config.diffusion.betas = 'cosine'
    config.diffusion.learned_variance = True
    config.diffusion.loss = 'hybrid'
    config.sampler.variance = 'learned_range'
    config.sampler.spacing = 'linspace'
    config.sample.knobs.steps = 250
    return config


def _classifier_free():
    """What is peculiar to guidance by the model itself."""
    config = default('diffusion.continuous', network='adm')
    config.diffusion.process = 'vp_angle'
    config.diffusion.range = (4.539993e-5, 22026.4658)  # exp(-10) and exp(10): lambda is 20 and -20
    config.diffusion.prediction = 'eps'
    config.diffusion.times = 'uniform'
    config.diffusion.label_dropout = 0.1
    # The paper leaves it out: "used but not emphasized" (Saharia et al. 2022, section 2.3). Without
    # it the first steps magnify any error of eps, as alpha is 5e-5 there.
    config.sampler.clip = True
    config.sampler.variance = 'between'
    config.sampler.share = 0.3
    config.sampler.spacing = 'linear'
    config.sample.knobs.steps = 256
    config.sample.knobs.guidance = 1.1
    return config
