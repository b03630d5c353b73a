"""--mode=sample on what lies in its folder, of a program whose images are known."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gen_jax import sample
from gen_jax.config import default
from gen_jax.errors import UserError
from gen_jax.runtime import arrays, images

OUT = 'samples/at_step_00000003_seed_0'


def shown(indices):
    """Image i is of the value i, and has a mark that turning it would move."""
    made = np.broadcast_to(np.uint8(indices)[:, None, None, None], (len(indices), 8, 8, 1)).copy()
    made[:, 0, 1] = 255
    return made


class Drawn:
    """A program that remembers what it drew."""

    def __init__(self, config, method):
        del method
        self.config, self.indices = config, []
        self.method = SimpleNamespace(sample_step=True, encode=None, decode=None)

    def settled(self, state):
        return state

    def condition(self, indices):
        return {'label': np.int32(indices % 10), 'guidance': np.ones(len(indices))}

    def sample(self, state, indices):
        self.indices += indices.tolist()
        return shown(indices)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """--mode=sample for n images; returns the indices that were drawn."""
    monkeypatch.setattr(sample, 'load', lambda *_: (3, {}))

    def start(n, kind='npz', grid=4):
        config = default('autoencoders.vae')
        config.sample.update({'n': n, 'format': kind, 'grid': grid, 'batch_size': 4})
        program = Drawn(config, None)
        monkeypatch.setattr(sample, 'Program', lambda *_: program)
        sample.run(config, tmp_path)
        return program.indices

    return start


def test_standing_statistics_of_other_batches_are_other_samples(tmp_path):
    config = default('gans.adversarial')
    state = {'w': np.ones(3)}
    for standing, fits in ((0, True), (2, False)):
        config.sample.standing, config.seed, config.batch_size = standing, standing, 64
        sample.claimed(config, tmp_path, 1, state)
        config.batch_size = 32
        if fits:
            sample.claimed(config, tmp_path, 1, state)
            continue
        with pytest.raises(UserError, match='batch_size was 64, is 32'):
            sample.claimed(config, tmp_path, 1, state)


def parts(out):
    return sorted(path.name for path in out.glob('part_*'))


def test_samples_that_others_drew_stay(run, tmp_path):
    out = tmp_path / OUT
    out.mkdir(parents=True)
    for first, end in ((0, 30), (30, 200)):  # as --mode=evaluate leaves them
        np.save(out / f'part_{first}_{end}.npy', shown(np.arange(first, end)))
    assert run(40) == []
    assert parts(out) == ['part_30_200.npy']
    assert run(200) == []
    assert parts(out) == []
    for n in (200, 5):
        assert run(n) == []
        with np.load(out / 'samples.npz') as made:
            np.testing.assert_array_equal(made['images'], shown(np.arange(200)))
            np.testing.assert_array_equal(made['label'], np.arange(200) % 10)


@pytest.mark.parametrize('kind', ['npz', 'png'])
def test_nothing_is_drawn_twice_and_the_grid_shows_what_was_drawn(run, tmp_path, kind):
    assert run(10, kind) == list(range(10))
    page = images.grid(shown(np.arange(4)))
    path = tmp_path / 'samples/grid_00000003.png'
    np.testing.assert_array_equal(np.asarray(Image.open(path)), page[..., 0])
    assert run(12, kind, grid=50) == [10, 11]
    page = images.grid(shown(np.arange(12)))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), page[..., 0])


def test_what_a_killed_run_left_half_written_goes(run, tmp_path):
    out = tmp_path / OUT
    out.mkdir(parents=True)
    (out / '.0_256.partial.npy').write_bytes(b'half')
    run(10)
    assert sorted(path.name for path in out.iterdir()) == ['samples.npz', 'settings.json']


def test_samples_are_never_all_in_memory(run, tmp_path):
    n = 8000
    tracemalloc.start()
    run(n)
    program = Drawn(default('autoencoders.vae'), None)
    for part in sample.stored(program, {}, tmp_path / OUT, n):
        assert part.shape[1:] == (8, 8, 1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < n * 64
    assert program.indices == []


def test_a_file_of_samples_that_is_cut_short_is_told(run, tmp_path):
    run(10)
    path = tmp_path / OUT / 'samples.npz'
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r'samples\.npz cannot be read'):
        run(20)


def test_an_array_written_in_parts_is_numpys(tmp_path):
    x = np.arange(7 * 6, dtype=np.int16).reshape(7, 2, 3)
    arrays.write_npz(tmp_path / 'x.npz', 'x', 7, [x[:3], x[3:4], x[4:]], label=np.arange(7))
    with np.load(tmp_path / 'x.npz') as found:
        np.testing.assert_array_equal(found['x'], x)
        assert found['x'].dtype == x.dtype
        np.testing.assert_array_equal(found['label'], np.arange(7))
    read = list(arrays.rows(tmp_path / 'x.npz', 'x', 5, 2))
    np.testing.assert_array_equal(np.concatenate(read), x[:5])
    assert [len(part) for part in read] == [2, 2, 1]
    assert [path.name for path in tmp_path.iterdir()] == ['x.npz']
