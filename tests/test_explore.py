"""--mode=explore, on a generator whose images are linear in its styles."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import stylegan2_cifar10
from gen_jax import explore, yardsticks
from gen_jax.config import create, default
from gen_jax.data import sources
from gen_jax.data.pipeline import to_float
from gen_jax.errors import UserError
from gen_jax.method import Latents, Method, Net
from gen_jax.metrics import lpips
from gen_jax.runtime.checkpoint import Checkpoints
from gen_jax.runtime.program import Program

STEP, LAYERS, SIZE, DIM = 7, 4, 16, 3
SCALES = np.float32([2.0, 1.0, 0.5])  # deviations of w
MEAN = np.float32([0.5, -0.5, 0.25])
# What each layer's w adds to an image; the first number of the first layer is brightness alone.
RANDOM = np.random.default_rng(0).normal(size=(LAYERS, DIM, SIZE, SIZE, 1)).astype(np.float32)
BASIS = 0.02 * (RANDOM - RANDOM.mean((2, 3, 4), keepdims=True))
BASIS[0, 0] += 0.05


class State(Net):
    """A state of one network, as modes know it."""


def image_of(ws):
    """[n, layers, d] -> [n, h, w, c]."""
    return jnp.clip(jnp.einsum('nld,ldhwc->nhwc', ws, BASIS), -1, 1)


def mapping(state, z, condition):
    w = state.params['mean'] + jnp.reshape(condition.get('psi', 1.0), (-1, 1)) * (SCALES * z)
    return jnp.broadcast_to(w[:, None], (len(z), LAYERS, DIM))


LINEAR = Method(
    lambda key, batch: State({'mean': jnp.asarray(MEAN)}, None, (), {}),
    None,
    latents=Latents(DIM, mapping, lambda state, ws, condition: image_of(ws), True, 'psi'),
)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(**fields of config.explore) -> what the .npz has, the picture, what was said."""
    monkeypatch.setattr(explore, 'create', lambda config: LINEAR)
    with contextlib.closing(Checkpoints(tmp_path / 'checkpoints', keep=1)) as checkpoints:
        checkpoints.save(STEP, LINEAR.init(None, None), {})

    def run(task, size=SIZE, network='inception', perceptual='ssim', **changes):
        config = default('gans.adversarial', network='stylegan2')
        config.sample.batch_size = 8
        config.data.image_size = size
        config.eval.update({'network': network, 'perceptual': perceptual})
        config.explore.update({'task': task, 'rows': 2, 'columns': 3, 'samples': 500, **changes})
        explore.run(config, tmp_path)
        path = tmp_path / 'explore' / f'{task}_{STEP:08d}.png'
        with np.load(path.with_suffix('.npz')) as made:
            return dict(made), np.asarray(Image.open(path)), capsys.readouterr().out

    return run


def pixels(ws):
    return np.round((np.asarray(image_of(jnp.float32(ws))) + 1) * 127.5)


@pytest.mark.parametrize('space', ['z', 'w'])
def test_interpolation_leads_from_each_latent_to_the_next(run, space):
    made, page, _ = run('interpolate', space=space, columns=5)
    images = made['images'].astype(float)
    assert images.shape == (2, 5, SIZE, SIZE, 1)
    np.testing.assert_array_equal(images[0, -1], images[1, 0])
    np.testing.assert_allclose(made['at'], [0, 0.25, 0.5, 0.75, 1])
    straight = np.abs(images[:, 2] - images[:, [0, -1]].mean(1)).max()
    # Lines of w are lines of images here; arcs of z are not.
    assert straight <= 1 if space == 'w' else straight > 1
    assert page.shape == (2 * 33 - 1, 5 * 33 - 1)


def test_truncation_leads_from_the_mean_of_w_to_the_whole(run):
    made, _, said = run('truncation')
    first, middle, last = np.moveaxis(made['images'].astype(float), 1, 0)
    np.testing.assert_allclose(first, np.tile(pixels(np.tile(MEAN, (1, LAYERS, 1))), (2, 1, 1, 1)))
    np.testing.assert_allclose(middle, (first + last) / 2, atol=1)
    assert np.abs(last - first).max() > 5
    assert 'psi from 0 to 1' in said


def test_numbers_of_z_are_moved_one_by_one_those_that_change_most_first(run):
    made, page, said = run('traverse', rows=3, columns=3, spread=1.0)
    size = SCALES**2 * np.square(BASIS.sum(0)).mean((1, 2, 3))
    np.testing.assert_array_equal(made['numbers'], np.argsort(-size))
    np.testing.assert_allclose(made['change'], 4 * 127.5**2 * np.sort(size)[::-1], rtol=0.1)
    images = made['images'].astype(float)
    for row, number in enumerate(made['numbers']):
        moved = (images[row, 2] - images[row, 0]) / 127.5
        np.testing.assert_allclose(moved, 2 * SCALES[number] * BASIS[:, number].sum(0), atol=0.02)
    assert page.shape == (3 * 33 - 1, 3 * 33 - 1)
    assert f'by numbers {made["numbers"][0]} ' in said


def test_the_map_has_equal_shares_of_the_prior(run):
    made, _, _ = run('map', rows=2, columns=4)
    quarter = 0.6744897501960817  # half of a normal distribution is within it
    np.testing.assert_allclose(made['down'], [-quarter, quarter])
    np.testing.assert_allclose(made['across'], [-1.15034938, -0.31863936, 0.31863936, 1.15034938])
    z = np.zeros((2, 4, DIM))
    z[..., made['numbers'][0]], z[..., made['numbers'][1]] = made['down'][:, None], made['across']
    want = pixels(np.repeat((MEAN + SCALES * z).reshape(8, 1, DIM), LAYERS, 1))
    np.testing.assert_allclose(made['images'].reshape(want.shape), want, atol=1)


@pytest.mark.parametrize('layers', [(), (0, 1)])
def test_mixing_takes_the_layers_of_another(run, layers):
    made, page, _ = run('mixing', layers=layers, columns=2)
    sources = made['sources'].astype(float)
    told = explore.moved_layers(layers, LAYERS, from_middle=True)
    ws = np.stack(
        [
            np.linalg.lstsq(BASIS.sum(0).reshape(DIM, -1).T, x.ravel() / 127.5 - 1)[0]
            for x in sources
        ]
    )  # of each source, to the rounding of its pixels
    for i in range(2):
        for j in range(2):
            mixed = np.where(told[:, None], ws[2 + j], ws[i])[None]
            np.testing.assert_allclose(made['images'][i, j], pixels(mixed)[0], atol=2)
    assert page.shape == (3 * 33 - 1, 3 * 33 - 1)
    np.testing.assert_array_equal(page[:32:2, 33:65:2], sources[2, ..., 0])
    np.testing.assert_array_equal(page[33:65:2, :32:2], sources[0, ..., 0])


def test_images_that_are_not_finite_are_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), 'BASIS', np.full_like(BASIS, np.nan))
    with pytest.raises(UserError, match='6 of 6 images hold values that are not finite') as error:
        run('interpolate')
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'explore').exists()


@pytest.mark.slow
@pytest.mark.parametrize('extended', [False, True])
def test_projection_finds_the_latents_of_images(run, tmp_path, extended):
    (tmp_path / 'photos').mkdir()
    generator = np.random.default_rng(1)
    shape = (2, LAYERS if extended else 1, DIM)
    ws = np.broadcast_to(MEAN + SCALES * generator.normal(size=shape), (2, LAYERS, DIM))
    for i, image in enumerate(pixels(ws)):
        Image.fromarray(image[..., 0].astype(np.uint8)).save(tmp_path / f'photos/{i}.png')
    options = {'images': str(tmp_path / 'photos'), 'steps': 200, 'extended': extended}
    made, page, said = run('project', **options)
    np.testing.assert_array_equal(made['source'], pixels(ws))
    assert np.abs(made['images'][:, 0] - pixels(ws)).max() <= 2
    assert (made['distance'] < 0.01 * made['start_distance']).all()
    assert (made['psnr'] > 40).all()
    assert made['ws'].shape == ws.shape
    if not extended:
        np.testing.assert_allclose(made['ws'], ws, atol=0.15)
    assert 'PSNR' in said
    assert page.shape == (2 * 33 - 1, 2 * 33 - 1)


@pytest.mark.slow
def test_projection_by_lpips(run, tmp_path, monkeypatch):
    """Of random weights, with heads that are no less than 0, as the published ones are."""
    image = jnp.zeros((1, SIZE, SIZE, 3))
    shapes = jax.eval_shape(lpips.LPIPS('vgg').init, jax.random.key(0), image, image)
    random = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda x: jnp.float32(
            np.abs(random.normal(size=x.shape)) / x.size
            if x.shape[-1] == 1
            else random.normal(size=x.shape) * (2 / max(x.size // x.shape[-1], 1)) ** 0.5
        ),
        shapes,
    )
    monkeypatch.setattr(yardsticks.lpips, 'load', lambda net, *places: weights)
    monkeypatch.setattr(yardsticks, 'find', lambda file, place: f'{file}')
    monkeypatch.setattr(yardsticks, 'sha256', lambda path: 'sum')
    (tmp_path / 'photos').mkdir()
    ws = MEAN + SCALES * np.random.default_rng(1).normal(size=(1, 1, DIM))
    image = pixels(np.broadcast_to(ws, (1, LAYERS, DIM)))[0, ..., 0].astype(np.uint8)
    Image.fromarray(image).save(tmp_path / 'photos/a.png')
    options = {'images': str(tmp_path / 'photos'), 'steps': 25, 'pixel_weight': 0.5}
    made, _, said = run('project', perceptual='vgg', **options)
    assert str(made['distance_of']) == 'LPIPS vgg 0.1 + 0.5 * squared error'
    assert made['distance'] < 0.5 * made['start_distance']
    assert 'LPIPS vgg 0.1 + 0.5 * squared error' in said


@pytest.mark.slow
def test_what_extended_finds_no_single_w_does(run, tmp_path):
    (tmp_path / 'photos').mkdir()
    ws = MEAN + SCALES * np.random.default_rng(1).normal(size=(1, LAYERS, DIM))
    image = pixels(ws)[0, ..., 0].astype(np.uint8)
    Image.fromarray(image).save(tmp_path / 'photos/a.png')
    options = {'images': str(tmp_path / 'photos'), 'steps': 200}
    one, each = (run('project', extended=x, **options)[0]['distance'] for x in (False, True))
    assert each < 0.1 * one


def test_the_boundary_of_brightness_is_where_images_get_brighter(run):
    made, _, said = run('boundary', samples=1000, columns=5, spread=1.0)
    # d brightness / d w: only the first number of w has a part in it.
    direction = made['directions'][0]
    assert abs(np.linalg.norm(direction) - 1) < 1e-5
    assert direction[0] > 0.99
    assert made['accuracy'] > 0.97
    # A deviation of w moves pixels by 0.05 * 2, of which brightness is half.
    np.testing.assert_allclose(np.diff(made['mean']), 0.5 * 0.05 * 2 * 0.5, rtol=0.1)
    assert 'brightness goes from' in said


def test_the_boundary_of_a_class_is_where_images_become_of_it(run, monkeypatch):
    """Between two digits, as the classifier of digits sees them."""
    source = sources.open_source(default('diffusion.gaussian').data, 'test')
    zero, one = (to_float(next(x['image'] for x in source if x['label'] == k)) for k in (0, 1))

    def between(state, ws, condition):
        share = jnp.clip(ws[:, 0, 0], 0, 1)[:, None, None, None]
        return (1 - share) * zero + share * one

    def mapping(state, z, condition):
        return 0.5 + 0.3 * z[:, None]

    method = LINEAR._replace(latents=Latents(DIM, mapping, between, False, ''))
    monkeypatch.setattr(explore, 'create', lambda config: method)
    options = {'attribute': 'class:1', 'samples': 400, 'columns': 3, 'spread': 2.0}
    made, _, said = run('boundary', size=8, network='digits', **options)
    assert made['directions'][0, 0] > 0.98
    assert made['mean'][0] < 0.1
    assert made['mean'][-1] > 0.9
    assert 'class:1 goes from' in said


def test_principal_components_are_those_of_w(run):
    made, _, said = run('principal', samples=2000, layers=(0, 1), rows=3, spread=2.0)
    np.testing.assert_allclose(np.abs(made['directions']), np.eye(DIM), atol=0.1)
    want = SCALES**2 / (SCALES**2).sum()
    np.testing.assert_allclose(made['explained'], want, atol=0.02)
    np.testing.assert_allclose(made['at'], [-2, 0, 2])
    images = made['images'].astype(float)
    np.testing.assert_array_equal(images[0, 1], images[1, 1])
    moved = (images[:, 2] - images[:, 0]) / 127.5
    want = 4 * SCALES[:, None, None, None] * BASIS[0]  # the first layer's alone
    signs = np.sign(made['directions'][np.arange(DIM), np.arange(DIM)])[:, None, None, None]
    np.testing.assert_allclose(moved, signs * want, atol=0.1)
    assert "100.0% of w's variance" in said


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'task': 'interpolat'}, "did you mean 'interpolate'"),
        ({'rows': 0}, 'config.explore.rows=0'),
        ({'space': 'x'}, "'z' or 'w'"),
        ({'spread': 0.0}, 'a positive number'),
        ({'pixel_weight': -1.0}, '0 or more'),
        ({'samples': 99}, '100 or more'),
        ({'layers': (2,)}, '(first, beyond)'),
        ({'layers': (2, 2)}, '(first, beyond)'),
        ({'task': 'mixing', 'layers': (2, 5)}, 'of the 4 layers'),
        ({'task': 'boundary', 'attribute': 'colour'}, "'brightness', or 'class:K'"),
        ({'task': 'boundary', 'attribute': 'class:3'}, 'needs a classifier'),
        ({'task': 'traverse', 'rows': 4}, 'at most 3, the numbers of z'),
        ({'task': 'project', 'images': '/no/such/folder'}, "config.explore.images='/no/such"),
    ],
    ids=str,
)
def test_mistakes_are_told(run, changes, message):
    with pytest.raises(UserError) as told:
        run(**{'task': 'interpolate', **changes})
    assert message in str(told.value)


@pytest.mark.parametrize(
    ('method', 'task', 'message'),
    [
        (('diffusion.gaussian', {}), 'interpolate', 'autoencoders.vae and autoencoders.vae_gan'),
        (('gans.adversarial', {'network': 'dcgan'}), 'mixing', 'has no styles'),
        (('gans.adversarial', {'network': 'progressive'}), 'truncation', 'cannot be truncated'),
        (('gans.adversarial', {'network': 'stylegan2'}), 'map', 'its direction alone counts'),
    ],
    ids=str,
)
def test_what_a_method_has_not_is_told(method, task, message):
    config = default(method[0], **method[1])
    config.data.image_size = 8 if 'diffusion' in method[0] else 16
    config.explore.task = task
    with pytest.raises(UserError) as told:
        explore.Explorer(config)
    assert message in str(told.value)


def test_a_distance_that_nobody_knows_is_told():
    config = default('gans.adversarial', network='stylegan2')
    config.explore.task, config.eval.perceptual = 'project', 'lpips'
    with pytest.raises(UserError, match=r"eval\.perceptual='lpips' is unknown; known are: alex"):
        explore.Explorer(config)


def test_images_too_small_for_the_distance_are_told():
    config = default('gans.adversarial', network='stylegan2')
    config.explore.task = 'project'
    with pytest.raises(UserError, match='at least 11x11 pixels, and these have 8'):
        explore.Explorer(config)


@pytest.mark.slow
def test_stylegan2_is_explored_by_every_task(tmp_path, capsys):
    """A real network's ws, labels, noise and mean, where the others' are linear."""
    config = stylegan2_cifar10.get_config('tiny')
    config.eval.perceptual, config.sample.batch_size = 'ssim', 4
    config.explore.update({'rows': 2, 'columns': 3, 'samples': 200, 'steps': 20, 'spread': 1.0})
    program = Program(config, create(config))
    state = program.init()
    mean = jax.random.normal(jax.random.key(1), (config.model.w_dim,))
    net = state.generator.replace(extra=state.generator.extra | {'w_avg': {'w_avg': mean}})
    with contextlib.closing(Checkpoints(tmp_path / 'checkpoints', keep=1)) as checkpoints:
        checkpoints.save(STEP, state.replace(generator=net), {})
    made = {}
    for task in [x for x in explore.TASKS if x != 'map']:
        config.explore.task = task
        explore.run(config, tmp_path)
        with np.load(tmp_path / 'explore' / f'{task}_{STEP:08d}.npz') as arrays:
            made[task] = dict(arrays)
    assert capsys.readouterr().out.count('and .npz') == len(made) == 7
    # Half-way along the layers, coarse styles from the row and fine ones from the column.
    mixed = made['mixing']['images'].astype(float)  # [rows, columns, 16, 16, 3]
    assert mixed.shape == (2, 3, 16, 16, 3)
    assert all(np.ptp(mixed, axis).max() > 2 for axis in (0, 1))
    # With psi 0 every row is the image of the mean w, of which labels say nothing more.
    cut = made['truncation']['images'].astype(float)
    np.testing.assert_array_equal(cut[0, 0], cut[1, 0])
    assert np.abs(cut[0, -1] - cut[1, -1]).max() > 2
    found = made['project']
    assert (found['distance'] < found['start_distance']).all()
    directions = made['principal']['directions']
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(directions)), atol=1e-4)
    assert 0 < made['principal']['explained'].sum() <= 1 + 1e-6
    # The attribute rises along the boundary's normal, on the mean of all rows.
    assert (np.diff(made['boundary']['mean']) > 0).all()
    assert (np.diff(made['traverse']['change']) <= 0).all()
