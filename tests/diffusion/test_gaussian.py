import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import improved_ddpm_cifar10
from gen_jax.config import default, validate
from gen_jax.diffusion import gaussian, guidance
from gen_jax.diffusion.solvers import SAMPLERS
from gen_jax.errors import UserError
from gen_jax.runtime.checkpoint import Checkpoints, fingerprint
from gen_jax.runtime.program import Program

pytestmark = pytest.mark.usefixtures('small_network')
B = 4


def config(**changes):
    """A net of a few hundred parameters; `data__num_classes=3` sets config.data.num_classes."""
    config = default('diffusion.gaussian', network='small')
    config.update_from_flattened_dict(
        {
            'data.image_size': 4,
            'diffusion.timesteps': 20,
            'diffusion.beta_max': 0.4,
            'optimizer.warmup': 0,
            'sample.knobs.steps': 5,
        }
    )
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    validate(config)
    return config


def guided(**changes):
    return config(data__num_classes=3, diffusion__label_dropout=0.5, **changes)


def batch():
    rng = np.random.default_rng(0)
    image = np.float32(np.round(rng.uniform(0, 255, (B, 4, 4, 1))) / 127.5 - 1)
    return {'image': jnp.asarray(image), 'label': jnp.arange(B, dtype=jnp.int32) % 3}


def randomised(method):
    """A state whose every parameter is random: the initial values hide what starts near zero."""
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch())
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), shapes.net.params
    )
    net = shapes.net.replace(params=params, ema=params)
    return shapes.replace(net=net)


def keys(n):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(n))


@pytest.mark.slow
def test_training_lowers_the_loss():
    method = gaussian.create(config())
    state = jax.jit(method.init)(jax.random.key(0), batch())
    step = jax.jit(method.train_step)
    losses = []
    for i in range(40):
        state, metrics = step(jax.random.key(i), state, batch())
        losses.append(float(metrics['loss']))
    assert set(metrics) == {'loss', 'grad_norm'}
    # The first prediction is 0, so that the first loss is near E eps^2 = 1.
    assert 0.8 < losses[0] < 1.3
    assert np.mean(losses[-20:]) < 0.95 * np.mean(losses[:3])


def test_state_matches_its_shapes():
    method = gaussian.create(guided())
    state = jax.jit(method.init)(jax.random.key(0), batch())
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch())
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    table = state.net.params['class_embedding']['embedding']
    assert table.shape[0] == 4  # three classes, and none
    again = jax.eval_shape(method.train_step, jax.random.key(0), shapes, batch())[0]
    assert jax.tree.structure(again) == jax.tree.structure(shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('make', 'name'),
    [
        (guided, 'ancestral'),
        (guided, 'ddim'),
        # test_sampler_registry.py has the others.
        *((config, name) for name in ('ancestral', 'ddim', 'unipc', 'predictor_corrector')),
    ],
)
def test_samples(make, name):
    snr = 0.16 if 'snr' in SAMPLERS[name].needs else 0.0
    method = gaussian.create(make(sampler__name=name, sample__knobs__snr=snr))
    state = randomised(method)
    label = jnp.arange(5, dtype=jnp.int32) % 3
    five = jax.jit(method.sample_step)(keys(5), state, {'label': label})
    one = jax.jit(method.sample_step)(keys(1), state, {'label': label[:1]})
    assert five.shape == (5, 4, 4, 1)
    assert five.dtype == jnp.float32
    assert np.abs(five).max() <= 1
    np.testing.assert_allclose(five[:1], one, atol=1e-4)
    assert len(np.unique(five.reshape(5, -1), axis=0)) == 5


@pytest.mark.slow
def test_knobs_that_are_not_asked_for_are_the_configs():
    method = gaussian.create(guided())
    state, label = randomised(method), {'label': jnp.arange(3, dtype=jnp.int32)}
    sample = jax.jit(method.sample_step)
    knobs = {'eta': jnp.zeros(3), 'guidance': jnp.ones(3), 'steps': jnp.full(3, 5)}
    asked, unasked = sample(keys(3), state, label | knobs), sample(keys(3), state, label)
    np.testing.assert_allclose(asked, unasked, atol=1e-4)


class Compilations:
    """Counts the programs that XLA makes while it is open."""

    def __enter__(self):
        self.n = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event, *_, **__):
        self.n += event == '/jax/core/compile/backend_compile_duration'


def test_one_program_serves_all_knobs_labels_and_seeds():
    settings = guided(sample__batch_size=3)
    program = Program(settings, gaussian.create(settings))
    state = randomised(program.method)
    with Compilations() as compilations:
        images = [program.sample(state, np.arange(3)).astype(int)]
        once = compilations.n
        for changes in (
            {'sample.knobs.guidance': 3.0},
            {'sample.knobs.eta': 0.5},
            {'sample.knobs.steps': 20},
            {'sample.label': 2},
            {'sample.knobs.steps': 1},
        ):
            settings.update_from_flattened_dict(changes)
            images.append(program.sample(state, np.arange(3)).astype(int))
            assert np.abs(images[-1] - images[-2]).max() > 1, changes
    assert once == compilations.n == 1


@pytest.mark.slow
def test_the_seed_is_an_argument_of_the_sampling_program():
    programs, images = [], []
    for seed in (0, 1):
        settings = config(seed=seed, sample__batch_size=3)
        program = Program(settings, gaussian.create(settings))
        programs.append(program.lower_sample().as_text())
        images.append(program.sample(randomised(program.method), np.arange(3)).astype(int))
    assert programs[0] == programs[1]
    assert np.abs(images[0] - images[1]).max() > 1


def test_network_calls_are_the_times_visited():
    def calls(steps, spacing):
        settings = config(sample__knobs__steps=steps, sampler__spacing=spacing)
        return gaussian.create(settings).network_calls

    assert calls(7, 'linear') == 7
    # The times of many quadratic steps coincide, and are visited once.
    assert calls(20, 'quadratic') == len({int(16 * (i / 19) ** 2 + 1e-9) for i in range(20)}) < 20
    assert 2 < calls(20, 'karras') < 20


def test_rho_decides_which_times_are_visited():
    made = {}
    for rho in (1.0, 7.0):
        method = gaussian.create(config(sampler__spacing='karras', sampler__rho=rho))
        shapes = jax.eval_shape(method.init, jax.random.key(0), batch())
        traced = jax.make_jaxpr(method.sample_step)(keys(2), shapes, {})
        (made[rho],) = (x for x in traced.consts if x.dtype == np.uint8)  # T bits for each steps
    assert (made[1.0] != made[7.0]).any()


@pytest.mark.slow
def test_guidance_mixes_the_two_predictions():
    method = gaussian.create(guided(sampler__clip=False))
    state, x_t = randomised(method), batch()['image']
    t = jnp.int32([0, 3, 10, 19])

    def denoise(label, guidance):
        condition = {'label': jnp.full(B, label), 'guidance': jnp.full(B, guidance)}
        return np.asarray(method.denoise(state, x_t, t, condition))

    label, null = denoise(1, 1.0), denoise(3, 1.0)
    np.testing.assert_allclose(denoise(1, 0.0), null, atol=1e-4)
    np.testing.assert_allclose(denoise(1, 2.5), null + 2.5 * (label - null), atol=1e-3)
    assert np.abs(label - null).max() > 1e-2


def test_sampling_uses_the_average():
    method = gaussian.create(config())
    state = randomised(method)
    moved = jax.tree.map(lambda x: x + 1, state.net.params)
    moved = state.replace(net=state.net.replace(params=moved))
    sample = jax.jit(method.sample_step)
    np.testing.assert_array_equal(sample(keys(2), state, {}), sample(keys(2), moved, {}))


@pytest.mark.slow
def test_label_dropout_trains_the_null_class():
    """Where every label is hidden, no row but the null class's is moved; where none is, not it."""
    for p, expected in ((0.999, [False, False, False, True]), (0.001, [True, True, True, False])):
        method = gaussian.create(config(data__num_classes=3, diffusion__label_dropout=p))
        state = randomised(method)
        state = state.replace(net=state.net.replace(opt_state=zeros(state.net.opt_state)))
        after, _ = jax.jit(method.train_step)(jax.random.key(0), state, batch())
        before, now = (s.net.params['class_embedding']['embedding'] for s in (state, after))
        assert np.any(before != now, axis=1).tolist() == expected


def zeros(shapes):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


@pytest.mark.slow
@pytest.mark.parametrize('make', [config, guided])
def test_evaluate_gives_one_number_per_example(make):
    method = gaussian.create(make())
    state, whole = randomised(method), batch()
    evaluate = jax.jit(method.evaluate_step)
    out = evaluate(keys(B), state, whole)
    parts = {f'vlb_{name}_bits_per_dim' for name in ('prior', 'middle', 'decoder')}
    assert set(out) == {'simple_loss', 'vlb_bits_per_dim', *parts}
    alone = evaluate(keys(B)[1:2], state, {k: v[1:2] for k, v in whole.items()})
    for name, values in out.items():
        assert values.shape == (B,)
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values[1:2], alone[name], rtol=1e-3)


FLIPS = {
    'diffusion__timesteps': 21,
    'diffusion__betas': 'cosine',
    'diffusion__prediction': 'x_0',
    'diffusion__told': 'thousandths',
    'diffusion__beta_min': 0.01,
    'diffusion__beta_max': 0.3,
    'sampler__name': 'ancestral',
    'sample__knobs__steps': 4,
    'sampler__spacing': 'quadratic',
    'sampler__clip': False,
    'sample__knobs__eta': 0.5,
    'model__dtype': 'bfloat16',
}


@pytest.mark.slow
@pytest.mark.parametrize('field', FLIPS)
def test_every_sampling_field_changes_the_sample(field):
    def sample(config):
        method = gaussian.create(config)
        return np.asarray(method.sample_step(keys(2), randomised(method), {}))

    assert np.any(sample(config()) != sample(config(**{field: FLIPS[field]})))


def on_random_outputs(diffusion=None, **changes):
    """The training objective's values where a network says something random."""
    diffusion = {f'diffusion__{name}': value for name, value in (diffusion or changes).items()}
    settings = config(**diffusion)
    model = gaussian.Model.from_config(settings)
    objective = gaussian.make_objective(settings.diffusion, model)
    rng = np.random.default_rng(0)
    x_0, x_t, eps, f, v = rng.uniform(-1, 1, (5, B, 4, 4, 1)).astype(np.float32)
    raw = jnp.concatenate([f, v], -1) if model.learned else f
    return np.asarray(objective(raw, x_0, x_t, jnp.int32([0, 4, 11, 19]), eps)), (x_0, eps, f)


ZERO_SNR = {
    'diffusion__zero_snr': True,
    'diffusion__prediction': 'v',
    'sampler__spacing': 'trailing',
}
HYBRID = {'learned_variance': True, 'loss': 'hybrid'}


@pytest.mark.parametrize(
    ('base', 'flip'),
    [
        ({}, {'betas': 'scaled_linear', 'weighting': 'x_0'}),
        ({}, {'prediction': 'v'}),
        ({}, {'loss': 'vlb'}),
        ({}, {'weighting': 'x_0'}),
        ({}, {'weighting': 'min_snr', 'gamma': 0.1}),
        ({'prediction': 'v'}, {'weighting': 'eps'}),
        ({'prediction': 'v'}, {'zero_snr': True}),
        ({'weighting': 'min_snr'}, {'gamma': 0.1}),
        ({}, HYBRID),
        (HYBRID, {'loss': 'vlb'}),
        (HYBRID, {'vlb_weight': 0.1}),
        (HYBRID, {'weighting': 'min_snr', 'gamma': 0.1}),
    ],
)
def test_every_training_field_changes_the_objective(base, flip):
    assert np.any(on_random_outputs(**base)[0] != on_random_outputs(**base | flip)[0])


def test_weightings_by_hand():
    """Hang et al. 2023, section 3.4: of the squared errors of eps, x_0 and v."""
    model = gaussian.Model.from_config(config())
    snr = (model.process.alpha_bar / (1 - model.process.alpha_bar))[[0, 4, 11, 19]]
    snr, least = (x[:, None, None, None] for x in (snr, np.minimum(snr, 2.0)))
    want = {'eps': least / snr, 'x_0': least, 'v': least / (snr + 1)}
    for prediction, factor in want.items():
        plain, _ = on_random_outputs(prediction=prediction)
        got, _ = on_random_outputs(prediction=prediction, weighting='min_snr', gamma=2.0)
        np.testing.assert_allclose(got, factor * plain, rtol=1e-4)
    plain, (x_0, eps, f) = on_random_outputs()
    np.testing.assert_allclose(plain, (eps - f) ** 2, rtol=1e-5)
    np.testing.assert_allclose(on_random_outputs(prediction='x_0')[0], (x_0 - f) ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    ('prediction', 'zero_snr'),
    [('eps', False), ('x_0', False), ('v', False), ('x_0', True), ('v', True)],
)
def test_what_is_said_of_x_t_is_the_image_and_the_noise(prediction, zero_snr):
    changes = {'diffusion__prediction': prediction, 'diffusion__zero_snr': zero_snr}
    model = gaussian.Model.from_config(config(**changes))
    rng = np.random.default_rng(0)
    x_0, eps = rng.standard_normal((2, B, 4, 4, 1)).astype(np.float32)
    t = jnp.int32([0, 4, 11, 19])
    level = model.process.level(t)
    x_t = level[0] * x_0 + level[1] * eps
    got = model.estimate(model.prediction.target(x_0, eps, *level), x_t, t)
    # Of x_T without any of x_0, even v says x_0.
    np.testing.assert_allclose(got.x_0, x_0, atol=1e-4)
    np.testing.assert_allclose(got.eps, eps, atol=1e-3)
    assert got.share is None


def learned(**changes):
    hybrid = {f'diffusion__{name}': value for name, value in HYBRID.items()}
    return config(sampler__variance='learned_range', **hybrid | changes)


@pytest.mark.slow
def test_a_learned_variance_is_sampled_evaluated_and_guided():
    settings = learned(
        sampler__name='ancestral',
        sampler__spacing='linspace',
        data__num_classes=3,
        diffusion__label_dropout=0.5,
    )
    method = gaussian.create(settings)
    state, label = randomised(method), jnp.int32([0, 2])
    assert state.net.params['conv_out']['kernel'].shape[-1] == 2
    sample = jax.jit(method.sample_step)
    plain = sample(keys(2), state, {'label': label})
    assert plain.shape == (2, 4, 4, 1)
    assert np.isfinite(plain).all()
    strong = sample(keys(2), state, {'label': label, 'guidance': jnp.full(2, 3.0)})
    assert np.abs(plain - strong).max() > 1e-3

    def silenced(path, leaf):
        """Says nothing of variances."""
        return (
            jnp.asarray(leaf).at[..., 1:].set(0)
            if 'conv_out' in jax.tree_util.keystr(path)
            else leaf
        )

    ema = jax.tree_util.tree_map_with_path(silenced, state.net.ema)
    silent = state.replace(net=state.net.replace(ema=ema))
    evaluate = jax.jit(method.evaluate_step)
    bits = [evaluate(keys(B), x, batch())['vlb_bits_per_dim'] for x in (state, silent)]
    assert np.abs(bits[0] - bits[1]).max() > 1e-2


def test_guidance_leaves_the_variance_to_the_condition():
    def said(x_t, t, label):
        label = label[:, None, None, None]
        return jnp.concatenate([x_t + label, 10.0 * x_t + label], -1)

    x_t, label = jnp.ones((2, 3, 3, 1)), jnp.int32([1, 2])
    null, scale, phi = jnp.full(2, 5), jnp.float32([0.0, 3.0]), jnp.zeros(2)
    got = guidance.by_label(said, x_t, jnp.zeros(2), label, null, scale, phi)
    np.testing.assert_allclose(got[..., 0].mean((1, 2)), [1 + 5, 1 + 5 + 3 * (2 - 5)])
    np.testing.assert_allclose(got[..., 1].mean((1, 2)), [11, 12])


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['hybrid', 'vlb'])
def test_losses_with_a_variance_fall(loss):
    method = gaussian.create(learned(diffusion__loss=loss, optimizer__learning_rate=1e-2))
    state = before = jax.jit(method.init)(jax.random.key(0), batch())
    step = jax.jit(method.train_step)
    each = []
    for i in range(30):
        state, metrics = step(jax.random.key(i), state, batch())
        each.append(metrics['loss'])
    assert np.mean(each[-10:]) < 0.8 * np.mean(each[:3])
    same = jax.tree.map(lambda x, y: bool(jnp.all(x == y)), before.net.params, state.net.params)
    assert not any(jax.tree.leaves(same))


def resampled(**changes):
    """(method, compiled step, first state) where the bound draws its times by its losses."""
    vlb = {'diffusion__times': 'loss_second_moment', 'diffusion__loss': 'vlb'}
    settings = learned(optimizer__learning_rate=1e-9, **vlb | changes)
    method = gaussian.create(settings)
    state = jax.jit(method.init)(jax.random.key(0), batch())
    return method, jax.jit(method.train_step), state


@pytest.fixture(scope='module')
def resampling():
    return resampled()


def with_history(state):
    """In which every time has ten losses, by which t = 3 is drawn nearly always."""
    history = {'losses': jnp.ones((20, 10)).at[3].set(1e6), 'count': jnp.full(20, 10)}
    return state.replace(net=state.net.replace(extra={'times': history}))


def assert_drawn_where_losses_were_large(step, state):
    after, metrics = step(jax.random.key(1), with_history(state), batch())
    history = after.net.extra['times']
    gained = np.asarray(history['count']) - 10
    assert gained.sum() == B
    assert gained[3] == B
    kept = np.asarray(history['losses'])[3]
    new = kept[kept < 1e6]
    assert new.shape == (B,)
    # Each counts 1 / (T p_t), and p_t is 0.999 + 0.001 / T of what the others' ones leave.
    np.testing.assert_allclose(metrics['loss'], new.mean() / (20 * 0.99903), rtol=1e-4)


@pytest.mark.slow
def test_times_are_drawn_where_losses_were_large(resampling):
    _, step, state = resampling
    assert_drawn_where_losses_were_large(step, state)


@pytest.mark.slow
def test_parts_of_a_batch_are_remembered_in_turn():
    _, step, state = resampled(accumulate=2)
    assert_drawn_where_losses_were_large(step, state)


@pytest.mark.slow
def test_before_every_time_has_a_history_all_are_alike(resampling):
    method, step, state = resampling
    assert set(state.net.extra) == {'times'}
    after, metrics = step(jax.random.key(1), state, batch())
    history = after.net.extra['times']
    np.testing.assert_allclose(metrics['loss'], history['losses'].sum() / B, rtol=1e-5)
    assert history['count'].sum() == B
    shapes = jax.eval_shape(method.sample_step, keys(2), after, {})  # the network ignores it
    assert shapes.shape == (2, 4, 4, 1)


@pytest.mark.slow
def test_resumed_equals_uninterrupted_with_a_history_of_losses(resampling, tmp_path):
    _, step, state = resampling

    def steps(state, numbers):
        for i in numbers:
            state, _ = step(jax.random.key(i), state, batch())
        return state

    half = steps(with_history(state), range(2))
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        checkpoints.save(2, half, {})
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), half
        )
        _, restored, _ = checkpoints.restore(shapes)
    assert fingerprint(steps(restored, (2, 3))) == fingerprint(steps(half, (2, 3)))
    forgetful = half.replace(net=half.net.replace(extra=state.net.extra))
    assert fingerprint(steps(forgetful, (2, 3))) != fingerprint(steps(half, (2, 3)))


@pytest.mark.slow
def test_variance_changes_ancestral_sampling_and_the_bound():
    outputs = []
    for variance in ('fixed_large', 'fixed_small'):
        method = gaussian.create(config(sampler__name='ancestral', sampler__variance=variance))
        state = randomised(method)
        bits = jax.jit(method.evaluate_step)(keys(B), state, batch())['vlb_bits_per_dim']
        outputs.append((method.sample_step(keys(2), state, {}), bits))
    for large, small in zip(*outputs, strict=True):
        assert np.abs(large - small).max() > 1e-3


@pytest.mark.parametrize('variant', ['', 'vlb'])
def test_improved_ddpm_has_the_papers_network(variant):
    method = gaussian.create(improved_ddpm_cifar10.get_config(variant))
    images = {'image': jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)}
    state = jax.eval_shape(method.init, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(state.net.params)) == 52_546_438
    assert method.network_calls == 4000


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'sampler__name': 'ancestrall'}, "did you mean 'ancestral'"),
        ({'sampler__variance': 'large'}, "did you mean 'fixed_large'"),
        ({'sampler__spacing': 'quadratik'}, "did you mean 'quadratic'"),
        ({'sample__knobs__steps': 0}, r'knobs\.steps=0: expected 1 to timesteps=20'),
        ({'sample__knobs__steps': 21}, '1 to timesteps=20'),
        ({'diffusion__timesteps': 1}, '2 to 10000'),
        ({'diffusion__timesteps': 10_001}, '2 to 10000'),
        ({'diffusion__beta_min': 0.5}, 'beta_min <= beta_max=0.4'),
        ({'diffusion__beta_max': 1.0}, 'less than 1'),
        ({'diffusion__timesteps': 1000, 'diffusion__beta_max': 0.9}, 'fewer than timesteps=1000'),
        (
            {
                'diffusion__timesteps': 10_000,
                'diffusion__beta_max': 0.9,
                'diffusion__zero_snr': True,
                'diffusion__prediction': 'v',
            },
            'nothing of the image',
        ),
        ({'diffusion__label_dropout': 0.1}, 'no labels to hide'),
        ({'diffusion__label_dropout': 1.0}, 'below 1'),
        ({'ema_decay': 1.0}, 'below 1'),
        ({'sample__knobs__eta': 1.5}, '0 to 1'),
        ({'sample__knobs__eta': 0.5, 'sampler__name': 'ancestral'}, 'eta is for ddim and dpmpp_2m'),
        ({'sample__knobs__guidance': 2.0}, 'cannot be guided'),
        ({'diffusion__betas': 'cosin'}, "did you mean 'cosine'"),
        ({'diffusion__prediction': 'velocity'}, 'known are: eps, v, x_0'),
        ({'diffusion__told': 'times'}, "did you mean 'time'"),
        ({'diffusion__weighting': 'minsnr'}, "did you mean 'min_snr'"),
        ({'diffusion__times': 'second_moment'}, "did you mean 'loss_second_moment'"),
        ({'diffusion__gamma': 0.0}, 'more than 0'),
        ({'diffusion__vlb_weight': 0.0}, 'more than 0'),
        ({'diffusion__vlb_weight': float('inf')}, 'vlb_weight=inf: expected more than 0, and fin'),
        ({'diffusion__zero_snr': True}, "'v' or 'x_0' with zero_snr=True"),
        ({**ZERO_SNR, 'diffusion__weighting': 'min_snr'}, "weighting='min_snr'.* is 0"),
        ({**ZERO_SNR, 'diffusion__weighting': 'eps'}, "weighting='eps'.* is 0"),
        (
            {'diffusion__learned_variance': True, 'diffusion__loss': 'hybrid'},
            "variance='fixed_large': expected 'learned_range' with",
        ),
        ({'ema_rampup': float('inf')}, 'ema_rampup=inf: expected 0 .* finite'),
        (
            {'diffusion__zero_snr': True, 'diffusion__prediction': 'v'},
            r"spacing='linear': expected one of \('linspace', 'trailing'\) with zero_snr",
        ),
        ({'diffusion__learned_variance': True}, "'hybrid' or 'vlb'"),
        ({'diffusion__loss': 'hybrid'}, "'simple' or 'vlb'"),
        ({'diffusion__loss': 'vlb', 'diffusion__weighting': 'x_0'}, 'weights of its own'),
        ({'sampler__variance': 'learned_range'}, 'learned_variance=False'),
    ],
)
def test_mistakes_are_named(changes, says):
    with pytest.raises(UserError, match=says) as error:
        gaussian.create(config(**changes))
    assert '\n' not in str(error.value)


def test_missing_labels_and_wrong_images_are_named():
    method = gaussian.create(guided())
    state = randomised(method)
    with pytest.raises(UserError, match=r"no 'label'.*num_classes=3"):
        method.sample_step(keys(2), state, {})
    with pytest.raises(UserError, match="no 'label'"):
        method.train_step(jax.random.key(0), state, {'image': batch()['image']})
    with pytest.raises(UserError, match='shape'):
        method.init(jax.random.key(0), {'image': jnp.zeros((2, 5, 5, 1))})
