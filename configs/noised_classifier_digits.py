"""A classifier of noised digits, which guides configs/ddpm_digits.py.

    python main.py --config=configs/noised_classifier_digits.py

Then --mode=sample, evaluate and edit of configs/ddpm_digits.py are guided by it with
--config.guide.workdir=runs/noised_classifier_digits and, say, --config.sample.knobs.guide=3; also
where that was trained without classes (--config.data.num_classes=0
--config.diffusion.label_dropout=0 --config.sample.knobs.guidance=1, for all modes).

Cost: 2,000 steps of 64 images; 2 minutes on 2 CPU cores that had other work too. Network: 378,186
parameters.
Number: of the 296 test images, noised to times drawn evenly, 40.9% right, 1.57 nats of
cross-entropy; at t = 0, 100, 200, 300 and 500 of 1000 it is 99.7%, 98.0%, 91.6%, 68.6% and 26.4%
right. docs/diffusion.md has what its guidance does.

Variants:
  edm: of the noise of configs/ddpm_digits.py:edm, which it guides; not trained to the end yet.
  tiny, tiny_edm: a net of a few thousand parameters; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    edm = variant.endswith('edm')
    config = default('diffusion.noised_classifier', time='continuous' if edm else 'discrete')
    config.steps = 2000
    config.batch_size = 64
    config.sample_every = 0
    config.checkpoint_every = 1000
    config.data.source = 'digits'
    config.data.num_classes = 10
    config.model.channels = 32
    config.model.multipliers = (1, 2)
    config.model.blocks = 1
    config.model.attention = (4,)
    config.model.groups = 8
    config.model.head_channels = 32
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay_steps = 2000
    tiny = TINY | {
        'sample_every': 0,
        'model.channels': 8,
        'model.groups': 4,
        'model.head_channels': 8,
        'optimizer.decay_steps': 4,
    }
    few = {'diffusion.timesteps': 20, 'diffusion.beta_max': 0.5}
    return vary(config, variant, edm={}, tiny=tiny | few, tiny_edm=tiny)
