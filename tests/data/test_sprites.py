"""Sprites: areas, middles and symmetries by geometry, and every example by its index."""

import math
import pickle

import numpy as np
import pytest

from gen_jax.config import default
from gen_jax.data import sprites
from gen_jax.data.pipeline import train_iterator
from gen_jax.data.sources import open_source
from gen_jax.data.sprites import FACTORS, SHAPES, SIZES, Sprites, render
from gen_jax.errors import UserError

# Of the heart, 1/2 integral of x dy - y dx over its curve is 180 pi times its scale squared.
AREAS = {'square': 19.2**2, 'ellipse': math.pi * 12.8 * 7.2, 'heart': 180 * math.pi * 0.63**2}
# Half of width and height of the unturned shape.
HALVES = {'square': (9.6, 9.6), 'ellipse': (12.8, 7.2), 'heart': (16 * 0.63, 14.5 * 0.63)}


def drawn(shape, scale=1.0, angle=0.0, x=0.5, y=0.5, size=64):
    rows = np.broadcast_arrays(SHAPES.index(shape), scale, angle, x, y)
    return render(np.stack(rows, -1).reshape(-1, 5), size)


def middle(images):
    """(x, y) of the white pixels' mean, in pixels from the corner, [n] each."""
    ticks = np.arange(images.shape[-1]) + 0.5
    weight = images.sum((1, 2), dtype=float)
    return (images * ticks).sum((1, 2)) / weight, (images * ticks[:, None]).sum((1, 2)) / weight


def test_factors_and_values_are_those_of_dsprites():
    assert math.prod(SIZES) == 737_280
    assert len(FACTORS) == len(SIZES)
    np.testing.assert_array_equal(sprites.factors(np.array([0, 1, 737_279])), [
        [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [2, 5, 39, 31, 31],
    ])  # fmt: skip
    step = 3 * 245_760 // 3, 40_960, 1024, 32, 1  # of dSprites' own order
    some = np.random.default_rng(0).integers(737_280, size=100)
    np.testing.assert_array_equal(sprites.factors(some) @ np.array(step), some)
    np.testing.assert_array_equal(sprites.index(sprites.factors(some)), some)
    grid = [np.unique(column) for column in sprites.values(sprites.factors(np.arange(737_280))).T]
    expected = (
        [0, 1, 2],
        [0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        np.arange(40) * 2 * np.pi / 39,
        np.arange(32) / 31,
        np.arange(32) / 31,
    )
    for found, want in zip(grid, expected, strict=True):
        np.testing.assert_allclose(found, want, atol=1e-12)


def test_coarser_grids_span_the_same_range():
    sizes = (2, 3, 1, 2, 5)
    found = sprites.values(sprites.factors(np.arange(60), sizes), sizes)
    assert [np.unique(column).tolist() for column in found.T] == [
        [0, 1],
        [0.5, 0.75, 1],
        [0],
        [0, 1],
        [0, 0.25, 0.5, 0.75, 1],
    ]


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('scale', [0.5, 0.8, 1.0])
def test_areas(shape, scale):
    """Of any place and angle the pixels whose middles are inside are as many, in the mean."""
    angle, x, y = np.random.default_rng(0).random((3, 400)) * [[2 * np.pi], [1], [1]]
    images = drawn(shape, scale, angle, x, y)
    assert set(np.unique(images)) == {0, 255}
    areas = (images > 0).sum((1, 2))
    error = areas.std() / 20
    assert 0 < error < 0.3
    assert abs(areas.mean() - AREAS[shape] * scale**2) < 4 * error
    if shape != 'heart':
        away = middle(images) - (16 + 32 * np.stack([x, y]))
        assert abs(away).max() < 0.5
        assert (abs(away.mean(1)) < 4 * away.std(1) / 20).all()


@pytest.mark.parametrize('shape', SHAPES)
def test_bounds(shape):
    for x, y in ((0, 0), (1, 0), (0.3, 0.9), (1, 1)):
        image = drawn(shape, x=x, y=y)
        place = 16 + 32 * np.array([x, y])
        columns, rows = image[0].any(0).nonzero()[0], image[0].any(1).nonzero()[0]
        for where, at, half in zip((columns, rows), place, HALVES[shape], strict=True):
            # The last pixel whose middle is inside; a tip is thinner than that.
            assert at - half <= where[0] + 0.5 < at - half + 2.5
            assert at + half - 2.5 < where[-1] + 0.5 <= at + half
        assert 0 < where.min() < where.max() < 63


def test_the_heart_is_its_curve():
    """As polygon of many points, asked pixel by pixel for how often the curve winds around."""
    t = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outline = 0.63 * (x + 1j * -(y + 2.5))
    angle, place = 0.7, 32 + 32j
    curve = place + outline * np.exp(-1j * angle)  # y points down
    ticks = np.arange(64) + 0.5
    pixels = ticks + 1j * ticks[:, None]
    ways = (curve - pixels[..., None]).astype(np.complex64)
    winding = np.angle(np.roll(ways, 1, -1) / ways).sum(-1) / (2 * np.pi)
    np.testing.assert_array_equal(drawn('heart', angle=angle)[0] > 0, abs(winding) > 0.5)


def test_rotations_turn_counter_clockwise():
    """A quarter is exact: pixels are then pixels."""
    for shape in SHAPES:
        # No pixel's middle lies on an outline.
        still, turned = drawn(shape, 0.93, [0.1, 0.1 + np.pi / 2])
        np.testing.assert_array_equal(np.rot90(still), turned)
    below = middle(drawn('heart'))[1] - 32  # its tip points down, its weight is above
    right = middle(drawn('heart', angle=np.pi / 2))[0] - 32
    assert below < -1
    np.testing.assert_allclose(right, below, atol=1e-6)  # and then its tip to the right


def test_symmetries():
    same = np.testing.assert_array_equal
    a, quarter, half = drawn('square', 0.93, [0.3, 0.3 + np.pi / 2, 0.3 + np.pi])
    same(a, quarter)
    same(a, half)
    a, quarter, half = drawn('ellipse', 0.93, [0.3, 0.3 + np.pi / 2, 0.3 + np.pi])
    same(a, half)
    assert (a != quarter).any()
    heart = drawn('heart')[0]
    same(heart, heart[:, ::-1])
    for angle in (0.4, 1.0):
        left, right = drawn('heart', 0.93, [angle, -angle])
        same(left, right[:, ::-1])
    first, last = drawn('heart', 1.0, [0, 2 * np.pi])
    same(first, last)


def test_places_move_by_whole_pixels():
    there = drawn('heart', 0.8, 0.6, x=0.5, y=0.25)[0]
    np.testing.assert_array_equal(
        drawn('heart', 0.8, 0.6, x=0.5 + 5 / 32, y=0.25 + 8 / 32)[0],
        np.roll(there, (8, 5), (0, 1)),
    )


@pytest.mark.parametrize('size', [32, 16, 8])
def test_smaller_images_are_means(size):
    values = sprites.values(sprites.factors(np.arange(0, 737_280, 50_001)))
    large, small = render(values), render(values, size)
    k = 64 // size
    for one, other in zip(large, small, strict=True):
        for i, j in np.ndindex(size, size):
            mean = one[k * i : k * i + k, k * j : k * j + k].mean()
            assert abs(other[i, j] - mean) <= 0.5
    assert small.dtype == np.uint8


def test_neighbours_differ():
    """As dSprites': every step of a factor changes pixels; a square's rotation within a quarter."""
    base = np.array([2, 2, 17, 13, 20])
    for factor, size in enumerate(SIZES):
        rows = np.tile(base, (size, 1))
        rows[:, factor] = np.arange(size)
        if FACTORS[factor] == 'rotation':
            rows = rows[:-1]  # the last one is the first
        images = render(sprites.values(rows))
        assert len({image.tobytes() for image in images}) == len(rows)


# --- the source ----------------------------------------------------------------------------------


def test_examples_are_functions_of_their_index():
    source = Sprites('all', 32)
    assert (len(source), source.num_classes) == (737_280, 3)
    some = [5, 700_000, 123_456]
    examples = source.__getitems__(some)
    for i, example in zip(some, examples, strict=True):
        np.testing.assert_array_equal(example['factors'], sprites.factors(i))
        assert example['label'] == example['factors'][0]
        image = render(sprites.values(sprites.factors(np.array([i]))), 32)[0]
        np.testing.assert_array_equal(example['image'][..., 0], image)
        alone = pickle.loads(pickle.dumps(source))[i]
        np.testing.assert_array_equal(alone['image'], example['image'])
    assert (alone['image'].shape, alone['image'].dtype) == ((32, 32, 1), np.uint8)
    for i in (-1, 737_280):
        with pytest.raises(IndexError):
            source[i]


def test_splits_part_every_image():
    sizes = (3, 2, 4, 5, 2)
    parts = [Sprites(split, 8, sizes) for split in ('train', 'test', 'all')]
    assert [len(part) for part in parts] == [216, 24, 240]
    found = [
        [int(sprites.index(x['factors'], sizes)) for x in part.__getitems__(range(len(part)))]
        for part in parts
    ]
    assert sorted(found[0] + found[1]) == found[2] == list(range(240))
    assert len(Sprites('test', 8)) == 73_728
    # Every value of every factor is in both.
    for part in parts:
        factors = np.stack([x['factors'] for x in part.__getitems__(range(len(part)))])
        assert [len(np.unique(column)) for column in factors.T] == list(sizes)


def config(**data):
    config = default('autoencoders.vae')
    config.data.update({'source': 'sprites:3x2x4x5x2', 'split': 'all', 'image_size': 16, **data})
    config.batch_size = 16
    return config


def test_batches_have_factors_too():
    told = config(num_classes=3)
    source = open_source(told.data, 'all')
    assert len(source) == 240
    batch = next(train_iterator(told, source))
    assert (batch['image'].shape, batch['factors'].shape) == ((16, 16, 16, 1), (16, 5))
    np.testing.assert_array_equal(batch['label'], batch['factors'][:, 0])
    images = render(sprites.values(batch['factors'], (3, 2, 4, 5, 2)), 16)
    np.testing.assert_allclose(batch['image'][..., 0], images / 127.5 - 1, atol=1e-6)


def test_the_whole_grid_is_opened_by_its_name():
    assert len(open_source(config(source='sprites', image_size=64).data, 'test')) == 73_728


@pytest.mark.parametrize(
    ('data', 'told'),
    [
        ({'source': 'sprite'}, "did you mean 'sprites'"),
        ({'source': 'sprites:3x2x4x5'}, 'sprites:3x2x4x5: expected how many values shape, scale'),
        ({'source': 'sprites:4x2x4x5x2'}, 'of shapes at most 3'),
        ({'source': 'sprites:3x2x4x5x0'}, 'sprites:3x2x4x5x0'),
        ({'source': 'sprites:3x2xax5x2'}, 'sprites:3x2xax5x2'),
        (
            {'source': 'sprites:3x100x1000x100x100'},
            '3,000,000,000 images, expected at most 100,000,000',
        ),
        ({'split': 'val'}, "sprites have no split 'val'"),
        ({'image_size': 48}, 'sprites of 48 pixels: expected 64'),
        ({'channels': 3}, 'set config.data.channels=1'),
        ({'num_classes': 10}, 'has 3 classes'),
    ],
)
def test_mistakes_are_told_in_one_line(data, told):
    asked = config(**data).data
    with pytest.raises(UserError, match=told) as error:
        open_source(asked, asked.split)
    assert '\n' not in str(error.value)
