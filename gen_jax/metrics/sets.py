"""Sets of images by name: a folder, an array of images in a file, or saved statistics."""

import dataclasses
import functools
import itertools
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from gen_jax.data import fitting, folder
from gen_jax.errors import UserError
from gen_jax.interop.weights import sha256
from gen_jax.metrics import compare
from gen_jax.metrics.features.extract import DIMS, Extractor
from gen_jax.metrics.fid import Statistics, load_statistics
from gen_jax.runtime import arrays

SUFFIXES = (*folder.SUFFIXES, '.bmp')
# What the images are called in an .npz of several arrays: by ourselves, and by guided-diffusion.
NAMES = ('images', 'arr_0')
# What statistics are called, by the role of the features they are of (see `features.extract`).
STATISTICS = {'pool': ('mu', 'sigma'), 'spatial': ('mu_s', 'sigma_s')}
# What statistics have to have in common, as far as they tell.
FIELDS = ('network', 'dims', 'resize', 'weights_sha256')
# What made the statistics in guided-diffusion's reference batches.
GUIDED_DIFFUSION = {'network': 'inception-2015-12-05', 'resize': 'tf1'}
READ = 50  # images at a time
EXPECTED = 'a folder of images, an .npz or .npy of uint8 images, or an .npz of statistics'


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, or the statistics of some. `len` is the number of images at hand.

    Attributes:
      path: of the folder or file.
      kind: 'folder', 'npz' or 'npy'; 'statistics' for an .npz that has no images.
      shape: (n, h, w, c) of the images, c 1 or 3; None for statistics alone.
      statistics: roles that the file has moments of: 'pool' for `mu` and `sigma`, 'spatial' for
        `mu_s` and `sigma_s`. guided-diffusion's reference batches have them beside images, and
        of more images than they show.
    """

    path: str
    kind: str
    shape: tuple[int, ...] | None
    statistics: tuple[str, ...]
    _read: Callable[[int], Iterator[np.ndarray]] | None

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def check(self, metrics: Iterable[str]) -> None:
        """Raises UserError where statistics are asked for more than they hold."""
        for name in metrics if self.kind == 'statistics' else ():
            if name in compare.NEEDS_ALL:
                raise UserError(
                    f"{name} needs every image's features, and {self.path} holds only their mean "
                    f'and covariance: give the images, or leave {name} out'
                )
            if compare.ROLE[name] not in self.statistics:
                raise UserError(
                    f'{self.path} lacks the statistics that {name} needs: give the images, or what '
                    'python -m gen_jax.metrics --save-stats makes of them'
                )

    def saved(self, role: str, provenance: dict) -> Statistics | None:
        """The file's moments of a role, where they are those that a network would give.

        Args:
          role: one of the extractor's, 'pool' or 'spatial'.
          provenance: the extractor's. Files say theirs if `fid.save_statistics` wrote them.
            Statistics beside images are taken for guided-diffusion's, if they say nothing; those
            alone are trusted in all but their size.

        Returns:
          None where the images have to be looked at.

        Raises:
          UserError: the set has no images, and its statistics are of other features.
        """
        if role not in self.statistics:
            return None
        found, said = self._load(role)
        for field, value in said.items():
            ours = provenance.get(field, value)
            if value != ours and self.shape:
                return None
            if value != ours:
                raise UserError(self._unasked(field, value, ours))
        return found

    def _load(self, role: str) -> tuple[Statistics, dict]:
        """The file's moments, and what they say of `FIELDS`."""
        found = load_statistics(self.path, spatial=role == 'spatial')
        said = found.provenance or (GUIDED_DIFFUSION if self.shape else {})
        if role == 'pool':
            said = {**said, 'dims': len(found.mu)}
        return found, {field: said[field] for field in FIELDS if said.get(field) is not None}

    def _unasked(self, field: str, said, asked) -> str:
        return (
            f'{self.path} has statistics with {field}={said}, but {field}={asked} is asked for: '
            'ask for the same, or make them anew with --save-stats'
        )

    def describe(self, made_from: Statistics | None = None) -> dict:
        """What a number's provenance says of the set, in JSON's types.

        Args:
          made_from: what the number was made from, if it was saved moments; `n` is None, and so is
            `made_with`, where they say nothing of themselves.
        """
        if not isinstance(made_from, Statistics):
            n, *size = self.shape
            return {'path': self.path, 'kind': self.kind, 'n': n, 'image_size': size}
        said = made_from.provenance
        told = {'path': self.path, 'kind': 'statistics', 'n': said.get('n')}
        return {**told, 'sha256': sha256(self.path), 'made_with': said or None}

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yields uint8 [b, h, w, c] in order, b = size but for the last; holds one at a time.

        Raises:
          UserError: a file turns out to be broken, and is named.
        """
        for images in self._read(size):
            yield images.reshape(-1, *self.shape[1:])


def open_set(path: str, n: int | None = None) -> ImageSet:
    """Opens a set by what its path is. Reads headers, not yet images (see `folder.check_images`).

    A folder is searched through all its own folders for PNG, JPEG, WebP and BMP files, leaving out
    names that start with a dot and not following links to folders; the order is that of the sorted
    paths. `fitting.decode` reads them: EXIF orientation is applied, transparency is composited on
    white, 16 bits become 8. They are grey if every file is, and RGB otherwise.

    An .npz or .npy holds uint8 [n, h, w, c] or [n, h, w]; in an .npz they are called 'images' or
    'arr_0', or are the only array. Statistics are an .npz with `mu` and `sigma`.

    Args:
      path: of the folder or file.
      n: take the first n images only, and leave statistics beside them alone; None takes all.

    Raises:
      UserError: there is nothing of the kind, fewer than two images or fewer than n (statistics
        without images have none to count off), images of several sizes, pixels that are not
        uint8, or a broken file.
    """
    if not path:
        raise UserError(f'an empty path names no set: expected {EXPECTED}')
    place = Path(os.path.expanduser(path))
    path = str(place)
    if not os.path.exists(path):  # False for a name that is too long, too
        raise UserError(f'{path} does not exist: expected {EXPECTED}')
    if place.is_dir():
        return _open_folder(path, n)
    openers = {'.npz': _open_npz, '.npy': _open_array}
    if place.suffix.lower() not in openers:
        raise UserError(f'{path} ends in {place.suffix!r}: expected {EXPECTED}')
    return openers[place.suffix.lower()](path, n)


class Told(NamedTuple):
    """Stands for an extractor where files hold all that is asked for: no network is run.

    Attributes:
      provenance: what the files say of theirs, of `FIELDS`; {} where they say nothing.
      suffix: as an `Extractor`'s; '' where they say nothing of a network.
    """

    provenance: dict
    suffix: str


def agreed(images: Iterable[ImageSet], metrics: Iterable[str], asked: dict) -> Told | None:
    """What sets' saved moments say of the one network that made them all.

    Args:
      images: the sets.
      metrics: names.
      asked: what somebody asked for, of `FIELDS`.

    Returns:
      None where images have to be looked at.

    Raises:
      UserError: no set has images, and their statistics contradict each other or `asked`.
    """
    images, metrics = list(images), list(metrics)
    roles = compare.roles(metrics)
    if {*metrics} & {*compare.NEEDS_ALL} or any({*roles} - {*x.statistics} for x in images):
        return None
    first = {}  # {field: (what is said, by which file)}
    for one, role in itertools.product(images, roles):
        for field, value in one._load(role)[1].items():
            other, path = first.setdefault(field, (value, one.path))
            if value == other == asked.get(field, value):
                continue
            if any(x.shape for x in images):
                return None
            if value != asked.get(field, value):
                raise UserError(one._unasked(field, value, asked[field]))
            raise UserError(
                f'{one.path} has statistics with {field}={value}, and {path} with {field}={other}: '
                'give those of one network, or make one of them anew with --save-stats'
            )
    story = {field: value for field, (value, _) in first.items()}
    return Told(story, _suffix(**story))


def _suffix(network: str = '', dims: int = 0, **_) -> str:
    """What `features.extract` would name the numbers by."""
    if network in ('', GUIDED_DIFFUSION['network']):
        return f'_{dims}' if network and dims in DIMS[1:] else ''
    return f'_{network}'


def look(
    images: ImageSet,
    extractor: Extractor | Told,
    metrics: Iterable[str],
    watch: Callable[[Iterator], Iterator] = lambda batches: batches,
) -> compare.Seen:
    """A set as a network sees it. Its images are read as far as saved moments do not suffice.

    Args:
      images: the set.
      extractor: opened with `compare.roles(metrics)`, or what `agreed` has found.
      metrics: names. Leave 'is' out for a reference.
      watch: wraps the batches; a progress bar does.

    Returns:
      What `compare.compare` takes. Moments of the file are `fid.Statistics`; `n` is the number of
      images that were looked at, and if none were, what the statistics say, or None.

    Raises:
      UserError: statistics do not suffice or do not fit, or a file is broken.
    """
    images.check(metrics)
    saved = {
        name: images.saved(compare.ROLE[name], extractor.provenance)
        for name in metrics
        if name not in compare.NEEDS_ALL
    }
    moments = {compare.ROLE[name]: found for name, found in saved.items() if found}
    if rest := [name for name in metrics if not saved.get(name)]:
        seen = compare.look(watch(images.batches(READ)), extractor, rest)
        return dataclasses.replace(seen, moments=seen.moments | moments)
    n = next(iter(moments.values())).provenance.get('n')
    return compare.Seen(n, moments, {})


def _check_count(path: str, found: int, n: int | None) -> int:
    """How many images to take."""
    if found < 2:
        raise UserError(f'{path} holds {found} images: a set needs at least 2')
    if n is not None and not 2 <= n <= found:
        raise UserError(f'{path}: n={n}, expected 2 to {found}, which is all it holds')
    return n or found


def _open_folder(path: str, n: int | None) -> ImageSet:
    root = Path(path)
    found = [
        place
        for place in sorted(root.rglob('*'))
        if place.suffix.lower() in SUFFIXES
        and place.is_file()
        and not any(part.startswith('.') for part in place.relative_to(root).parts)
    ]
    if not found:
        raise UserError(
            f'{path} has no images in it: expected files ending in {", ".join(SUFFIXES)}'
        )
    files = [str(place) for place in found[: _check_count(path, len(found), n)]]
    folder.check_images(files)
    headers = [_size_and_mode(file) for file in files]
    (h, w), _ = headers[0]
    for file, (size, _) in zip(files, headers, strict=True):
        if size != (h, w):
            raise UserError(
                f'{path} has images of different sizes: {files[0]} is {w}x{h}, {file} is '
                f'{size[1]}x{size[0]}; bring them to one size, or make a set of each'
            )
    channels = 1 if all(mode == 'L' for _, mode in headers) else 3
    read = functools.partial(_decode, files, channels)
    return ImageSet(path, 'folder', (len(files), h, w, channels), (), read)


def _size_and_mode(file: str) -> tuple[tuple[int, int], str]:
    """((h, w) once EXIF orientation is applied, 'L' for any kind of grey) from the header."""
    with Image.open(file) as image:
        size, mode = image.size, Image.getmodebase(image.mode)
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (size if turned else size[::-1]), mode


def _decode(files: list[str], channels: int, size: int) -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(files), size):
            part = files[start : start + size]
            yield np.stack(
                list(threads.map(lambda file: fitting.decode(file, file, channels), part))
            )


def _open_npz(path: str, n: int | None) -> ImageSet:
    with arrays.telling(path), zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith('.npy')]
    names = [name.removesuffix('.npy') for name in members]
    statistics = tuple(role for role, pair in STATISTICS.items() if {*pair} <= {*names})
    named = [name for name in NAMES if name in names]
    if statistics and not named:
        if n is not None:
            raise UserError(
                f'{path} holds statistics, of which no {n} images can be taken: leave --n out, or '
                'give the images'
            )
        return ImageSet(path, 'statistics', None, statistics, None)
    if not named and len(names) != 1:
        raise UserError(
            f"{path} holds {', '.join(names) or 'nothing'}: expected images called 'images' or "
            "'arr_0', or statistics called 'mu' and 'sigma'"
        )
    return _open_array(path, n, (named or names)[0], statistics if n is None else ())


def _open_array(
    path: str, n: int | None, name: str | None = None, statistics: tuple[str, ...] = ()
) -> ImageSet:
    label = f'{path}[{name}]' if name else path
    with arrays.telling(path), arrays.opened(path, name) as (file, length):
        shape, fortran, dtype = arrays.header(file)
        whole = length - file.tell() == math.prod(shape) * dtype.itemsize
    _check_shape(label, shape)
    count = _check_count(label, shape[0], n)
    if dtype.hasobject:
        raise UserError(f'{label} holds Python objects, which are never read: expected uint8')
    if not whole:
        raise UserError(f'{path} is cut short: make or fetch it again')
    if fortran:
        raise UserError(f'{label} is in Fortran order: save np.ascontiguousarray(images)')
    if dtype != np.uint8:
        _refuse_pixels(label, dtype, arrays.rows(path, name, shape[0], 1000))
    read = functools.partial(arrays.rows, path, name, count)
    return ImageSet(path, 'npz' if name else 'npy', (count, *shape[1:], 1)[:4], statistics, read)


def _check_shape(label: str, shape: tuple[int, ...]) -> None:
    want = 'expected [n, h, w, c] with c 1 or 3, or [n, h, w]'
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise UserError(f'{label} is {list(shape)}, {want}: save images.transpose(0, 2, 3, 1)')
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise UserError(f'{label} is {list(shape)}, {want}')
    if 0 in shape[1:]:
        raise UserError(f'{label} is {list(shape)}: its images have no pixels')


def _refuse_pixels(label: str, dtype: np.dtype, batches: Iterator[np.ndarray]) -> None:
    """Says how to make uint8 of what the array holds."""
    if dtype.kind not in 'fiu':
        raise UserError(f'{label} is {dtype}, expected uint8 in [0, 255]')
    low, high = math.inf, -math.inf
    for batch in batches:
        if not np.isfinite(batch).all():
            raise UserError(f'{label} holds NaN or infinite pixels: expected uint8 in [0, 255]')
        low, high = min(low, batch.min()), max(high, batch.max())
    mend = 'x clipped and scaled to it'
    if dtype.kind == 'f' and max(-low, high) <= 1:
        mend = 'np.uint8(np.round((x + 1) * 127.5))' if low < 0 else 'np.uint8(np.round(x * 255))'
    elif low >= 0 and high <= 255:
        mend = 'np.uint8(np.round(x))'
    raise UserError(
        f'{label} is {dtype} in [{low:.6g}, {high:.6g}], expected uint8 in [0, 255]: save {mend}'
    )
