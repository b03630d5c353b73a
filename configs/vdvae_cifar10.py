"""VDVAE on CIFAR-10 (Child 2021, "Very Deep VAEs Generalize Autoregressive Models").

    python main.py --config=configs/vdvae_cifar10.py --workdir=runs/vdvae_cifar10

Cost: 1,050,000 steps of 32 images, a little less than a week on 2 V100 in the paper.
Plan: on 8 chips of v5e, 14 hours at best (110 chip-hours); 4.41 GiB a chip (docs/plan.md).
Network: 39,145,700 parameters; 43 layers of latents.
Paper: at most 2.87 bits per dimension, the mean of four runs (2.842 to 2.898) that were stopped
between 650,000 and 1,050,000 steps, by 5,000 images of the training split that they do not learn
from: --mode=evaluate gives 'elbo_bits_per_dim'. Those are drawn at random, here the last ones.
Ours: not trained here. Networks, loss and optimiser agree with the authors' code
(tests/parity/test_vdvae.py); --config.init_from takes their published weights.

Variants:
  imagenet32: 119,280,868 parameters, 1,700,000 steps of 256, 2.5 weeks on 32 V100; paper: at most
    3.80.
  imagenet64: 125,005,860 parameters, 1,600,000 steps of 128, 2.5 weeks on 32 V100; paper: at most
    3.52.
  ffhq256: 114,874,852 parameters, 1,700,000 steps of 32, 2.5 weeks on 32 V100; the paper's 0.61
    bits per dimension are of images of 5 bits, ours have 8. Images by --config.data.source; the
    authors hold out 7,000 of them and judge by these, here all are learned and judged.
  tiny: on the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('autoencoders.vdvae')
    config.steps = 1_050_000
    config.batch_size = 32
    config.log_every = 1_000
    config.sample_every = 10_000
    config.checkpoint_every = 10_000
    config.data.source = 'tfds:cifar10'
    config.data.split = 'train[:-5000]'
    config.data.image_size = 32
    config.data.channels = 3
    config.model.encoder = '32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3'
    config.model.decoder = '1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21'
    config.model.width = 384
    config.model.mean = 120.63838
    config.model.deviation = 64.16736
    config.optimizer.learning_rate = 2e-4
    config.optimizer.clip = 200.0
    config.optimizer.skip_above = 400.0
    config.ema_decay = 0.9999
    imagenet32 = {
        'steps': 1_700_000,
        'batch_size': 256,
        'data.source': 'tfds:downsampled_imagenet/32x32',
        'data.eval_split': 'validation',
        'model.encoder': '32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6',
        'model.decoder': '1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40',
        'model.width': 512,
        'model.mean': 116.2373,
        'model.deviation': 69.37404,
        'optimizer.learning_rate': 1.5e-4,
        'optimizer.skip_above': 300.0,
        'ema_decay': 0.999,
    }
    imagenet64 = imagenet32 | {
        'steps': 1_600_000,
        'batch_size': 128,
        'data.source': 'tfds:downsampled_imagenet/64x64',
        'data.image_size': 64,
        'model.encoder': '64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5',
        'model.decoder': '1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12',
        'model.mean': 115.92961967,
        'optimizer.clip': 220.0,
        'optimizer.skip_above': 380.0,
    }
    ffhq256 = imagenet64 | {
        'steps': 1_700_000,
        'batch_size': 32,
        'data.source': 'folder:PATH',
        'data.split': 'train',  # of a folder the only one
        'data.eval_split': 'train',
        'data.image_size': 256,
        'model.encoder': '256x3,256d2,128x8,128d2,64x12,64d2,32x17,32d2,'
        '16x7,16d2,8x5,8d2,4x5,4d4,1x4',
        'model.decoder': '1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x21,'
        '64m32,64x13,128m64,128x7,256m128',
        'model.mean': 112.8666757481,
        'model.deviation': 69.84780273,
        'optimizer.clip': 130.0,
        'optimizer.skip_above': 180.0,
    }
    tiny = TINY | {
        'data.source': 'digits',
        'data.split': 'train',
        'data.image_size': 8,
        'data.channels': 1,
        'model.encoder': '8d2,4d4,1',
        'model.decoder': '1,4m1,8m4',
        'model.width': 8,
        'model.latents': 2,
        'model.mean': 127.5,
        'model.deviation': 127.5,
        'optimizer.warmup': 0,
    }
    return vary(
        config,
        variant,
        imagenet32=imagenet32,
        imagenet64=imagenet64,
        ffhq256=ffhq256,
        tiny=tiny,
    )
