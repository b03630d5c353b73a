"""ADM's classifiers of noised ImageNet (Dhariwal and Nichol 2021), which guide adm_imagenet.py.

    python main.py --config=configs/adm_classifier_imagenet.py
    python main.py --config=configs/adm_classifier_imagenet.py:at_256

Networks as the flags in the authors' README have them, given there for 128x128
(github.com/openai/guided-diffusion) with batches of 256, a rate of 3e-4, a decay of weights of 0.05
and 300,000 steps. Batches, steps, weight decay and learning rates here are said to be those of the
paper's appendix; the learning rate, weight decay and steps at 256x256 agree with others' training
scripts, the rest we could not look up:

    variant  parameters   steps    batch
    (none)   65,438,568   300,000   1024
    at_256   54,096,360   500,000    256

Plan: docs/plan.md.
Number: the paper gives no accuracy of theirs; `--mode=evaluate` finds the `accuracy` and the
`cross_entropy` (nats) of the validation images, noised to times drawn evenly. Chance: 0.1%, 6.9.

Data: as configs/adm_imagenet.py says; half are mirrored, and of each at least 0.8 of the shorter
side is shown, cropped at random.
Ours: not trained here. The network agrees with the authors' (tests/parity/test_adm_unet.py), and
gen_jax/interop/adm.py reads their weights.

Variants: at_256, and
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

    return vary(
        config,
        variant,
        at_256={
            'steps': 500_000,
            'batch_size': 256,
            'data.image_size': 256,
            'model.multipliers': (1, 1, 2, 2, 4, 4),
            'model.blocks': 2,
            'diffusion.betas': 'linear',
            'optimizer.learning_rate': 3e-4,
            'optimizer.decay_steps': 500_000,
            'optimizer.weight_decay': 0.05,
        },
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
