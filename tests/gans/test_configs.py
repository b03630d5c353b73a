"""The configs of GANs have their recipes' numbers.

Expectations are typed from the authors' files: StudioGAN's configs/CIFAR10/{DCGAN,LSGAN,SNGAN,
ProjGAN,SAGAN,WGAN-GP,WGAN-WC,BigGAN,StyleGAN2}.yaml with the defaults of config.py
(github.com/POSTECH-CVLab/PyTorch-StudioGAN at 947b35e), config.py of
github.com/tkarras/progressive_growing_of_gans, train.py of github.com/NVlabs/stylegan,
scripts/{launch_cifar_ema,
launch_BigGAN_bs256x8,launch_BigGAN_deep}.sh of github.com/ajbrock/BigGAN-PyTorch at 9845943.
"""

import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from gen_jax.config import create
from gen_jax.gans.growing import growth_of

ROOT = Path(__file__).parents[2]
# Parameters of both networks; images that the discriminator sees in a step and in all, millions.
ROWS = {
    ('sngan_cifar10', ''): (4_304_387, 1_055_105, 64, 32.0),
    ('sngan_cifar10', 'projection'): (4_304_387, 1_057_159, 64, 32.0),
    ('sngan_cifar10', 'acgan'): (4_304_387, 1_055_105, 64, 32.0),
    ('sngan_cifar10', 'sagan'): (4_386_308, 1_075_586, 64, 32.0),
    # StudioGAN's critic has 2,054 more, of batch norm.
    ('sngan_cifar10', 'wgan_gp'): (4_276_739, 1_053_825, 64, 32.0),
    ('sngan_cifar10', 'wgan'): (4_276_739, 1_055_879, 64, 32.0),
    ('dcgan_cifar10', ''): (3_812_355, 2_931_009, 64, 25.6),
    ('dcgan_cifar10', 'lsgan'): (3_812_355, 2_931_009, 64, 25.6),
    ('sngan_cifar10', 'unconditional'): (4_276_739, 1_053_825, 64, 32.0),
    ('biggan_cifar10', ''): (9_416_196, 2_415_170, 64, 32.0),
    ('biggan_cifar10', 'authors'): (4_304_387, 4_207_361, 50, 25.0),
    ('stylegan2_cifar10', ''): (20_215_315, 23_089_664, 64, 12.8),
    ('stylegan2_cifar10', 'unconditional'): (19_947_539, 20_720_641, 64, 12.8),
    ('stylegan2_ffhq1024', ''): (30_370_060, 29_012_513, 32, 25.0),
    ('stylegan_ffhq1024', ''): (26_219_627, 23_087_249, 32, 25.0),
    ('progan_celebahq1024', ''): (23_079_115, 23_087_249, 16, 19.0),
    ('biggan_imagenet', ''): (70_433_988, 87_982_370, 2048, 307.2),
    ('biggan_imagenet', 'deep'): (50_244_484, 34_590_210, 2048, 307.2),
    ('biggan_imagenet', 'at_256'): (82_235_844, 99_225_890, 2048, 307.2),
    ('biggan_imagenet', 'at_256_deep'): (55_736_708, 38_247_426, 2048, 307.2),
    # Without the outputs of its last convolution that it throws away, the published generator's.
    ('biggan_imagenet', 'at_512_deep'): (56_019_780, 38_301_122, 2048, 307.2),
    ('sngan_imagenet128', ''): (41_996_931, 39_443_137, 256, 256.0),
    ('sngan_imagenet128', 'sagan'): (42_017_412, 39_448_258, 256, 256.0),
}


def load(file, variant):
    spec = importlib.util.spec_from_file_location(file, ROOT / f'configs/{file}.py')
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module.get_config(variant)


@pytest.mark.slow
@pytest.mark.parametrize(('file', 'variant'), ROWS, ids=lambda name: name or 'main')
def test_networks_and_budget(file, variant):
    config = load(file, variant)
    size = config.data.image_size
    *parameters, batch, millions = ROWS[file, variant]
    images = {'image': jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.float32)}
    state = jax.eval_shape(create(config).init, jax.random.key(0), images)
    nets = state.generator, state.discriminator
    found = [sum(math.prod(x.shape) for x in jax.tree.leaves(net.params)) for net in nets]
    assert found == parameters
    assert config.batch_size == batch * config.gan.n_critic
    assert config.steps * config.batch_size == pytest.approx(millions * 1e6)


# What each player learns by: objective, rounds of the discriminator; rates of both, Adam's betas
# and epsilon; the generator's average, and from which step; what bounds the discriminator.
STUDIO = {'eps': 1e-6, 'b1': 0.5, 'b2': 0.999, 'rates': (2e-4, 2e-4), 'average': (0.0, 0)}
LARGE = STUDIO | {'b1': 0.0, 'rates': (5e-5, 2e-4), 'objective': 'hinge', 'n_critic': 2}
BIGGAN = LARGE | {'rates': (1e-4, 4e-4), 'n_critic': 1, 'average': (0.9999, 20_000)}
NVIDIA = {'b1': 0.0, 'b2': 0.99, 'eps': 1e-8, 'n_critic': 1}
PROGRESSIVE = NVIDIA | {'objective': 'wasserstein', 'rates': (1e-3, 1e-3), 'drift': 0.001}
PROGRESSIVE |= {'penalty': ('wgan_gp', 10.0, 1, 1.0), 'average': (0.999, 0)}
STYLE = NVIDIA | {'objective': 'non_saturating'}
RECIPES = {
    ('dcgan_cifar10', ''): STUDIO | {'objective': 'non_saturating', 'n_critic': 2},
    ('dcgan_cifar10', 'lsgan'): STUDIO | {'objective': 'least_squares', 'n_critic': 2},
    ('sngan_cifar10', ''): STUDIO | {'objective': 'hinge', 'n_critic': 5},
    ('sngan_cifar10', 'projection'): STUDIO | {'objective': 'hinge', 'n_critic': 5},
    ('sngan_cifar10', 'wgan_gp'): STUDIO
    | {'objective': 'wasserstein', 'n_critic': 5, 'penalty': ('wgan_gp', 10.0, 1, 1.0)},
    ('sngan_cifar10', 'wgan'): STUDIO | {'objective': 'wasserstein', 'n_critic': 5, 'clip': 0.01},
    ('sngan_imagenet128', ''): LARGE,
    ('biggan_cifar10', ''): STUDIO
    | {'objective': 'hinge', 'n_critic': 5, 'average': (0.9999, 1000)},
    ('biggan_cifar10', 'authors'): BIGGAN
    | {'rates': (2e-4, 2e-4), 'n_critic': 4, 'eps': 1e-8, 'average': (0.9999, 1000)},
    ('biggan_imagenet', ''): BIGGAN,
    ('biggan_imagenet', 'deep'): BIGGAN,
    ('progan_cifar10', ''): PROGRESSIVE | {'penalty': ('wgan_gp', 10.0, 1, 750.0)},
    ('progan_celebahq1024', ''): PROGRESSIVE,
    # Half-lives of 10,000 images, 500,000 in StudioGAN.
    ('stylegan_ffhq1024', ''): STYLE
    | {'rates': (1e-3, 1e-3), 'penalty': ('r1', 10.0, 1, 1.0), 'average': (0.5**0.0032, 0)},
    ('stylegan2_ffhq1024', ''): STYLE
    | {'rates': (2e-3, 2e-3), 'penalty': ('r1', 10.0, 16, 1.0), 'average': (0.5**0.0032, 0)},
    # The generator's for path lengths at every 4th step, which it has not.
    ('stylegan2_cifar10', ''): STYLE
    | {
        'rates': (0.0025 * 4 / 5, 0.0025),
        'penalty': ('r1', 0.01, 16, 1.0),
        'average': (0.5 ** (64 / 500_000), 0),
    },
}


@pytest.mark.parametrize(('file', 'variant'), RECIPES, ids=lambda name: name or 'main')
def test_players_learn_by_the_recipe(file, variant):
    config = load(file, variant)
    gan, learned = config.gan, config.optimizer
    penalty = gan.penalty_weight, gan.penalty_every, gan.penalty_target
    found = {
        'objective': gan.objective,
        'n_critic': gan.n_critic,
        'rates': (learned.learning_rate, learned.learning_rate * gan.d_rate_ratio),
        **{name: learned[name] for name in ('b1', 'b2', 'eps')},
        'average': (config.ema_decay, config.ema_start),
        'penalty': (gan.penalty, *penalty) if gan.penalty else (),
        'drift': gan.drift,
        'clip': gan.clip_weights,
    }
    expected = {'penalty': (), 'drift': 0.0, 'clip': 0.0} | RECIPES[file, variant]
    for name, value in expected.items():
        if isinstance(value, tuple) and value and not isinstance(value[0], str):
            value = pytest.approx(value, rel=1e-6)
        assert found[name] == value, name


def test_progressive_growing_is_the_authors():
    """config.py, section 6.5: 400 kimg of each size and of each transition, 20,000 in all."""
    config = load('progan_cifar10', '')
    assert config.gan.grow_steps * config.batch_size == 400_000
    assert config.steps * config.batch_size == 20_000_000
    method = create(config)
    sizes = [method.stage(step) for step in (0, 24_999, 25_000, 75_000, 125_000, 10**6)]
    assert sizes == [4, 4, 8, 16, 32, 32]
    # Section 6.3: 800 kimg of each, and a warm-up of 40.
    config = load('progan_celebahq1024', '')
    assert config.gan.grow_steps * config.batch_size == 800_000
    assert config.optimizer.warmup * config.batch_size == 40_000


def test_stylegan_grows_and_learns_at_the_authors_rates():
    """train.py for 8 GPUs: 600 kimg of each size from 8x8 on; G_lrate_dict, else 0.001."""
    config = load('stylegan_ffhq1024', '')
    assert config.gan.grow_steps * config.batch_size == 600_000
    assert config.ema_decay == pytest.approx(0.5 ** (32 / 10_000), abs=1e-8)
    growth = growth_of(config.gan, 1024)
    rates = [rate * config.optimizer.learning_rate for rate in growth.rates]
    theirs = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}
    assert rates == pytest.approx([theirs.get(size, 0.001) for size in growth.sizes])
    assert growth.sizes[0] == 8
