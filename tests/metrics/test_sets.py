import hashlib
import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from gen_jax.errors import UserError
from gen_jax.metrics import fid, sets


def pixels(n=5, h=6, w=4, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)


def all_of(images, size=2):
    return np.concatenate(list(images.batches(size)))


def refused(path, n=None):
    """The one line in which a set is refused, be it on opening or on reading."""
    with pytest.raises(UserError) as error:
        all_of(sets.open_set(str(path), n))
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(tmp_path):
    """Four colour images, some in a folder of their own, and what is to be left out."""
    root, images = tmp_path / 'images', pixels(6)
    places = ['a/2.bmp', 'a-b/1.png', 'c.webp', '0/e/3.PNG']  # 'a' < 'a-b', though '-' < '/'
    for place, image in zip(places, images, strict=False):
        kind = {'lossless': True} if place.endswith('webp') else {}
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / place, **kind)
    save(root / '.hidden.png', images[4])
    save(root / '.cache/x.png', images[5])
    (root / 'notes.txt').write_text('not an image')
    return root, images[[3, 0, 1, 2]]


def test_folder(folder):
    root, expected = folder
    images = sets.open_set(str(root))
    assert (images.kind, len(images), images.shape) == ('folder', 4, (4, 6, 4, 3))
    assert images.statistics == ()
    size = {'n': 4, 'image_size': [6, 4, 3]}
    assert images.describe() == {'path': str(root), 'kind': 'folder', **size}
    batches = list(images.batches(3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert all(batch.dtype == np.uint8 for batch in batches)
    np.testing.assert_array_equal(np.concatenate(batches), expected)
    np.testing.assert_array_equal(all_of(sets.open_set(str(root), 3)), expected[:3])


def test_folder_is_grey_only_if_every_file_is(tmp_path):
    grey = pixels(2, c=1)
    save(tmp_path / '0.png', grey[0])
    Image.fromarray(grey[1, :, :, 0].astype(np.uint16) * 257).save(tmp_path / '1.png')
    images = sets.open_set(str(tmp_path))
    assert images.shape == (2, 6, 4, 1)
    np.testing.assert_array_equal(all_of(images), grey)
    colour = pixels(1)[0]
    save(tmp_path / '2.png', colour)
    images = sets.open_set(str(tmp_path))
    assert images.shape == (3, 6, 4, 3)
    expected = np.stack([*np.repeat(grey, 3, axis=3), colour])
    np.testing.assert_array_equal(all_of(images), expected)


def test_folder_composites_on_white_and_turns_photographs(tmp_path):
    clear = np.zeros((4, 6, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / '0.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (4, 6), 'black').save(tmp_path / '1.jpg')  # stored as 4x6, seen as 6x4
    Image.new('RGB', (4, 6), 'black').save(tmp_path / '1.jpg', exif=exif)
    images = sets.open_set(str(tmp_path))
    assert images.shape == (2, 4, 6, 3)
    np.testing.assert_array_equal(all_of(images).reshape(2, -1).mean(1), [255, 0])


@pytest.mark.parametrize('compressed', [False, True])
@pytest.mark.parametrize('name', ['images', 'arr_0', 'anything'])
def test_npz(tmp_path, name, compressed):
    data, path = pixels(), tmp_path / 'x.npz'
    (np.savez_compressed if compressed else np.savez)(path, **{name: data})
    images = sets.open_set(str(path))
    assert (images.kind, images.shape, images.statistics) == ('npz', data.shape, ())
    np.testing.assert_array_equal(all_of(images), data)
    np.testing.assert_array_equal(all_of(images, 100), data)  # and a second time
    np.testing.assert_array_equal(all_of(sets.open_set(str(path), 3)), data[:3])


def test_npz_of_images_and_labels(tmp_path):
    np.savez(tmp_path / 'x.npz', pixels(), np.arange(5))
    np.testing.assert_array_equal(all_of(sets.open_set(str(tmp_path / 'x.npz'))), pixels())


def test_npy_without_an_axis_of_channels(tmp_path):
    data = pixels(c=1)
    np.save(tmp_path / 'x.npy', data[..., 0])
    images = sets.open_set(str(tmp_path / 'x.npy'))
    assert (images.kind, images.shape) == ('npy', (5, 6, 4, 1))
    np.testing.assert_array_equal(all_of(images), data)


def test_reads_no_more_than_a_batch(tmp_path, monkeypatch):
    """A set of 40 MB, of which a batch at a time passes through memory."""
    np.save(tmp_path / 'x.npy', np.zeros((10, 1000, 4000), np.uint8))
    sizes = []
    monkeypatch.setattr(
        sets.np, 'frombuffer', lambda data, dtype: sizes.append(len(data)) or np.zeros(len(data))
    )
    next(sets.open_set(str(tmp_path / 'x.npy')).batches(2))
    assert sizes == [8_000_000]


MADE = {'network': 'inception-2015-12-05', 'dims': 3, 'resize': 'tf1', 'weights_sha256': 'abc'}


def saved_line(images, role='pool', **changes):
    with pytest.raises(UserError) as error:
        images.saved(role, {**MADE, **changes})
    return str(error.value)


def test_statistics_of_other_packages(tmp_path):
    """They say nothing of themselves, and are trusted but for their size."""
    path = tmp_path / 'x.npz'
    np.savez(path, mu=np.arange(3), sigma=np.eye(3))
    assert 'holds statistics, of which no 3 images' in refused(path, 3)
    images = sets.open_set(str(path))
    assert (images.kind, len(images), images.shape) == ('statistics', 0, None)
    assert images.statistics == ('pool',)
    assert images.saved('spatial', MADE) is None
    found = images.saved('pool', {**MADE, 'resize': 'clean', 'network': 'digits'})
    np.testing.assert_array_equal(found.mu, [0, 1, 2])
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    told = {'path': str(path), 'kind': 'statistics', 'sha256': sha256}
    assert images.describe(found) == {**told, 'n': None, 'made_with': None}
    assert 'with dims=3, but dims=64 is asked for' in saved_line(images, dims=64)
    np.savez(path, mu=np.zeros(3), s=np.eye(3))
    assert 'holds mu, s: expected images' in refused(path)


def test_statistics_of_our_own(tmp_path):
    path = tmp_path / 'x.npz'
    rows = np.random.default_rng(0).normal(size=(9, 3))
    fid.save_statistics(path, fid.Moments.of(rows), fid.Moments.of(rows[:, :2]), **MADE)
    images = sets.open_set(str(path))
    assert images.statistics == ('pool', 'spatial')
    found = images.saved('pool', MADE)
    np.testing.assert_allclose(found.sigma, np.cov(rows, rowvar=False))
    assert images.describe(found)['n'] == 9
    assert images.describe(found)['made_with']['resize'] == 'tf1'
    np.testing.assert_allclose(images.saved('spatial', MADE).mu, rows[:, :2].mean(0))
    for role in ('pool', 'spatial'):
        assert 'resize=tf1, but resize=clean is asked' in saved_line(images, role, resize='clean')
        assert 'weights_sha256=abc, but' in saved_line(images, role, weights_sha256='abd')
        assert 'network=' in saved_line(images, role, network='digits')


def test_reference_batch(tmp_path):
    """guided-diffusion's: statistics of its own network beside some of the images."""
    path = tmp_path / 'x.npz'
    moments = {'mu': np.ones(3), 'sigma': np.eye(3), 'mu_s': np.zeros(2), 'sigma_s': np.eye(2)}
    np.savez(path, arr_0=pixels(), **moments)
    images = sets.open_set(str(path))
    assert (images.kind, len(images), images.statistics) == ('npz', 5, ('pool', 'spatial'))
    np.testing.assert_array_equal(images.saved('pool', MADE).mu, moments['mu'])
    np.testing.assert_array_equal(images.saved('spatial', MADE).mu, moments['mu_s'])
    np.testing.assert_array_equal(all_of(images), pixels())
    for other in ({'resize': 'clean'}, {'network': 'digits'}, {'dims': 64}):
        assert images.saved('pool', {**MADE, **other}) is None
    assert sets.open_set(str(path), 3).saved('pool', MADE) is None  # they are of all the images


@pytest.mark.parametrize(
    ('shape', 'words'),
    [
        ((5, 3, 6, 4), 'transpose(0, 2, 3, 1)'),
        ((5, 6, 4, 4), 'c 1 or 3'),
        ((5, 6), 'expected [n, h, w, c]'),
        ((), 'expected [n, h, w, c]'),
        ((5, 0, 4, 3), 'no pixels'),
        ((0, 6, 4, 3), 'holds 0 images: a set needs at least 2'),
        ((1, 6, 4, 3), 'holds 1 images: a set needs at least 2'),
    ],
)
def test_refuses_shapes(tmp_path, shape, words):
    np.save(tmp_path / 'x.npy', np.zeros(shape, np.uint8))
    assert words in refused(tmp_path / 'x.npy')


@pytest.mark.parametrize(
    ('low', 'high', 'dtype', 'words'),
    [
        (0, 1, 'float32', '[0, 1], expected uint8 in [0, 255]: save np.uint8(np.round(x * 255))'),
        (-1, 1, 'float64', 'save np.uint8(np.round((x + 1) * 127.5))'),
        (0, 255, 'float16', 'save np.uint8(np.round(x))'),
        (0, 255, 'int64', 'is int64 in [0, 255]'),
        (
            -3,
            1,
            'float32',
            'is float32 in [-3, 1], expected uint8 in [0, 255]: save x clipped',
        ),
        (0, 65535, 'uint16', 'is uint16 in [0, 65535]'),
        (0, np.nan, 'float32', 'holds NaN or infinite pixels'),
        (0, np.inf, 'float32', 'holds NaN or infinite pixels'),
        (0, 1, 'bool', 'is bool, expected uint8'),
    ],
)
def test_refuses_pixels(tmp_path, low, high, dtype, words):
    data = np.full((3000, 2, 2, 3), low, dtype)
    data[-1, -1, -1, -1] = high
    np.savez(tmp_path / 'x.npz', data)
    line = refused(tmp_path / 'x.npz')
    assert words in line
    assert 'x.npz[arr_0]' in line


@pytest.mark.parametrize(('scale', 'shift'), [(255, 0), (127.5, -1), (1, 0)])
def test_the_advice_gives_the_levels_back(tmp_path, scale, shift):
    levels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    x = levels / np.float32(scale) + np.float32(shift)
    np.save(tmp_path / 'x.npy', x)
    code = refused(tmp_path / 'x.npy').partition(': save ')[2]
    np.testing.assert_array_equal(eval(code, {'np': np, 'x': x}), levels)


def test_refuses_sizes_that_differ(folder):
    root, _ = folder
    save(root / 'b/odd.png', pixels(1, 8, 9)[0])
    line = refused(root)
    assert 'different sizes' in line
    assert '3.PNG is 4x6' in line
    assert 'odd.png is 9x8' in line


def test_refuses_paths(tmp_path, monkeypatch):
    save(tmp_path / 'here/0.png', pixels()[0])
    monkeypatch.chdir(tmp_path / 'here')
    assert 'an empty path names no set: expected a folder of images' in refused('')
    assert 'does not exist' in refused('x' * 300)
    assert 'does not exist' in refused('~nobody-of-this-name/x')
    assert 'does not exist: expected a folder of images' in refused(tmp_path / 'nothing')
    (tmp_path / 'x.h5').write_bytes(b'')
    assert "ends in '.h5': expected a folder" in refused(tmp_path / 'x.h5')
    (tmp_path / 'empty').mkdir()
    assert 'has no images in it: expected files ending in .png' in refused(tmp_path / 'empty')
    save(tmp_path / 'one/0.png', pixels()[0])
    assert 'holds 1 images: a set needs at least 2' in refused(tmp_path / 'one')


def test_refuses_counts(tmp_path):
    np.save(tmp_path / 'x.npy', pixels())
    for n in (6, 1, 0, -1):
        assert f'n={n}, expected 2 to 5' in refused(tmp_path / 'x.npy', n)


def test_refuses_broken_files(tmp_path):
    save(tmp_path / 'images/0.png', pixels(1, 40, 40)[0])
    whole = (tmp_path / 'images/0.png').read_bytes()
    for broken in (whole[: len(whole) // 2], b'', b'hello'):
        (tmp_path / 'images/1.png').write_bytes(broken)
        assert '1.png' in refused(tmp_path / 'images')
    for suffix, write in (('.npy', np.save), ('.npz', np.savez)):
        path = tmp_path / f'x{suffix}'
        write(path, pixels(50))
        whole = path.read_bytes()
        for broken in (whole[: len(whole) // 2], whole[:9], b'', b'hello'):
            path.write_bytes(broken)
            assert path.name in refused(path)


def test_refuses_a_damaged_member(tmp_path):
    """The archive's own checksum tells."""
    path, data = tmp_path / 'x.npz', pixels(50)
    np.savez(path, data)
    whole = bytearray(path.read_bytes())
    whole[whole.index(data[20].tobytes())] ^= 1
    path.write_bytes(whole)
    assert 'x.npz cannot be read (Bad CRC-32' in refused(path)


def test_refuses_archives_of_other_things(tmp_path):
    path = tmp_path / 'x.npz'
    np.savez(path, a=pixels(), b=pixels())
    assert "holds a, b: expected images called 'images' or 'arr_0'" in refused(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme.txt', 'hello')
    assert 'holds nothing' in refused(path)
    np.save(tmp_path / 'x.npy', np.asfortranarray(pixels()))
    assert 'save np.ascontiguousarray(images)' in refused(tmp_path / 'x.npy')


def test_never_unpickles(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'ran'),)

    file = io.BytesIO()
    np.save(file, np.array([Evil(), Evil()], object).reshape(2, 1, 1), allow_pickle=True)
    (tmp_path / 'x.npy').write_bytes(file.getvalue())
    assert 'Python objects, which are never read' in refused(tmp_path / 'x.npy')
    assert not (tmp_path / 'ran').exists()


def statistics(path, dims=3, **story):
    """A set without images, made by us where it has a story."""
    rows = np.random.default_rng(0).normal(size=(9, dims))
    moments = fid.Moments.of(rows)
    if story:
        story['dims'] = dims
        fid.save_statistics(path, moments, moments, **story)
    else:
        np.savez(path, mu=moments.mu, sigma=moments.sigma)
    return sets.open_set(str(path))


@pytest.mark.parametrize(
    ('a', 'b', 'provenance', 'suffix'),
    [
        ({}, {}, {'dims': 3}, ''),
        (MADE, {}, MADE, ''),
        ({}, {'network': 'digits'}, {'network': 'digits', 'dims': 3}, '_digits'),
        ({'resize': 'clean'}, {'weights_sha256': 'abc'}, None, ''),
        ({'dims': 64}, {'network': 'inception-2015-12-05'}, None, '_64'),
        ({'dims': 64}, {}, {'dims': 64}, ''),
    ],
)
def test_statistics_that_agree(tmp_path, a, b, provenance, suffix):
    dims = {**a, **b}.get('dims', 3)
    made = [statistics(tmp_path / f'{i}.npz', **{**x, 'dims': dims}) for i, x in enumerate((a, b))]
    found = sets.agreed(made, ['fid'], {})
    assert found.provenance == (provenance or {**a, **b, 'dims': dims})
    assert found.suffix == suffix
    assert sets.look(made[0], found, ['fid']).features == {}


@pytest.mark.parametrize('field', ['network', 'resize', 'weights_sha256', 'dims'])
def test_statistics_that_contradict_each_other(tmp_path, field):
    other = {**MADE, field: 4 if field == 'dims' else 'other'}
    a, b = statistics(tmp_path / 'a.npz', **MADE), statistics(tmp_path / 'b.npz', **other)
    with pytest.raises(UserError) as error:
        sets.agreed([a, b], ['fid'], {})
    line = str(error.value)
    assert f'b.npz has statistics with {field}={other[field]}, and ' in line
    assert f'a.npz with {field}={MADE[field]}: give those of one network' in line
    with pytest.raises(UserError, match=f'a.npz has .* but {field}=7 is asked for'):
        sets.agreed([a, a], ['fid'], {field: 7})


def test_where_images_have_to_be_looked_at(tmp_path):
    alone = statistics(tmp_path / 'a.npz', **{**MADE, 'resize': 'clean'})
    np.savez(tmp_path / 'b.npz', arr_0=pixels(), mu=np.ones(3), sigma=np.eye(3))
    beside = sets.open_set(str(tmp_path / 'b.npz'))
    np.save(tmp_path / 'c.npy', pixels())
    images = sets.open_set(str(tmp_path / 'c.npy'))
    assert sets.agreed([beside, images], ['fid'], {}) is None
    assert sets.agreed([beside, beside], ['fid', 'kid'], {}) is None
    assert sets.agreed([alone, beside], ['fid'], {}) is None  # tf1, as guided-diffusion's are
    assert sets.agreed([beside, beside], ['fid'], {'resize': 'clean'}) is None
    assert sets.agreed([beside, beside], ['fid'], {'resize': 'tf1'}).suffix == ''
