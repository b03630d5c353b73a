"""The configs of papers have the papers' numbers, which paper_recipes.py has from their authors."""

import functools
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paper_recipes import (
    DHARIWAL,
    DIT,
    FACES,
    FLOW,
    HO,
    IMAGENET,
    KARRAS,
    LADDER,
    RECIPES,
    ROWS,
    SONG,
)

from gen_jax import latent
from gen_jax.config import create
from gen_jax.diffusion import adm, continuous, continuous_time, gaussian
from gen_jax.diffusion.processes import Path
from gen_jax.method import ramped_decay
from gen_jax.runtime import workdir

ROOT = pathlib.Path(__file__).parents[1]
MODELS = {'diffusion.continuous': continuous.Model, 'diffusion.gaussian': gaussian.Model}

EVERY = pytest.mark.parametrize(('file', 'variant'), ROWS, ids=lambda name: name or 'main')


@functools.cache
def module(file):
    spec = importlib.util.spec_from_file_location(file, ROOT / f'configs/{file}.py')
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def load(file, variant=''):
    return module(file).get_config(variant)


def model_of(config):
    return MODELS[config.method].from_config(config)


@pytest.fixture
def learned(tmp_path):
    """learned(config): the config of what is learned, images or a first stage's latents."""

    def of(config):
        if not latent.stage_of(config):
            return config
        stage = load(pathlib.Path(config.latent.workdir).name)
        stage.data.image_size = config.data.image_size
        workdir.claim(stage, tmp_path)
        config.latent.workdir = str(tmp_path)
        return latent.of_latents(config)

    return of


def network_of(config):
    if config.method == 'diffusion.noised_classifier':
        return adm.classifier_from_config(config)
    return model_of(config).network


@functools.cache
def count(network, size, channels, classes):
    """Numbers that a network holds, what it keeps beside parameters included."""
    told = [] if isinstance(network, adm.ADMClassifier) else [None]
    if told and classes:
        told = [jnp.zeros(1, jnp.int32)]
    x = jnp.zeros((1, size, size, channels))
    held = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1), *told)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(held))


@pytest.mark.slow
@EVERY
def test_parameters(file, variant, learned):
    config = learned(load(file, variant))
    data, network = config.data, network_of(config)
    found = count(network, data.image_size, data.channels, data.num_classes)
    # EDM's counts leave out its 128 random frequencies, score_sde's do not.
    fourier = 128 if 've' in variant.split('_') and file != SONG else 0
    # DiT's have the table of positions, which ours computes.
    side = data.image_size // network.patch if file == DIT else 0
    positions = side * side * network.width if side else 0
    assert found - fourier + positions == ROWS[file, variant][0]


@EVERY
def test_budget(file, variant):
    config = load(file, variant)
    images = ROWS[file, variant][1] * 1e6
    assert images <= config.steps * config.batch_size < images + config.batch_size


@EVERY
def test_calls_of_the_network(file, variant):
    calls = ROWS[file, variant][2]
    config = load(file, variant)
    if calls is None:
        assert (config.sampler.name, config.sampler.solver) == ('adaptive', 'dopri5')
        assert config.sample.knobs.tolerance == 1e-5
    elif calls == 0:
        assert create(config).sample_step is None
    else:
        assert create(config).network_calls == calls


def test_every_variant_has_a_row_and_stands_in_its_docstring():
    for file in {file for file, _ in ROWS}:
        variants = [variant for name, variant in ROWS if name == file and variant]
        for variant in (*variants, 'tiny'):
            assert f' {variant}' in module(file).__doc__, (file, variant)
        with pytest.raises(Exception, match=', '.join(sorted((*variants, 'tiny')))):
            load(file, 'qqqqqq')


@EVERY
def test_hyperparameters(file, variant):
    config = load(file, variant)
    wanted = RECIPES[file, variant]
    found = {
        name: functools.reduce(lambda part, x: part[x], name.split('.'), config) for name in wanted
    }
    assert found == wanted


@pytest.mark.parametrize(
    ('file', 'half_life', 'ramp'),
    [(KARRAS, 0.5e6, 10e6), (FACES, 0.5e6, 10e6), (IMAGENET, 50e6, 10e6)],
)
def test_edm_counts_in_images(file, half_life, ramp):
    config = load(file)
    images = config.batch_size * math.log(0.5) / math.log(config.ema_decay)
    assert images == pytest.approx(half_life, rel=1e-4)
    assert config.ema_rampup == 0.05  # ema_rampup_ratio
    assert abs(config.optimizer.warmup * config.batch_size - ramp) <= config.batch_size / 2


@pytest.mark.parametrize(
    ('file', 'variant', 'times_our_loss'),
    [
        (HO, 'bound', 1 / 1000),  # _vb_terms_bpd is not multiplied by T
        (SONG, 've', 0.5 * 32 * 32 * 3),  # reduce_mean False: half the sum
        (SONG, 've_deep', 0.5 * 32 * 32 * 3),
        (SONG, 've_discrete', 0.5 * 32 * 32 * 3),
        (LADDER, '', 0.5 * 32 * 32 * 3),  # half the sum
        (KARRAS, '', 32 * 32 * 3),  # loss.sum() over a batch's share
        (FACES, '', 64 * 64 * 3),
        (IMAGENET, '', 100 * 64 * 64 * 3),  # --ls=100
    ],
)
def test_steps_are_those_of_a_loss_that_is_larger(file, variant, times_our_loss):
    optimizer = load(file, variant).optimizer
    assert optimizer.eps * times_our_loss == pytest.approx(1e-8, rel=1e-6)
    if file in (HO, SONG):
        assert optimizer.clip * times_our_loss == pytest.approx(1.0, rel=1e-6)  # optim.grad_clip


def test_ve_is_score_sdes_in_images_twice_as_large():
    model = model_of(load(SONG, 've'))
    ends = jnp.float32([0.0, 1.0])
    np.testing.assert_allclose(model.process.sigma(ends) / 2, [0.01, 50.0], rtol=1e-5)
    told = continuous_time.time(model.told, model.process, ends)
    np.testing.assert_allclose(told, np.log([0.01, 50.0]), rtol=1e-5)


def test_discrete_ve_visits_score_sdes_levels_in_images_twice_as_large():
    config = load(SONG, 've_discrete')
    process = model_of(config).process
    path = Path(process, jnp.int32([config.sample.knobs.steps]), config.sampler.spacing)
    sigmas = np.exp(np.linspace(np.log(0.01), np.log(50), 1000))  # VESDE.discrete_sigmas
    for i in (999, 500, 1, 0):
        now = path.at(jnp.int32(i))
        assert now.t == pytest.approx(i, abs=1e-3)
        found = now.noise_std.item() / 2, now.noise_std_prev.item() / 2
        before = sigmas[i - 1] if i else 0.0  # adjacent_sigma
        assert found == pytest.approx((sigmas[i], before), rel=1e-4)


def test_classifier_free_guidance_has_the_papers_ends():
    process = model_of(load(DHARIWAL, 'classifier_free')).process
    ends = jnp.float32([process.t_min, process.t_max])
    snr = 2 * np.log(process.alpha(ends) / process.sigma(ends))
    np.testing.assert_allclose(snr, [20, -20], rtol=1e-5)  # lambda_max, lambda_min


def test_ladder_is_ncsnv2s_in_images_twice_as_large():
    config = load(LADDER)
    ends = model_of(config).process.sigma(jnp.float32([0.0, 231.0])) / 2
    np.testing.assert_allclose(ends, [0.01, 50.0], rtol=1e-5)  # sigma_end, sigma_begin
    # How far a step follows the score, in theirs.
    step = 2 * (config.sample.knobs.snr * ends[0]) ** 2
    assert step == pytest.approx(6.2e-6, rel=1e-5)  # sampling.step_lr


def test_rectified_flows_average_is_the_authors():
    """models/ema.py: min(0.999999, (1 + n) / (10 + n)) at the n-th step; ours counts from 0."""
    config = load(FLOW)
    for n in (100, 10_000, config.steps):
        found = float(1 - ramped_decay(config, np.float64(n - 1)))
        assert found == pytest.approx(1 - min(0.999999, (1 + n) / (10 + n)), abs=60 / n**2 + 1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('file', 'variant'),
    [
        (SONG, 've'),
        (LADDER, ''),
        (KARRAS, 'conditional'),
        (DHARIWAL, 'at_256'),
        (FLOW, 'ot_cfm'),
    ],
)
def test_a_step_of_training_and_of_sampling_can_be_traced(file, variant):
    config = load(file, variant)
    method, b = create(config), config.batch_size
    size = config.data.image_size
    batch = {
        'image': jax.ShapeDtypeStruct((b, size, size, 3), jnp.float32),
        'label': jax.ShapeDtypeStruct((b,), jnp.int32),
    }
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(method.init, key, batch)
    after, metrics = jax.eval_shape(method.train_step, key, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert metrics['loss'].shape == ()
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    condition = {'label': jax.ShapeDtypeStruct((2,), jnp.int32)}
    images = jax.eval_shape(method.sample_step, keys, state, condition)
    assert images.shape == (2, size, size, 3)
