"""From a source to batches of arrays: the same batches for any number of processes."""

from collections.abc import Iterator

import grain
import jax
import numpy as np

from gen_jax.data import fitting
from gen_jax.data.sources import Source, read
from gen_jax.errors import UserError


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 0..255 to float32 in [-1, 1], x / 127.5 - 1, any shape."""
    return image.astype(np.float32) / 127.5 - 1


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] to uint8 0..255, rounded and clipped, any shape; undoes `to_float`."""
    return np.clip(np.rint((np.asarray(image, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def batch_spec(config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of what the batches of every source have.

    Args:
      config: `batch_size` and `data`.

    Returns:
      image float32 [b, s, s, c], label int32 [b].
    """
    b, s, c = config.batch_size, config.data.image_size, config.data.channels
    return {
        'image': jax.ShapeDtypeStruct((b, s, s, c), np.float32),
        'label': jax.ShapeDtypeStruct((b,), np.int32),
    }


class Batches:
    """Batches without end, and where in the data they are.

    A state is small and goes into JSON. It tells of how many examples it is, as it means nothing
    among others: each epoch would no longer have every example once.
    """

    def __init__(self, iterator: grain.DatasetIterator, examples: int, name: str):
        """Args: name: of the data, for errors."""
        self._iterator, self._examples, self._name = iterator, examples, name

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def get_state(self) -> dict:
        """Where the next batch is."""
        return {**self._iterator.get_state(), 'examples': self._examples}

    def set_state(self, state: dict) -> None:
        """Goes on from there, exactly, in another process too.

        Raises:
          UserError: the data had another number of examples. Old states do not tell.
        """
        had = state.get('examples', self._examples)
        if had != self._examples:
            raise UserError(
                f'{self._name} had {had:,} examples when this run was saved, and has '
                f'{self._examples:,}: bring back those it had, or start anew in another --workdir'
            )
        self._iterator.set_state({k: v for k, v in state.items() if k != 'examples'})


def train_iterator(config, source: Source, rows: np.ndarray | None = None) -> Batches:
    """Endless shuffled batches, this process's share of each.

    The order of examples is a function of (seed, epoch): every epoch has each example once, in an
    order of its own, and a batch may straddle two. Global batch k is the same for any number of
    processes. With `data.flip`, half of the examples are mirrored, with all their fields that have
    the image's height and width; with `data.crop` below 1 a part of each is shown, another one in
    each epoch (see `fitting.crop_image`).

    Args:
      config: `seed`, `batch_size` (global) and `data`.
      source: what to read.
      rows: of the global batch, int [b_local], that this process reads; None: all.

    Returns:
      Batches of numpy arrays: image float32 [b_local, s, s, c] in [-1, 1], label int32 [b_local]
      (0 where `data.num_classes` is 0), and the source's other numeric fields as they are; text is
      left out.

    Raises:
      UserError: from `next`, for a broken image, or a label outside 0 .. num_classes-1.
    """
    data, local = config.data, slice(None) if rows is None else rows

    def load(indices: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        # Drawn for the global batch, so that it does not matter how it is divided.
        n, mine = len(indices), indices[local]
        flip = rng.random(n) < 0.5 if data.flip else np.zeros(n, bool)
        if data.crop < 1:
            crops = [fitting.Crop(*numbers) for numbers in rng.random((n, 3))[local]]
            examples = source.cropped(mine, data.crop, crops)
        else:
            examples = read(source, mine)
        return _flipped(_batch(examples, mine, data.num_classes), flip[local])

    batches = (
        grain.MapDataset.range(len(source))
        .seed(config.seed)
        .shuffle()
        .repeat()
        .batch(config.batch_size)
        .random_map(load)
        .to_iter_dataset(
            grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.prefetch)
        )
    )
    return Batches(iter(batches), len(source), f'{data.source} {data.split!r}')


def evaluation_batches(
    config, source: Source, batch_size: int, rows: np.ndarray | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in order, in batches of one size; nothing is mirrored.

    Args:
      config: `data`.
      source: what to read.
      batch_size: of the global batch. All processes yield the same number of batches.
      rows: as `train_iterator` takes them.

    Yields:
      Batches as of `train_iterator`, and `mask`, float32 [b_local]: 1 for an example, 0 for the
      copies of the last example that fill up the last batch.

    Raises:
      UserError: as `train_iterator`.
    """
    local = np.arange(batch_size) if rows is None else rows
    for start in range(0, len(source), batch_size):
        indices = start + local
        real = indices < len(source)
        indices = np.minimum(indices, len(source) - 1)
        batch = _batch(read(source, indices), indices, config.data.num_classes)
        yield {**batch, 'mask': real.astype(np.float32)}


def _batch(examples: list[dict], indices: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    labels = np.zeros(len(indices), np.int32)
    if num_classes:
        labels[:] = [example['label'] for example in examples]
        for i, label in zip(indices, labels, strict=True):
            if not 0 <= label < num_classes:
                raise UserError(
                    f'example {i} has label {label}, expected 0 to {num_classes - 1}: '
                    'mend the data, or set config.data.num_classes=0 to leave labels unused'
                )
    extras = [_extras(example) for example in examples]
    return {
        'image': to_float(np.stack([example['image'] for example in examples])),
        'label': labels,
        **{name: np.stack([extra[name] for extra in extras]) for name in extras[0]},
    }


def _extras(example: dict) -> dict[str, np.ndarray]:
    """The numeric fields beside image and label; text has no place on a device."""
    arrays = {k: np.asarray(v) for k, v in example.items() if k not in ('image', 'label')}
    return {k: v for k, v in arrays.items() if v.dtype.kind in 'biuf'}


def _flipped(batch: dict[str, np.ndarray], flip: np.ndarray) -> dict[str, np.ndarray]:
    """Mirrors the marked examples, [b] bool, in all fields that are images."""
    size = batch['image'].shape[1:3]
    for value in batch.values():
        if value.shape[1:3] == size:
            value[flip] = value[flip, :, ::-1]
    return batch
