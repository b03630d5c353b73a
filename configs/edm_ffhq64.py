r"""EDM on FFHQ at 64x64, unconditional (Karras et al. 2022, configuration F), augmented.

    python main.py --config=configs/edm_ffhq64.py --workdir=runs/edm_ffhq64 \
        --config.data.source=folder:/data/ffhq64

Cost: 781,250 steps of 256 images, 200 million in all; about 4 days on 8 V100 in the paper.
Plan: on 8 chips of v5e, 25 hours at best (200 chip-hours); 5.98 GiB a chip (docs/plan.md).
Hyperparameters as the authors' README lists them (github.com/NVlabs/edm); all else is that of
configs/edm_cifar10.py. FID of 50,000 samples in 79 calls of the network, the least of three (the
paper's table 2):

    variant   network  parameters  data          FID
    (none)    DDPM++   61,805,571  FFHQ          2.39
    ve        NCSN++   62,761,091  FFHQ          2.53
    afhq      DDPM++   61,805,571  AFHQv2        1.96
    afhq_ve   NCSN++   62,761,091  AFHQv2        2.16

Data: a folder with the 70,000 aligned faces of github.com/NVlabs/ffhq-dataset; for afhq one with
the images of AFHQv2, of all three kinds, train and test together as the authors have them: of
folders train and test side by side only the first would be trained on. Larger images are made
smaller as they are read; it saves time to do so once, such as with ImageMagick, by the filter of
the authors:

    mogrify -path /data/ffhq64 -filter Lanczos -resize 64x64 images1024x1024/*/*.png

Differences: those of configs/edm_cifar10.py; a sum over values is 12,288 times our mean here.
Ours: not trained here; parity tests as in configs/edm_cifar10.py.

Variants: those of the table, and
  tiny: drawn shapes and a net of a few thousand parameters; each mode takes seconds.
"""

from configs.edm_cifar10 import NCSNPP, SMALL
from configs.edm_cifar10 import get_config as cifar10
from gen_jax.config import vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = cifar10()
    config.steps = 781_250
    config.batch_size = 256

    config.data.source = 'folder:PATH'
    config.data.eval_split = 'train'
    config.data.image_size = 64

    config.model.multipliers = (1, 2, 2, 2)
    config.model.dropout = 0.05
    config.diffusion.augment = 0.15

    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup = 39_063  # 10 million images
    config.optimizer.eps = 8.138021e-13  # 1e-8 / 12_288
    config.ema_decay = 0.99964517  # 0.5 ** (256 / 500_000)

    config.sample.knobs.steps = 40

    afhq = {'model.dropout': 0.25}
    return vary(config, variant, ve=NCSNPP, afhq=afhq, afhq_ve=afhq | NCSNPP, tiny=SMALL)
