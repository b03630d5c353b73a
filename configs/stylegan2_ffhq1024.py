"""StyleGAN2, config F, on faces of FFHQ at 1024x1024 (Karras et al. 2020), the authors' recipe.

    python main.py --config=configs/stylegan2_ffhq1024.py --workdir=runs/stylegan2_ffhq1024 \
        --config.data.source=folder:/data/ffhq1024

Recipe of github.com/NVlabs/stylegan3 (train.py: --cfg=stylegan2 --batch=32 --gamma=10 --mirror=1
--aug=noaug): path length regularisation every 4th step, R1 every 16th, style mixing 0.9.
Cost: 781,250 steps of 32 images, 25 million in all; 17.55 seconds for a thousand on 8 V100, the
authors say.
Plan: on 8 chips of v5e, 230 hours at best (1,900 chip-hours); 16.51 GiB a chip (docs/plan.md).
Networks: 30,370,060 and 29,012,513 parameters.
Paper: FID 2.84.
Ours: not trained here. Networks and penalties agree with the authors'
(tests/parity/test_stylegan2.py). What differs: the authors compute the four largest sizes in
float16 and hold what all convolutions give within 256, their generator moves before the
discriminator, and regularisation comes after a player's step, here before it.

Variants:
  tiny: drawn shapes and nets of a few thousand parameters; each mode takes seconds.
"""

from configs import stylegan2_cifar10
from gen_jax.config import default, vary


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('gans.adversarial', network='stylegan2')
    config.steps = 781_250
    config.batch_size = 32
    config.sample_every = 5_000
    config.checkpoint_every = 5_000

    config.data.source = 'folder:PATH'
    config.data.eval_split = 'train'
    config.data.image_size = 1024
    config.data.channels = 3
    config.data.flip = True
    config.data.threads = 16

    config.model.latent_dim = 512
    config.model.w_dim = 512
    config.model.channel_base = 32768
    config.model.channel_max = 512
    config.model.mapping_layers = 8

    config.gan.penalty = 'r1'
    config.gan.penalty_weight = 10.0
    config.gan.penalty_every = 16
    config.gan.style_mixing = 0.9
    config.gan.path_length = 2.0
    config.gan.path_length_every = 4
    config.optimizer.learning_rate = 2e-3
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.99
    config.ema_decay = 0.99778439  # a half-life of 10,000 images
    config.ema_rampup = 0.05
    config.eval.metrics = ('fid', 'kid', 'prdc')

    tiny = stylegan2_cifar10.TINY_NETS | {'data.eval_split': 'test', 'data.threads': 2}
    return vary(config, variant, tiny=tiny)
