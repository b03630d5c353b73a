import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from gen_jax.errors import UserError
from gen_jax.metrics import lpips as module
from gen_jax.metrics.lpips import LPIPS, NETS, lpips

SIDE = 32


def images(n=2, side=SIDE, channels=3, seed=0):
    shape = (n, side, side + 3, channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def torch_state(net):
    """Random weights as torch's two files hold them: {name: [out, in, ...]}, and the heads."""
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    shapes = flatten_dict(jax.eval_shape(LPIPS(net).init, jax.random.key(0), image, image))
    rng = np.random.default_rng(5)
    backbone, heads = {}, {}
    for (_, *modules, leaf), spec in shapes.items():
        name = '.'.join(modules) + ('.weight' if leaf == 'kernel' else '.bias')
        x = rng.normal(size=spec.shape) * np.sqrt(2 / np.prod(spec.shape[:-1]))
        if modules[0] != 'net':
            heads[name] = np.float32(abs(x)).T[:, :, None, None].copy()
        else:
            x = x.transpose(3, 2, 0, 1) if leaf == 'kernel' else 0.1 * x
            backbone[name.removeprefix('net.')] = np.float32(x).copy()
    return backbone, heads


def write(folder, backbone, heads):
    save_file(backbone, folder / 'backbone.safetensors')
    save_file(heads, folder / 'heads.safetensors')
    return folder / 'backbone.safetensors', folder / 'heads.safetensors'


@pytest.fixture(scope='module')
def variables(tmp_path_factory):
    """{net: variables} of the small networks, read from files."""
    loaded = {}
    for net in ('alex', 'squeeze'):
        loaded[net] = module.load(net, *write(tmp_path_factory.mktemp(net), *torch_state(net)))
    return loaded


@pytest.fixture(scope='module')
def distance(variables):
    """(x, y, net) -> [b], jitted."""
    jitted = jax.jit(lpips, static_argnames='net')
    return lambda x, y, net: jitted(variables[net], x, y, net=net)


@pytest.mark.slow
@pytest.mark.parametrize('net', ['alex', 'squeeze'])
def test_definition(variables, distance, net):
    """Eq. 1 of Zhang et al. 2018, place by place, in float64."""
    x, y = images(), images(seed=1)
    params = variables[net]['params']
    backbone = NETS[net].module()
    want = np.zeros(2)
    taps = []
    for image in (x, y):
        # Pixels in [0, 1], less ImageNet's mean, over its deviation, as the paper's networks want.
        image = (image / 2 + 0.5 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
        taps.append(jax.jit(backbone.apply)({'params': params['net']}, np.float32(image)))
    for i, (a, b) in enumerate(zip(*taps, strict=True)):
        weights = np.float64(params[f'lin{i}.model.1']['kernel'][:, 0])
        a, b = (
            np.float64(t) / np.linalg.norm(np.float64(t), axis=-1, keepdims=True) for t in (a, b)
        )
        want += (weights * (a - b) ** 2).sum(-1).mean((1, 2))
    np.testing.assert_allclose(distance(x, y, net), want, rtol=1e-4)


def test_is_a_distance(distance):
    x, y = images(), images(seed=1)
    np.testing.assert_allclose(distance(x, x, 'alex'), 0, atol=1e-9)
    there, back = distance(x, y, 'alex'), distance(y, x, 'alex')
    np.testing.assert_allclose(there, back, rtol=1e-5)
    assert (there > 0.01).all()
    near = distance(x, 0.9 * x + 0.1 * y, 'alex')
    assert (near < there).all()
    np.testing.assert_allclose(distance(x[1:], y[1:], 'alex'), there[1:], rtol=1e-4)


def test_grey_is_repeated(distance):
    x, y = images(channels=1), images(channels=1, seed=1)
    want = distance(np.repeat(x, 3, -1), np.repeat(y, 3, -1), 'alex')
    np.testing.assert_allclose(distance(x, y, 'alex'), want, rtol=1e-5)


@pytest.mark.slow
def test_gradients_are_finite_where_features_vanish(variables):
    """Biases below 0 and no weights: every rectified feature is 0, and has no direction."""
    dead = jax.tree.map(lambda p: -np.ones_like(p) if p.ndim == 1 else 0 * p, variables['alex'])
    x, y = images(1, 31), images(1, 31, seed=1)
    gradient = jax.jit(jax.grad(lambda x, v: lpips(v, x, y, 'alex')[0]))(x, dead)
    np.testing.assert_array_equal(gradient, 0)


def test_load_leaves_the_classifier_out(variables, tmp_path):
    backbone, heads = torch_state('alex')
    extra = {'classifier.1.weight': np.ones((4, 5), np.float32)}
    loaded = module.load('alex', *write(tmp_path, backbone | extra, heads))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables['alex'])


def test_load_refuses_other_networks(tmp_path):
    alex, squeeze = torch_state('alex'), torch_state('squeeze')
    for wrong in ((squeeze[0], alex[1]), (alex[0], squeeze[1]), (alex[0] | squeeze[0], alex[1])):
        files = write(tmp_path, *wrong)
        with pytest.raises(UserError, match='weights of another network'):
            module.load('alex', *files)
    files = write(tmp_path, alex[0] | {'head.weight': np.ones(3, np.float32)}, alex[1])
    with pytest.raises(UserError, match=r'backbone.*head\.weight'):
        module.load('alex', *files)
    with pytest.raises(UserError, match='not found'):
        module.load('alex', tmp_path / 'none.pth', files[1])


@pytest.mark.parametrize('net', NETS)
def test_files(net):
    assert NETS[net].heads.url.endswith(f'/lpips/weights/v0.1/{net}.pth')
    assert len({file.name for other in NETS.values() for file in other[1:3]}) == 6


@pytest.mark.parametrize(('net', 'side'), [('alex', 31), ('vgg', 16), ('squeeze', 17)])
def test_smallest_images(net, side):
    x = jnp.zeros((1, side, side, 3))
    variables = jax.eval_shape(LPIPS(net).init, jax.random.key(0), x, x)
    assert jax.eval_shape(lambda v: lpips(v, x, x, net), variables).shape == (1,)
    with pytest.raises(UserError, match=f'at least {side}x{side}'):
        lpips(variables, x[:, 1:], x[:, 1:], net)


def test_refuses():
    x = images(1)
    with pytest.raises(UserError, match='expected one of alex, vgg, squeeze'):
        lpips({}, x, x, 'resnet')
    with pytest.raises(UserError, match='expected one of alex, vgg, squeeze'):
        module.load('resnet')
    with pytest.raises(UserError, match='2 channels'):
        lpips({}, x[..., :2], x[..., :2], 'alex')
    with pytest.raises(UserError, match='one shape'):
        lpips({}, x, x[:, 1:], 'alex')
    with pytest.raises(UserError, match='uint8'):
        lpips({}, np.uint8(x), np.uint8(x), 'alex')
