"""VAE-GAN (Larsen et al. 2016) on Fashion-MNIST, 28x28 grey, for CPUs.

    python main.py --config=configs/vae_gan_fashion_mnist.py --workdir=runs/vae_gan_fashion_mnist

Networks are of the paper's kind with two halvings, from a quarter to half as wide; gamma and the
margin, of about the size that the authors' scripts have, were not tuned.
Cost: 2,500 steps of 64 images (2.7 passes over the data); 8 minutes on 2 CPU cores.
Number: the paper has none for this data set. Ours: see README; samples of the prior are far worse
than reconstructions, as the posteriors together are not like it (docs/autoencoders.md).

Variants:
  draws: L_GAN of draws from the prior alone, as in the authors' scripts.
  tiny: on the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('autoencoders.vae_gan')
    config.steps = 2_500
    config.batch_size = 64
    config.log_every = 100
    config.sample_every = 500
    config.checkpoint_every = 500
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 28
    config.model.latent_dim = 32
    config.model.encoder_widths = (16, 32)
    config.model.encoder_hidden = 256
    config.model.decoder_widths = (64, 32, 16)
    config.model.discriminator_widths = (16, 32, 64)
    config.model.discriminator_hidden = 128
    config.model.layer = 2
    config.vae_gan.gamma = 5e-5
    config.vae_gan.margin = 0.35
    config.eval.network = 'fashion_mnist'
    config.eval.metrics = (
        *('per_example', 'reconstruction', 'rfid', 'probe', 'active_units'),
        *('fid', 'kid', 'prdc', 'modes', 'diversity'),
    )
    config.eval.n = 10_000
    tiny = TINY | {
        'data.source': 'digits',
        'data.image_size': 8,
        'model.latent_dim': 4,
        'model.encoder_widths': (4,),
        'model.encoder_hidden': 8,
        'model.decoder_widths': (8, 4),
        'model.discriminator_widths': (4, 8),
        'model.discriminator_hidden': 8,
        'model.layer': 1,
        'eval.network': 'digits',
        'eval.metrics': ('per_example', 'fid', 'kid', 'prdc', 'modes'),
    }
    draws = {'vae_gan.judge_reconstructions': False}
    return vary(config, variant, draws=draws, tiny=tiny)
