"""From a source to batches of arrays: the same batches for any number of processes."""

from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np

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


def train_iterator(
    config, source: Source, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Endless shuffled batches, this process's share of each.

    The order of examples is a function of (seed, epoch): every epoch has each example once, in an
    order of its own, and a batch may straddle two. Global batch k is the same for any number of
    processes; process p holds its p-th contiguous slice. With `data.flip`, half of the examples
    are mirrored, with all their fields that have the image's height and width.

    Args:
      config: `seed`, `batch_size` (global) and `data`.
      source: what to read.
      process_index: 0 .. process_count-1.
      process_count: must divide `batch_size`.

    Returns:
      A Grain iterator of dicts of numpy arrays: image float32 [b_local, s, s, c] in [-1, 1], label
      int32 [b_local] (0 where `data.num_classes` is 0), and the source's other numeric fields as
      they are; text is left out. `get_state()` is small, goes into JSON, and `set_state` resumes
      exactly, in another process too.

    Raises:
      UserError: here for a batch that cannot be divided; from `next` for a broken image, or a
        label outside 0 .. num_classes-1.
    """
    local = _local_slice(config.batch_size, process_index, process_count)
    data = config.data
    if not len(source):
        raise UserError(f'{data.source} {data.split!r} has no examples: choose another data.split')

    def load(indices: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        # Drawn for the global batch, so that it does not matter how it is divided.
        flip = rng.random(len(indices)) < 0.5 if data.flip else np.zeros(len(indices), bool)
        return _flipped(_load(source, indices[local], data.num_classes), flip[local])

    return iter(
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


def evaluation_batches(
    config, source: Source, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in order, in batches of one size; nothing is mirrored.

    Args:
      config: `data`.
      source: what to read.
      batch_size: of the global batch, whose p-th contiguous slice process p yields.
      process_index: 0 .. process_count-1.
      process_count: must divide `batch_size`. All processes yield the same number of batches.

    Yields:
      Batches as of `train_iterator`, and `mask`, float32 [b_local]: 1 for an example, 0 for the
      copies of the last example that fill up the last batch.

    Raises:
      UserError: as `train_iterator`.
    """
    local = _local_slice(batch_size, process_index, process_count)
    for start in range(0, len(source), batch_size):
        indices = np.arange(start, start + batch_size)[local]
        real = indices < len(source)
        batch = _load(source, np.minimum(indices, len(source) - 1), config.data.num_classes)
        yield {**batch, 'mask': real.astype(np.float32)}


def _local_slice(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise UserError(
            f'batch_size={batch_size} cannot be divided among {process_count} processes: '
            f'expected a multiple of {process_count}'
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _load(source: Source, indices: Sequence[int], num_classes: int) -> dict[str, np.ndarray]:
    examples = read(source, indices)
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
