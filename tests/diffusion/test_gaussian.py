import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.config import default, validate
from gen_jax.diffusion import gaussian
from gen_jax.errors import UserError
from gen_jax.runtime.program import Program

B = 4


def config(**changes):
    """A net of a few thousand parameters; `data__num_classes=3` sets config.data.num_classes."""
    config = default('diffusion.gaussian')
    config.update_from_flattened_dict(
        {
            'data.image_size': 4,
            'model.channels': 8,
            'model.multipliers': (1,),
            'model.attention': (),
            'model.groups': 4,
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


def test_training_lowers_the_loss():
    method = gaussian.create(config())
    state = jax.jit(method.init)(jax.random.key(0), batch())
    step = jax.jit(method.train_step)
    losses = []
    for i in range(40):
        state, metrics = step(jax.random.key(i), state, batch())
        losses.append(float(metrics['loss']))
    assert set(metrics) == {'loss', 'grad_norm'}
    # The first prediction is near 0, so that the first loss is near E eps^2 = 1.
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


@pytest.mark.parametrize('name', gaussian.NAMES)
@pytest.mark.parametrize('make', [config, guided])
def test_samples(make, name):
    method = gaussian.create(make(sampler__name=name))
    state = randomised(method)
    label = jnp.arange(5, dtype=jnp.int32) % 3
    five = jax.jit(method.sample_step)(keys(5), state, {'label': label})
    one = jax.jit(method.sample_step)(keys(1), state, {'label': label[:1]})
    assert five.shape == (5, 4, 4, 1)
    assert five.dtype == jnp.float32
    assert np.abs(five).max() <= 1
    np.testing.assert_allclose(five[:1], one, atol=1e-4)
    assert len(np.unique(five.reshape(5, -1), axis=0)) == 5


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


@pytest.mark.parametrize('make', [config, guided])
def test_evaluate_gives_one_number_per_example(make):
    method = gaussian.create(make())
    state, whole = randomised(method), batch()
    evaluate = jax.jit(method.evaluate_step)
    out = evaluate(keys(B), state, whole)
    assert set(out) == {'simple_loss', 'vlb_bits_per_dim'}
    alone = evaluate(keys(B)[1:2], state, {k: v[1:2] for k, v in whole.items()})
    for name, values in out.items():
        assert values.shape == (B,)
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values[1:2], alone[name], rtol=1e-3)


FLIPS = {
    'diffusion__timesteps': 21,
    'diffusion__beta_min': 0.01,
    'diffusion__beta_max': 0.3,
    'sampler__name': 'ddpm',
    'sample__knobs__steps': 4,
    'sampler__spacing': 'quadratic',
    'sampler__clip': False,
    'sample__knobs__eta': 0.5,
    'model__dtype': 'bfloat16',
}


@pytest.mark.parametrize('field', FLIPS)
def test_every_sampling_field_changes_the_sample(field):
    def sample(config):
        method = gaussian.create(config)
        return np.asarray(method.sample_step(keys(2), randomised(method), {}))

    assert np.any(sample(config()) != sample(config(**{field: FLIPS[field]})))


def test_variance_changes_ancestral_sampling_and_the_bound():
    outputs = []
    for variance in ('fixed_large', 'fixed_small'):
        method = gaussian.create(config(sampler__name='ddpm', sampler__variance=variance))
        state = randomised(method)
        bits = jax.jit(method.evaluate_step)(keys(B), state, batch())['vlb_bits_per_dim']
        outputs.append((method.sample_step(keys(2), state, {}), bits))
    for large, small in zip(*outputs, strict=True):
        assert np.abs(large - small).max() > 1e-3


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'sampler__name': 'ddmp'}, "did you mean 'ddpm'"),
        ({'sampler__variance': 'large'}, "did you mean 'fixed_large'"),
        ({'sampler__spacing': 'quadratik'}, "did you mean 'quadratic'"),
        ({'sample__knobs__steps': 0}, r'knobs\.steps=0: expected 1 to timesteps=20'),
        ({'sample__knobs__steps': 21}, '1 to timesteps=20'),
        ({'diffusion__timesteps': 1}, '2 to 10000'),
        ({'diffusion__timesteps': 10_001}, '2 to 10000'),
        ({'diffusion__beta_min': 0.5}, 'beta_min <= beta_max=0.4'),
        ({'diffusion__beta_max': 1.0}, 'less than 1'),
        ({'diffusion__label_dropout': 0.1}, 'no labels to hide'),
        ({'diffusion__label_dropout': 1.0}, 'below 1'),
        ({'ema_decay': 1.0}, 'ema_decay < 1'),
        ({'sample__knobs__eta': 1.5}, '0 to 1'),
        ({'sample__knobs__eta': 0.5, 'sampler__name': 'ddpm'}, "only 'ddim' knows eta"),
        ({'sample__knobs__guidance': 2.0}, 'cannot be guided'),
        ({'model__groups': 3}, 'groups'),
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
