"""Where images come from: random-access sources of uint8 images.

A source is anything with
  __len__: the number of examples;
  __getitem__(i): example i, a dict of `image` uint8 [h, w, c], `label` int, and what else it has;
  num_classes: labels are 0 .. num_classes-1; 0 where it has none.
It may have `__getitems__(indices) -> [example, ...]` where reading together is quicker, and
`labels() -> int [n]` where these are to be had without images. Examples depend on i alone; of those
that `cropped(indices, least, crops) -> [example, ...]` gives, where images are larger, parts are
shown (see `fitting.crop_image`). Sources can be pickled, and read by many threads at once.
"""

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jax.experimental import multihost_utils

from gen_jax.config import nearest
from gen_jax.data import fitting, folder, shapes, sprites
from gen_jax.data.folder import Folder
from gen_jax.data.shapes import Shapes
from gen_jax.data.sprites import Sprites, parse_sizes
from gen_jax.errors import UserError

LOOKED_UP = 1000  # examples at a time whose labels alone are wanted


class Source(Protocol):
    """See the top of the file."""

    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...


class Digits:
    """1,797 handwritten digits of UCI, 8x8 grey, as scikit-learn ships them; no download.

    Values v of 0..16 become (255 * v + 8) // 16, the nearest of 0..255 with halves up. Of each
    class, in the file's order, every sixth example (5, 11, 17, ...) is in 'test', 296 in all;
    the other 1,501 are 'train'; 'all' has every example in the file's order.

    Example i has image, uint8 [size, size, 1], and label, int.
    """

    num_classes = 10

    def __init__(self, split: str, image_size: int, fit: str):
        # Its file alone: importing scikit-learn takes as long as all that a run imports besides.
        package = Path(find_spec('sklearn').submodule_search_locations[0])
        table = np.loadtxt(package / 'datasets/data/digits.csv.gz', int, delimiter=',')  # [n, 65]
        values, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
        rank = np.zeros(len(labels), int)
        for label in range(10):
            where = labels == label
            rank[where] = np.arange(where.sum())
        test = rank % 6 == 5
        splits = {'train': ~test, 'test': test, 'all': np.ones_like(test)}
        if split not in splits:
            raise UserError(f'digits have no split {split!r}{nearest(split, splits)}')
        pixels = ((255 * values[splits[split]] + 8) // 16).astype(np.uint8)[..., None]
        self._images = np.stack([fitting.fit_image(image, image_size, fit) for image in pixels])
        self._labels = labels[splits[split]]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> dict:
        return {'image': self._images[i], 'label': int(self._labels[i])}

    def labels(self) -> np.ndarray:
        """Those of all images."""
        return self._labels


def open_source(data, split: str) -> Source:
    """The source that `data.source` names, with images as `data` asks for.

    Args:
      data: `config.data`: `source` is 'digits', 'shapes', 'sprites', 'tfds:NAME' or 'folder:PATH';
        'sprites:3x6x10x8x8' has so many values of each factor (see `sprites.FACTORS`). Images are
        brought to `image_size` by `fit` (see `fitting.fit_image`), shapes and sprites are drawn at
        that size; `channels` must be what a source has, except folders, which are converted;
        `num_classes` is 0 or what the source has.
      split: 'train', 'test', or what the source itself calls its parts.

    Raises:
      UserError: no such source or split, a split without examples, missing or broken files,
        channels or classes other than the source's, or `crop` of a source that cannot.
    """
    kind, _, name = data.source.partition(':')
    known = ('digits', 'shapes', 'sprites', 'tfds:NAME', 'folder:PATH')
    kinds = ('sprites', 'tfds', 'folder') if name else ('digits', 'shapes', 'sprites')
    if kind not in kinds:
        raise UserError(f'unknown config.data.source={data.source!r}{nearest(data.source, known)}')
    if kind == 'digits':
        _check_channels(data, 1)
        source = Digits(split, data.image_size, data.fit)
    elif kind == 'shapes':
        _check_channels(data, 3)
        source = Shapes(split, data.image_size)
    elif kind == 'sprites':
        _check_channels(data, 1)
        source = Sprites(split, data.image_size, parse_sizes(name))
    elif kind == 'folder':
        _check_channels(data, None)
        source = Folder(name, split, data.image_size, data.channels, data.fit)
        _check_same(name, source.described)
    else:
        # Imported here: only this source needs tensorflow_datasets.
        from gen_jax.data import tfds_source

        builder = tfds_source.prepared(name, data.tfds_dir)
        _check_channels(data, tfds_source.channels(builder))
        source = tfds_source.Tfds(builder, split, data.image_size, data.channels, data.fit)
    _check_classes(data, source.num_classes)
    if data.crop < 1 and not hasattr(source, 'cropped'):
        raise UserError(
            f'{data.source} has no larger images to crop, but config.data.crop={data.crop}: '
            'set it to 1, or take tfds:NAME or folder:PATH'
        )
    if not len(source):
        raise UserError(f'{data.source} {split!r} has no examples: choose another split')
    return source


def class_names(data) -> Sequence[str] | None:
    """The names of the classes of `data.source`, in the order of labels; None: nothing tells.

    Args:
      data: as of `open_source`; no image need be there.
    """
    kind, _, name = data.source.partition(':')
    if kind == 'tfds':
        from gen_jax.data import tfds_source

        return tfds_source.class_names(name, data.tfds_dir)
    if kind == 'folder':
        root = Path(os.path.expanduser(name))
        return folder.class_names(root) if root.is_dir() else None
    return {'shapes': shapes.SHAPES, 'sprites': sprites.SHAPES}.get(kind)


def _check_same(name: str, described: str) -> None:
    """Raises UserError where processes have other files, of which each would take its share."""
    mine = np.uint32(zlib.crc32(described.encode()))
    other = np.atleast_1d(multihost_utils.process_allgather(mine)) != mine
    if other.any():
        raise UserError(
            f'folder:{name} is not the same for this process and for process {np.argmax(other)}: '
            'put it on a disk that all processes mount, or make the copies alike'
        )


def _check_channels(data, channels: int | None) -> None:
    """`channels`: of all the source's images, or None where they are converted to what is asked."""
    if channels is None and data.channels not in (1, 3):
        raise UserError(
            f'{data.source} cannot give config.data.channels={data.channels}: '
            'expected 1 (grey) or 3 (colour)'
        )
    if channels not in (None, data.channels):
        raise UserError(
            f'{data.source} has {channels} channel(s), but config.data.channels={data.channels}: '
            f'set config.data.channels={channels}'
        )


def _check_classes(data, num_classes: int) -> None:
    if data.num_classes not in (0, num_classes):
        has = f'{num_classes} classes' if num_classes else 'no labels'
        raise UserError(
            f'{data.source} has {has}, but config.data.num_classes={data.num_classes}: '
            f'set it to {num_classes}' + (', or to 0 to leave labels unused' if num_classes else '')
        )


def read(source: Source, indices: Iterable[int]) -> list[dict]:
    """Examples of a source, together where it can."""
    indices = [int(i) for i in indices]
    if hasattr(source, '__getitems__'):
        return source.__getitems__(indices)
    return [source[i] for i in indices]


def batches_of(source: Source, size: int) -> Iterator[list[dict]]:
    """A source's examples in order, up to `size` at a time."""
    for start in range(0, len(source), size):
        yield read(source, range(start, min(start + size, len(source))))


def images_of(source: Source, size: int = 500) -> Iterator[np.ndarray]:
    """A source's images in order, uint8 [up to size, h, w, c]."""
    for examples in batches_of(source, size):
        yield np.stack([example['image'] for example in examples])


def labels_of(source: Source) -> np.ndarray:
    """A source's labels in order, int [n]."""
    if hasattr(source, 'labels'):
        return source.labels()
    return np.array([x['label'] for part in batches_of(source, LOOKED_UP) for x in part])
