"""VDVAE: its terms against loops and closed forms, and its side of the contract."""

import functools
import math
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from batches import same

from gen_jax import config as house
from gen_jax.autoencoders import top_down, vdvae
from gen_jax.autoencoders.likelihoods import LIKELIHOODS
from gen_jax.autoencoders.top_down import Block, Layer, Step, enlarged, kl_divergence, uniform
from gen_jax.errors import UserError
from gen_jax.method import Net, descend, optimizer

SMALL = {
    'data.image_size': 4,
    'model.encoder': '4d2,2d2,1',
    'model.decoder': '1,2m1,4m2',
    'model.width': 6,
    'model.widths': '1:8',
    'model.bottleneck': 0.5,
    'model.latents': 2,
    'optimizer.warmup': 0,
}
DIM = 2 * (1 + 4 + 16)


def small(**changes):
    config = house.default('autoencoders.vdvae')
    config.update_from_flattened_dict(SMALL | changes)
    return config


def batch_of(n, size=4, channels=1):
    levels = jax.random.randint(jax.random.key(5), (n, size, size, channels), 0, 256)
    return {'image': levels / 127.5 - 1}


def keys_of(n):
    return jax.random.split(jax.random.key(2), n)


@functools.cache
def start(**changes):
    """(method, state) of a small model, all of whose numbers are random."""
    method = vdvae.create(small(**changes))
    state = jax.jit(method.init)(jax.random.key(0), batch_of(2))
    return method, state.replace(net=shaken(state.net))


def shaken(net):
    """Nothing is 0, behind which mistakes could hide."""
    leaves, tree = jax.tree.flatten(net.params)
    random = np.random.default_rng(0)
    leaves = [x + 0.2 * random.standard_normal(x.shape, np.float32) for x in leaves]
    params = jax.tree.unflatten(tree, leaves)
    return net.replace(params=params, ema=None if net.ema is None else params)


@functools.cache
def jitted(name, **changes):
    return jax.jit(getattr(vdvae.create(small(**changes)), name))


# --- parts ---------------------------------------------------------------------------------------


def test_divergence_of_two_normals():
    """Against SciPy's densities, integrated."""
    q, p = (0.3, -0.5), (-0.4, 0.2)
    z = np.linspace(-12, 12, 200_001)
    log_q, log_p = (scipy.stats.norm(mu, np.exp(s)).logpdf(z) for mu, s in (q, p))
    want = np.trapezoid(np.exp(log_q) * (log_q - log_p), z)
    found = kl_divergence(jnp.float32(q), jnp.float32(p))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert kl_divergence(q, q) == 0


def test_enlarged_repeats_pixels():
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 4), np.float32)
    np.testing.assert_array_equal(enlarged(x, 3), x.repeat(3, 1).repeat(3, 2))


def test_kernels_begin_as_torchs():
    """Uniform in +- 1 / sqrt(fan_in), times sqrt(scale)."""
    kernel = uniform(0.25)(jax.random.key(0), (3, 3, 40, 50))
    limit = 0.5 / np.sqrt(9 * 40)
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize(('size', 'pixels'), [(3, 3), (2, 1), (1, 1)])
def test_small_maps_see_one_pixel(size, pixels):
    block = Block(2, 3)
    shapes = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, size, size, 5)))['params']
    for name in ('c2', 'c3'):
        kernel = shapes[name]['kernel'].shape
        assert kernel == ((3, 3, 2, 2) if pixels == 3 else (2, 2))
    assert shapes['c1']['kernel'].shape == (5, 2)
    assert shapes['c4']['kernel'].shape == (2, 3)


@pytest.mark.slow
def test_a_fresh_layer_leaves_the_map_to_z():
    """The prior begins as N(0, 1) and adds nothing."""
    layer = Layer(2, 3, uniform())
    x, z = (jax.random.normal(jax.random.key(i), (1, 2, 2, c)) for i, c in enumerate((4, 2)))
    variables = layer.init(jax.random.key(2), x, z)
    _, drawn, *apart = layer.apply(variables, x, z)
    np.testing.assert_array_equal(drawn, z)
    assert apart == [0, 0]


# --- notation ------------------------------------------------------------------------------------


def test_the_papers_notation():
    steps, resolutions = top_down.bottom_up_steps('8x2,8d2,4,4d4,1x1', 8)
    assert steps == (Step(8), Step(8), Step(8, 2), Step(4), Step(4, 4), Step(1))
    assert resolutions == [8, 4, 1]
    found = top_down.top_down_steps('1x1,4m1,4x2,8m4', 8, resolutions)
    assert found == (Step(1), Step(4, 1), Step(4), Step(4), Step(8, 4))
    assert top_down.widths_of('4:7', 5, resolutions) == ((8, 5), (4, 7), (1, 5))


COUNTS = {'': 39_145_700, 'imagenet32': 119_280_868, 'imagenet64': 125_005_860}


@pytest.mark.slow
@pytest.mark.parametrize(('variant', 'want'), [*COUNTS.items(), ('ffhq256', 114_874_852)])
def test_sizes_are_the_papers(variant, want):
    config = cifar(variant)
    module, size = vdvae.module_of(config), config.data.image_size
    x, noise = jnp.zeros((1, size, size, 3)), jnp.zeros((1, module.layers.dim))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, noise)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == want
    assert f'{want:,}' in runpy.run_path('configs/vdvae_cifar10.py')['__doc__']


def cifar(variant=''):
    return runpy.run_path('configs/vdvae_cifar10.py')['get_config'](variant)


# --- the method ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_step_moves_every_parameter():
    """By its gradient alone: nothing decays here."""
    changes = {'optimizer.weight_decay': 0.0}
    _, state = start(**changes)
    after, metrics = jitted('train_step', **changes)(jax.random.key(1), state, batch_of(3))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.net.params, state.net.params)
    assert all(jax.tree.leaves(moved))
    assert {'loss', 'elbo', 'kl', 'reconstruction', 'grad_norm', 'skipped'} == metrics.keys()
    np.testing.assert_allclose(metrics['loss'], -metrics['elbo'] / 16, rtol=1e-6)


@pytest.mark.slow
def test_evaluation_is_per_example():
    _, state = start()
    evaluate, batch = jitted('evaluate_step'), batch_of(3)
    terms = evaluate(keys_of(3), state, batch)
    alone = evaluate(keys_of(3)[1:2], state, {'image': batch['image'][1:2]})
    assert terms.keys() == {'elbo', 'log_likelihood', 'kl', 'elbo_bits_per_dim'}
    for name, value in terms.items():
        assert (value.shape, value.dtype) == ((3,), jnp.float32)
        np.testing.assert_allclose(alone[name][0], value[1], rtol=1e-5)
    np.testing.assert_allclose(terms['elbo'], terms['log_likelihood'] - terms['kl'], rtol=1e-5)
    bits = -terms['elbo'] / 16 / np.log(2)
    np.testing.assert_allclose(terms['elbo_bits_per_dim'], bits, rtol=1e-5)
    assert (terms['kl'] > 0).all()


@pytest.mark.slow
def test_bounds_rise_to_the_evidence_by_importance_sampling():
    """p(x) is the mean of p(x|z) over the prior's z, here of one image with few latents."""
    sizes = {'data.image_size': 1, 'model.encoder': '1', 'model.decoder': '1,1'}
    config = small(**sizes, **{'vae.weighed': 1})
    config.model.update({'widths': '', 'latents': 1})
    method, module = vdvae.create(config), vdvae.module_of(config)
    one = batch_of(1, 1)
    state = jax.jit(method.init)(jax.random.key(0), one)
    state = state.replace(net=shaken(state.net))
    n, variables = 20_000, state.net.variables()
    many = {'image': jnp.broadcast_to(one['image'], (n, 1, 1, 1))}
    keys = jax.random.split(jax.random.key(7), n)
    terms = jax.jit(method.evaluate_step)(keys, state, many)
    elbo, single = terms['elbo'], terms['iw_bound']

    @jax.jit
    def of_prior(noise):
        y = module.apply(variables, noise, method=lambda module, noise: module.layers(noise).y)
        return module.apply(variables, many['image'], y, method='log_likelihood')

    prior = of_prior(jax.random.normal(jax.random.key(8), (n, module.layers.dim)))
    evidence = jax.nn.logsumexp(prior) - math.log(n)
    error = np.exp(prior - evidence).std() / np.sqrt(n) + elbo.std() / np.sqrt(n)
    assert elbo.mean() < evidence + 3 * error
    # One weighed sample has the ELBO's mean; many, in groups, draw near the evidence.
    assert abs(single.mean() - elbo.mean()) < 4 * (single.std() + elbo.std()) / np.sqrt(n)
    np.testing.assert_allclose(
        terms['iw_bits_per_dim'], -single / math.log(2), rtol=1e-5, atol=1e-6
    )
    means = [
        (jax.nn.logsumexp(single.reshape(-1, k), 1) - math.log(k)).mean() for k in (1, 10, 1000)
    ]
    assert means[0] < means[1] < means[2]
    assert abs(means[2] - evidence) < 0.02
    config.vae.weighed = 1000
    several = jax.jit(vdvae.create(config).evaluate_step)
    bounds = several(keys[:20], state, {'image': many['image'][:20]})['iw_bound']
    assert abs(bounds.mean() - evidence) < 0.02


@pytest.mark.slow
def test_samples_do_not_depend_on_how_many_there_are():
    _, state = start()
    sample = jitted('sample_step')
    together = sample(keys_of(5), state, {})
    assert (together.shape, together.dtype) == ((5, 4, 4, 1), jnp.float32)
    levels = (together + 1) * 127.5
    np.testing.assert_allclose(levels, jnp.round(levels), atol=1e-3)  # draws of 256 levels
    assert len(jnp.unique(together)) > 5
    np.testing.assert_allclose(sample(keys_of(5)[3:4], state, {})[0], together[3], atol=1e-6)


@pytest.mark.slow
def test_temperature_is_per_sample_and_traced(monkeypatch):
    """At 0, z is the prior's mean: a likelihood that says its mean gives the same image always."""
    changes = {'pixels.likelihood': 'logistic'}
    _, state = start(**changes)
    mean = LIKELIHOODS['logistic']
    monkeypatch.setitem(
        LIKELIHOODS, 'logistic', mean._replace(draw=lambda _, numbers: mean.mean(numbers))
    )
    sample = jax.jit(vdvae.create(small(**changes)).sample_step)
    mixed = sample(keys_of(3), state, {'temperature': jnp.array([0.0, 0.0, 1.0])})
    np.testing.assert_allclose(mixed[0], mixed[1], atol=1e-6)
    assert jnp.abs(mixed[2] - mixed[0]).max() > 1e-3
    ones = sample(keys_of(3), state, {'temperature': jnp.ones(3)})
    np.testing.assert_allclose(ones[2], mixed[2], atol=1e-6)
    assert sample._cache_size() == 1


@pytest.mark.slow
def test_encode_and_decode():
    _, state = start()
    z = jitted('encode')(state, batch_of(3))
    images = jitted('decode')(state, z, {})
    assert (z.shape, images.shape) == ((3, DIM), (3, 4, 4, 1))
    assert jnp.abs(images).max() <= 1
    module, variables = vdvae.module_of(small()), state.net.variables()

    @jax.jit
    def mean(x):  # what the means lead to as they are inferred
        y = module.apply(variables, x, jnp.zeros((len(x), DIM)), method='inferred').y
        return module.apply(variables, y, method='mean')

    np.testing.assert_allclose(images, mean(batch_of(3)['image']), atol=1e-5)


@pytest.mark.slow
def test_averaged_parameters_are_what_evaluates():
    _, state = start()
    zeros = jax.tree.map(jnp.zeros_like, state.net.params)
    changed = state.replace(net=state.net.replace(params=zeros))
    found, want = (
        jitted('evaluate_step')(keys_of(3), given, batch_of(3)) for given in (changed, state)
    )
    jax.tree.map(np.testing.assert_array_equal, found, want)


# --- what is skipped -----------------------------------------------------------------------------


def stepped(loss, limit, w=(3.0, 4.0)):
    """A step on a loss of parameters `w`, and the net before it."""
    tx = optimizer(small().optimizer)
    net = Net.create({'params': {'w': jnp.float32(w)}}, tx, ema=True)
    net, _ = descend(net, lambda p, extra, _: (p['w'].sum(), (extra, {})), tx, 0.5, None)

    @jax.jit
    def step(net):
        after, metrics = descend(net, lambda p, e, _: (loss(p['w']), (e, {})), tx, 0.5, None)
        return vdvae.careful(net, after, metrics, limit)

    return net, *step(net)


@pytest.mark.slow
def test_large_updates_are_skipped_with_all_that_belongs_to_them():
    for limit, skipped in ((10.0, 1), (11.0, 0), (math.inf, 0)):
        before, after, metrics = stepped(lambda w: w @ jnp.float32([6, 8]), limit)  # norm 10
        assert metrics['grad_norm'] == 10
        assert metrics['skipped'] == skipped
        assert same(after, before) == bool(skipped)


@pytest.mark.parametrize(
    'loss',
    [
        lambda w: jnp.nan * w.sum(),
        lambda w: jnp.sqrt(w[0] - w[0]),  # 0, with an infinite gradient times 0
        lambda w: w.sum() * jnp.inf,
    ],
)
def test_what_is_not_finite_is_skipped(loss):
    before, after, metrics = stepped(loss, math.inf)
    assert same(after, before)
    assert metrics['skipped'] == 1
    assert all(np.isfinite(x) for x in metrics.values())


def test_many_skipped_updates_are_told():
    assert vdvae.advise({'loss': 1.0, 'skipped': 0.01}) == {}
    (told,) = vdvae.advise({'skipped': 0.4}).values()
    assert '40%' in told


# --- fields --------------------------------------------------------------------------------------

STATES = {
    'model.encoder': '4d4,1',
    'model.decoder': '1,4m1',
    'model.width': 7,
    'model.widths': '',
    'model.bottleneck': 0.4,
    'model.latents': 3,
    'model.start_up_to': 2,
    'pixels.likelihood': 'gaussian',
    'ema_decay': 0.0,
}


def shapes(**changes):
    method = vdvae.create(small(**changes))
    return str(jax.eval_shape(method.init, jax.random.key(0), batch_of(2)))


@pytest.mark.slow
def test_fields_that_change_the_state():
    before = shapes()
    for field, value in STATES.items():
        more = {'model.decoder': '1,4m1'} if field == 'model.encoder' else {}
        assert shapes(**{field: value}, **more) != before, field


@pytest.mark.slow
def test_bfloat16_is_near_and_told_in_float32():
    (_, state), args = start(), (keys_of(3), batch_of(3))
    found, want = (
        jitted('evaluate_step', **changes)(args[0], state, args[1])['elbo']
        for changes in ({'model.dtype': 'bfloat16'}, {})
    )
    assert found.dtype == jnp.float32
    assert (found != want).all()
    np.testing.assert_allclose(found, want, rtol=0.05)


WRONG = [
    ({'data.num_classes': 10}, '0: autoencoders.vdvae is told no labels'),
    ({'model.encoder': ''}, "parts such as 32x11, 32d2 or 32 with commas between, not ''"),
    ({'model.encoder': '4x0,4d4'}, "not '4x0'"),
    ({'model.encoder': '4m2,1'}, "not '4m2'"),
    ({'model.encoder': '4, 1'}, "not ' 1'"),
    ({'model.encoder': '8d2,4d4,1'}, '4 where it has 8'),
    ({'model.encoder': '4d2,4'}, '2 where it has 4'),
    ({'model.encoder': '4d3,1'}, 'a divisor of 4, at least 2, in 4d3'),
    ({'model.encoder': '4d1,4d4'}, 'in 4d1'),
    ({'model.decoder': '1,2d1,4m2'}, "not '2d1'"),
    ({'model.decoder': '1,3m1,4m1'}, 'not 3'),
    ({'model.decoder': '2m1,1,4m2'}, 'came before, in 2m1'),
    ({'model.decoder': '1,2m2,4m2'}, 'in 2m2'),
    ({'model.decoder': '1,2m1'}, 'layers at data.image_size=4'),
    ({'model.widths': '1=3'}, "not '1=3'"),
    ({'model.widths': '3:9'}, 'not 3'),
    ({'model.widths': '1:5'}, 'at least the 6 of 2 for 1, not 5'),
    ({'model.width': 0}, 'at least 1'),
    ({'model.latents': 0}, 'at least 1'),
    ({'model.bottleneck': 0.1}, 'at least 0.167'),
    ({'model.bottleneck': float('inf')}, 'one channel of the narrowest map'),
    ({'model.start_up_to': -1}, '0 (none) or more'),
    ({'model.deviation': 0.0}, 'a positive number'),
    ({'model.deviation': math.inf}, 'a positive number, and finite'),
    ({'model.mean': math.nan}, 'a finite number'),
    ({'model.dtype': 'float16'}, 'bfloat16'),
    ({'pixels.likelihood': 'logistics'}, 'did you mean'),
    ({'optimizer.skip_above': -1.0}, 'or more'),
    ({'sample.knobs.temperature': -1.0}, '0 or more'),
    ({'sample.knobs.temperature': math.inf}, 'finite'),
    ({'ema_decay': 1.0}, 'below 1'),
]


@pytest.mark.parametrize(('changes', 'says'), WRONG)
def test_a_wrong_config_is_told_in_one_line(changes, says):
    with pytest.raises(UserError) as error:
        vdvae.create(small(**changes))
    text = str(error.value)
    assert text.startswith(f'config.{next(iter(changes))}=')
    assert says in text
    assert '\n' not in text


def test_a_wrong_image_is_told():
    method, state = vdvae.create(small()), None
    wrong = batch_of(2, channels=3)
    for call in (
        lambda: method.init(jax.random.key(0), wrong),
        lambda: method.train_step(jax.random.key(0), state, wrong),
        lambda: method.evaluate_step(keys_of(2), state, wrong),
        lambda: method.encode(state, wrong),
    ):
        with pytest.raises(UserError, match='has shape'):
            call()


@pytest.mark.parametrize('file', ['vdvae_cifar10', 'vdvae_fashion_mnist'])
def test_every_variant_fits(file):
    get_config = runpy.run_path(f'configs/{file}.py')['get_config']
    for variant in ('', 'tiny', *('imagenet32', 'imagenet64', 'ffhq256') * ('cifar' in file)):
        assert house.create(get_config(variant)).sample_step is not None
