"""Score-based models through SDEs on CIFAR-10, unconditional (Song et al. 2021).

    python main.py --config=configs/score_sde_cifar10.py --workdir=runs/score_sde_cifar10
    python main.py --config=configs/score_sde_cifar10.py:ve_deep --workdir=runs/ncsnpp_deep

The hyperparameters are those of the authors' configs/{vp,subvp,ve}/cifar10_*_continuous.py, for
`discrete` and `ve_discrete` vp/cifar10_ddpmpp.py and ve/cifar10_ncsnpp.py
(github.com/yang-song/score_sde). FID and Inception score of 50,000 samples by the sampler of each
variant, for the best of the checkpoints every 50,000 steps; bits per dimension of the test set,
uniformly dequantized and repeated 5 times, for the last one (the paper's tables 2 and 3):

    variant       network         parameters   steps      FID   IS    bits   calls
    discrete      DDPM++          61,804,419   1,300,000  2.78  9.64  -      1000
    (none)        DDPM++ cont.    61,804,419   1,300,000  2.55  9.58  3.16   1000
    deep          the same, deep  106,632,579    950,000  2.41  9.68  3.13   1000
    sub_vp        DDPM++ cont.    61,804,419   1,300,000  2.61  9.56  3.02   1000
    sub_vp_deep   the same, deep  106,632,579    950,000  2.41  9.57  2.99   1000
    ve_discrete   NCSN++          62,693,251   1,300,000  2.45  9.73  -      2000
    ve            NCSN++ cont.    62,758,915   1,300,000  2.38  9.83  -      2000
    ve_deep       the same, deep  107,587,075    950,000  2.20  9.89  -      2000

The counts of NCSN++ cont. have its 128 random frequencies in them, which are not trained.
Cost: batches are of 128 images; on four V100 a step of NCSN++ takes 0.20 s in the authors' README,
which makes 72 hours.
Plan: on 8 chips of v5e, 6.4 hours at best (51 chip-hours); 1.85 GiB a chip (docs/plan.md).

Differences: --mode=evaluate goes through the test set once. Where time is continuous, VP and sub-VP
take Euler-Maruyama steps there, through the times that our ancestral steps visit. VE is written for
images in [-1, 1], with twice their sigmas. The levels of `ve_discrete` are counted, and told to the
network, from the least noise up, theirs from the most down. Their VE loss is half the sum over
values, 1536 times our mean: clip and Adam's epsilon are divided by it, and so each step is theirs.
Langevin steps of VE take norms of each image, theirs means over the batch.
Ours: not trained here. The networks agree with the authors' (tests/parity/test_song_unet.py), and
so do the losses (tests/parity/test_continuous_losses.py) and the likelihood
(tests/parity/test_likelihood_score_sde.py). --config.init_from takes the checkpoints of their
PyTorch (docs/diffusion.md), but of `ve_discrete`.

Variants: those of the table, and
  tiny: a net of a few thousand parameters for the embedded digits; each mode takes seconds.
"""

from gen_jax.config import TINY, default, vary

DEEP = {'model.blocks': 8, 'steps': 950_000}
SUB_VP = {'diffusion.process': 'sub_vp'}
VE = {
    'model.embedding': 'fourier',
    'model.encoder': 'residual',
    'model.fir': True,
    'diffusion.process': 've',
    'diffusion.range': (0.02, 100.0),
    'diffusion.prediction': 'score',
    'diffusion.told': 'log_sigma',
    'optimizer.clip': 6.510417e-4,  # 1 / 1536
    'optimizer.eps': 6.510417e-12,  # 1e-8 / 1536
    'ema_decay': 0.999,
    'sampler.name': 'predictor_corrector',
    'sample.knobs.snr': 0.16,
    'likelihood.divergence': '',
}
VE_DISCRETE = VE | {
    'model.embedding': 'positional',
    'diffusion.process': 'ladder',
    'diffusion.levels': 1000,
    'diffusion.told': 'level',
    'diffusion.times': 'levels',
}
SMALL = TINY | {
    'data.source': 'digits',
    'data.channels': 1,
    'data.image_size': 8,
    'model.channels': 8,
    'model.multipliers': (1, 2),
    'model.blocks': 1,
    'model.attention': (4,),
    'optimizer.warmup': 0,
    'sample.knobs.steps': 5,
    'likelihood.tolerance': 1e-2,
    'eval.metrics': ('per_example',),
}


def get_config(variant: str = ''):
    """The config, or one of its variants."""
    config = _discrete() if variant == 'discrete' else _continuous()
    config.steps = 1_300_000
    config.batch_size = 128
    config.sample_every = 10_000
    config.checkpoint_every = 10_000

    config.data.source = 'tfds:cifar10'
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = True

    config.model.channels = 128
    config.model.multipliers = (1, 2, 2, 2)
    config.model.blocks = 4
    config.model.attention = (16,)
    config.model.dropout = 0.1

    config.diffusion.prediction = 'eps'
    config.diffusion.told = 'time'
    config.diffusion.times = 'uniform'

    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup = 5000
    config.optimizer.clip = 1.0
    config.ema_decay = 0.9999

    config.sampler.name = 'ancestral'
    config.sampler.variance = 'fixed_large'
    config.sampler.spacing = 'linear'
    config.sample.knobs.steps = 1000

    return vary(
        config,
        variant,
        discrete={},
        deep=DEEP,
        sub_vp=SUB_VP,
        sub_vp_deep=SUB_VP | DEEP,
        ve=VE,
        ve_deep=VE | DEEP,
        ve_discrete=VE_DISCRETE,
        tiny=SMALL,
    )


def _continuous():
    """What is peculiar to SDEs."""
    config = default('diffusion.continuous', network='song')
    config.diffusion.process = 'vp_linear'
    config.diffusion.range = (0.1, 20.0)
    config.diffusion.t_min = 1e-5
    config.likelihood.divergence = 'rademacher'
    config.eval.metrics = ('fid', 'is', 'per_example')
    return config


def _discrete():
    """What is peculiar to DDPM++ in DDPM's 1000 steps."""
    config = default('diffusion.gaussian', network='song')
    config.diffusion.timesteps = 1000
    config.diffusion.beta_min = 1e-4
    config.diffusion.beta_max = 0.02
    config.sampler.clip = False
    config.eval.metrics = ('fid', 'is')
    return config
