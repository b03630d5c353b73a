"""The classifier: its network by hand, its side of the contract, and the files it is shipped in."""

import functools
import json

import jax
import numpy as np
import pytest
import scipy.signal
import scipy.special
from safetensors.numpy import load_file, save_file

from gen_jax import config as house
from gen_jax.data import pipeline, sources
from gen_jax.errors import UserError
from gen_jax.metrics.features import classifier

SHIPPED = ('digits', 'fashion_mnist')


def small(**changes):
    config = house.default('metrics.features.classifier')
    config.update_from_flattened_dict(
        {'data.num_classes': 4, 'model.widths': (4, 6), 'model.features': 8}
    )
    config.update_from_flattened_dict(changes)
    return config


def batch_of(n, size=8, channels=1):
    image = np.random.default_rng(5).uniform(-1, 1, (n, size, size, channels))
    return {'image': image.astype(np.float32), 'label': np.arange(n, dtype=np.int32) % 4}


@functools.cache
def start(**changes):
    """(method, fresh state) of a small model."""
    method = classifier.create(small(**changes))
    return method, jax.jit(method.init)(jax.random.key(0), batch_of(2))


# --- the network ---------------------------------------------------------------------------------


def by_hand(params, image):
    """Logits and features of one image [h, w, c], by SciPy's correlation and NumPy."""
    x, i = np.asarray(image), 0
    while f'conv_{i}' in params:
        kernel, bias = params[f'conv_{i}']['kernel'], params[f'conv_{i}']['bias']
        out = [
            sum(
                scipy.signal.correlate2d(x[..., c], kernel[..., c, o], 'same')
                for c in range(x.shape[-1])
            )
            + bias[o]
            for o in range(kernel.shape[-1])
        ]
        x = np.maximum(np.stack(out, -1), 0)
        h, w, c = x.shape[0] // 2, x.shape[1] // 2, x.shape[2]
        x = x[: 2 * h, : 2 * w].reshape(h, 2, w, 2, c).max((1, 3))
        i += 1
    pool = np.maximum(x.ravel() @ params['hidden']['kernel'] + params['hidden']['bias'], 0)
    return pool, pool @ params['out']['kernel'] + params['out']['bias']


@pytest.mark.parametrize(('size', 'channels'), [(8, 1), (11, 3)])
def test_the_network_is_what_it_says(size, channels):
    module = classifier.Classifier((4, 6), 8, 4, dropout=0.5)
    x = batch_of(3, size, channels)['image']
    params = jax.tree.map(np.array, jax.jit(module.init)(jax.random.key(0), x)['params'])
    params['conv_1']['bias'] = np.linspace(-1, 1, 6, dtype=np.float32)
    ours = jax.jit(module.apply)({'params': params}, x)
    assert (ours['pool'].shape, ours['logits'].shape) == ((3, 8), (3, 4))
    for i in range(3):
        pool, logits = by_hand(params, x[i])
        np.testing.assert_allclose(ours['pool'][i], pool, atol=1e-5)
        np.testing.assert_allclose(ours['logits'][i], logits, atol=1e-5)


def test_dropout_only_in_training():
    module = classifier.Classifier((4, 6), 8, 4, dropout=0.5)
    x, variables = batch_of(3)['image'], {'params': start()[1].net.params}

    @jax.jit
    def drawn(key):
        return module.apply(variables, x, train=True, rngs={'dropout': key})['logits']

    pair = [np.asarray(drawn(jax.random.key(i))) for i in range(2)]
    assert np.abs(pair[0] - pair[1]).max() > 1e-3


def test_shifts_are_whole_pixels_all_equally_likely():
    # Away from the edge a pixel's value says where it came from.
    ramp = np.arange(81.0, dtype=np.float32).reshape(1, 9, 9, 1).repeat(4000, 0)
    shifted = jax.jit(classifier.shifted, static_argnums=2)
    moved = np.asarray(shifted(jax.random.key(0), ramp, 1))
    assert moved.shape == ramp.shape
    came_from = moved[:, 4, 4, 0].astype(int) - 40  # 9 * dy + dx
    offsets, counts = np.unique(came_from, return_counts=True)
    assert offsets.tolist() == [9 * dy + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert counts.min() > 4000 / 9 - 4 * np.sqrt(4000 / 9)
    for image, offset in zip(moved[:20], came_from[:20], strict=True):
        dy, dx = (offset + 10) // 9 - 1, (offset + 10) % 9 - 1
        rows, columns = np.clip(np.arange(9) + dy, 0, 8), np.clip(np.arange(9) + dx, 0, 8)
        np.testing.assert_array_equal(image[..., 0], np.arange(81).reshape(9, 9)[rows][:, columns])
    np.testing.assert_array_equal(shifted(jax.random.key(0), ramp, 0), ramp)


# --- the contract --------------------------------------------------------------------------------


@functools.cache
def trained(**changes):
    """(state, metrics) after 40 steps on one batch without shifts, and the first step's loss."""
    method, state = classifier.create(small(shift=0, **changes)), start()[1]
    step, losses = jax.jit(method.train_step), []
    for i in range(40):
        state, metrics = step(jax.random.key(i), state, batch_of(4))
        losses.append(float(metrics['loss']))
    return state, metrics, losses[0]


@pytest.mark.slow
def test_training_reaches_every_parameter_and_learns():
    state, metrics, first = trained(**{'optimizer.learning_rate': 1e-2})
    assert metrics.keys() == {'loss', 'accuracy', 'grad_norm'}
    assert metrics['accuracy'] == 1
    assert metrics['loss'] < 0.3 * first
    for weights in (state.net.params, state.net.ema):
        changed = jax.tree.map(lambda a, b: bool((a != b).any()), weights, start()[1].net.params)
        assert all(jax.tree.leaves(changed)), changed


@pytest.mark.parametrize('field', ['shift', 'model.dropout'])
def test_shift_and_dropout_reach_the_loss(field):
    changes = {'optimizer.learning_rate': 1e-2}
    value = 1 if field == 'shift' else 0.5
    method = classifier.create(small(**{'shift': 0, field: value}))
    _, metrics = jax.jit(method.train_step)(jax.random.key(0), start()[1], batch_of(4))
    assert abs(metrics['loss'] - trained(**changes)[2]) > 1e-4


def test_evaluation_is_softmax_cross_entropy_per_example_by_the_averaged_weights():
    method, state = start()
    batch, evaluate = batch_of(6), jax.jit(method.evaluate_step)
    keys = jax.random.split(jax.random.key(0), 6)
    module = classifier.build(small())
    logits = jax.jit(module.apply)({'params': state.net.ema}, batch['image'])['logits']
    logits = np.asarray(logits)
    # The parameters themselves, which must not be asked, would name nothing.
    spoilt = state.replace(net=state.net.replace(params=jax.tree.map(np.zeros_like, state.net.ema)))
    rows = evaluate(keys, spoilt, batch)
    log_p = scipy.special.log_softmax(logits, axis=1)
    label = np.asarray(batch['label'])
    np.testing.assert_allclose(rows['cross_entropy'], -log_p[np.arange(6), label], rtol=1e-5)
    np.testing.assert_array_equal(rows['accuracy'], logits.argmax(1) == label)
    alone = evaluate(keys[2:3], spoilt, jax.tree.map(lambda x: x[2:3], batch))
    np.testing.assert_allclose(alone['cross_entropy'][0], rows['cross_entropy'][2], rtol=1e-5)
    assert method.sample_step is None


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('data.num_classes', 0),
        ('model.widths', ()),
        ('model.widths', (4, 0)),
        ('data.image_size', 3),
        ('model.features', 0),
        ('model.dropout', 1.0),
        ('shift', -1),
        ('shift', 8),
        ('ema_decay', 1.0),
    ],
)
def test_bad_values_are_named_in_one_line(field, value):
    with pytest.raises(UserError) as error:
        house.create(small(**{field: value}))
    assert f'config.{field}={value!r}' in str(error.value)
    assert '\n' not in str(error.value)


def test_a_batch_of_another_shape_is_told():
    method, state = start()
    with pytest.raises(UserError, match='image_size'):
        method.evaluate_step(jax.random.split(jax.random.key(0), 2), state, batch_of(2, 12))


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """(path, parameters, metadata) of a small network."""
    params = jax.tree.map(np.asarray, start()[1].net.params)
    metadata = {'image_size': 8, 'channels': 1, 'classes': 4, 'widths': [4, 6], 'features': 8}
    path = tmp_path / 'network.safetensors'
    classifier.save(path, params, metadata | {'accuracy': 0.25, 'config': 'x'})
    return path, params, metadata


def test_load_reads_what_save_wrote(saved):
    path, params, metadata = saved
    module, variables, read = classifier.load(path)
    assert module == classifier.Classifier((4, 6), 8, 4)
    assert read == metadata | {'accuracy': 0.25, 'config': 'x', 'path': str(path)}
    jax.tree.map(np.testing.assert_array_equal, variables['params'], params)
    assert [x.name for x in path.parent.iterdir()] == [path.name]
    before = path.read_bytes()
    classifier.save(path, params, metadata | {'accuracy': 0.25, 'config': 'x'})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'widths': [4, 7]}, r'conv_1\.bias is float32 \(6,\) .* float32 \(7,\)'),
        ({'widths': [4]}, r'hidden\.kernel'),
        ({'widths': [4, 6, 6], 'image_size': 16}, r'conv_2\.bias is nothing'),
        ({'channels': 3}, r'conv_0\.kernel'),
        ({'classes': 5}, r'out\.bias'),
        ({'features': None}, "lack 'features'"),
    ],
)
def test_weights_of_another_network_are_refused(saved, change, says):
    path, params, metadata = saved
    metadata = {k: v for k, v in (metadata | change).items() if v is not None}
    classifier.save(path, params, metadata)
    with pytest.raises(UserError, match=says) as error:
        classifier.load(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


def test_superfluous_tensors_and_other_types_are_refused(saved):
    path, _, metadata = saved
    tensors = load_file(path)
    texts = {'classifier': json.dumps(metadata)}
    save_file(tensors | {'more': np.zeros(1, np.float32)}, path, texts)
    with pytest.raises(UserError, match=r'more is float32 \(1,\) where .* nothing'):
        classifier.load(path)
    save_file({name: x.astype(np.float16) for name, x in tensors.items()}, path, texts)
    with pytest.raises(UserError, match='float16'):
        classifier.load(path)


def test_what_is_no_file_of_a_classifier_is_told(tmp_path):
    with pytest.raises(UserError, match="did you mean 'digits'"):
        classifier.load('digit')
    with pytest.raises(UserError, match=r'none\.safetensors not found'):
        classifier.load(tmp_path / 'none.safetensors')
    broken = tmp_path / 'broken.safetensors'
    broken.write_bytes(b'\x08\0\0\0\0\0\0\0{"a": 1}')
    with pytest.raises(UserError, match='no file of a classifier'):
        classifier.load(broken)
    for texts in (None, {'format': 'pt'}):
        save_file({'a': np.zeros(1, np.float32)}, broken, texts)
        with pytest.raises(UserError, match="lack 'image_size'"):
            classifier.load(broken)
    save_file({'a': np.zeros(1, np.float32)}, broken, {'classifier': '{'})
    with pytest.raises(UserError, match='no file of a classifier'):
        classifier.load(broken)


@pytest.mark.parametrize('name', SHIPPED)
def test_the_shipped_networks_are_small_and_say_where_they_come_from(name):
    module, variables, metadata = classifier.load(name)
    path = classifier._find(name)
    assert path.stat().st_size < 1_000_000
    assert sum(x.size for x in jax.tree.leaves(variables)) < 250_000
    assert metadata['config'] == f'classifier_{name}'
    assert (metadata['classes'], module.classes) == (10, 10)
    least, n, data = {
        'digits': (0.98, 296, 'digits test'),
        'fashion_mnist': (0.925, 10_000, 'tfds:fashion_mnist test'),
    }[name]
    assert metadata['accuracy'] >= least
    assert (metadata['n'], metadata['data']) == (n, data)


def test_the_shipped_digits_network_is_as_good_as_its_file_says():
    module, variables, metadata = classifier.load('digits')
    data = house.default('metrics.features.classifier').data
    source = sources.open_source(data, 'test')
    examples = [source[i] for i in range(len(source))]
    images = pipeline.to_float(np.stack([example['image'] for example in examples]))
    seen = jax.jit(module.apply)(variables, images)['logits'].argmax(-1)
    right = np.array(seen) == [example['label'] for example in examples]
    assert right.mean() == pytest.approx(metadata['accuracy'], abs=1e-6)
