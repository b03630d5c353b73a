"""Arrays in .npy and .npz files, read and written some rows at a time."""

import contextlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from gen_jax.errors import UserError

BROKEN = (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@contextlib.contextmanager
def telling(path: str | Path) -> Iterator[None]:
    """Names a file that turns out to be broken, in a UserError."""
    try:
        yield
    except BROKEN as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(f'{path} cannot be read ({reason}): make or fetch it again') from error


@contextlib.contextmanager
def opened(path: str | Path, name: str | None) -> Iterator[tuple[BinaryIO, int]]:
    """An .npy file, or the one of that name inside an .npz, with its length in bytes."""
    if name is None:
        with open(path, 'rb') as file:
            yield file, os.path.getsize(path)
    else:
        with zipfile.ZipFile(path) as archive, archive.open(f'{name}.npy') as file:
            yield file, archive.getinfo(f'{name}.npy').file_size


def header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether in Fortran order, dtype) of an .npy; leaves the file at its first byte."""
    version = npy.read_magic(file)
    return (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)


def rows(path: str | Path, name: str | None, n: int, size: int) -> Iterator[np.ndarray]:
    """The first n rows of an array, `size` at a time, straight from the file.

    Args:
      path, name: as `opened` takes them.
      n: at most as many as there are.
      size: rows at a time; the last part may have fewer.

    Raises:
      UserError: the file is broken.
    """
    with telling(path), opened(path, name) as (file, _):
        shape, _, dtype = header(file)
        for start in range(0, n, size):
            block = (min(size, n - start), *shape[1:])
            data = file.read(math.prod(block) * dtype.itemsize)
            yield np.frombuffer(data, dtype).reshape(block)


def write_npz(path: Path, name: str, n: int, parts: Iterable[np.ndarray], **others) -> None:
    """Writes in one stroke, as `np.savez` does, an array that is never whole in memory.

    Args:
      path: of the .npz.
      name: of the array.
      n: rows of all parts together.
      parts: of the array in order, [some, ...] each, at least one.
      **others: small arrays by name.
    """
    partial = path.with_name(f'.{path.name}.partial')
    with zipfile.ZipFile(partial, 'w', zipfile.ZIP_STORED) as archive:
        # Nobody knows beforehand whether it will be larger than a plain archive may hold.
        with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
            for i, part in enumerate(parts):
                if not i:
                    fields = npy.header_data_from_array_1_0(np.ascontiguousarray(part))
                    npy.write_array_header_1_0(file, {**fields, 'shape': (n, *part.shape[1:])})
                file.write(np.ascontiguousarray(part).data)
        for other, array in others.items():
            with archive.open(f'{other}.npy', 'w') as file:
                npy.write_array(file, array)
    os.replace(partial, path)
