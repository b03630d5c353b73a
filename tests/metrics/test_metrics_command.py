import hashlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen_jax.errors import UserError
from gen_jax.metrics import __main__ as command
from gen_jax.metrics import fid
from gen_jax.metrics.features import extract
from gen_jax.runtime import workdir

OPEN_EXTRACTOR = inspect.signature(extract.open_extractor)


class Eye:
    """A network whose features are sums over some pixels, and that remembers what it was shown."""

    def __init__(self, network, weights, resize_name, roles, batch_size, **_):
        self.roles, self.batch_size, self.shown = roles, batch_size or 50, 0
        self.suffix = '' if network == 'inception' else f'_{network}'
        self.provenance = {
            'network': {'inception': 'inception-2015-12-05'}.get(network, network),
            'resize': resize_name,
            'dims': 4,
            'weights': weights or 'shipped',
            'weights_sha256': 'abc',
        }

    def check(self, shape):
        if 'digits' in self.suffix and shape[0] != 4:
            raise UserError(f'digits are no {shape}')

    def __call__(self, images):
        assert images.dtype == np.uint8
        self.shown += len(images)
        return {role: see(images, role) for role in self.roles}


def see(images, role):
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    columns = {'pool': slice(0, 4), 'spatial': slice(2, 5), 'logits': slice(0, 6)}[role]
    return flat[:, columns] + flat[:, -1:]


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """How often programs were asked to be kept; none are, in this process."""
    calls = []
    monkeypatch.setattr(command, 'keep_compiled', lambda: calls.append(None))
    return calls


@pytest.fixture
def eyes(monkeypatch, tmp_path):
    """Replaces the networks; the list of those that were opened. Paths are relative to tmp_path."""
    opened = []

    def open_extractor(*args, **kwargs):
        bound = OPEN_EXTRACTOR.bind(*args, **kwargs)
        bound.apply_defaults()
        opened.append(Eye(**bound.arguments))
        return opened[-1]

    monkeypatch.setattr(extract, 'open_extractor', open_extractor)
    monkeypatch.chdir(tmp_path)
    return opened


@pytest.fixture
def ab(tmp_path):
    """Sets of 30 and 25 images: x, and y for what is compared."""
    x, y = pixels(30), pixels(25, seed=1, high=200)
    np.save(tmp_path / 'a.npy', x)
    np.savez(tmp_path / 'b.npz', images=y)
    return x, y


def pixels(n, size=4, channels=3, seed=0, high=256):
    return np.random.default_rng(seed).integers(0, high, (n, size, size, channels), dtype=np.uint8)


def refused(capsys, *argv):
    """The one line on stderr with which a command ends; nothing is written."""
    before = sorted(Path().rglob('*'))
    assert command.main([str(arg) for arg in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith('gen_jax.metrics: ')
    assert err.count('\n') == 1
    assert err.endswith('\n')
    assert sorted(Path().rglob('*')) == before
    return err


def test_compiled_networks_are_kept_for_later_processes(capsys, kept):
    refused(capsys, '--metrics=fid')
    assert len(kept) == 1


def expected_fid(x, y, role='pool'):
    """As the paper writes it, for covariances that are not singular."""
    (m, s), (k, t) = (
        (f.mean(0), np.cov(f, rowvar=False)) for f in (np.float64(see(z, role)) for z in (x, y))
    )
    root = np.sqrt(np.linalg.eigvals(s @ t)).real.sum()
    return ((m - k) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * root


def read(path='metrics.json'):
    return json.loads(Path(path).read_text())


def test_everything(eyes, ab, capsys):
    x, y = ab
    metrics = '--metrics=fid,kid,is,prdc,sfid,fid'
    assert command.main(['a.npy', 'b.npz', metrics, '--batch_size=7', '--kid_subset_size=20']) == 0
    rows = read()
    prdc = ['precision', 'recall', 'f1', 'density', 'coverage']
    assert list(rows) == ['fid', 'kid', 'is', *prdc, 'sfid']
    np.testing.assert_allclose(rows['fid']['value'], expected_fid(x, y), rtol=1e-6)
    np.testing.assert_allclose(rows['sfid']['value'], expected_fid(x, y, 'spatial'), rtol=1e-6)
    assert eyes[0].shown == 55  # each image once, whatever the number of metrics
    a = {'path': 'a.npy', 'kind': 'npy', 'n': 30, 'image_size': [4, 4, 3]}
    b = {'path': 'b.npz', 'kind': 'npz', 'n': 25, 'image_size': [4, 4, 3]}
    for name, row in rows.items():
        assert (row['n'], row['images']) == (30, a)
        assert (row.get('n_reference'), row.get('reference')) == (
            (None, None) if name == 'is' else (25, b)
        )
        assert (row['network'], row['resize']) == ('inception-2015-12-05', 'tf1')
        assert (row['weights_sha256'], row['seed']) == ('abc', 2020)
        assert row['gen_jax'] == workdir.code_version()
    assert (rows['kid']['subsets'], rows['kid']['subset_size']) == (100, 20)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(rows)
    assert f'{rows["fid"]["value"]:.6g}' in lines[0]
    assert f'+- {rows["kid"]["standard_error"]:.2g}' in lines[1]
    assert 'metrics.json' in lines[-1]
    assert err == ''


def test_identical_sets(eyes, ab):
    assert command.main(['a.npy', 'a.npy', '--metrics=fid,prdc']) == 0
    rows = read()
    assert abs(rows['fid']['value']) < 1e-6
    assert [rows[name]['value'] for name in ('precision', 'recall', 'f1', 'coverage')] == [1] * 4


def test_which_set_is_the_reference(eyes):
    """Precision is of A, recall of B: A lies within B's support, and B does not within A's."""
    y = np.zeros((40, 4, 4, 3), np.uint8)
    y[:, 0, 0, 0] = np.arange(40) * 6
    np.save('a.npy', y[:20])
    np.save('b.npy', y)
    assert command.main(['a.npy', 'b.npy', '--metrics=prdc']) == 0
    rows = read()
    assert rows['precision']['value'] == 1
    assert rows['recall']['value'] < 0.7


def test_n_takes_the_first(eyes, ab):
    x, y = ab
    assert command.main(['a.npy', 'b.npz', '--n=20', '--out=other.json']) == 0
    row = read('other.json')['fid']
    assert (row['n'], row['n_reference'], eyes[0].shown) == (20, 20, 40)
    np.testing.assert_allclose(row['value'], expected_fid(x[:20], y[:20]), rtol=1e-6)


def test_seed_and_subsets_reach_kid(eyes, ab):
    def kid(*flags):
        argv = ['a.npy', 'b.npz', '--metrics=kid', '--kid_subset_size=9', *flags]
        assert command.main(argv) == 0
        return read()['kid']['value']

    values = [kid(), kid('--seed=1'), kid('--kid_subsets=50'), kid('--kid_subset_size=8')]
    assert len(set(values)) == 4
    assert kid() == values[0]


def test_arguments_reach_the_network(eyes, ab):
    argv = ['a.npy', 'b.npz', '--network=digits', '--weights=w', '--batch_size=3']
    assert command.main(argv) == 0
    row = read()['fid_digits']
    assert (row['network'], row['weights'], eyes[0].batch_size) == ('digits', 'w', 3)
    assert command.main(['a.npy', 'b.npz', '--resize=clean']) == 0
    assert read()['fid']['resize'] == 'clean'


def test_one_set(eyes, ab):
    assert command.main(['a.npy', '--metrics=is']) == 0
    assert list(read()) == ['is']
    assert eyes[0].roles == ('logits',)


def test_sizes_may_differ_between_sets(eyes, ab, capsys):
    np.save('c.npy', pixels(25, size=9, channels=1))
    assert command.main(['a.npy', 'c.npy']) == 0
    row = read()['fid']
    assert row['images']['image_size'] == [4, 4, 3]
    assert row['reference']['image_size'] == [9, 9, 1]
    said = 'gen_jax.metrics: images of A are 4x4, those of B 9x9: both are resized to 299x299\n'
    assert capsys.readouterr().err == said
    refused(capsys, 'a.npy', 'c.npy', '--metrics=fid,prdc', '--n=5')  # in one line, without it
    for argv in (('a.npy', 'c.npy'), ('c.npy', 'a.npy')):  # before an image is seen
        assert 'digits are no (9, 9, 1)' in refused(capsys, *argv, '--network=digits')
        assert eyes[-1].shown == 0


def test_statistics_give_the_same_number(eyes, ab, capsys):
    assert command.main(['a.npy', 'b.npz', '--metrics=fid,sfid']) == 0
    direct = read()
    assert command.main(['b.npz', '--save-stats=b_stats.npz']) == 0
    assert 'statistics of 25 images in b_stats.npz' in capsys.readouterr().out
    with np.load('b_stats.npz') as file:
        np.testing.assert_allclose(file['mu'], see(ab[1], 'pool').mean(0), rtol=1e-6)
        assert file['sigma_s'].shape == (3, 3)
        story = json.loads(str(file['provenance']))
    assert (story['n'], story['resize'], story['gen_jax']) == (25, 'tf1', workdir.code_version())
    assert (story['weights_sha256'], story['images']['path']) == ('abc', 'b.npz')
    assert command.main(['a.npy', 'b_stats.npz', '--metrics=fid,sfid,is']) == 0
    rows = read()
    for name in ('fid', 'sfid'):
        np.testing.assert_allclose(rows[name]['value'], direct[name]['value'], rtol=1e-12)
        assert (rows[name]['n'], rows[name]['n_reference']) == (30, 25)
    told = rows['fid']['reference']
    assert told['sha256'] == hashlib.sha256(Path('b_stats.npz').read_bytes()).hexdigest()
    assert told['made_with'] == story
    assert eyes[-1].shown == 30


def test_statistics_against_statistics(eyes, ab, capsys):
    """No network is opened; what is known of it is what the files say."""
    for name, flag in (('s', '--network=inception'), ('t', '--network=digits')):
        assert command.main(['b.npz', f'--save-stats={name}.npz', flag]) == 0
    np.savez('silent.npz', mu=np.zeros(4), sigma=np.eye(4))
    eyes.clear()
    assert command.main(['s.npz', 'silent.npz']) == 0
    row = read()['fid']
    assert (row['network'], row['weights_sha256']) == ('inception-2015-12-05', 'abc')
    assert (row['n'], row['n_reference'], 'weights' in row) == (25, None, False)
    assert command.main(['t.npz', 't.npz']) == 0
    assert read()['fid_digits']['value'] < 1e-6
    assert command.main(['silent.npz', 'silent.npz']) == 0
    assert not {'network', 'resize', 'weights_sha256'} & {*read()['fid']}
    capsys.readouterr()
    assert 't.npz has statistics with network=digits, and s' in refused(capsys, 's.npz', 't.npz')
    line = refused(capsys, 't.npz', 't.npz', '--network=inception')
    assert 'network=digits, but network=inception-2015-12-05 is asked for' in line
    assert not eyes


def test_reference_batch(eyes, ab):
    """Its own statistics make FID, its images KID."""
    x, y = ab
    moments = fid.Moments.of(see(x, 'pool'))
    np.savez('ref.npz', arr_0=y, mu=moments.mu, sigma=moments.sigma)
    assert command.main(['a.npy', 'ref.npz', '--metrics=fid,kid']) == 0
    rows = read()
    assert rows['fid']['value'] < 1e-6
    assert (rows['fid']['n_reference'], rows['fid']['reference']['kind']) == (None, 'statistics')
    assert (rows['kid']['n_reference'], rows['kid']['reference']['kind']) == (25, 'npz')
    assert command.main(['a.npy', 'ref.npz', '--resize=clean']) == 0
    np.testing.assert_allclose(read()['fid']['value'], expected_fid(x, y), rtol=1e-6)
    assert command.main(['ref.npz', '--save-stats=s.npz']) == 0  # of the images
    np.testing.assert_allclose(np.load('s.npz')['mu'], see(y, 'pool').mean(0), rtol=1e-6)


def test_save_stats_of_small_networks_has_no_spatial_part(eyes, ab):
    assert command.main(['b.npz', '--save-stats=s.npz', '--network=digits']) == 0
    assert 'mu_s' not in np.load('s.npz').files
    assert command.main(['b.npz', '--save-stats=t.npz', '--dims=64']) == 0
    assert 'mu_s' not in np.load('t.npz').files


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        ('', 'required: A'),
        ('a.npy b.npz --metrics=fidd', "unknown metric 'fidd'"),
        ('a.npy b.npz --metrics=', '--metrics names nothing: expected some of fid,sfid,kid,'),
        ('a.npy --metrics= --network=digits', '--metrics names nothing'),
        ('a.npy --metrics=, --save-stats=s.npz', '--metrics names nothing'),
        ('a.npy b.npz --metrics=kid --seed=4294967296', 'number from 0 to 4294967295'),
        ('a.npy b.npz --out=/proc/x', 'cannot write /proc/x ('),
        ('a.npy b.npz --out=/dev/null', 'cannot write /dev/null: expected a file'),
        (f'a.npy b.npz --out={"x" * 300}', 'File name too long'),
        ('a.npy s.npz --n=3', 's.npz holds statistics, of which no 3 images can be taken'),
        ('s.npz s.npz --weights=w', 'without a network: leave --weights out'),
        ('s.npz s.npz --dims=64', 's.npz has statistics with dims=4, but dims=64 is asked for'),
        ('few.npy b.npz --metrics=fid,prdc', 'prdc needs at least 4 images, and few.npy gives 3'),
        ('b.npz some.npy --metrics=prdc', 'prdc needs at least 6 images, and some.npy gives 5'),
        ('a.npy --metrics=is --n=9', 'is needs at least 10 images, and a.npy gives 9'),
        ('a.npy b.npz --metrics=fid,prdc --n=5', 'needs at least 6 images, and b.npz gives 5'),
        ('a.npy b.npz c.npz', 'unrecognized arguments: c.npz'),
        ('a.npy b.npz --sead=1', 'unrecognized arguments: --sead=1'),
        ('a.npy b.npz --n=1', "'1' is not a whole number from 2 up"),
        ('a.npy b.npz --n=x', "'x' is not a whole number"),
        ('a.npy b.npz --batch_size=0', "'0' is not a whole number from 1 up"),
        ('a.npy b.npz --n=26', 'b.npz[images]: n=26, expected 2 to 25'),
        ('a.npy', 'fid compares A with a reference: name B'),
        ('a.npy --metrics=is,kid', 'kid compares A with a reference: name B'),
        ('a.npy b.npz --metrics=is', 'leave B out'),
        ('a.npy b.npz --save-stats=s.npz', '--save-stats takes one set'),
        ('a.npy --metrics=is --save-stats=s.npz', '--save-stats takes one set'),
        ('a.npy --save-stats=no/s.npz', 'No such file or directory'),
        ('a.npy --save-stats=s.npy', 'expected the name of a new .npz file'),
        ('a.npy --save-stats=b.npz', 'expected the name of a new .npz file'),
        ('a.npy --save-stats=no/s.npz', 'expected a file in a folder that can be written'),
        ('a.npy b.npz --out=no/m.json', 'expected a file in a folder that can be written'),
        ('a.npy b.npz --out=.', 'cannot write .: expected a file'),
        ('a.npy b.npz --network=digits --resize=clean', 'leave them out for digits'),
        ('a.npy b.npz --network=digits --dims=64', 'leave them out for digits'),
        ('a.npy b.npz --dims=64 --metrics=fid,sfid', '--dims concerns neither is nor sfid'),
        ('nothing b.npz', 'nothing does not exist: expected a folder of images'),
    ],
)
def test_refuses_arguments(eyes, ab, capsys, argv, words):
    np.savez('s.npz', mu=np.zeros(4), sigma=np.eye(4))
    np.save('few.npy', pixels(3))
    np.save('some.npy', pixels(5))
    assert words in refused(capsys, *argv.split())
    assert not eyes  # before any network is opened


def test_refuses_statistics_that_do_not_fit(eyes, ab, capsys):
    np.savez('s.npz', mu=np.zeros(4), sigma=np.eye(4))
    line = refused(capsys, 'a.npy', 's.npz', '--metrics=fid,kid')
    assert "kid needs every image's features, and s.npz holds only their mean" in line
    assert 'prdc needs' in refused(capsys, 'a.npy', 's.npz', '--metrics=prdc')
    assert 'is needs' in refused(capsys, 's.npz', '--metrics=is')
    assert 's.npz lacks the statistics' in refused(capsys, 'a.npy', 's.npz', '--metrics=sfid')
    assert 'holds statistics already' in refused(capsys, 's.npz', '--save-stats=t.npz')
    assert not eyes
    np.savez('s.npz', mu=np.zeros(64), sigma=np.eye(64))
    line = refused(capsys, 'a.npy', 's.npz')
    assert 's.npz has statistics with dims=64, but dims=4 is asked for' in line
    assert eyes[0].shown == 0
    np.savez('s.npz', mu=np.zeros(4), sigma=np.diag([1, 1, 1, np.nan]))
    assert 'not finite' in refused(capsys, 'a.npy', 's.npz')


@pytest.mark.parametrize('flag', ['--network=nothing', '--resize=nothing', '--dims=3'])
def test_refuses_unknown_names_with_statistics(tmp_path, monkeypatch, capsys, flag):
    monkeypatch.chdir(tmp_path)
    np.savez('s.npz', mu=np.zeros(4), sigma=np.eye(4))
    assert flag.partition('=')[2] in refused(capsys, 's.npz', 's.npz', flag)


def test_refuses_empty_paths(eyes, ab, capsys):
    for argv in (('', 'b.npz'), ('a.npy', ''), ('', '--save-stats=s.npz')):
        assert 'an empty path names no set' in refused(capsys, *argv)
    assert 'leave B out' in refused(capsys, 'a.npy', '', '--metrics=is')


def test_refuses_sets(eyes, ab, capsys):
    """What the metrics command does not take for images, each in one line that names it."""
    x = pixels(5).astype(np.float32)
    x[3, 0, 0, 0] = np.nan
    np.save('nan.npy', x)
    np.save('float.npy', pixels(5) / np.float32(50))
    np.save('one.npy', pixels(1))
    np.save('none.npy', pixels(0))
    Path('broken.npz').write_bytes(Path('b.npz').read_bytes()[:200])
    for name, images in {'sizes': [pixels(1, 4), pixels(1, 5)], 'cut': pixels(2, 40)}.items():
        Path(name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.reshape(image.shape[-3:])).save(f'{name}/{i}.png')
    png = Path('cut/1.png')
    png.write_bytes(png.read_bytes()[:-500])
    expected = {
        'nan.npy': 'holds NaN',
        'float.npy': 'float32 in [0, 5.1], expected uint8 in [0, 255]',
        'one.npy': 'holds 1 images: a set needs at least 2',
        'none.npy': 'holds 0 images: a set needs at least 2',
        'broken.npz': 'broken.npz cannot be read',
        'sizes': '0.png is 4x4, sizes/1.png is 5x5',
        'cut': 'cut/1.png cannot be read as an image',
    }
    for name, words in expected.items():
        for argv in ((name, 'b.npz'), ('b.npz', name)):
            line = refused(capsys, *argv)
            assert words in line
            assert name in line
    assert not eyes


def test_refuses_what_breaks_on_the_way(eyes, ab, capsys):
    data = bytearray(Path('b.npz').read_bytes())
    data[data.index(ab[1][20].tobytes())] ^= 1
    Path('b.npz').write_bytes(data)
    assert 'b.npz cannot be read (Bad CRC-32' in refused(capsys, 'a.npy', 'b.npz')
    assert 'b.npz cannot be read' in refused(capsys, 'b.npz', '--save-stats=s.npz')


@pytest.mark.slow
def test_refuses_from_the_shell(tmp_path):
    """The module itself, and the real networks: their weights are looked for before any image."""
    np.save(tmp_path / 'a.npy', pixels(3))
    (tmp_path / 'w.pth').write_bytes(b'hello')
    argv = [sys.executable, '-m', 'gen_jax.metrics', 'a.npy', 'a.npy', '--weights=w.pth']
    ran = subprocess.run(
        argv,
        cwd=tmp_path,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (ran.returncode, ran.stdout) == (2, '')
    assert ran.stderr.startswith('gen_jax.metrics: ')
    assert ran.stderr.count('\n') == 1
    assert 'w.pth' in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.npy', 'w.pth']


@pytest.mark.slow
def test_inception(tmp_path, monkeypatch, capsys, inception_weights):
    """The real network, from files to numbers and to statistics."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (('a', 0), ('b', 1)):
        Path(name).mkdir()
        for i, image in enumerate(pixels(10, 32, seed=seed, high=[256, 200][seed])):
            Image.fromarray(image).save(f'{name}/{i:02}.png')
    flags = [f'--weights={inception_weights}', '--batch_size=10']
    assert command.main(['a', 'b', '--metrics=fid,kid,is,prdc,sfid', *flags]) == 0
    rows = read()
    sha256 = hashlib.sha256(inception_weights.read_bytes()).hexdigest()
    assert {row['weights_sha256'] for row in rows.values()} == {sha256}
    assert all(np.isfinite(row['value']) for row in rows.values())
    assert rows['fid']['value'] > 1e-3
    assert rows['sfid']['value'] > 1e-3
    assert command.main(['b', '--save-stats=s.npz', *flags]) == 0
    with np.load('s.npz') as file:
        assert (file['mu'].shape, file['sigma_s'].shape) == ((2048,), (2023, 2023))
    capsys.readouterr()
    line = refused(capsys, 'a', 's.npz', '--resize=clean', *flags)
    assert 'resize=tf1, but resize=clean is asked for' in line
