"""A small VDVAE (Child 2021) on Fashion-MNIST, 28x28 grey, in bits per dimension.

    python main.py --config=configs/vdvae_fashion_mnist.py --workdir=runs/vdvae_fashion_mnist

Network: 521,838 parameters; 10 layers of latents.
Cost: 6,000 steps of 32 images (3.2 passes over the data); 36 minutes on 2 CPU cores, two thirds of
them beside other work: alone about 16.
Number: the paper has none for this data set. Ours: see README. The bound is lower than EDM's bits;
the samples are the worst of the house: their pixels are drawn one by one, and training has noise to
take out of them still. After 2,500 steps of 16 images they were nothing else.

Variants:
  tiny: on the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('autoencoders.vdvae')
    config.steps = 6_000
    config.batch_size = 32
    config.log_every = 100
    config.sample_every = 2_000
    config.checkpoint_every = 1_000
    config.data.source = 'tfds:fashion_mnist'
    config.data.image_size = 28
    config.model.encoder = '28d2,14x2,14d2,7x2,7d7,1x1'
    config.model.decoder = '1x1,7m1,7x3,14m7,14x3,28m14'
    config.model.width = 32
    config.model.widths = '7:64,1:64'
    config.model.bottleneck = 0.5
    config.model.latents = 8
    config.model.mean = 72.94
    config.model.deviation = 90.02
    config.optimizer.learning_rate = 1e-3
    config.ema_decay = 0.999  # the paper's is of runs four hundred times as long
    config.eval.network = 'fashion_mnist'
    config.eval.metrics = ('per_example', 'reconstruction', 'rfid', 'fid', 'prdc')
    config.eval.n = 10_000
    tiny = TINY | {
        'data.source': 'digits',
        'data.image_size': 8,
        'model.encoder': '8d2,4d4,1',
        'model.decoder': '1,4m1,8m4',
        'model.width': 8,
        'model.widths': '',
        'model.latents': 2,
        'model.mean': 127.5,
        'model.deviation': 127.5,
        'eval.network': 'digits',
        'eval.metrics': ('per_example',),
    }
    return vary(config, variant, tiny=tiny)
