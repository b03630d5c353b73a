"""Reading other people's weights without torch, and turning them into flax variables.

torch's files hold a pickle. Ours is read by a pickle machine that knows tensors and plain
containers; it asks for nothing else, so that nothing from a file is ever run.
"""

import functools
import io
import json
import mmap
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from gen_jax.errors import UserError

# What torch calls flax's leaves; any other name is the same in both.
LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'embedding': 'weight',
    'mean': 'running_mean',
    'var': 'running_var',
}
# What a checkpoint may call the one part that holds its tensors.
WRAPPERS = ('ema', 'state_dict', 'model', 'params')
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch.save before 1.6
LARGEST_HEADER = 100_000_000  # bytes; safetensors refuses more
# What safetensors calls the types that its reader for NumPy knows.
SAFETENSORS = (
    *('F64', 'F32', 'F16', 'BF16', 'C64', 'BOOL'),
    *('I8', 'I16', 'I32', 'I64', 'U8', 'U16', 'U32', 'U64'),
)

DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *('float64', 'float32', 'float16', 'bfloat16', 'complex64', 'complex128', 'bool'),
        *('int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'),
        *('float8_e4m3fn', 'float8_e4m3fnuz', 'float8_e5m2', 'float8_e5m2fnuz', 'float8_e8m0fnu'),
    )
}
STORAGES = {
    'torch.DoubleStorage': 'float64',
    'torch.FloatStorage': 'float32',
    'torch.HalfStorage': 'float16',
    'torch.BFloat16Storage': 'bfloat16',
    'torch.ComplexFloatStorage': 'complex64',
    'torch.ComplexDoubleStorage': 'complex128',
    'torch.LongStorage': 'int64',
    'torch.IntStorage': 'int32',
    'torch.ShortStorage': 'int16',
    'torch.CharStorage': 'int8',
    'torch.ByteStorage': 'uint8',
    'torch.BoolStorage': 'bool',
    'torch.UntypedStorage': 'uint8',
    'torch.storage.UntypedStorage': 'uint8',
}


def read(path: str | Path) -> Any:
    """What a file of weights holds, with numpy arrays for tensors; told by content, not by suffix.

    Args:
      path: safetensors, or what `torch.save` writes (zip archives, and the layout before 1.6).

    Returns:
      Dicts, lists, tuples, numbers and strings as in the file (dtypes and devices as strings).
      Arrays have the file's dtype and strides; those from torch's files are read-only and lie in
      the mapped file, which must not be changed while they live.

    Raises:
      UserError: no such file, not one of these formats (TorchScript and the tar files of the
        earliest torch are not), damaged, or asking for anything but tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no file at {path}: expected a .safetensors, .pth or .pt file')
    with path.open('rb') as file, _told(path):
        data = _mapped(file)
        form = _format(data)
        if form == 'safetensors':
            _check_types(data)
            return load_file(path)
        return _read_zip(file, data) if form == 'zip' else _read_legacy(file, data)


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors by name in a file of weights, whether or not a checkpoint is wrapped around them.

    Where a checkpoint holds one set of named tensors, and holds it as 'ema', 'state_dict', 'model'
    or 'params', that set is meant; of several that which it holds as 'ema', the averages.

    Raises:
      UserError: as `read` does, and where there is no such set, or more than one.
    """
    tree = read(path)
    if _is_named(tree):
        return tree
    entries = tree if isinstance(tree, dict) else {type(tree).__name__: None}
    sets = [key for key, value in entries.items() if _is_named(value)]
    if 'ema' in sets:
        return tree['ema']
    if len(sets) == 1 and sets[0] in WRAPPERS:
        return tree[sets[0]]
    keys = [*map(str, entries)][:8] + ['...'] * (len(entries) > 8)
    raise UserError(
        f'{path} is no set of named tensors, nor has it just one, as {", ".join(WRAPPERS)}: it '
        f'holds {", ".join(keys) or "nothing"}; save the tensors that are meant alone'
    )


def _is_named(tree: Any) -> bool:
    return (
        isinstance(tree, dict)
        and len(tree) > 0
        and all(isinstance(k, str) and isinstance(x, np.ndarray) for k, x in tree.items())
    )


def torch_name(path: tuple[str, ...]) -> str:
    """('features.0', 'conv', 'kernel') -> 'features.0.conv.weight'."""
    *modules, leaf = path
    return '.'.join([*modules, LEAVES.get(leaf, leaf)])


def to_variables(
    tensors: dict[str, np.ndarray],
    shapes: dict,
    place,
    rename: Callable[[str], str] = lambda name: name,
    ignore: str = '',
    described: str = 'the network has',
) -> dict:
    """Flax variables from tensors with torch's names and torch's layout.

    Kernels [out, in, ...] become [..., in, out]; a 1x1 convolution fits a dense layer.

    Args:
      tensors: {name: array}, of any floating or integer type.
      shapes: `jax.eval_shape(module.init, ...)`: {'params': {...}, 'batch_stats': {...}}.
      place: where the tensors come from, for errors.
      rename: `torch_name` of a leaf's path without its collection -> its name in `tensors`.
      ignore: a regex; names that match it in full may be superfluous.
      described: who says what is expected, for errors.

    Returns:
      The structure of `shapes`, of float32 arrays that own their memory.

    Raises:
      UserError: tensors are missing, superfluous or of another shape.
    """
    specs = flatten_dict(shapes)
    names = {path: rename(torch_name(path[1:])) for path in specs}
    missing = set(names.values()) - tensors.keys()
    extra = [name for name in tensors.keys() - names.values() if not re.fullmatch(ignore, name)]
    faults = [f'lacks {_count(missing)}'] if missing else []
    faults += [f'holds, beyond what {described}, {_count(extra)}'] if extra else []
    if not faults:
        leaves = {
            path: _to_flax(tensors[names[path]], path[-1], len(spec.shape))
            for path, spec in specs.items()
        }
        wrong = {
            f'{names[path]} becomes {leaves[path].shape} where {described} {spec.shape}'
            for path, spec in specs.items()
            if leaves[path].shape != spec.shape
        }
        faults = [f'has other shapes in {_count(wrong)}'] if wrong else []
    if faults:
        raise UserError(f'{place} {" and ".join(faults)}: these are the weights of another network')
    return unflatten_dict({path: np.array(x, np.float32, order='C') for path, x in leaves.items()})


def to_tensors(
    variables: dict,
    rename: Callable[[str], str],
    pointwise: Callable[[tuple[str, ...]], int],
) -> dict[str, np.ndarray]:
    """The inverse of `to_variables`: float32 tensors with torch's names and torch's layout.

    Args:
      variables: {'params': {...}, ...}, of arrays.
      rename: `torch_name` of a leaf's path without its collection -> its name among the tensors.
      pointwise: path of a dense layer's kernel -> over how many axes it is a 1x1 convolution there.
    """
    tensors = {}
    for path, x in flatten_dict(variables).items():
        x = np.asarray(x, np.float32)
        if path[-1] == 'kernel':
            x = np.moveaxis(x, (-1, -2), (0, 1))  # [..., in, out] -> [out, in, ...]
            if x.ndim == 2:
                x = x.reshape(*x.shape, *[1] * pointwise(path))
        tensors[rename(torch_name(path[1:]))] = np.ascontiguousarray(x)
    return tensors


def _to_flax(x: np.ndarray, leaf: str, ndim: int) -> np.ndarray:
    if leaf != 'kernel' or x.ndim < 2:
        return x
    if ndim == 2 and x.shape[2:] == (1, 1):
        x = x[:, :, 0, 0]
    return np.moveaxis(x, (0, 1), (-1, -2))


def _count(items) -> str:
    """{'c', 'a', 'b', 'd'} -> '4 tensors: a, b, c, ...'."""
    first = sorted(items)[:3] + ['...'] * (len(items) > 3)
    return f'{len(items)} tensors: {", ".join(first)}'


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Names the file in every error that its content causes."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{path} {error}') from None
    except Exception as error:  # Of any kind: damaged bytes meet several parsers.
        reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
        raise UserError(f'{path} is damaged or cut short ({reason}): download it again') from error


def _mapped(file: BinaryIO) -> memoryview:
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError:
        raise UserError('is empty: download it again') from None


def _format(data: memoryview) -> str:
    head = bytes(data[:512])
    if head.startswith(b'PK\3\4'):
        return 'zip'
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= LARGEST_HEADER:
        return 'safetensors'
    if head.startswith(b'\x80'):
        return 'legacy'
    if head.startswith(b'version https://git-lfs'):
        raise UserError("is a Git LFS pointer, not the weights: fetch them with 'git lfs pull'")
    if head.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise UserError('is a web page, not the weights: download the file itself')
    if head[257:262] == b'ustar':
        raise UserError(
            'is a tar archive, as the earliest torch wrote: load it with torch and save it again'
        )
    raise UserError(f'is neither safetensors nor a file of torch: it begins with {head[:8]!r}')


def _check_types(data: memoryview) -> None:
    """Raises UserError where safetensors would not know a type, and blame the file."""
    header = json.loads(bytes(data[8 : 8 + int.from_bytes(data[:8], 'little')]))
    types = {told['dtype'] for name, told in header.items() if name != '__metadata__'}
    if odd := sorted(types - {*SAFETENSORS}):
        raise UserError(
            f'holds tensors of type {", ".join(odd)}, which cannot be read from safetensors: '
            'expected float32, float16 or bfloat16, convert them and save again'
        )


def _read_zip(file: BinaryIO, data: memoryview) -> Any:
    """ROOT/data.pkl, and each storage as ROOT/data/KEY."""
    archive = zipfile.ZipFile(file)
    entries = {info.filename: info for info in archive.infolist()}
    roots = [name.removesuffix('data.pkl') for name in entries if name.endswith('/data.pkl')]
    if not roots:
        raise UserError('is a zip archive without data.pkl: expected one that torch.save wrote')
    root = min(roots, key=len)
    if any(name.startswith((f'{root}constants.pkl', f'{root}code/')) for name in entries):
        raise UserError(
            'is a TorchScript archive, a program: expected its tensors alone, as '
            'torch.save(torch.jit.load(OLD).state_dict(), NEW) writes them'
        )

    @functools.cache
    def record(name: str) -> memoryview:
        return _record(archive, entries[root + name], data)

    order = bytes(record('byteorder')).decode() if f'{root}byteorder' in entries else 'little'
    if order not in ('little', 'big'):
        raise ValueError(f'byte order {order!r}')
    tree = _Unpickler(io.BytesIO(record('data.pkl'))).load()
    return _fill(tree, lambda key: record(f'data/{key}'), order)


def _record(archive: zipfile.ZipFile, info: zipfile.ZipInfo, data: memoryview) -> memoryview:
    """The bytes of one entry, without a copy where it is stored uncompressed, as torch does."""
    if info.compress_type != zipfile.ZIP_STORED:
        return memoryview(archive.read(info))
    lengths = struct.unpack_from('<HH', data, info.header_offset + 26)  # of name and extra field
    start = info.header_offset + 30 + sum(lengths)
    record = data[start : start + info.file_size]
    # torch writes 0 where it was told to compute no checksums.
    if len(record) != info.file_size or (info.CRC and zlib.crc32(record) != info.CRC):
        raise ValueError(f'{info.filename} has another checksum than the archive says')
    return record


def _read_legacy(file: BinaryIO, data: memoryview) -> Any:
    """Magic number, protocol, system, tree, keys, each pickled; then per key a count and numbers.

    The numbers are little-endian whatever the system was: torch swapped them when writing.
    """
    if _Unpickler(file).load() != MAGIC:
        raise UserError('is a plain pickle, not a file of torch: save it as .safetensors')
    protocol = _Unpickler(file).load()
    if protocol != PROTOCOL:
        raise UserError(f"has version {protocol!r} of torch's old layout, expected {PROTOCOL}")
    _Unpickler(file).load()
    unpickler = _Unpickler(file)
    tree, keys = unpickler.load(), _Unpickler(file).load()
    start, storages = file.tell(), {}
    for key in keys:
        count = int.from_bytes(data[start : start + 8], 'little')
        end = start + 8 + count * DTYPES[unpickler.dtypes[key]].itemsize
        if end > len(data):
            raise ValueError(f'it ends within storage {key}')
        storages[key] = data[start + 8 : end]
        start = end
    return _fill(tree, storages.__getitem__, 'little')


class _Unpickler(pickle.Unpickler):
    """Knows the names in `KNOWN`; what stands for tensors is inert until `_fill`.

    Attributes:
      dtypes: {key: the dtype it was first asked for with} of the storages.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding='utf-8')
        self.dtypes = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f'{module}.{name}'
        if full not in KNOWN:
            raise UserError(
                f'asks for {full[:80]!r}, neither a tensor nor a plain container: refused, nothing '
                'was run; expected torch.save(model.state_dict(), FILE) or a .safetensors file'
            )
        return KNOWN[full]

    def persistent_load(self, pid: Any) -> '_Storage':
        kind, dtype, key, _, _, *view = pid
        if kind != 'storage' or view not in ([], [None]):
            raise ValueError('its persistent id is not of a whole storage')
        self.dtypes.setdefault(key, dtype)
        return _Storage(dtype, key)


class _Storage(NamedTuple):
    dtype: str
    key: str


class _Tensor(NamedTuple):
    """Offset and strides count elements of `dtype`."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Function(NamedTuple):
    """What a file may call. A tuple, as a pickle can set attributes of functions and classes."""

    function: Callable

    def __call__(self, *args):
        return self.function(*args)


class _Dict(dict):
    """Stands for OrderedDict, on which torch hangs the versions of modules."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Dtype:
    """Stands for NumPy's, which scores that were kept beside the weights have."""

    def __init__(self, code: str, *_):
        if not re.fullmatch(r'[biuf]\d', code):
            raise ValueError(f'NumPy dtype {code!r}')
        self.code, self.order = code, '='

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def number(self, data: bytes) -> bool | int | float:
        return np.frombuffer(data, np.dtype(self.code).newbyteorder(self.order))[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, as a pickle of protocol 2 has them."""
    if encoding != 'latin1':
        raise ValueError(f'bytes in {encoding!r}')
    return text.encode('latin1')


def _tensor(storage: _Storage, offset, shape, strides, *rest) -> _Tensor:
    """`rest`: requires_grad, hooks, and flags of views whose numbers are yet to be computed."""
    if any(rest[2:]):
        raise UserError('has a conjugate or negative view: save it with .resolve_conj()')
    return _Tensor(storage, storage.dtype, offset, shape, strides)


def _tensor_with_dtype(storage, offset, shape, strides, grad, hooks, dtype, *flags) -> _Tensor:
    return _tensor(storage, offset, shape, strides, grad, hooks, *flags)._replace(dtype=dtype)


KNOWN = {
    'collections.OrderedDict': _Function(_Dict),
    '_codecs.encode': _Function(_encode),
    'numpy.dtype': _Function(_Dtype),
    'numpy.core.multiarray.scalar': _Function(_Dtype.number),
    'numpy._core.multiarray.scalar': _Function(_Dtype.number),
    'torch.Size': _Function(tuple),
    'torch.device': _Function(lambda *parts: ':'.join(map(str, parts))),
    'torch.Tensor': 'Tensor',
    'torch._utils._rebuild_tensor': _Function(_tensor),
    'torch._utils._rebuild_tensor_v2': _Function(_tensor),
    'torch._utils._rebuild_tensor_v3': _Function(_tensor_with_dtype),
    'torch._utils._rebuild_parameter': _Function(lambda tensor, *_: tensor),
    'torch._utils._rebuild_parameter_with_state': _Function(lambda tensor, *_: tensor),
    'torch._tensor._rebuild_from_type_v2': _Function(lambda function, _, args, __: function(*args)),
    **{f'torch.{name}': name for name in DTYPES},
    **STORAGES,
}


def _fill(tree: Any, find: Callable[[str], memoryview], order: str) -> Any:
    """The tree with arrays for what stands for tensors; `find` gives a storage's bytes by key."""
    filled = {}  # by id: a part may stand in many places, and those in many others

    def fill(part: Any) -> Any:
        if id(part) not in filled:
            filled[id(part)] = fresh(part)
        return filled[id(part)]

    def fresh(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: fill(value) for key, value in part.items()}
        if type(part) in (list, tuple):
            return type(part)(map(fill, part))
        if isinstance(part, _Dtype):
            return part.code
        if isinstance(part, _Tensor):
            array = _array(part, find(part.storage.key))
        elif isinstance(part, _Storage):
            array = np.frombuffer(find(part.key), DTYPES[part.dtype])
        else:
            return part
        return array if order == sys.byteorder else array.byteswap()

    return fill(tree)


def _array(tensor: _Tensor, buffer: memoryview) -> np.ndarray:
    dtype = DTYPES[tensor.dtype]
    offset = tensor.offset * dtype.itemsize
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    # numpy refuses what would reach beyond the buffer.
    return np.ndarray(tensor.shape, dtype, buffer, offset, strides)
