"""TensorFlow Datasets, read from array_record files; TensorFlow itself only prepares them."""

import contextlib
import importlib.util
import io
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from jax.experimental import multihost_utils

from gen_jax.config import nearest
from gen_jax.data import fitting
from gen_jax.errors import UserError

TOGETHER = 1000  # records that are read at a time for their labels
# Seconds that a network file system may take to show what another host has written.
SHOWN_WITHIN = 60


class Tfds:
    """A split of a prepared data set; its `image` feature, and its `label` where that is a class.

    Images are decoded by Pillow, so that pixels do not depend on whether OpenCV is installed.
    Example i has image, uint8 [size, size, channels], and label, int (0 where it has none).

    Attributes:
      num_classes: of the `label` feature; 0 where there is none.
    """

    def __init__(self, builder, split: str, image_size: int, channels: int, fit: str):
        """Args: builder: from `prepared`; split: of the data set, slices as TFDS writes them."""
        label = dict(builder.info.features.items()).get('label')
        self.num_classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0
        self._name, self._folder = builder.info.full_name, str(builder.data_dir)
        self._size, self._channels, self._fit = image_size, channels, fit
        decoders = {'image': tfds.decode.SkipDecoding()}
        try:
            # An empty slice has no data source; `open_source` refuses what is empty.
            some = builder.info.splits[split].num_examples > 0
            self._records = builder.as_data_source(split, decoders=decoders) if some else ()
        except ValueError as error:
            reason = _one_line(error)
            told = f': {reason}'
            if reason.startswith('Unknown split'):
                told = nearest(split, builder.info.splits)
            raise UserError(f'{self._name} has no split {split!r}{told}') from None
        if some:  # The reader opens files when it comes to them; damage is best told now.
            self._read([0, len(self) - 1])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices) -> list[dict]:
        return [
            {'image': fitting.fit_image(image, self._size, self._fit), 'label': label}
            for image, label in self._decoded(indices)
        ]

    def cropped(self, indices, least: float, crops) -> list[dict]:
        """Examples of which a part is shown (see `fitting.crop_image`)."""
        return fitting.cropped(self._decoded(indices), self._size, least, crops)

    def labels(self) -> np.ndarray:
        """Those of all examples; no image is decoded."""
        if not self.num_classes:
            return np.zeros(len(self), int)
        parts = (
            self._read(range(start, min(start + TOGETHER, len(self))))
            for start in range(0, len(self), TOGETHER)
        )
        return np.array([int(record['label']) for part in parts for record in part])

    def _read(self, indices) -> list[dict]:
        try:
            # One call of the reader for all of them is ten times as fast as one call each.
            return self._records.__getitems__(indices)
        except RuntimeError as error:
            raise UserError(
                f'{self._name} cannot be read: {_one_line(error)}; if its files in {self._folder} '
                'are damaged, delete that folder: it is prepared anew'
            ) from error

    def _decoded(self, indices) -> Iterator[tuple[np.ndarray, int]]:
        indices = [int(i) for i in indices]
        for i, record in zip(indices, self._read(indices), strict=True):
            image = fitting.decode(record['image'], f'{self._name} example {i}', self._channels)
            yield image, int(record['label']) if self.num_classes else 0


def channels(builder) -> int | None:
    """Channels of the data set's images, 1 or 3; None where they vary or have transparency."""
    found = builder.info.features['image'].shape[-1]
    return found if found in (1, 3) else None


def class_names(name: str, data_dir: str) -> list[str] | None:
    """Of a data set's `label`, whether or not it is prepared; None where it has no classes.

    Args, errors: as of `prepared`.
    """
    with _quiet():
        label = dict(_builder(name, _root(data_dir)).info.features.items()).get('label')
    return label.names if isinstance(label, tfds.features.ClassLabel) else None


def _root(data_dir: str) -> str:
    root = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    return os.path.expanduser(root)


def prepared(name: str, data_dir: str):
    """The TFDS builder of a data set whose array_record files exist, made now if they do not.

    Of several processes the first makes them, for a disk that all of them see.

    Args:
      name: as TFDS writes it: 'mnist', 'lsun/church', 'cifar10:3.0.2'.
      data_dir: where TFDS keeps its files; '' for the variable TFDS_DATA_DIR, or else
        ~/tensorflow_datasets.

    Raises:
      UserError: no such data set, no images in it, TensorFlow is missing, the files cannot be
        downloaded (then it names them and the folder to put them in), or a process cannot see
        them; then all processes raise it.
    """
    root = _root(data_dir)
    with _quiet():
        builder = _builder(name, root)
        is_prepared = builder.is_prepared()
    features = dict(builder.info.features.items())
    if not isinstance(features.get('image'), tfds.features.Image):
        raise UserError(
            f"tfds:{name} has no 'image' feature: expected a data set of images, "
            f'this one has {", ".join(features)}'
        )
    seen = multihost_utils.process_allgather(np.bool_(is_prepared))  # [processes]
    if not seen[0]:
        if jax.process_index() == 0:
            logging.info('Preparing tfds:%s in %s, once.', name, builder.data_dir)
            with _quiet():
                _prepare(builder, name, os.path.join(root, 'downloads'))
        multihost_utils.sync_global_devices(f'{name} prepared')
        with _quiet():
            builder = _reopened(builder, name, root)
            is_prepared = builder.is_prepared()
        seen = multihost_utils.process_allgather(np.bool_(is_prepared))
    if not seen.all():
        raise UserError(
            f'tfds:{name} is in {root} for process 0, but not for process {np.argmin(seen)}: '
            'put config.data.tfds_dir on a disk that all processes mount, or prepare it on each'
        )
    return builder


def _reopened(builder, name: str, root: str):
    """The builder once its files are there: TFDS reads what they hold only when it opens them."""
    deadline = time.monotonic() + SHOWN_WITHIN
    while not builder.is_prepared() and time.monotonic() < deadline:
        time.sleep(1)
    return _builder(name, root)


def _builder(name: str, root: str):
    try:
        return tfds.builder(name, data_dir=root, file_format='array_record')
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        # Without a close match `nearest` lists all it knows, and TFDS knows hundreds.
        hint = nearest(name, known)
        hint = hint if 'did you mean' in hint else '; see https://www.tensorflow.org/datasets'
        raise UserError(f'TFDS has no data set {name!r}{hint}') from None
    except (ValueError, AssertionError) as error:
        # An unknown variant or version, or files of another format.
        reason = _one_line(error).split('}": ')[-1]
        if 'File format is already set' in reason:
            reason = (
                f'its files in {root} are not array_record; '
                'set config.data.tfds_dir to another folder, where it is prepared anew'
            )
        raise UserError(f'tfds:{name} cannot be opened: {reason}') from None


def _prepare(builder, name: str, downloads: str) -> None:
    if importlib.util.find_spec('tensorflow') is None:
        raise UserError(
            f'tfds:{name} is not prepared in {builder.data_dir} and preparing it takes '
            "TensorFlow: pip install -e '.[tf]' (reading it afterwards does not need it)"
        )
    manual = os.path.join(downloads, 'manual')
    missing = _unreachable(builder.url_infos or {}, manual)
    if missing:
        raise UserError(
            f'tfds:{name} is not prepared and cannot be downloaded: '
            f'put {", ".join(missing)} into {manual}/'
        )
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import tensorflow as tf

    # Else TensorFlow takes the memory of the accelerator that JAX is about to use.
    tf.config.set_visible_devices([], 'GPU')
    try:
        builder.download_and_prepare(
            download_dir=downloads,
            # The public bucket holds other file formats than the one asked for.
            download_config=tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=manual),
        )
    # Each data set has its own code, and its own ways to fail.
    except Exception as error:
        raise UserError(
            f'tfds:{name} cannot be prepared: {_one_line(error)} '
            f'(files fetched by hand go into {manual}/)'
        ) from error


def _unreachable(url_infos: dict, manual: str) -> list[str]:
    """'FILE from URL' of what is not in `manual` and whose server cannot be reached.

    TFDS itself tries again for minutes before it gives up.
    """
    missing = []
    for url, info in url_infos.items():
        file = info.filename or os.path.basename(url)
        if Path(manual, file).exists() or not url.startswith('http'):
            continue
        try:
            urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=10).close()
        except urllib.error.HTTPError:
            continue  # The server is there; TFDS knows what to ask of it.
        except OSError:
            missing.append(f'{file} from {url}')
    return missing


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:500]


@contextlib.contextmanager
def _quiet():
    """Silences what TFDS prints, logs and draws, none of which a user can act on."""
    level = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.FATAL)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(level)
