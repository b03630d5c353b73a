"""ADM's classifiers of noised ImageNet (Dhariwal and Nichol 2021), which guide adm_imagenet.py.

    python main.py --config=configs/adm_classifier_imagenet.py
    python main.py --config=configs/adm_classifier_imagenet.py:at_256

Networks as the flags in the authors' README have them, given there for 128x128
(github.com/openai/guided-diffusion); batches, steps, weight decay and learning rates as in the
paper's table 12. The one at 128x128 that guides what is then enlarged to 512x512 is another:

    variant  parameters   steps    batch
    (none)   65,438,568   300,000   1024
    at_128   42,568,040   300,000    256
    at_256   54,096,360   500,000    256
    at_512   54,448,360   500,000    256

Plan: on 8 chips of v5e, 30 hours at best (240 chip-hours); 13.25 GiB a chip (docs/plan.md).
Number: the paper gives no accuracy of theirs; `--mode=evaluate` finds the `accuracy` and the
`cross_entropy` (nats) of the validation images, noised to times drawn evenly. Chance: 0.1%, 6.9.

Data: as configs/adm_imagenet.py says; half are mirrored, and of each at least 0.8 of the shorter
side is shown, cropped at random.
Ours: not trained here. The network agrees with the authors' (tests/parity/test_adm_unet.py), and
--config.init_from takes their weights (docs/diffusion.md).

Variants: those of the table, and
  tiny: a net of a few thousand parameters for the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = default('diffusion.noised_classifier')
    config.steps = 300_000
    config.batch_size = 1024
    config.sample_every = 0
    config.checkpoint_every = 10_000

    config.data.source = 'tfds:imagenet2012'
    config.data.eval_split = 'validation'
    config.data.image_size = 64
    config.data.channels = 3
    config.data.num_classes = 1000
    config.data.flip = True
    config.data.crop = 0.8
    config.data.threads = 16

    config.model.channels = 128
    config.model.multipliers = (1, 2, 3, 4)
    config.model.blocks = 4
    config.model.attention = (32, 16, 8)
    config.model.groups = 32
    config.model.head_channels = 64

    config.diffusion.timesteps = 1000
    config.diffusion.betas = 'cosine'

    config.optimizer.learning_rate = 6e-4
    config.optimizer.decay = 'linear'
    config.optimizer.decay_steps = 300_000
    config.optimizer.weight_decay = 0.2

    larger = {  # of all but 64x64
        'batch_size': 256,
        'model.blocks': 2,
        'diffusion.betas': 'linear',
        'optimizer.learning_rate': 3e-4,
        'optimizer.weight_decay': 0.05,
    }
    longer = larger | {'steps': 500_000, 'optimizer.decay_steps': 500_000}
    return vary(
        config,
        variant,
        at_128=larger | {'data.image_size': 128, 'model.multipliers': (1, 1, 2, 3, 4)},
        at_256=longer | {'data.image_size': 256, 'model.multipliers': (1, 1, 2, 2, 4, 4)},
        at_512=longer | {'data.image_size': 512, 'model.multipliers': (0.5, 1, 1, 2, 2, 4, 4)},
        tiny=TINY
        | {
            'sample_every': 0,
            'data.source': 'digits',
            'data.channels': 1,
            'data.eval_split': 'test',
            'data.image_size': 8,
            'data.num_classes': 10,
            'data.crop': 1.0,
            'model.channels': 8,
            'model.multipliers': (1, 2),
            'model.blocks': 1,
            'model.attention': (4,),
            'model.groups': 4,
            'model.head_channels': 8,
            'diffusion.timesteps': 20,
            'optimizer.decay_steps': 4,
        },
    )
