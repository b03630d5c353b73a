"""--mode=edit, on a model that knows what one grey level of all pixels tells of the others."""

import contextlib
import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen_jax import edit, train
from gen_jax.config import default
from gen_jax.data import sources
from gen_jax.diffusion import processes, uses
from gen_jax.errors import UserError
from gen_jax.method import Method, Net
from gen_jax.runtime.checkpoint import Checkpoints

STEP = 7


class State(Net):
    """A state of one network, as modes know it."""


def model(config) -> Method:
    """The exact denoiser of images around a mean, which is the state's only parameter."""
    process = processes.edm(0.01, 20.0)

    def init(key, batch):
        del key, batch
        return State({'mean': jnp.float32(0.1)}, None, (), {})

    def denoise(state, x_t, t, condition):
        del condition
        t, mean = t[:, None, None, None], state.params['mean']
        # Pixels share half of their variance, 0.25 + 0.25: all of them, and each on its own.
        d, centred = np.prod(x_t.shape[1:]), x_t - mean
        common = centred.mean((1, 2, 3), keepdims=True)
        gain = (0.25 + d * 0.25) / (0.25 + d * 0.25 + t**2)
        return mean + gain * common + 0.25 / (0.25 + t**2) * (centred - common)

    def trajectory(condition, n):
        del n
        return processes.Path(process, condition['steps'], 'karras')

    return Method(init, None, edits=uses.edits(denoise, trajectory))


def small(**changes):
    config = default('diffusion.gaussian')
    changes = {'data.num_classes': 0, **changes}
    config.update_from_flattened_dict(
        {
            'sample.batch_size': 8,
            'sample.knobs.steps': 20,
            'edit.n': 3,
            'edit.results': 2,
            'edit.jump': 2,
            'edit.repeats': 3,
            **changes,
        }
    )
    return config


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(**changes) -> the arrays and the picture that the mode leaves."""
    monkeypatch.setattr(edit.latent.guide, 'create', lambda config, guide: model(config))
    with contextlib.closing(Checkpoints(tmp_path / 'checkpoints', keep=1)) as checkpoints:
        checkpoints.save(STEP, model(None).init(None, None), {})

    def run(**changes):
        config = small(**changes)
        edit.run(config, tmp_path)
        path = tmp_path / 'edit' / f'{config.edit.task}_{STEP:08d}.png'
        with np.load(path.with_suffix('.npz')) as made:
            return dict(made), np.asarray(Image.open(path))

    return run


def digits(n, split='test'):
    source = sources.open_source(default('diffusion.gaussian').data, split)
    return np.stack([source[i]['image'] for i in range(n)])


def test_reconstruction_gives_the_images_of_the_test_split_back(run):
    made, page = run(**{'edit.task': 'reconstruct', 'sample.knobs.steps': 200})
    np.testing.assert_array_equal(made['source'], digits(3))
    assert made['results'].shape == (3, 1, 8, 8, 1)
    assert np.abs(made['results'][:, 0].astype(int) - made['source']).max() <= 6
    assert page.shape == (3 * 33 - 1, 3 * 33 - 1)  # 8 pixels are enlarged to 32, one apart


@pytest.mark.parametrize('task', ['inpaint', 'repaint'])
def test_what_the_mask_keeps_stays_and_the_rest_is_drawn(run, task):
    made, page = run(**{'edit.task': task, 'edit.mask': 'top'})
    assert made['results'].shape == made['given'].shape == (3, 2, 8, 8, 1)
    for r in range(2):
        np.testing.assert_array_equal(made['results'][:, r, :4], digits(3)[:, :4])
        np.testing.assert_array_equal(made['given'][:, r, :4], digits(3)[:, :4])
        assert (made['given'][:, r, 4:] == 128).all()
    assert np.abs(np.diff(made['results'].astype(int), axis=1)[:, 0, 4:]).mean() > 10
    assert page.shape == (3 * 33 - 1, 4 * 33 - 1)
    np.testing.assert_array_equal(page[:32:4, :32:4], digits(1)[0, ..., 0])


@pytest.mark.slow
def test_variations_stay_the_nearer_the_less_the_strength(run):
    away = []
    for strength in (0.05, 0.5, 1.0):
        made, _ = run(**{'edit.task': 'vary', 'edit.strength': strength})
        away.append(np.abs(made['results'].astype(int) - made['source'][:, None]).mean())
    assert away[0] < 10 < away[1] < away[2]


def test_eta_0_draws_only_where_it_begins(run):
    noisy, calm = (run(**{'edit.task': 'vary', 'edit.eta': eta})[0] for eta in (1.0, 0.0))
    np.testing.assert_array_equal(noisy['given'], calm['given'])
    assert (noisy['results'] != calm['results']).any()


@pytest.mark.slow
def test_interpolation_leads_from_each_image_to_the_next(run):
    changes = {'edit.task': 'interpolate', 'edit.results': 3, 'sample.knobs.steps': 200}
    made, page = run(**changes)
    np.testing.assert_array_equal(made['other'], digits(4)[1:])
    first, middle, last = np.moveaxis(made['results'].astype(int), 1, 0)
    assert np.abs(first - made['source']).max() <= 6
    assert np.abs(last - made['other']).max() <= 6
    assert np.abs(middle - first).mean() > 10
    assert page.shape == (3 * 33 - 1, 5 * 33 - 1)
    made, _ = run(**changes | {'edit.results': 1})
    assert np.abs(made['results'][:, 0].astype(int) - middle).max() <= 1


def test_colours_are_drawn_for_what_gray_says(run, tmp_path):
    pixels = np.random.default_rng(0).integers(80, 176, (8, 8, 3), np.uint8)
    (tmp_path / 'photos').mkdir()
    Image.fromarray(pixels).save(tmp_path / 'photos/a.png')
    changes = {'edit.task': 'colorize', 'edit.images': str(tmp_path / 'photos')}
    made, page = run(**changes, **{'data.channels': 3})
    np.testing.assert_array_equal(made['source'], pixels[None])
    inside = (made['results'] > 0) & (made['results'] < 255)
    inside = inside.all(-1)
    gray = made['results'].mean(-1)
    want = np.broadcast_to(pixels.mean(-1), gray.shape)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(gray[inside], want[inside], atol=1)  # each channel is rounded
    assert np.ptp(made['given'], axis=-1).max() == 0
    assert page.shape == (32, 4 * 33 - 1, 3)


@pytest.mark.slow
def test_a_result_depends_on_its_own_image_and_number_only(run):
    changes = {'edit.task': 'repaint', 'edit.mask': 'left'}
    made, _ = run(**changes)
    one, _ = run(**changes, **{'edit.n': 1, 'edit.results': 5, 'sample.batch_size': 3})
    # Another program may round a pixel the other way.
    assert np.abs(one['results'][0, :2].astype(int) - made['results'][0]).max() <= 1
    other, _ = run(**changes, seed=1)
    assert (other['results'] != made['results']).mean() > 0.2


def test_fewer_images_than_asked_for_are_all_there_are(run, tmp_path):
    (tmp_path / 'photos').mkdir()
    for i in range(2):
        Image.fromarray(np.full((10, 12), 50 * i, np.uint8)).save(tmp_path / f'photos/{i}.jpg')
    photos = {'edit.images': str(tmp_path / 'photos'), 'edit.n': 9}
    made, _ = run(**photos)
    np.testing.assert_array_equal(made['source'][:, 0, 0, 0], [0, 50])
    made, _ = run(**photos, **{'edit.task': 'interpolate'})
    assert len(made['source']) == len(made['other']) == 1


# Masks and labels.


def test_masks_say_what_is_known():
    expected = {
        'frame': 'XXXX X..X X..X XXXX',
        'center': '.... .XX. .XX. ....',
        'left': 'XX.. XX.. XX.. XX..',
        'right': '..XX ..XX ..XX ..XX',
        'top': 'XXXX XXXX .... ....',
        'bottom': '.... .... XXXX XXXX',
        'lines': 'XXXX .... XXXX ....',
        'pixels': 'X.X. .... X.X. ....',
    }
    assert set(expected) == set(edit.MASKS)
    for name, picture in expected.items():
        mask = edit.read_mask(name, 4)
        assert mask.dtype == np.float32
        assert mask.shape == (4, 4, 1)
        rows = [''.join('X' if x else '.' for x in row) for row in mask[..., 0]]
        assert ' '.join(rows) == picture, name


def test_a_mask_file_is_white_where_images_are_known(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[1, 2], pixels[3, 0], pixels[0, 0] = 255, 128, 127
    Image.fromarray(pixels).save(tmp_path / 'mask.png')
    mask = edit.read_mask(str(tmp_path / 'mask.png'), 4)
    np.testing.assert_array_equal(np.argwhere(mask[..., 0]), [[1, 2], [3, 0]])
    assert set(np.unique(mask)) == {0.0, 1.0}


def test_labels_are_the_images_own_or_what_sample_label_says():
    config = small(**{'data.num_classes': 10})
    source = sources.open_source(config.data, 'test')
    images, labels = edit.read_images(config, 'edit.images', '', 3, 1, 10)
    np.testing.assert_array_equal(labels, [source[i]['label'] for i in range(3)])
    np.testing.assert_array_equal(images, digits(3))
    program = edit.Editing(config, model(config))
    asked = program.condition(np.array([2000, 2001, 1000]))
    np.testing.assert_array_equal(asked['label'], labels[[2, 2, 1]])
    assert asked['label'].dtype == np.int32
    config.sample.label = 4
    asked = edit.Editing(config, model(config)).condition(np.array([2000, 1000]))
    np.testing.assert_array_equal(asked['label'], [4, 4])


@pytest.mark.parametrize('task', ['reconstruct', 'interpolate', 'vary'])
def test_noise_is_sought_by_the_plain_model(task):
    """Guided, it is not of the prior (see docs/diffusion.md); variations are guided as samples."""
    changes = {'data.num_classes': 10, 'diffusion.label_dropout': 0.1, 'edit.task': task}
    config = small(**changes, **{'sample.knobs.guidance': 3.0})
    asked = edit.Editing(config, model(config)).condition(np.arange(2))
    assert asked['guidance'].tolist() == [3.0 if task == 'vary' else 1.0] * 2
    assert asked['guidance'].dtype == np.float32


def folder_of(root, *names):
    """One image in each class folder."""
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new('L', (8, 8)).save(root / name / 'a.png')
    return str(root)


def labels_of(config, folder, classes):
    return edit.read_images(config, 'edit.images', folder, 8, 1, classes)[1].tolist()


def test_class_folders_mean_the_models_classes(tmp_path):
    """By their names, or by their numbers; not by how many there are before them."""
    config = small()
    digit = folder_of(tmp_path / 'digits', '3', '9')
    assert labels_of(config, digit, 10) == [3, 9]
    config.data.source = f'folder:{folder_of(tmp_path / "model", "cat", "dog", "fox")}'
    some = folder_of(tmp_path / 'some', 'fox', 'dog', '0')
    assert labels_of(config, some, 3) == [0, 1, 2]
    config.data.source = 'shapes'
    config.data.channels = 3
    given = folder_of(tmp_path / 'shapes', 'ring', 'circle')
    assert labels_of(config, given, 6) == [0, 3]
    with pytest.raises(UserError, match=r"digits/9: '9' is none of the 6 classes: name its folder"):
        labels_of(config, digit, 6)
    other = folder_of(tmp_path / 'other', 'rings')
    with pytest.raises(UserError, match=r"set config\.sample\.label, did you mean 'ring'\?"):
        labels_of(config, other, 6)
    config.data.source = 'folder:/gone'
    assert labels_of(config, digit, 10) == [3, 9]


# Mistakes.


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'edit.task': 'colourize'}, "did you mean 'colorize'"),
        ({'edit.task': 'colorize'}, 'config.data.channels=1 have no colours'),
        ({'edit.strength': 0.0}, 'config.edit.strength=0.0'),
        ({'edit.strength': 1.1}, 'config.edit.strength=1.1'),
        ({'edit.eta': -0.1}, 'config.edit.eta=-0.1'),
        ({'edit.n': 0}, 'config.edit.n=0'),
        ({'edit.results': 0}, 'config.edit.results=0'),
        ({'edit.results': 1001}, 'config.edit.results=1001'),
        ({'edit.jump': 0}, 'config.edit.jump=0'),
        ({'edit.repeats': 0}, 'config.edit.repeats=0'),
        ({'edit.task': 'repaint', 'edit.jump': 20}, 'config.edit.jump=20: expected less than'),
        ({'edit.images': '/no/such/folder'}, "config.edit.images='/no/such/folder'"),
        ({'edit.images': '~nosuchuser/x'}, "config.edit.images='~nosuchuser/x'"),
        ({'edit.task': 'inpaint', 'edit.mask': 'lefft'}, "did you mean 'left'"),
        ({'edit.task': 'inpaint', 'edit.mask': '/no/mask.png'}, '/no/mask.png'),
        ({'edit.task': 'inpaint', 'edit.mask': 'a' * 300}, 'expected a PNG file'),
        ({'data.channels': 3}, 'set config.data.channels=1'),
        ({'edit.task': 'inpaint', 'edit.mask': '~/no.png'}, "config.edit.mask='~/no.png'"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, changes, says):
    with pytest.raises(UserError) as error:
        run(**changes)
    assert says in str(error.value)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'edit').exists()


@pytest.mark.parametrize(
    ('pixels', 'says'),
    [
        (np.full((8, 10), 255, np.uint8), 'it has 10x8'),
        (np.full((8, 8), 255, np.uint8), 'keeps all'),
        (np.zeros((8, 8), np.uint8), 'keeps nothing'),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(tmp_path, pixels, says):
    path = tmp_path / 'mask.png'
    Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match=says) as error:
        edit.read_mask(str(path), 8)
    assert str(path) in str(error.value)


def test_folders_without_images_labels_or_a_second_image_are_told(tmp_path):
    config = small(**{'edit.images': str(tmp_path)})
    with pytest.raises(UserError, match='has no images'):
        edit.Editing(config, model(config))
    Image.new('L', (8, 8)).save(tmp_path / 'a.png')
    config.edit.task = 'interpolate'
    with pytest.raises(UserError, match='has fewer than 2 images'):
        edit.Editing(config, model(config))
    config.edit.task = 'vary'
    with pytest.raises(UserError, match=r'set config\.sample\.label'):
        edit.read_images(config, 'edit.images', str(tmp_path), 8, 1, 10)


def test_a_method_without_edits_is_told_of_those_that_have_them(tmp_path):
    config = default('autoencoders.vae')
    with pytest.raises(UserError, match=r'cannot edit images.*diffusion\.gaussian'):
        edit.run(config, tmp_path)


def test_a_sampler_that_chooses_its_times_is_told_of_one_that_edits_take(tmp_path):
    config = default('diffusion.continuous')
    chooses = {'sampler.name': 'adaptive', 'sample.knobs.steps': 0, 'sample.knobs.tolerance': 1e-3}
    config.update_from_flattened_dict(chooses)
    with pytest.raises(UserError, match=r"sampler\.name='adaptive': expected another") as error:
        edit.run(config, tmp_path)
    assert '\n' not in str(error.value)
    mended = {'sampler.name': 'ddim', 'sample.knobs.steps': 1, 'sample.knobs.tolerance': 0.0}
    config.update_from_flattened_dict(mended)
    with pytest.raises(UserError, match='train first'):
        edit.run(config, tmp_path)


def test_of_noise_that_is_paired_with_images_there_is_no_more(tmp_path):
    config = default('diffusion.continuous')
    flow = {
        'diffusion.process': 'flow',
        'diffusion.prediction': 'velocity',
        'diffusion.told': 'time',
        'diffusion.times': 'uniform',
        'diffusion.pairing': 'optimal',
        'sampler.spacing': 'trailing',
        'edit.task': 'vary',
        'edit.eta': 0.0,
    }
    config.update_from_flattened_dict(flow)
    says = "task='vary': expected reconstruct or interpolate: the others add noise.*pairing='opt"
    with pytest.raises(UserError, match=says) as error:
        edit.run(config, tmp_path)
    assert '\n' not in str(error.value)
    config.edit.task = 'reconstruct'
    with pytest.raises(UserError, match='train first'):
        edit.run(config, tmp_path)


def test_an_untrained_run_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(edit.latent.guide, 'create', lambda config, guide: model(config))
    with pytest.raises(UserError, match='train first'):
        edit.run(small(), tmp_path)
    assert list(tmp_path.iterdir()) == []


NUMBERS = {'sample.knobs.steps': 6, 'edit.jump': 2, 'edit.repeats': 2, 'edit.task': 'repaint'}


@pytest.mark.slow
def test_a_trained_model_is_edited_by_flags_on_any_number_of_devices(main, tmp_path):
    config = Path(__file__).parents[1] / 'configs/ddpm_digits.py:tiny'
    args = f'--config={config}', f'--workdir={tmp_path}'
    done = main(*args)
    assert done.returncode == 0, done.stderr
    results = []
    for devices, size in ((1, 8), (4, 16)):
        changes = NUMBERS | {'sample.batch_size': size}
        flags = [f'--config.{field}={value}' for field, value in changes.items()]
        done = main(*args, '--mode=edit', *flags, devices=devices)
        assert done.returncode == 0, done.stderr
        with np.load(next((tmp_path / 'edit').glob('repaint_*.npz'))) as made:
            results.append(made['results'].astype(int))
    assert np.abs(results[1] - results[0]).max() <= 1


@pytest.mark.slow
def test_a_model_of_continuous_time_is_edited(tmp_path):
    place = Path(__file__).parents[1] / 'configs/edm_fashion_mnist.py'
    config = runpy.run_path(str(place))['get_config']('tiny')
    train.run(config, tmp_path)
    config.update_from_flattened_dict(NUMBERS)
    edit.run(config, tmp_path)
    with np.load(next((tmp_path / 'edit').glob('repaint_*.npz'))) as made:
        assert made['results'].std() > 0
