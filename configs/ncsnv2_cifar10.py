"""NCSNv2 on CIFAR-10, unconditional (Song and Ermon 2020).

    python main.py --config=configs/ncsnv2_cifar10.py --workdir=runs/ncsnv2_cifar10

The hyperparameters are those of the authors' configs/cifar10.yml (github.com/ermongroup/ncsnv2).
Cost: 300,000 steps of 128 images. An image takes 1161 calls of the network.
Plan: on 8 chips of v5e, 0.8 hours at best (6.4 chip-hours); 1.10 GiB a chip (docs/plan.md).
Network: 29,694,083 parameters.
Paper: FID 10.87 and Inception score 8.40; without the denoising at the end FID 31.75. NCSN (Song
and Ermon 2019), which had 10 levels and not 232: FID 25.32 and Inception score 8.87.

Differences: images are in [-1, 1], theirs in [0, 1], and so all sigmas are twice theirs. Their loss
is half the sum over values, 1536 times our mean: Adam's epsilon is divided by it, and so each step
is theirs. Sampling starts from noise of the largest sigma, theirs from uniform noise in [0, 1].
Their `fast_fid` compares checkpoints by 1,000 samples each; here the last one is asked.
Ours: not trained here. Network and sampler agree with the authors'
(tests/parity/test_ncsnv2_network.py), and so do levels and loss
(tests/parity/test_ladder_ncsnv2.py). --config.init_from takes their checkpoints
(docs/diffusion.md).

Variants:
  tiny: a net of a few thousand parameters for the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary


def get_config(variant: str = ''):
    """The config, or its variant `tiny`."""
    config = default('diffusion.continuous', network='refinenet')
    config.steps = 300_000
    config.batch_size = 128
    config.sample_every = 10_000
    config.checkpoint_every = 10_000

    config.data.source = 'tfds:cifar10'
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = True

    config.model.channels = 128
    config.model.multipliers = (1, 2, 2, 2)

    config.diffusion.process = 'ladder'
    config.diffusion.levels = 232
    config.diffusion.range = (0.02, 100.0)
    config.diffusion.prediction = 'score'
    config.diffusion.told = 'level'
    config.diffusion.times = 'levels'

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 0
    config.optimizer.clip = 0.0
    config.optimizer.eps = 6.510417e-12  # 1e-8 / 1536
    config.ema_decay = 0.999

    config.sampler.name = 'annealed_langevin'
    config.sampler.spacing = 'linear'
    config.sampler.corrections = 5
    config.sample.knobs.steps = 232
    config.sample.knobs.snr = 0.176068  # of their epsilon, 6.2e-6

    config.eval.metrics = ('fid', 'is')

    tiny = TINY | {
        'data.source': 'digits',
        'data.channels': 1,
        'data.image_size': 8,
        'model.channels': 4,
        'diffusion.levels': 5,
        'sampler.corrections': 2,
        'sample.knobs.steps': 5,
        'eval.metrics': ('per_example',),
    }
    return vary(config, variant, tiny=tiny)
