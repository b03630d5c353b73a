"""beta-VAE and its kin on sprites with known factors, 64x64 binary (Locatello et al. 2019).

    python main.py --config=configs/vae_sprites.py

Networks, optimiser and batch are the paper's, as its disentanglement_lib has them: 690,517
parameters, 10 latents, a Bernoulli for each pixel. The paper trains on all of dSprites, and
so does this on all of our sprites, which have its factors. Encoders see pixels in [-1, 1], there
in [0, 1].
Cost: 300,000 steps of 64 images; not timed.
Plan: on 8 chips of v5e, 0.02 hours at best (0.16 chip-hours); 0.04 GiB a chip (docs/plan.md).
Number: none of the paper's is quoted, as its images are not these. Ours: not trained yet;
experiments/disentanglement.py has smaller ones.

Variants:
  beta_tc: beta-TCVAE, beta 6.
  factor: FactorVAE, with Kim and Mnih's gamma of 35 (Locatello et al. try 10 to 50 in tens, and
    100); 64 images for the model and as many others, as Kim and Mnih have it, whose codes are
    shuffled for its judge. In disentanglement_lib these are the same 64.
  capacity: gamma 1000, C to 25 nats in 100,000 steps (Burgess et al. 2018). A batch's mean KL
    divergence is held at C, as in disentanglement_lib; pythae holds that of each image there.
  tiny: 384 images of 16x16; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    objective = variant if variant in ('beta_tc', 'factor', 'capacity') else 'elbo'
    config = default('autoencoders.vae', network='strided', objective=objective)
    config.steps = 300_000
    config.batch_size = 64
    config.log_every = 1_000
    config.sample_every = 10_000
    config.checkpoint_every = 10_000
    config.data.source = 'sprites'
    config.data.split = 'all'
    config.data.image_size = 64
    config.optimizer.learning_rate = 1e-4
    config.ema_decay = 0.0
    config.eval.metrics = ('per_example', 'reconstruction')
    if objective == 'elbo':
        config.vae.beta = 4.0
    tiny = TINY | {
        'data.source': 'sprites:3x2x4x4x4',
        'data.image_size': 16,
        'model.widths': (4, 4),
        'model.kernels': (4, 2),
        'model.hidden': (8,),
        'model.latent_dim': 3,
        'eval.metrics': ('per_example',),
    }
    return vary(
        config,
        variant,
        beta_tc={'vae.beta': 6.0, 'vae.data_size': 737_280},
        factor={'vae.gamma': 35.0, 'batch_size': 128},
        capacity={'vae.gamma': 1000.0, 'vae.capacity': 25.0, 'vae.capacity_steps': 100_000},
        tiny=tiny,
    )
