"""The configs of GANs have their recipes' numbers.

Expectations are typed from the authors' files: StudioGAN's configs/CIFAR10/{DCGAN,LSGAN,SNGAN,
SAGAN,WGAN-GP,WGAN-WC,BigGAN,StyleGAN2}.yaml with the defaults of config.py
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


def test_rates_of_lazy_regularisation_are_the_authors():
    """training_loop of StyleGAN2: rate and betas for k steps and one more; k is 4 and 16."""
    config = load('stylegan2_cifar10', '')
    assert config.optimizer.learning_rate == pytest.approx(0.0025 * 4 / 5)
    assert config.optimizer.learning_rate * config.gan.d_rate_ratio == pytest.approx(0.0025)
    assert config.ema_decay == pytest.approx(0.5 ** (64 / 500_000), abs=1e-7)


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
