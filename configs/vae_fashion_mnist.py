"""A convolutional VAE (Kingma and Welling 2014) on Fashion-MNIST, 28x28 grey.

    python main.py --config=configs/vae_fashion_mnist.py --workdir=runs/vae_fashion_mnist

Cost: 5,000 steps of 128 images (11 passes over the data); 14 minutes on 2 CPU cores that other
work shared, 37 on a machine half as fast.
Number: negative ELBO per image, in nats of cross-entropy with grey levels; the paper has none for
this data set. Ours: see README.

Variants:
  conditional: both nets are told the class. Not trained yet.
  mlp: dense layers in place of convolutions, as in the paper, of Burda et al.'s sizes. Not trained
    yet.
  logistic: pixels are probabilities of 256 levels, by logistics, so that there are bits per
    dimension.
  tiny: on the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('autoencoders.vae', network='mlp' if variant == 'mlp' else 'conv')
    config.steps = 5000
    config.batch_size = 128
    config.log_every = 100
    config.sample_every = 1000
    config.checkpoint_every = 1000
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 28
    config.optimizer.decay_steps = 5000
    config.eval.network = 'fashion_mnist'
    config.eval.metrics = (
        *('per_example', 'reconstruction', 'rfid', 'probe', 'active_units'),
        *('fid', 'kid', 'prdc', 'modes'),
    )
    config.eval.n = 10_000
    judged = tuple(name for name in config.eval.metrics if name != 'probe')
    return vary(
        config,
        variant,
        conditional={'data.num_classes': 10, 'eval.metrics': (*judged, 'accuracy')},
        mlp={},
        logistic={'pixels.likelihood': 'logistic'},
        tiny=TINY
        | {
            'data.source': 'digits',
            'data.image_size': 8,
            'model.channels': 8,
            'model.hidden': 16,
            'model.latent_dim': 4,
            'optimizer.decay_steps': 4,
            'eval.network': 'digits',
            'eval.metrics': ('per_example', 'fid', 'kid', 'prdc', 'modes'),
        },
    )
