"""GANs on Fashion-MNIST, padded to 32x32 grey: one stabiliser a variant, for CPUs.

    python main.py --config=configs/gan_fashion_mnist.py:r1 --workdir=runs/gan_fashion_mnist_r1

Without a variant the non-saturating game of Goodfellow et al. 2014 alone. All play between the
residual networks of SNGAN (Miyato et al. 2018), of 64 channels at most, but for the last four;
their discriminators have no batch norm, and learn four times as fast as generators but where a
variant says otherwise (two time scales: Heusel et al. 2017; Zhang et al. 2019). DCGAN is in
configs/dcgan_fashion_mnist.py.
Cost: 11 to 29 minutes on 2 CPU cores that have no other work.
Number: no paper has one for this data set and network. Ours: see README.

Variants:
  hinge: SNGAN's, the hinge loss and spectral normalisation.
  wgan_gp: Wasserstein distance with gradient penalty (Gulrajani et al. 2017), 5 steps of the critic
    for one of the generator, Adam with beta_1 0 and beta_2 0.9 at one rate.
  r1: zero-centred gradient penalty on real images (Mescheder et al. 2018).
  projection: hinge, the label told by conditional batch norm and by the projection discriminator
    (Miyato and Koyama 2018).
  biggan: BigGAN (Brock et al. 2019) with a hierarchical z, shared embeddings, attention at 16x16
    and 2 steps of the discriminator.
  stylegan2: StyleGAN2 (Karras et al. 2020), with labels and lazy R1, of the rates of
    configs/stylegan2_cifar10.
  mlp: dense networks as of Goodfellow et al. 2014, at 28x28. z is normal, the paper's is uniform;
    Adam at DCGAN's rate, the paper descends with momentum. Not trained by us.
  cgan: the dense networks of Mirza and Osindero 2014 (section 4.1), told labels; otherwise as mlp,
    and without the paper's dropout in the generator. Not trained by us.
  tiny: on the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary

NETWORK = {'biggan': 'biggan', 'stylegan2': 'stylegan2', 'mlp': 'mlp', 'cgan': 'mlp'}


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('gans.adversarial', network=NETWORK.get(variant, 'resnet'))
    config.steps = 5_000
    config.batch_size = 64
    config.log_every = 100
    config.sample_every = 1_000
    config.checkpoint_every = 1_000
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 32
    config.data.fit = 'pad'
    config.gan.n_critic = 1
    config.gan.d_rate_ratio = 4.0
    config.eval.network = 'fashion_mnist'
    config.eval.metrics = ('fid', 'kid', 'prdc', 'modes', 'diversity')
    config.eval.n = 10_000
    config.eval.every = 1_000
    config.eval.every_metrics = ('modes',)
    if variant in ('mlp', 'cgan'):
        config.steps = 60_000
        config.batch_size = 100
        config.data.image_size = 28
        config.gan.d_rate_ratio = 1.0
    elif variant != 'stylegan2':
        config.model.latent_dim = 64
        config.model.channels = 16
        config.model.g_multipliers = (4, 4, 2, 1)
        config.model.d_multipliers = (1, 2, 4, 4)
        config.model.d_halvings = 3
    if variant not in NETWORK:
        config.model.condition = 'none'
        config.model.d_spectral = False

    labelled = {
        'data.num_classes': 10,
        'eval.metrics': ('fid', 'kid', 'prdc', 'accuracy', 'modes', 'diversity'),
    }
    hinge = {'gan.objective': 'hinge', 'model.d_spectral': True}
    wgan_gp = {
        'steps': 2_000,
        'batch_size': 5 * 64,
        'gan.objective': 'wasserstein',
        'gan.penalty': 'wgan_gp',
        'gan.n_critic': 5,
        'gan.d_rate_ratio': 1.0,
        'optimizer.b1': 0.0,
        'optimizer.b2': 0.9,
    }
    r1 = {'gan.penalty': 'r1', 'gan.penalty_weight': 0.1}
    biggan = labelled | {
        'steps': 4_500,
        'batch_size': 2 * 64,
        'gan.objective': 'hinge',
        'gan.n_critic': 2,
        'model.shared_dim': 32,
        'optimizer.b1': 0.0,
        'optimizer.b2': 0.999,
        'optimizer.eps': 1e-6,
    }
    stylegan2 = labelled | {
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
    cgan = labelled | {
        'model.condition': 'concat',
        'model.label_widths': (1000, 50),
        'model.g_widths': (200, 1200),
        'model.pieces': (5, 4),
    }
    tiny = TINY | {
        'data.source': 'digits',
        'data.image_size': 16,
        'data.fit': 'resize',
        'model.channels': 4,
        'model.latent_dim': 8,
        'model.g_multipliers': (2, 2),
        'model.d_multipliers': (2, 2),
        'model.d_halvings': 1,
        'eval.every': 0,
        'eval.every_metrics': (),
        'eval.metrics': ('diversity',),
    }
    return vary(
        config,
        variant,
        hinge=hinge,
        wgan_gp=wgan_gp,
        r1=r1,
        projection=hinge | labelled | {'model.condition': 'projection'},
        biggan=biggan,
        stylegan2=stylegan2,
        mlp={},
        cgan=cgan,
        tiny=tiny,
    )
