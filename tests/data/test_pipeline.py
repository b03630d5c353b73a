import json
import pickle
import subprocess
import sys
from itertools import chain

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from gen_jax.data import pipeline
from gen_jax.data.folder import Folder
from gen_jax.errors import UserError


class Numbers:
    """Example i is an image of the value i with a mark at its left, and the label i % 3."""

    num_classes = 3

    def __init__(self, n, broken=None):
        self.n, self.broken = n, broken

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.broken:
            raise UserError(f'example {i} is broken')
        image = np.full((4, 4, 1), i, np.uint8)
        image[:, 0] = 255
        return {'image': image, 'label': i % 3, 'caption': 'text', 'map': image[..., 0], 'x': i / 2}


def config(batch_size=4, seed=0, **data):
    fields = {'source': 'numbers', 'split': 'train', 'image_size': 4, 'channels': 1}
    fields |= {'num_classes': 3, 'flip': False, 'crop': 1.0}
    return ConfigDict(
        {
            'batch_size': batch_size,
            'seed': seed,
            'data': {**fields, 'threads': 2, 'prefetch': 4, **data},
        }
    )


def ids(batch):
    """Which examples a batch holds, read from a column that mirroring leaves unmarked."""
    return pipeline.to_uint8(batch['image'])[:, 0, 1, 0].tolist()


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def order(n_batches, n=10, **kwargs):
    batches = take(pipeline.train_iterator(config(**kwargs), Numbers(n)), n_batches)
    return [i for batch in batches for i in ids(batch)]


def test_to_float_and_to_uint8():
    levels = np.arange(256, dtype=np.uint8)
    floats = pipeline.to_float(levels)
    assert floats.dtype == np.float32
    assert (floats[0], floats[255]) == (-1, 1)
    np.testing.assert_allclose(floats, np.linspace(-1, 1, 256), atol=1e-7)
    np.testing.assert_array_equal(pipeline.to_uint8(floats), levels)
    # Halfway between 127 and 128 is 0; beyond the ends is clipped.
    half_level = 1 / 255
    values = np.array([-3, -1 + 0.9 * half_level, -1 + 1.1 * half_level, 1.5])
    assert pipeline.to_uint8(values).tolist() == [0, 0, 1, 255]


def test_every_epoch_has_every_example_once_in_its_own_order():
    seen = order(10)  # 40 examples: batches of 4 straddle the epochs of 10
    epochs = [seen[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_is_a_function_of_the_seed():
    assert order(5) == order(5, threads=1, prefetch=1)
    assert order(5) == order(2, batch_size=10)
    assert order(5) != order(5, seed=1)


def test_a_batch_may_be_larger_than_the_data():
    seen = order(1, n=3, batch_size=8)
    assert sorted(seen[:3]) == sorted(seen[3:6]) == [0, 1, 2]


def test_batches_have_the_stated_fields():
    source = Numbers(10)
    batch = next(pipeline.train_iterator(config(), source))
    spec = pipeline.batch_spec(config())
    assert set(batch) == {'image', 'label', 'map', 'x'}  # text is left out
    assert {k: (batch[k].shape, batch[k].dtype) for k in spec} == {
        k: (v.shape, v.dtype) for k, v in spec.items()
    }
    assert batch['label'].tolist() == [i % 3 for i in ids(batch)]
    assert batch['x'].tolist() == [i / 2 for i in ids(batch)]
    assert (batch['image'][:, :, 0] == 1).all()
    assert pipeline.batch_spec(config()) == {
        'image': jax.ShapeDtypeStruct((4, 4, 4, 1), np.float32),
        'label': jax.ShapeDtypeStruct((4,), np.int32),
    }


@pytest.mark.parametrize('process_count', [2, 4])
def test_processes_hold_rows_of_the_same_global_batch(process_count):
    c = config(batch_size=8, flip=True)
    whole = take(pipeline.train_iterator(c, Numbers(10)), 4)
    for p in range(process_count):
        rows = np.arange(p, 8, process_count)  # those of a process may lie anywhere
        for mine, batch in zip(
            take(pipeline.train_iterator(c, Numbers(10), rows), 4), whole, strict=True
        ):
            for name, value in batch.items():
                np.testing.assert_array_equal(mine[name], value[rows])


def test_half_of_the_examples_are_mirrored_with_all_their_maps():
    batches = take(pipeline.train_iterator(config(batch_size=50, flip=True), Numbers(100)), 8)
    mirrored = np.concatenate([b['image'][:, 0, 3, 0] == 1 for b in batches])
    marks = np.concatenate([b['image'][:, 0, 0, 0] == 1 for b in batches])
    np.testing.assert_array_equal(mirrored, ~marks)
    assert 150 < mirrored.sum() < 250  # of 400, five standard deviations
    maps = np.concatenate([b['map'][:, 0, 3] == 255 for b in batches])
    np.testing.assert_array_equal(maps, mirrored)
    # The same examples are drawn anew in the next epoch.
    epochs = [
        dict(
            zip(chain.from_iterable(map(ids, batches[i : i + 2])), mirrored[50 * i :], strict=False)
        )
        for i in (0, 2)
    ]
    assert epochs[0].keys() == epochs[1].keys()
    assert any(epochs[0][i] != epochs[1][i] for i in epochs[0])


def test_crops_are_drawn_anew_in_each_epoch_whoever_reads_them(tmp_path):
    for i in range(6):
        # Of image i column x is 40 i + 10 + x throughout.
        levels = np.broadcast_to(40 * i + 10 + np.arange(20), (10, 20)).astype(np.uint8)
        Image.fromarray(levels).save(tmp_path / f'{i}.png')
    source = Folder(str(tmp_path), 'train', 10, 1, 'resize')
    c = config(batch_size=6, image_size=10, num_classes=0, crop=0.99)
    iterator = pipeline.train_iterator(c, source)
    epochs = take(iterator, 2)
    state = iterator.get_state()
    third = next(iterator)
    first = [pipeline.to_uint8(batch['image'])[:, 0, 0, 0] for batch in epochs]
    starts = [dict(zip(x // 40, x % 40 - 10, strict=True)) for x in first]  # {image: column}
    assert starts[0].keys() == starts[1].keys() == set(range(6))
    columns = [x for start in starts for x in start.values()]
    assert min(columns) >= 0
    assert max(columns) <= 12  # of 22, where the image was enlarged
    assert len(set(columns)) > 3
    assert starts[0] != starts[1]
    rows = np.array([1, 4])
    mine = take(pipeline.train_iterator(c, source, rows), 2)
    for part, batch in zip(mine, epochs, strict=True):
        np.testing.assert_array_equal(part['image'], batch['image'][rows])
    again = pipeline.train_iterator(c, source)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)['image'], third['image'])


RESUME = """
import json, pickle, sys
from gen_jax.data import pipeline
config, source, state = pickle.load(sys.stdin.buffer)
iterator = pipeline.train_iterator(config, source)
iterator.set_state(json.loads(state))
pickle.dump([next(iterator) for _ in range(5)], sys.stdout.buffer)
"""


@pytest.mark.slow
def test_resuming_in_another_process_is_exact():
    # A source that another process can import.
    from gen_jax.data.shapes import Shapes

    c, source = config(flip=True, num_classes=6), Shapes('test', 4)
    iterator = pipeline.train_iterator(c, source)
    take(iterator, 7)
    state = json.dumps(iterator.get_state())
    expected = take(iterator, 5)
    result = subprocess.run(
        [sys.executable, '-c', RESUME],
        input=pickle.dumps((c, source, state)),
        capture_output=True,
        check=True,
    )
    for batch, want in zip(pickle.loads(result.stdout), expected, strict=True):
        for name in want:
            np.testing.assert_array_equal(batch[name], want[name])


def test_a_state_tells_how_many_examples_it_is_of():
    """Each epoch has every example once only among as many as there were."""
    iterator = pipeline.train_iterator(config(), Numbers(12))
    take(iterator, 4)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [ids(batch) for batch in take(iterator, 2)]
    other = pipeline.train_iterator(config(), Numbers(13))
    with pytest.raises(UserError, match=r"^numbers 'train' had 12 examples .* has 13: ") as error:
        other.set_state(state)
    assert '\n' not in str(error.value)
    # Checkpoints of before do not tell.
    for old in (state, {'next_index': 4}):
        resumed = pipeline.train_iterator(config(), Numbers(12))
        resumed.set_state(old)
        assert [ids(batch) for batch in take(resumed, 2)] == expected


def test_labels_are_checked_or_unused():
    c = config(num_classes=2)
    with pytest.raises(UserError, match='example 2 has label 2, expected 0 to 1: '):
        next(pipeline.evaluation_batches(c, Numbers(10), 5))
    unused = next(pipeline.train_iterator(config(num_classes=0), Numbers(10)))
    assert (unused['label'].tolist(), unused['label'].dtype) == ([0] * 4, np.int32)


def test_an_error_in_a_reader_thread_arrives_as_it_is():
    iterator = pipeline.train_iterator(config(), Numbers(10, broken=6))
    with pytest.raises(UserError) as error:
        take(iterator, 5)
    assert str(error.value) == 'example 6 is broken'


@pytest.mark.parametrize('process_count', [1, 2, 4])
def test_evaluation_counts_every_example_once(process_count):
    c = config(flip=True)
    parts = [
        list(pipeline.evaluation_batches(c, Numbers(9), 8, np.arange(8)[p::process_count]))
        for p in range(process_count)
    ]
    assert {len(part) for part in parts} == {2}
    seen = []
    for k in range(2):
        for part in parts:
            batch = part[k]
            assert batch['image'].shape == (8 // process_count, 4, 4, 1)
            assert (batch['image'][:, :, 0] == 1).all()  # nothing is mirrored
            assert batch['mask'].dtype == np.float32
            assert set(batch['mask']) <= {0.0, 1.0}
            seen += [i for i, real in zip(ids(batch), batch['mask'], strict=True) if real]
    assert sorted(seen) == list(range(9))


def test_evaluation_pads_nothing_when_it_fits():
    masks = [b['mask'].tolist() for b in pipeline.evaluation_batches(config(), Numbers(6), 3)]
    assert masks == [[1, 1, 1], [1, 1, 1]]
