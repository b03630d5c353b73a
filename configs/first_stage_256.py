"""First stages of latent diffusion on images of 256x256 (Rombach et al. 2022), the authors' recipe.

    python main.py --config=configs/first_stage_256.py --workdir=runs/first_stage_256 \
        --config.data.source=folder:/data/openimages

Without a variant Gaussian latents at an eighth of the size, Stable Diffusion's. Recipe of
github.com/CompVis/latent-diffusion: LPIPS, a patch discriminator, Adam with beta_1 0.5 and beta_2
0.9 at 4.5e-6 times the images of a step. Gaussian stages as configs/autoencoder trains them on one
device: twice 12 images a step, the discriminator from step 50,001 on. Codes as
models/first_stage_models has them: 8 images a step, vq_f8 10, the discriminator from the start,
with weight 0.75 and 0.6.
Cost: 246,803 steps; kl_f4 176,991, vq_f4 533,066, vq_f8 971,043. These are the released models',
each of whose devices saw 4, 10, 8 and 10 images a step; how many devices there were is not told.
Plan: on 4 chips of v5e, 48 hours at best (190 chip-hours); 13.97 GiB a chip (docs/plan.md).
Networks: 83,653,863 parameters, vq_f4 55,322,782, and a discriminator of 2,765,633, vq_f8's of
663,361.
Paper: FID of what comes back, on ImageNet's validation split, 0.90 (PSNR 24.19); kl_f4 0.27, vq_f4
0.58, vq_f8 1.14.
Ours: not trained here. Networks agree with diffusers' (tests/parity/test_first_stages.py). What
differs: the authors' code for codes weighs the codebook's part by beta where the paper weighs the
encoder's, as we do; attention stands in the middle only, as diffusers has these networks; steps of
the discriminator come after the other's, on what comes back then; images are made smaller and cut
in the middle, where the authors cut at random.

Variants:
  kl_f4: a quarter of the size, 3 numbers at each place.
  vq_f4: 8,192 codes of 3 numbers, a quarter of the size.
  vq_f8: 16,384 codes of 4 numbers, an eighth.
  tiny, vq_tiny: drawn shapes, nets of a few thousand parameters, no LPIPS; seconds a mode.
"""

from gen_jax.config import TINY, default, vary

RATE = 4.5e-6  # of learning, for each image of a step


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    kind = 'vq' if variant.startswith('vq') else 'kl'
    config = default('autoencoders.first_stage', kind=kind)
    config.steps = 246_803
    config.batch_size = 24
    config.accumulate = 2
    config.sample_every = 5_000
    config.checkpoint_every = 5_000

    config.data.source = 'folder:PATH'
    config.data.eval_split = 'train'
    config.data.image_size = 256
    config.data.channels = 3
    config.data.threads = 16

    config.first_stage.perceptual = 'vgg'
    config.optimizer.learning_rate = 24 * RATE
    config.eval.metrics = ('per_example', 'reconstruction')

    tiny = TINY | {
        'data.source': 'shapes',
        'data.eval_split': 'test',
        'data.image_size': 16,
        'data.threads': 2,
        'model.channels': 4,
        'model.multipliers': (1, 2),
        'model.blocks': 1,
        'model.groups': 2,
        'judge.width': 4,
        'judge.layers': 1,
        'first_stage.perceptual': '',
        'accumulate': 1,
        'first_stage.judged_from': 2,
        'eval.metrics': ('per_example', 'reconstruction'),
    }
    return vary(
        config,
        variant,
        kl_f4={'steps': 176_991, 'model.multipliers': (1, 2, 4), 'model.latent_channels': 3},
        vq_f4={
            'steps': 533_066,
            'batch_size': 8,
            'accumulate': 1,
            'optimizer.learning_rate': 8 * RATE,
            'first_stage.judged_from': 0,
            'first_stage.judge_weight': 0.75,
        },
        vq_f8={
            'steps': 971_043,
            'batch_size': 10,
            'accumulate': 1,
            'optimizer.learning_rate': 10 * RATE,
            'judge.layers': 2,
            'first_stage.judged_from': 1,
            'first_stage.judge_weight': 0.6,
            'model.multipliers': (1, 2, 2, 4),
            'model.latent_channels': 4,
            'first_stage.codes': 16_384,
        },
        tiny=tiny,
        vq_tiny=tiny | {'first_stage.codes': 16},
    )
