"""The configs of papers have the papers' numbers.

The expectations are typed from the authors' files, in their own terms, and not from ours:

  song     github.com/yang-song/score_sde at 0acb9e0, configs/default_cifar10_configs.py and
           configs/{vp,subvp,ve}/cifar10_*_continuous.py
  ermon    github.com/ermongroup/ncsnv2 at 1bcea03, configs/cifar10.yml
  karras   github.com/NVlabs/edm at 008a4e5, README.md ("Training new models") and train.py
  dhariwal github.com/openai/guided-diffusion at 22e0df8, README.md; batches, steps and learning
           rates from the paper (appendix I); of the classifiers these and their weight decay are
           from memory of it and from others' training scripts, see the config
  liu      github.com/gnobitab/RectifiedFlow at 5a1fd4d,
           ImageGeneration/configs/rectified_flow/cifar10_rf_gaussian_ddpmpp.py
  tong     github.com/atong01/conditional-flow-matching at cacd4dc, examples/images/cifar10
"""

import functools
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.config import create
from gen_jax.diffusion import adm, continuous, continuous_time, gaussian
from gen_jax.method import ramped_decay

ROOT = Path(__file__).parents[1]
SONG, KARRAS, FACES = 'score_sde_cifar10', 'edm_cifar10', 'edm_ffhq64'
IMAGENET, DHARIWAL, FLOW = 'edm_imagenet64', 'adm_imagenet', 'rectified_flow_cifar10'
CLASSIFIERS, LADDER = 'adm_classifier_imagenet', 'ncsnv2_cifar10'
MODELS = {'diffusion.continuous': continuous.Model, 'diffusion.gaussian': gaussian.Model}

# File and variant: parameters as the reference counts them, millions of images in training, calls
# of the network for an image (None: an adaptive solver says; 0: it draws none).
ROWS = {
    (SONG, ''): (61_804_419, 166.4, 1000),
    (SONG, 'deep'): (106_632_579, 121.6, 1000),
    (SONG, 'sub_vp'): (61_804_419, 166.4, 1000),
    (SONG, 'sub_vp_deep'): (106_632_579, 121.6, 1000),
    (SONG, 've'): (62_758_915, 166.4, 2000),
    (SONG, 've_deep'): (107_587_075, 121.6, 2000),
    (LADDER, ''): (29_694_083, 38.4, 1161),
    (KARRAS, ''): (55_733_891, 200, 35),
    (KARRAS, 'conditional'): (55_735_299, 200, 35),
    (KARRAS, 've'): (56_397_827, 200, 35),
    (KARRAS, 've_conditional'): (56_400_643, 200, 35),
    (FACES, ''): (61_805_571, 200, 79),
    (FACES, 've'): (62_761_091, 200, 79),
    (FACES, 'afhq'): (61_805_571, 200, 79),
    (FACES, 'afhq_ve'): (62_761_091, 200, 79),
    (IMAGENET, ''): (295_899_267, 2500, 511),
    (IMAGENET, 'deterministic'): (295_899_267, 2500, 79),
    (DHARIWAL, ''): (295_904_454, 1105.92, 250),
    (DHARIWAL, 'at_256'): (553_838_086, 506.88, 250),
    (DHARIWAL, 'at_256_unconditional'): (552_814_086, 506.88, 250),
    (CLASSIFIERS, ''): (65_438_568, 307.2, 0),
    (CLASSIFIERS, 'at_256'): (54_096_360, 128, 0),
    (FLOW, ''): (61_804_419, 102.4, None),
    (FLOW, 'icfm'): (35_746_307, 51.2, None),
    (FLOW, 'ot_cfm'): (35_746_307, 51.2, None),
}
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


def network_of(config):
    if config.method == 'diffusion.noised_classifier':
        return adm.classifier_from_config(config)
    return model_of(config).network


@functools.cache
def count(network, size, classes):
    """Numbers that a network holds, what it keeps beside parameters included."""
    told = [] if isinstance(network, adm.ADMClassifier) else [None]
    if told and classes:
        told = [jnp.zeros(1, jnp.int32)]
    x = jnp.zeros((1, size, size, 3))
    held = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1), *told)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(held))


@pytest.mark.slow
@EVERY
def test_parameters(file, variant):
    config = load(file, variant)
    found = count(network_of(config), config.data.image_size, config.data.num_classes)
    # EDM's counts leave out its 128 random frequencies, score_sde's do not.
    fourier = 128 if 've' in variant.split('_') and file != SONG else 0
    assert found - fourier == ROWS[file, variant][0]


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
    for file in (SONG, KARRAS, FACES, IMAGENET, DHARIWAL, CLASSIFIERS, FLOW, LADDER):
        variants = [variant for name, variant in ROWS if name == file and variant]
        for variant in (*variants, 'tiny'):
            assert f' {variant}' in module(file).__doc__, (file, variant)
        with pytest.raises(Exception, match=', '.join(sorted((*variants, 'tiny')))):
            load(file, 'qqqqqq')


# In the authors' terms: optimiser, moving average, network, data.
SAME = {  # of all that Song et al. and Liu et al. train
    'optimizer.learning_rate': 2e-4,  # optim.lr
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.weight_decay': 0.0,
    'optimizer.warmup': 5000,
    'optimizer.decay_steps': 0,
    'batch_size': 128,
    'data.image_size': 32,
    'data.flip': True,  # data.random_flip
    'data.num_classes': 0,
    'model.channels': 128,  # model.nf
    'model.multipliers': (1, 2, 2, 2),  # model.ch_mult
    'model.attention': (16,),  # model.attn_resolutions
    'diffusion.times': 'uniform',
    'diffusion.weighting': 'simple',  # training.likelihood_weighting
}
DDPMPP = {'model.embedding': 'positional', 'model.encoder': 'standard', 'model.fir': False}
NCSNPP = {'model.embedding': 'fourier', 'model.encoder': 'residual', 'model.fir': True}
EDM = {
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.clip': 0.0,
    'optimizer.weight_decay': 0.0,
    'optimizer.decay_steps': 0,
    'diffusion.process': 'edm',  # --precond
    'diffusion.prediction': 'edm',
    'diffusion.weighting': 'simple',  # of F: the loss's weight times c_out^2 is 1
    'diffusion.told': 'log_ratio',  # c_noise
    'diffusion.times': 'lognormal',
    'diffusion.range': (0.002, 80.0),  # sigma_min, sigma_max of the sampler
    'diffusion.times_mean': -1.2,  # P_mean
    'diffusion.times_std': 1.2,  # P_std
    'diffusion.sigma_data': 0.5,
    'diffusion.label_dropout': 0.0,
    'sampler.name': 'heun',
    'sampler.spacing': 'karras',
    'data.flip': False,  # --xflip
}
ADM = {
    'model.attention': (32, 16, 8),  # --attention_resolutions
    'model.head_channels': 64,  # --num_head_channels
    'model.heads': 0,
    'model.scale_shift': True,  # --use_scale_shift_norm
    'model.resample_in_blocks': True,  # --resblock_updown
    'data.num_classes': 1000,
    'data.fit': 'resize',  # to the middle, both center_crop_arr and --transform=center-crop
}
GUIDED = ADM | {
    'diffusion.timesteps': 1000,  # --diffusion_steps
    'diffusion.learned_variance': True,  # --learn_sigma
    'diffusion.loss': 'hybrid',  # --use_kl False
    'diffusion.vlb_weight': 1e-3,  # --rescale_learned_sigmas False: 1 / T
    'diffusion.prediction': 'eps',  # --predict_xstart False
    'diffusion.told': 'time',  # --rescale_timesteps False
    'data.flip': True,  # random_flip
    'ema_decay': 0.9999,
    'optimizer.weight_decay': 0.0,
    'optimizer.warmup': 0,
    'sample.knobs.steps': 250,  # --timestep_respacing
    'sampler.spacing': 'linspace',
    'sampler.variance': 'learned_range',
}
NOISED = ADM | {
    'model.channels': 128,  # --classifier_width
    'model.dropout': 0.0,
    'diffusion.timesteps': 1000,
    'diffusion.told': 'time',
    'data.flip': True,
    'data.crop': 0.8,  # min_crop_frac
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.warmup': 0,
    'optimizer.clip': 0.0,
}
VP = (
    SAME
    | DDPMPP
    | {
        'model.dropout': 0.1,
        'model.blocks': 4,
        'diffusion.process': 'vp_linear',
        'diffusion.range': (0.1, 20.0),
        'diffusion.t_min': 1e-5,  # eps of get_sde_loss_fn
        'diffusion.prediction': 'eps',  # score = -network / std
        'diffusion.told': 'time',  # labels = t * 999
        'optimizer.clip': 1.0,
        'optimizer.eps': 1e-8,
        'ema_decay': 0.9999,  # model.ema_rate
        'sampler.spacing': 'linear',
    }
)
NCSN = (
    SAME
    | NCSNPP
    | {
        'model.dropout': 0.1,
        'model.blocks': 4,
        'diffusion.process': 've',
        'diffusion.prediction': 'score',  # model.scale_by_sigma
        'diffusion.told': 'log_sigma',
        'sampler.name': 'predictor_corrector',  # reverse_diffusion and langevin
        'ema_decay': 0.999,
        'sample.knobs.snr': 0.16,
        'sampler.corrections': 1,  # sampling.n_steps_each
        'sampler.spacing': 'linear',
    }
)
ERMON = {
    'optimizer.learning_rate': 1e-4,  # optim.lr
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.weight_decay': 0.0,
    'optimizer.warmup': 0,
    'optimizer.decay_steps': 0,
    'optimizer.clip': 0.0,
    'batch_size': 128,
    'data.image_size': 32,
    'data.flip': True,  # data.random_flip
    'data.num_classes': 0,
    'network': 'refinenet',
    'model.channels': 128,  # model.ngf
    'model.multipliers': (1, 2, 2, 2),
    'diffusion.process': 'ladder',  # model.sigma_dist: geometric
    'diffusion.levels': 232,  # model.num_classes
    'diffusion.times': 'levels',
    'diffusion.prediction': 'score',
    'diffusion.weighting': 'simple',  # training.anneal_power: 2
    'ema_decay': 0.999,  # model.ema_rate
    'ema_rampup': 0.0,
    'sampler.name': 'annealed_langevin',
    'sampler.spacing': 'linear',
    'sampler.corrections': 5,  # sampling.n_steps_each
    'sample.knobs.steps': 232,
}
CIFAR = EDM | {
    'batch_size': 512,
    'data.num_classes': 0,
    'model.channels': 128,
    'model.multipliers': (2, 2, 2),
    'model.blocks': 4,
    'model.attention': (16,),
    'model.dropout': 0.13,
    'diffusion.augment': 0.12,
    'optimizer.learning_rate': 10e-4,
    'sample.knobs.steps': 18,
}
FFHQ = CIFAR | {
    'batch_size': 256,
    'data.image_size': 64,
    'model.multipliers': (1, 2, 2, 2),  # --cres
    'model.dropout': 0.05,
    'diffusion.augment': 0.15,
    'optimizer.learning_rate': 2e-4,
    'sample.knobs.steps': 40,
}
TONG = SAME | {
    'model.blocks': 2,
    'model.dropout': 0.1,
    'model.scale_shift': False,
    'model.resample_in_blocks': False,
    'optimizer.clip': 1.0,
    'optimizer.eps': 1e-8,
    'ema_decay': 0.9999,
    'diffusion.process': 'flow',
    'diffusion.prediction': 'velocity',
}
RECIPES = {
    (SONG, ''): VP,
    (SONG, 'deep'): VP | {'model.blocks': 8},
    (SONG, 'sub_vp'): VP | {'diffusion.process': 'sub_vp'},
    (SONG, 'sub_vp_deep'): VP | {'diffusion.process': 'sub_vp', 'model.blocks': 8},
    (SONG, 've'): NCSN,
    (SONG, 've_deep'): NCSN | {'model.blocks': 8},
    (LADDER, ''): ERMON,
    (KARRAS, ''): CIFAR | DDPMPP,
    (KARRAS, 'conditional'): CIFAR | DDPMPP | {'data.num_classes': 10},
    (KARRAS, 've'): CIFAR | NCSNPP,
    (KARRAS, 've_conditional'): CIFAR | NCSNPP | {'data.num_classes': 10},
    (FACES, ''): FFHQ | DDPMPP,
    (FACES, 've'): FFHQ | NCSNPP,
    (FACES, 'afhq'): FFHQ | DDPMPP | {'model.dropout': 0.25},
    (FACES, 'afhq_ve'): FFHQ | NCSNPP | {'model.dropout': 0.25},
    (IMAGENET, ''): EDM
    | ADM
    | {
        'batch_size': 4096,
        'data.image_size': 64,
        'model.channels': 192,
        'model.multipliers': (1, 2, 3, 4),
        'model.dropout': 0.1,
        'diffusion.augment': 0.0,
        'optimizer.learning_rate': 1e-4,
        'sample.knobs.churn': 40.0,  # --S_churn
        'sampler.churn_range': (0.05, 50.0),  # --S_min, --S_max
        'sampler.churn_noise': 1.003,  # --S_noise
    },
    (IMAGENET, 'deterministic'): {'sample.knobs.churn': 0.0},
    (DHARIWAL, ''): GUIDED
    | {
        'batch_size': 2048,
        'data.image_size': 64,
        'model.channels': 192,
        'model.blocks': 3,
        'model.dropout': 0.1,
        'diffusion.betas': 'cosine',  # --noise_schedule
        'optimizer.learning_rate': 3e-4,
    },
    (DHARIWAL, 'at_256'): GUIDED
    | {
        'batch_size': 256,
        'data.image_size': 256,
        'model.channels': 256,
        'model.blocks': 2,
        'model.dropout': 0.0,
        'diffusion.betas': 'linear',
        'optimizer.learning_rate': 1e-4,
    },
    (DHARIWAL, 'at_256_unconditional'): {'data.num_classes': 0},
    (CLASSIFIERS, ''): NOISED
    | {
        'batch_size': 1024,
        'data.image_size': 64,
        'model.multipliers': (1, 2, 3, 4),
        'model.blocks': 4,  # --classifier_depth
        'diffusion.betas': 'cosine',
        'optimizer.learning_rate': 6e-4,
        'optimizer.decay': 'linear',  # --anneal_lr, to 0 at --iterations
        'optimizer.decay_steps': 300_000,
        'optimizer.weight_decay': 0.2,
    },
    (CLASSIFIERS, 'at_256'): NOISED
    | {
        'batch_size': 256,
        'data.image_size': 256,
        'model.multipliers': (1, 1, 2, 2, 4, 4),
        'model.blocks': 2,
        'diffusion.betas': 'linear',
        'optimizer.learning_rate': 3e-4,
        'optimizer.decay': 'linear',
        'optimizer.decay_steps': 500_000,
        'optimizer.weight_decay': 0.05,
    },
    (FLOW, ''): SAME
    | DDPMPP
    | {
        'model.blocks': 4,
        'model.dropout': 0.15,
        'optimizer.clip': 1.0,
        'optimizer.eps': 1e-8,
        'diffusion.process': 'flow',
        'diffusion.prediction': 'velocity',  # up to its sign, as time runs the other way
        'diffusion.pairing': 'random',
    },
    (FLOW, 'icfm'): TONG | {'diffusion.pairing': 'random'},
    (FLOW, 'ot_cfm'): TONG | {'diffusion.pairing': 'optimal'},
}


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
        (SONG, 've', 0.5 * 32 * 32 * 3),  # reduce_mean False: half the sum
        (SONG, 've_deep', 0.5 * 32 * 32 * 3),
        (LADDER, '', 0.5 * 32 * 32 * 3),  # half the sum
        (KARRAS, '', 32 * 32 * 3),  # loss.sum() over a batch's share
        (FACES, '', 64 * 64 * 3),
        (IMAGENET, '', 100 * 64 * 64 * 3),  # --ls=100
    ],
)
def test_steps_are_those_of_a_loss_that_is_larger(file, variant, times_our_loss):
    optimizer = load(file, variant).optimizer
    assert optimizer.eps * times_our_loss == pytest.approx(1e-8, rel=1e-6)
    if file == SONG:
        assert optimizer.clip * times_our_loss == pytest.approx(1.0, rel=1e-6)  # optim.grad_clip


def test_ve_is_score_sdes_in_images_twice_as_large():
    model = model_of(load(SONG, 've'))
    ends = jnp.float32([0.0, 1.0])
    np.testing.assert_allclose(model.process.sigma(ends) / 2, [0.01, 50.0], rtol=1e-5)
    told = continuous_time.time(model.told, model.process, ends)
    np.testing.assert_allclose(told, np.log([0.01, 50.0]), rtol=1e-5)


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
