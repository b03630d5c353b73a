"""GANs on Fashion-MNIST, padded to 32x32 grey: one stabiliser a variant, for CPUs.

    python main.py --config=configs/gan_fashion_mnist.py:r1 --workdir=runs/gan_fashion_mnist_r1

Without a variant the non-saturating game of Goodfellow et al. 2014 alone, between the networks of
configs/dcgan_fashion_mnist.py. DCGAN is that with batch norm in the discriminator too; no variant
has it there, as gradient penalties are of single images (Gulrajani et al. 2017, section 4) and
spectral normalisation takes its place.
Cost: 11 to 29 minutes on 2 CPU cores that have no other work.
Number: no paper has one for this data set and network. Ours: see README.

Variants, of the same networks:
  wgan_gp: Wasserstein distance with gradient penalty (Gulrajani et al. 2017), 5 steps of the critic
    for one of the generator, Adam at 1e-4 with beta_1 0 and beta_2 0.9.
  r1: zero-centred gradient penalty on real images (Mescheder et al. 2018), every 4th step.
Variants of residual networks of 64 channels at most:
  hinge: SNGAN's (Miyato et al. 2018), the hinge loss and spectral normalisation. In DCGAN's plain
    discriminator that bounds slopes so much that it hardly tells images apart (docs/gans.md).
  projection: the same, the label told by conditional batch norm and by the projection
    discriminator (Miyato and Koyama 2018).
  biggan: BigGAN (Brock et al. 2019) with a hierarchical z, shared embeddings, attention at 16x16
    and 2 steps of the discriminator.
Variant of another network, with labels:
  stylegan2: StyleGAN2 (Karras et al. 2020) with lazy R1, of the rates of configs/stylegan2_cifar10.
  tiny: on the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary

NETWORK = {'hinge': 'resnet', 'projection': 'resnet', 'biggan': 'biggan', 'stylegan2': 'stylegan2'}


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('gans.adversarial', network=NETWORK.get(variant, 'dcgan'))
    config.steps = 7_500
    config.batch_size = 64
    config.log_every = 100
    config.sample_every = 1_000
    config.checkpoint_every = 1_000
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 32
    config.data.fit = 'pad'
    config.eval.network = 'fashion_mnist'
    config.eval.metrics = ('fid', 'kid', 'prdc', 'modes', 'diversity')
    config.eval.n = 10_000
    if variant not in NETWORK:
        config.model.width = 32
        config.model.d_batch_norm = False
        # Two time scales (Heusel et al. 2017): without batch norm it falls behind else.
        config.gan.d_rate_ratio = 4.0

    wgan_gp = {
        'steps': 4_000,
        'batch_size': 5 * 64,
        'gan.objective': 'wasserstein',
        'gan.penalty': 'wgan_gp',
        'gan.n_critic': 5,
        'gan.d_rate_ratio': 1.0,
        'optimizer.learning_rate': 1e-4,
        'optimizer.b1': 0.0,
        'optimizer.b2': 0.9,
    }
    r1 = {'gan.penalty': 'r1', 'gan.penalty_weight': 0.02, 'gan.penalty_every': 4}
    labelled = {
        'data.num_classes': 10,
        'eval.metrics': ('fid', 'kid', 'prdc', 'accuracy', 'modes', 'diversity'),
    }
    residual = {
        'steps': 5_000,
        'gan.objective': 'hinge',
        'gan.d_rate_ratio': 4.0,  # as Zhang et al. 2019
        'model.latent_dim': 64,
        'model.channels': 16,
        'model.g_multipliers': (4, 4, 2, 1),
        'model.d_multipliers': (1, 2, 4, 4),
        'model.d_halvings': 3,
    }
    projection = residual | labelled | {'model.condition': 'projection', 'gan.n_critic': 1}
    biggan = (
        residual
        | labelled
        | {
            'steps': 4_500,
            'batch_size': 2 * 64,
            'gan.n_critic': 2,
            'model.shared_dim': 32,
            'optimizer.b1': 0.0,
            'optimizer.b2': 0.999,
            'optimizer.eps': 1e-6,
        }
    )
    stylegan2 = labelled | {
        'steps': 5_000,
        'gan.penalty': 'r1',
        'gan.penalty_weight': 0.02,
        'gan.penalty_every': 16,
        'gan.style_mixing': 0.0,
        'gan.path_length': 0.0,
        'gan.d_rate_ratio': 1.25,
        'optimizer.learning_rate': 2e-3,
        'optimizer.b1': 0.0,
        'optimizer.b2': 0.99,
    }
    tiny = TINY | {
        'data.source': 'digits',
        'data.image_size': 16,
        'data.fit': 'resize',
        'model.width': 4,
        'model.latent_dim': 8,
        'eval.metrics': ('diversity',),
    }
    return vary(
        config,
        variant,
        hinge=residual | {'gan.n_critic': 1, 'model.condition': 'none'},
        wgan_gp=wgan_gp,
        r1=r1,
        projection=projection,
        biggan=biggan,
        stylegan2=stylegan2,
        tiny=tiny,
    )
