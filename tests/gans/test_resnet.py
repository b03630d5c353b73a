"""SNGAN's networks and their options; agreement with StudioGAN's is in tests/parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from games import is_finer_than_bfloat16
from ml_collections import ConfigDict

from gen_jax.errors import UserError
from gen_jax.gans.blocks import Layers
from gen_jax.gans.resnet import Discriminator, Generator, defaults, from_config

SMALL = {'channels': 8, 'multipliers': (1, 1), 'attention': (8, 4), 'num_classes': 3}


def small_generator(**changes):
    return Generator(**{**SMALL, 'latent_dim': 5, 'out_channels': 2, 'spectral': True, **changes})


def small_discriminator(**changes):
    return Discriminator(**{**SMALL, 'halvings': 1, **changes})


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


Z, X, LABEL = noise(3, 5), np.tanh(noise(3, 8, 8, 2)), jnp.int32([0, 2, 1])


def inputs(net):
    return Z if isinstance(net, Generator) else X


@pytest.fixture(scope='module')
def variables(random_variables):
    """Net -> its variables."""
    return functools.cache(lambda net: random_variables(net, inputs(net), LABEL))


def trained(net, given):
    """The result in training, and the new collections."""
    kept = ['batch_stats', 'spectral']
    run = jax.jit(lambda given: net.apply(given, inputs(net), LABEL, train=True, mutable=kept))
    return run(given)


@functools.cache
def apply(net):
    """(variables, x, label) -> the result in evaluation."""
    return jax.jit(lambda *args: net.apply(*args, train=False))


def test_images_of_any_size_within_their_range(variables):
    for net, size in ((small_generator(base_size=7), 14), (small_generator(multipliers=(1,)), 4)):
        images = jax.eval_shape(
            lambda net=net: net.init_with_output(jax.random.key(0), Z, LABEL, train=False)[0]
        )
        assert (images.shape, images.dtype) == ((3, size, size, 2), jnp.float32)
    net = small_generator()
    images = apply(net)(variables(net), Z, LABEL)
    assert 0.3 < np.abs(images).max() <= 1


@pytest.mark.parametrize('net', [small_generator(), small_discriminator()])
def test_examples_do_not_mix_in_evaluation_and_labels_matter(net, variables):
    run, params, given = apply(net), variables(net), inputs(net)
    one = run(params, given, LABEL)
    moved = given.copy()
    moved[0] += 1
    other = run(params, moved, LABEL.at[2].set(0))
    difference = np.abs(one - other).reshape(3, -1).max(1)
    assert difference[1] < 1e-6
    assert min(difference[0], difference[2]) > 1e-3


def test_without_classes_a_label_is_nothing(variables):
    net = small_generator(num_classes=0)
    images = apply(net)(variables(net), Z, LABEL)
    np.testing.assert_array_equal(images, apply(net)(variables(net), Z, None))


def test_in_training_statistics_and_vectors_move(variables):
    net = small_generator()
    before = variables(net)
    before = {**before, 'spectral': jax.tree.map(np.ones_like, before['spectral'])}
    _, after = trained(net, before)
    for old, new in zip(*(jax.tree.leaves(x['batch_stats']) for x in (before, after)), strict=True):
        assert np.abs(old - new).max() > 1e-3
    old, new = (x['spectral']['block_0'] for x in (before, after))
    for name in ('conv1', 'conv2', 'conv_shortcut'):
        assert np.abs(old[name]['u'] - new[name]['u']).max() > 1e-3
    # Those by which norms are told of the class are divided too.
    assert np.abs(old['norm1']['gain']['u'] - new['norm1']['gain']['u']).max() > 1e-3


def gradients(net, head, given):
    x = inputs(net)

    def loss(params):
        y, found = net.apply(
            {**given, 'params': params}, x, LABEL, train=False, mutable=['intermediates']
        )
        return head(y, found['intermediates'] if found else {})

    return jax.jit(jax.grad(loss))(given['params'])


def squares(y, found):
    del found
    return (y**2).mean()


def both(y, found):
    return (y**2).mean() + (found['class_logits'][0] ** 2).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('net', 'head'),
    [
        (small_generator(), squares),
        (small_discriminator(), squares),
        (small_discriminator(head='auxiliary', spectral=False, batch_norm=True), both),
    ],
)
def test_every_parameter_has_a_gradient(net, head, variables):
    for path, grad in jax.tree_util.tree_leaves_with_path(gradients(net, head, variables(net))):
        assert np.abs(grad).max() > 1e-7, jax.tree_util.keystr(path)


def test_what_a_discriminator_finds(variables):
    net = small_discriminator(head='auxiliary')
    given = variables(net)
    run = jax.jit(lambda *args: net.apply(*args, train=False, mutable=['intermediates']))
    logits, sown = run(given, X, LABEL)
    (features,) = sown['intermediates']['features']
    (classes,) = sown['intermediates']['class_logits']
    assert (logits.shape, features.shape, classes.shape) == ((3,), (3, 8), (3, 3))
    assert features.min() >= 0
    kernel, bias, u, v = (
        given[part]['dense'][name]
        for part, name in (
            ('params', 'kernel'),
            ('params', 'bias'),
            ('spectral', 'u'),
            ('spectral', 'v'),
        )
    )
    want = features @ kernel[:, 0] / (v @ kernel @ u) + bias
    np.testing.assert_allclose(logits, want, rtol=1e-4)
    # The label is not told.
    np.testing.assert_array_equal(run(given, X, LABEL + 1)[0], logits)
    assert 'class_logits' not in run_names(small_discriminator())


def run_names(net):
    def run():
        return net.init_with_output(
            jax.random.key(0),
            X,
            LABEL,
            train=False,
            mutable=['params', 'spectral', 'intermediates'],
        )

    return jax.eval_shape(run)[1]['intermediates']


@pytest.mark.slow
def test_a_penalty_on_gradients_can_be_descended(variables):
    """A WGAN-GP critic's gradient by its input has a gradient by the weights."""
    net = small_discriminator(spectral=False, multipliers=(1,), attention=(4,))
    given = variables(net)

    def penalty(params):
        by_image = jax.grad(lambda x: net.apply({'params': params}, x, LABEL, train=True).sum())(X)
        return ((jnp.sqrt((by_image**2).sum((1, 2, 3)) + 1e-12) - 1) ** 2).mean()

    value, slope = jax.jit(jax.value_and_grad(penalty))(given['params'])
    length = optax.tree.norm(slope)
    step = 0.002 * value / length

    def along(distance):
        moved = jax.tree.map(lambda w, g: w + distance * g / length, given['params'], slope)
        return penalty(moved)

    ahead, behind = jax.lax.map(along, jnp.array([step, -step]))
    assert (ahead - behind) / (2 * step) == pytest.approx(float(length), rel=0.05)


@pytest.mark.parametrize(
    ('name', 'deviation'), [('orthogonal', 1 / 144**0.5), ('normal', 0.02), ('xavier', 1 / 12)]
)
def test_initial_values(name, deviation):
    """Of a kernel [144, 16], and of tables; biases are 0."""
    layers = Layers(True, False, False, 1e-5, name, jnp.float32)
    params = layers.conv3x3(16, 'conv').init(jax.random.key(0), noise(1, 4, 4, 16))['params']
    assert np.std(params['kernel']) == pytest.approx(deviation, rel=0.1)
    kernel = params['kernel'].reshape(-1, 16)
    is_orthogonal = np.abs(kernel.T @ kernel - np.eye(16)).max() < 1e-5
    assert is_orthogonal == (name == 'orthogonal')
    assert not params['bias'].any()
    table = layers.embed(12, 12, 'embedding').init(jax.random.key(0), LABEL)['params']['embedding']
    want = {'orthogonal': 12**-0.5, 'normal': 0.02, 'xavier': 12**-0.5}[name]
    assert np.std(table) == pytest.approx(want, rel=0.2)


@pytest.mark.parametrize('net', [small_generator(), small_discriminator()])
def test_bfloat16_computes_roughly_the_same_in_float32_out(net, variables):
    exact, rough = (
        apply(made)(variables(net), inputs(net), LABEL)
        for made in (net, net.clone(dtype=jnp.bfloat16))
    )
    assert is_finer_than_bfloat16(jnp.arctanh(rough) if rough.ndim == 4 else rough)
    assert 1e-5 < np.abs(exact - rough).max() / np.std(exact) < 0.3


def config(**changes):
    made = ConfigDict({'model': defaults(), 'data': {'image_size': 32, 'channels': 3}})
    made.update_from_flattened_dict(changes)
    return made


def test_every_field_of_the_config_reaches_the_networks():
    changes = {
        'latent_dim': 7,
        'channels': 16,
        'g_multipliers': (4, 2),
        'd_multipliers': (1, 2, 3),
        'd_halvings': 1,
        'attention': (16,),
        'condition': 'auxiliary',
        'g_spectral': True,
        'd_spectral': False,
        'd_batch_norm': True,
        'norm_epsilon': 1e-3,
        'weight_init': 'normal',
        'dtype': 'bfloat16',
    }
    assert changes.keys() == defaults().keys()
    made = config(**{f'model.{name}': x for name, x in changes.items()}, **{'data.channels': 1})
    both = {'channels': 16, 'attention': (16,), 'num_classes': 9, 'epsilon': 1e-3}
    both |= {'weight_init': 'normal', 'dtype': jnp.bfloat16}
    assert from_config(made, 9) == (
        Generator(
            latent_dim=7, multipliers=(4, 2), base_size=16, out_channels=1, spectral=True, **both
        ),
        Discriminator(
            multipliers=(1, 2, 3),
            halvings=1,
            head='auxiliary',
            spectral=False,
            batch_norm=True,
            **both,
        ),
    )
    assert from_config(config(), 10) == (Generator(num_classes=10), Discriminator(num_classes=10))
    unconditional = Generator(), Discriminator()
    assert from_config(config(**{'model.condition': 'none'}), 10) == unconditional
    assert from_config(config(), 0) == unconditional


@pytest.mark.parametrize(
    ('field', 'value', 'says'),
    [
        ('data.image_size', 28, r'a multiple of 8, for 3 doublings .* and 2 halvings'),
        ('model.latent_dim', 0, 'at least 1'),
        ('model.channels', 0, 'at least 1'),
        ('model.g_multipliers', (4,), '2 or more'),
        ('model.d_multipliers', (2, 0), 'whole numbers of at least 1'),
        ('model.d_halvings', 5, 'from 0 to 4'),
        ('model.attention', (8, 4), r'which here are \[8, 16, 32\]'),
        ('model.condition', 'projecton', "did you mean 'projection'"),
        ('model.norm_epsilon', 0.0, 'positive'),
        ('model.norm_epsilon', float('inf'), 'positive'),
        ('model.weight_init', 'ortho', "did you mean 'orthogonal'"),
        ('model.dtype', 'float23', "did you mean 'float32'"),
    ],
)
def test_mistakes_are_named(field, value, says):
    with pytest.raises(UserError, match=says) as error:
        from_config(config(**{field: value}), 0)
    assert '\n' not in str(error.value)
