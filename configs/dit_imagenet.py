r"""DiT-XL/2 on ImageNet at 256x256 by class, in latents (Peebles and Xie 2023).

    python main.py --config=configs/dit_imagenet.py --workdir=runs/dit_imagenet \
        --config.latent.workdir=/data/sd-vae-ft-ema

Its latents are of Stable Diffusion's autoencoder: of published weights in a folder of diffusers, as
above (stabilityai/sd-vae-ft-ema, by whose decoder the paper's numbers are), or without the flag of
runs/first_stage_256, a run of configs/first_stage_256.py.
Cost: 7,000,000 steps of 256 images; 5.7 steps a second on a TPU v3-256 in the paper, which makes 14
days.
Plan: on 32 chips of v5e, 240 hours at best (7,800 chip-hours); 14.50 GiB a chip (docs/plan.md).
Network: 675,129,632 parameters, the authors' table of 294,912 fixed positions among them, which are
computed here.
Hyperparameters are those of the paper's section 4 and of train.py and diffusion/ of the authors
(github.com/facebookresearch/DiT). FID of 50,000 samples by ancestral sampling of 250 of the 1000
steps, and of guided ones (tables 2 and 3):

    variant  steps      FID    guided
    (none)   7,000,000   9.62  2.27, Inception score 278.24
    at_512   3,000,000  12.03  3.04, Inception score 240.82

These are guided by 1.5 in three of a latent's four channels. At 256x256 all four by 1.375 have FID
2.20 (appendix A), and that is --config.sample.knobs.guidance=1.375 here.

Data: as configs/adm_imagenet.py says; half of the images are mirrored.
Differences: latents are taken at their means, where the authors draw them. They halve images by
means before their bicubic filter.
Ours: not trained here. The network agrees with the authors' (tests/parity/test_dit_network.py), the
autoencoder with diffusers' (tests/parity/test_first_stages.py); losses, bound and respacing, which
the authors have from there, with improved-diffusion's (tests/parity/test_improved_diffusion.py).
--config.init_from takes the authors' weights, or a folder of diffusers (docs/diffusion.md).

Variants:
  at_512: at 512x512; a first stage that is no folder of diffusers has to be trained at that size.
  tiny: of the embedded digits themselves, no latents; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or its variant `at_512` or `tiny`."""
    config = default('diffusion.gaussian', network='dit')
    config.steps = 7_000_000
    config.batch_size = 256
    config.sample_every = 10_000
    config.checkpoint_every = 10_000

    config.data.source = 'tfds:imagenet2012'
    config.data.eval_split = 'validation'
    config.data.image_size = 256
    config.data.channels = 3
    config.data.num_classes = 1000
    config.data.flip = True
    config.data.threads = 16

    config.latent.workdir = 'runs/first_stage_256'
    config.latent.factor = 0.18215

    config.model.size = 'XL'
    config.model.patch = 2

    config.diffusion.timesteps = 1000
    config.diffusion.beta_min = 1e-4
    config.diffusion.beta_max = 0.02
    config.diffusion.learned_variance = True
    config.diffusion.loss = 'hybrid'
    config.diffusion.label_dropout = 0.1

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 0
    config.optimizer.clip = 0.0
    config.ema_decay = 0.9999

    config.sampler.name = 'ancestral'
    config.sampler.variance = 'learned_range'
    config.sampler.spacing = 'linspace'
    config.sampler.clip = False
    config.sample.knobs.steps = 250

    config.eval.metrics = ('fid', 'sfid', 'is', 'prdc')

    tiny = TINY | {
        'data.source': 'digits',
        'data.channels': 1,
        'data.eval_split': 'test',
        'data.image_size': 8,
        'data.num_classes': 10,
        'latent.workdir': '',
        'model.size': 'XS',
        'model.width': 16,
        'model.depth': 1,
        'model.heads': 2,
        'diffusion.timesteps': 20,
        'sample.knobs.steps': 5,
        'eval.metrics': ('per_example',),
    }
    return vary(config, variant, at_512={'steps': 3_000_000, 'data.image_size': 512}, tiny=tiny)
