import pickle

import numpy as np
import pytest

from gen_jax.data.shapes import COLOURS, SHAPES, Shapes
from gen_jax.errors import UserError

# Area of each shape by elementary geometry, as a share of its circumscribed circle's square r**2.
LONG = np.sqrt(1 - 0.3**2)
AREAS = {
    'circle': np.pi,
    'square': 2.0,
    'triangle': 0.75 * np.sqrt(3),
    'ring': np.pi * (1 - 0.5**2),
    'cross': 2 * (2 * LONG * 0.6) - 0.6**2,
}
RADII = {'small': (0.15, 0.20), 'medium': (0.25, 0.31), 'large': (0.37, 0.45)}


def test_examples_have_the_stated_fields():
    source = Shapes('train', 20)
    example = source[7]
    assert len(source) == 50_000
    assert len(Shapes('test', 20)) == 10_000
    assert source.num_classes == len(SHAPES)
    assert (example['image'].shape, example['image'].dtype) == ((20, 20, 3), np.uint8)
    for name in ('segmentation', 'edge'):
        assert (example[name].shape, example[name].dtype) == ((20, 20), np.uint8)


def test_examples_depend_on_split_and_index_alone():
    source = Shapes('train', 16)
    first = [source[i]['image'] for i in range(10)]
    again = pickle.loads(pickle.dumps(source))
    for i in reversed(range(10)):
        np.testing.assert_array_equal(again[i]['image'], first[i])
    other = Shapes('test', 16)
    assert sum((other[i]['image'] == first[i]).all() for i in range(10)) == 0
    assert len({image.tobytes() for image in first}) == 10


def test_the_caption_says_what_is_drawn():
    source = Shapes('train', 64)
    for i in range(60):
        example = source[i]
        _, size, colour, shape, _, _, background, _ = example['caption'].split()
        assert shape == SHAPES[example['label']]
        assert set(np.unique(example['segmentation'])) == {0, 1 + example['label']}
        inside = example['segmentation'] > 0
        away = example['edge'] == 0
        assert (example['image'][inside & away] == COLOURS[colour]).all()
        assert (example['image'][~inside & away] == COLOURS[background]).all()
        if shape in AREAS:
            low, high = (AREAS[shape] * (64 * r) ** 2 for r in RADII[size])
            assert 0.93 * low < inside.sum() < 1.07 * high


def test_edges_follow_the_segmentation():
    source = Shapes('train', 64)
    for i in range(20):
        example = source[i]
        inside = example['segmentation'] > 0
        # Wherever neighbours differ, the outline passes between them.
        across = inside[:, 1:] != inside[:, :-1]
        stronger = np.maximum(example['edge'][:, 1:], example['edge'][:, :-1])
        assert stronger[across].min() >= 90
        assert 0 < (example['edge'] > 0).mean() < 0.35


def test_the_scene_is_the_same_at_every_size():
    large, small = Shapes('train', 64)[3], Shapes('train', 16)[3]
    assert large['caption'] == small['caption']
    pooled = large['image'].reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert abs(pooled - small['image']).mean() < 4


def test_classes_are_balanced():
    source = Shapes('train', 8)
    counts = np.bincount([source[i]['label'] for i in range(1200)], minlength=len(SHAPES))
    assert abs(counts - 200).max() < 60  # 4.6 standard deviations


def test_errors():
    with pytest.raises(UserError, match="no split 'tets', did you mean 'test'"):
        Shapes('tets', 8)
    with pytest.raises(IndexError):
        Shapes('test', 8)[10_000]
