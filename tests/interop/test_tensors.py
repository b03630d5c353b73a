"""Files put together byte by byte, after torch's published layout; its own are in tests/parity."""

import os
import pickle
import struct
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import save_file

from gen_jax.errors import UserError
from gen_jax.interop.tensors import KNOWN, read, read_tensors, to_variables, torch_name

MAGIC = 0x1950A86A20F9469CFC6C
NUMBERS = np.arange(6, dtype='<f4')
DATA = NUMBERS.tobytes()


# A pickle, put together from opcodes, so that it can name what is not installed here.


def plain(value):
    return pickle.dumps(value, 2)[2:-1]  # without the protocol and the full stop


def name(full):
    module, _, last = full.rpartition('.')
    return f'c{module}\n{last}\n'.encode()


def call(function, *args):
    return function + b'(' + b''.join(args) + b'tR'


def table(**items):
    return b'}(' + b''.join(plain(key) + value for key, value in items.items()) + b'u'


def storage(kind='torch.FloatStorage', key='0', *view):
    parts = (plain('storage'), name(kind), plain(key), plain('cpu'), plain(6), *view)
    return b'(' + b''.join(parts) + b'tQ'


def tensor(kind, offset, shape, strides, key='0'):
    ordered = call(name('collections.OrderedDict'))
    numbers = map(plain, (offset, shape, strides, False))
    return call(name('torch._utils._rebuild_tensor_v2'), storage(kind, key), *numbers, ordered)


def floats(offset, shape, strides):
    return tensor('torch.FloatStorage', offset, shape, strides)


def write_zip(path, body, data=DATA, root='any root', **records):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'{root}/data.pkl', b'\x80\x02' + body + b'.')
        archive.writestr(f'{root}/data/0', data)
        for record, content in records.items():
            archive.writestr(f'{root}/{record}', content)
    return path


def write_legacy(path, body, data=DATA, itemsize=4, protocol=1001):
    head = [pickle.dumps(x, 2) for x in (MAGIC, protocol, {'little_endian': True})]
    tail = pickle.dumps([], 2)
    if b'storage' in body:
        tail = pickle.dumps(['0'], 2) + struct.pack('<q', len(data) // itemsize) + data
    path.write_bytes(b''.join(head) + b'\x80\x02' + body + b'.' + tail)
    return path


WRITERS = pytest.mark.parametrize('write', [write_zip, write_legacy])


def refused(path, says):
    with pytest.raises(UserError, match=says) as error:
        read(path)
    assert '\n' not in str(error.value)
    assert str(path) in str(error.value)


# What is read.


@WRITERS
def test_views_of_one_storage(write, tmp_path):
    body = table(
        whole=floats(0, (2, 3), (3, 1)),
        transposed=floats(0, (3, 2), (1, 3)),
        every_other=floats(1, (3,), (2,)),
        repeated=floats(4, (2, 2), (0, 1)),
        scalar=floats(5, (), ()),
        empty=floats(6, (0, 3), (3, 1)),
        nested=b'](' + floats(2, (1,), (1,)) + plain(('text', 1.5, None)) + b'e',
    )
    tree = read(write(tmp_path / 'x.bin', body))
    want = {
        'whole': [[0, 1, 2], [3, 4, 5]],
        'transposed': [[0, 3], [1, 4], [2, 5]],
        'every_other': [1, 3, 5],
        'repeated': [[4, 5], [4, 5]],
        'scalar': 5,
        'empty': np.zeros((0, 3)),
    }
    first, rest = tree.pop('nested')
    assert first.tolist() == [2]
    assert rest == ('text', 1.5, None)
    assert list(tree) == list(want)
    for key, x in tree.items():
        assert x.dtype == np.float32
        assert x.shape == np.shape(want[key])
        np.testing.assert_array_equal(x, want[key])
        assert not x.flags.writeable


@WRITERS
@pytest.mark.parametrize(
    ('kind', 'dtype'),
    [
        ('Double', 'f8'),
        ('Half', 'f2'),
        ('BFloat16', ml_dtypes.bfloat16),
        ('ComplexFloat', 'c8'),
        ('Long', 'i8'),
        ('Short', 'i2'),
        ('Char', 'i1'),
        ('Byte', 'u1'),
        ('Bool', '?'),
    ],
)
def test_dtypes(write, kind, dtype, tmp_path):
    numbers = np.array([1, 0, 3], dtype)
    settings = {'itemsize': numbers.itemsize} if write is write_legacy else {}
    body = table(x=tensor(f'torch.{kind}Storage', 1, (2,), (1,)))
    x = read_tensors(write(tmp_path / 'x', body, numbers.tobytes(), **settings))['x']
    assert x.dtype == numbers.dtype
    np.testing.assert_array_equal(x, numbers[1:])


@pytest.mark.parametrize('dtype', ['f8', 'f2', 'i4', 'c8', ml_dtypes.bfloat16])
def test_big_endian(dtype, tmp_path):
    kinds = {'f8': 'Double', 'f2': 'Half', 'i4': 'Int', 'c8': 'ComplexFloat'}
    numbers = np.array([1.5, -2, 3], dtype)
    body = table(
        x=tensor(f'torch.{kinds.get(dtype, "BFloat16")}Storage', 0, (3,), (1,)),
        scalar=tensor(f'torch.{kinds.get(dtype, "BFloat16")}Storage', 1, (), ()),
    )
    file = write_zip(tmp_path / 'x', body, numbers.byteswap().tobytes(), byteorder='big')
    tree = read(file)
    np.testing.assert_array_equal(tree['x'], numbers)
    np.testing.assert_array_equal(tree['scalar'], numbers[1])
    refused(write_zip(file, body, byteorder='middle'), 'byte order')


@WRITERS
def test_what_torch_writes_around_tensors(write, tmp_path):
    rebuild = name('torch._utils._rebuild_tensor_v2')
    args = storage() + plain(1) + plain((2,)) + plain((1,)) + plain(True) + plain({})
    state = table(w=floats(0, (2,), (1,)))
    body = table(
        parameter=call(
            name('torch._utils._rebuild_parameter'), floats(1, (2,), (1,)), plain(True), plain({})
        ),
        first=call(
            name('torch._utils._rebuild_tensor'), storage(), plain(1), plain((2,)), plain((1,))
        ),
        buffer=call(
            name('torch._tensor._rebuild_from_type_v2'),
            rebuild,
            name('torch.Tensor'),
            b'(' + args + b't',
            plain({}),
        ),
        typed=call(
            name('torch._utils._rebuild_tensor_v3'),
            storage('torch.storage.UntypedStorage'),
            *map(plain, (2, (2,), (1,), False, {})),
            name('torch.uint16'),
        ),
        size=call(name('torch.Size'), plain((2, 3))),
        device=call(name('torch.device'), plain('cuda'), plain(1)),
        dtype=name('torch.bfloat16'),
        # OrderedDict([['w', ...]]) with the attribute that torch gives to a state dict
        state=call(name('collections.OrderedDict'), b'](](' + state[2:-1] + b'ee')
        + plain({'_metadata': {'': {'version': 1}}})
        + b'b',
    )
    settings = {'itemsize': 1} if write is write_legacy else {}  # asked for untyped first
    body = table(bare=storage('torch.UntypedStorage'), **{'tree': body})
    tree = read(write(tmp_path / 'x', body, **settings))
    np.testing.assert_array_equal(tree['bare'], np.frombuffer(DATA, np.uint8))
    tree = tree['tree']
    for key in ('parameter', 'first', 'buffer'):
        assert tree[key].tolist() == [1, 2]
    assert tree['typed'].tolist() == [0, 0x3F80]  # the two halves of 1.0
    assert (tree['size'], tree['device'], tree['dtype']) == ((2, 3), 'cuda:1', 'bfloat16')
    assert list(tree['state']) == ['w']
    assert tree['state']['w'].tolist() == [0, 1]


@pytest.mark.parametrize('package', ['numpy.core', 'numpy._core'])
@WRITERS
def test_numbers_of_numpy(write, package, tmp_path):
    """Scores that were kept beside the weights, of NumPy before 2 and after."""
    written = {}
    for key, x in {'fid': np.float64(4.25), 'big': np.dtype('>i2').type(-2)}.items():
        body = plain(x).replace(b'numpy._core', package.encode())
        assert package.encode() in body
        written[key] = body
    written['swapped'] = call(
        name(f'{package}.multiarray.scalar'),
        call(name('numpy.dtype'), plain('i2'), plain(False), plain(True))
        + plain((3, '>', None, None, None, -1, -1, 0)) + b'b',
        call(name('_codecs.encode'), plain('\x01\x02'), plain('latin1')),
    )  # fmt: skip
    tree = read(write(tmp_path / 'x', table(**written)))
    assert tree == {'fid': 4.25, 'big': -2, 'swapped': 258}
    assert {type(x) for x in tree.values()} == {float, int}


@WRITERS
def test_what_stands_in_many_places_is_read_once(write, tmp_path):
    """100 lists, each of which holds the one before twice: they have 2**100 places in all."""
    few, many = ['here'], ['here']
    for _ in range(3):
        few = [few, few]
    for _ in range(100):
        many = [many, many]
    few = read(write(tmp_path / 'few', plain(few)))
    assert few == [[[['here']] * 2] * 2] * 2
    assert few[0] is few[1]
    many = read(write(tmp_path / 'many', plain(many)))
    for _ in range(100):
        assert many[0] is many[1]
        many = many[0]
    assert many == ['here']


def test_compressed_archive(tmp_path):
    stored = write_zip(tmp_path / 'x', table(x=floats(0, (6,), (1,))))
    with zipfile.ZipFile(stored) as a, zipfile.ZipFile(tmp_path / 'y', 'w', 8) as b:
        for entry in a.namelist():
            b.writestr(entry, a.read(entry))
    np.testing.assert_array_equal(read(tmp_path / 'y')['x'], NUMBERS)


def test_an_archive_without_checksums(tmp_path):
    """torch writes zeros for them where it was told to compute none."""
    body = table(x=floats(0, (6,), (1,)))
    file = write_zip(tmp_path / 'x', body)
    with zipfile.ZipFile(file) as archive:
        checksums = [struct.pack('<L', info.CRC) for info in archive.infolist()]
    content = file.read_bytes()
    for checksum in checksums:
        content = content.replace(checksum, bytes(4))
    file.write_bytes(content)
    np.testing.assert_array_equal(read(file)['x'], NUMBERS)
    file.write_bytes(content.replace(NUMBERS[1:3].tobytes(), NUMBERS[3:5].tobytes()))
    assert read(file)['x'].tolist() == [0, 3, 4, 3, 4, 5]


@pytest.mark.parametrize('dtype', ['f4', 'f2', 'i8', ml_dtypes.bfloat16])
def test_safetensors_whatever_the_suffix(dtype, tmp_path):
    tensors = {'a': np.ones((2, 3), dtype), 'b': np.array(2, dtype), 'c': np.zeros((0, 1), dtype)}
    save_file(tensors, tmp_path / 'x.pth')
    again = read_tensors(tmp_path / 'x.pth')
    assert again.keys() == tensors.keys()
    for key, x in tensors.items():
        assert again[key].dtype == x.dtype
        np.testing.assert_array_equal(again[key], x)


@pytest.mark.parametrize('dtype', ['F8_E4M3', 'F8_E5M2', 'F4'])
def test_safetensors_of_types_that_cannot_be_read(dtype, tmp_path):
    header = f'{{"a":{{"dtype":"{dtype}","shape":[24],"data_offsets":[0,24]}}}}'.encode()
    (tmp_path / 'x').write_bytes(struct.pack('<Q', len(header)) + header + DATA[:24])
    refused(tmp_path / 'x', f'holds tensors of type {dtype}, which cannot be read')


def test_safetensors_that_begin_like_a_pickle(tmp_path):
    """The header's length comes first; one of 128 bytes begins with a pickle's opcode."""
    header = b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'.ljust(128)
    (tmp_path / 'x').write_bytes(struct.pack('<Q', 128) + header + DATA)
    np.testing.assert_array_equal(read(tmp_path / 'x')['a'], NUMBERS)
    (tmp_path / 'x').write_bytes(struct.pack('<Q', 128) + header + DATA[:-1])
    refused(tmp_path / 'x', 'damaged')


# What is refused.


class Reduce:
    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def attacks(trace):
    """Pickles that would leave the file `trace` behind, by the name that they ask for."""
    system = os.system.__module__  # posix, or nt
    shell, python = f'echo > "{trace}"', f'open({str(trace)!r}, "w").close()'
    instance = f'(S{python!r}\nibuiltins\nexec\n'.encode()
    return {
        'reduce': (f'{system}.system', plain(Reduce(os.system, (shell,)))),
        'global': ('os.system', call(name('os.system'), plain(shell))),
        'eval': ('__builtin__.eval', plain(Reduce(eval, (python,)))),
        'old_eval': ('builtins.exec', instance),
        'stack_global': (
            'os.system',
            pickle.dumps('os', 4)[11:-1] + pickle.dumps('system', 4)[11:-1] + b'\x93'
            + plain((shell,)) + b'R',
        ),
        'nested': (
            '__builtin__.list',  # what is around the call is asked for first
            plain({'a': [1, {'b': Reduce(list, ([Reduce(os.system, (shell,))],))}]}),
        ),
        'in_arguments': (
            'os.system',
            call(
                name('collections.OrderedDict'),
                b'](](' + plain('a') + call(name('os.system'), plain(shell)) + b'ee',
            ),
        ),
        'dotted': ('os.path.os.system', call(b'\x80\x04cos\npath.os.system\n', plain(shell))),
    }  # fmt: skip


@pytest.mark.parametrize('attack', attacks('x'))
@pytest.mark.parametrize('write', [write_zip, write_legacy, None])
def test_code_is_refused_by_name_and_not_run(attack, write, tmp_path):
    trace, file = tmp_path / 'trace', tmp_path / 'x.pth'
    asks, body = attacks(trace)[attack]
    whole = b'\x80\x02' + body + b'.'
    if write:
        write(file, body)
    else:
        file.write_bytes(whole)
    refused(file, f"asks for '{asks}'.*refused")
    assert not trace.exists()
    pickle.loads(whole)  # the attack is one
    assert trace.exists()


@WRITERS
def test_a_file_cannot_change_the_reader(write, tmp_path):
    """BUILD sets attributes: not those of our functions, and none of a dict's."""
    for full in KNOWN:
        for state in ({'function': 1}, (None, {'function': 1}), (None, {'__call__': 1})):
            refused(write(tmp_path / 'x', name(full) + plain(state) + b'b'), 'damaged')
    body = call(name('numpy.core.multiarray.scalar'), plain('f8'), plain(8 * 'x'))
    refused(write(tmp_path / 'x', body), 'damaged')
    for code in ('O8', 'V9', 'M8[D]', 'f8,f8', 8, ('f8', (2,))):
        dtype = call(name('numpy.dtype'), plain(code), plain(False), plain(True))
        refused(write(tmp_path / 'x', dtype), 'damaged')
    refused(
        write(tmp_path / 'x', call(name('_codecs.encode'), plain('x'), plain('utf-8'))), 'utf-8'
    )
    body = call(name('collections.OrderedDict')) + plain((None, {'items': 1})) + b'b'
    assert read(write(tmp_path / 'x', body)) == {}


@WRITERS
@pytest.mark.parametrize(
    ('body', 'says'),
    [
        (floats(1, (6,), (1,)), 'damaged'),
        (floats(0, (2, 2), (5, 1)), 'damaged'),
        (floats(-1, (1,), (1,)), 'damaged'),
        (floats(0, (2,), (-1,)), 'damaged'),
        (floats(0, (-2,), (1,)), 'damaged'),
        (floats(0, (2**62,), (1,)), 'damaged'),
        (floats(0, (1.5,), (1,)), 'damaged'),
        (floats('a', (1,), (1,)), 'damaged'),
        (tensor('torch.FloatStorage', 0, (1,), (1,), key='1'), 'damaged'),
        (tensor('torch.FloatStorage', 0, (1,), (1,), key='../data.pkl'), 'damaged'),
        (tensor('torch.ComplexHalfStorage', 0, (1,), (1,)), "asks for 'torch.ComplexHalfStorage'"),
        (name('torch.nn.modules.linear.Linear'), r"'torch.nn.modules.linear.Linear'.*state_dict"),
        (name('torch.\x1b[31m'), r"'torch.\\x1b\[31m'"),
        (b'(' + plain('module') + plain(0) * 4 + b'tQ', 'persistent id'),
        (storage('torch.FloatStorage', '0', plain(('1', 0, 6))), 'persistent id'),
        (b']q\x00h\x00a', 'damaged.*recursion'),
        (
            call(
                name('torch._utils._rebuild_tensor_v2'),
                storage(),
                *map(plain, (0, (1,), (1,), False, {}, {'neg': True})),
            ),
            'negative view',
        ),
        (
            call(
                name('torch._utils._rebuild_tensor_v3'),
                storage(),
                *map(plain, (0, (1,), (1,), False, {}, 'O')),
            ),
            "damaged.*'O'",
        ),
    ],
)
def test_wrong_content_is_told(write, body, says, tmp_path):
    refused(write(tmp_path / 'x', b'](' + body + b'e'), says)


@WRITERS
def test_every_truncation_is_told(write, tmp_path):
    content = write(tmp_path / 'x', table(x=floats(0, (2, 3), (3, 1)))).read_bytes()
    for length in range(len(content)):
        (tmp_path / 'x').write_bytes(content[:length])
        refused(tmp_path / 'x', 'damaged|empty|neither')


@WRITERS
def test_every_changed_byte_is_read_or_told(write, tmp_path):
    content = write(tmp_path / 'x', table(x=floats(0, (2, 3), (3, 1)))).read_bytes()
    told = 0
    for i in range(len(content)):
        (tmp_path / 'x').write_bytes(content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :])
        try:
            read(tmp_path / 'x')
        except UserError as error:
            told += '\n' not in str(error)
    assert told > len(content) / 4


def test_a_changed_number_in_an_archive_is_told(tmp_path):
    file = write_zip(tmp_path / 'x', table(x=floats(0, (6,), (1,))))
    file.write_bytes(file.read_bytes().replace(DATA, DATA[:-1] + b'\x41'))
    refused(file, 'any root/data/0 has another checksum')


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (b'', 'is empty'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'Git LFS pointer.*git lfs'),
        (b'\n<!DOCTYPE html><html>', 'web page'),
        (b'<html>', 'web page'),
        (b'mu,sigma\n1,2\n' * 9, r"neither.*b'mu,sigma'"),
        (bytes(257) + b'ustar' + bytes(300), 'tar archive'),
        (pickle.dumps({'a': 1}), 'plain pickle'),
        (pickle.dumps({'a': np.ones(2)}, 2), "'numpy.*_reconstruct'.*refused"),
    ],
)
def test_other_files_are_named(content, says, tmp_path):
    (tmp_path / 'x.pth').write_bytes(content)
    refused(tmp_path / 'x.pth', says)


def test_other_archives_and_layouts_are_named(tmp_path):
    file = tmp_path / 'x'
    body = table(x=floats(0, (1,), (1,)))
    refused(write_zip(file, body, **{'constants.pkl': b''}), 'TorchScript.*jit.load')
    refused(write_zip(file, body, **{'code/__torch__.py': b''}), 'TorchScript')
    refused(write_legacy(file, body, protocol=1002), 'version 1002')
    with file.open('wb') as target:
        np.savez(target, a=1)
    refused(file, r'zip archive without data\.pkl')
    refused(tmp_path / 'nowhere', 'no file at')
    refused(tmp_path, 'no file at')


@pytest.mark.parametrize('key', ['ema', 'state_dict', 'model', 'params'])
def test_wrapped_tensors(key, tmp_path):
    inner = table(w=floats(0, (2,), (1,)))
    for extra in ({}, {'epoch': plain(3), 'optimizer': plain({'state': {}})}):
        file = write_zip(tmp_path / 'x', table(**{key: inner}, **extra))
        assert {name: x.tolist() for name, x in read_tensors(file).items()} == {'w': [0, 1]}


def test_averages_are_meant_where_there_are_others_beside_them(tmp_path):
    """As in DiT's own checkpoints."""
    sets = {name: table(w=floats(i, (1,), (1,))) for i, name in enumerate(('model', 'ema'))}
    file = write_zip(tmp_path / 'x', table(**sets, opt=plain({'state': {}})))
    assert read_tensors(file)['w'].tolist() == [1]


@pytest.mark.parametrize(
    ('body', 'says'),
    [
        (table(g=table(w=floats(0, (2,), (1,)))), 'holds g;'),
        (
            table(**{k: table(w=floats(0, (2,), (1,))) for k in ('params', 'params_ema')}),
            'holds params, params_ema;',
        ),
        (table(model=plain({}), epoch=plain(1)), 'holds model, epoch;'),
        (table(w=floats(0, (2,), (1,)), epoch=plain(1)), 'holds w, epoch;'),
        (b'}' + plain(0) + floats(0, (2,), (1,)) + b's', 'holds 0;'),
        (floats(0, (2,), (1,)), 'holds ndarray;'),
        (plain({}), 'holds nothing;'),
        (plain(dict.fromkeys('abcdefghij')), r'holds a, b, c, d, e, f, g, h, \.\.\.;'),
    ],
)
def test_tensors_that_are_not_just_one_set(body, says, tmp_path):
    with pytest.raises(UserError, match=says):
        read_tensors(write_zip(tmp_path / 'x', body))


# Variables.


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, label):
        x = nn.Conv(4, (2, 3), name='features.0')(x)
        x = nn.BatchNorm(use_running_average=True, name='features.1')(x)
        x = nn.Dense(5, name='project')(x)
        x = x * self.param('gain', nn.initializers.ones, ())
        return x.mean((1, 2)) + nn.Embed(3, 5, name='label')(label)


def shapes():
    args = jnp.zeros((1, 8, 8, 2)), jnp.zeros(1, jnp.int32)
    return jax.eval_shape(Network().init, jax.random.key(0), *args)


def tensors():
    rng = np.random.default_rng(0)
    named = {
        'features.0.weight': (4, 2, 2, 3),
        'features.0.bias': (4,),
        'features.1.weight': (4,),
        'features.1.bias': (4,),
        'features.1.running_mean': (4,),
        'features.1.running_var': (4,),
        'project.weight': (5, 4),
        'project.bias': (5,),
        'label.weight': (3, 5),
        'gain': (),
    }
    return {name: rng.normal(size=shape) for name, shape in named.items()}


def test_variables_have_flax_layout():
    source = tensors()
    variables = to_variables(source, shapes(), 'x')
    assert jax.tree.structure(variables) == jax.tree.structure(shapes())
    for leaf, spec in zip(jax.tree.leaves(variables), jax.tree.leaves(shapes()), strict=True):
        assert (leaf.shape, leaf.dtype) == (spec.shape, np.float32)
        assert leaf.flags.owndata
        assert leaf.flags.c_contiguous
    params, stats = variables['params'], variables['batch_stats']
    kernel = params['features.0']['kernel']
    for h, w, i, o in np.ndindex(kernel.shape):
        assert kernel[h, w, i, o] == np.float32(source['features.0.weight'][o, i, h, w])
    np.testing.assert_array_equal(
        params['project']['kernel'], np.float32(source['project.weight'].T)
    )
    for theirs, ours in {
        'features.1.weight': params['features.1']['scale'],
        'features.1.bias': params['features.1']['bias'],
        'features.1.running_mean': stats['features.1']['mean'],
        'features.1.running_var': stats['features.1']['var'],
        'label.weight': params['label']['embedding'],
        'gain': params['gain'],
    }.items():
        np.testing.assert_array_equal(ours, np.float32(source[theirs]))


def test_dense_kernel_from_a_1x1_convolution():
    source = tensors()
    want = to_variables(source, shapes(), 'x')
    source['project.weight'] = source['project.weight'][:, :, None, None]
    jax.tree.map(np.testing.assert_array_equal, to_variables(source, shapes(), 'x'), want)


def test_half_precision_and_renamed():
    source = {f'net.{name}': x.astype(ml_dtypes.bfloat16) for name, x in tensors().items()}
    variables = to_variables(source, shapes(), 'x', rename=lambda name: f'net.{name}')
    want = to_variables(tensors(), shapes(), 'x')
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), variables, want)
    assert torch_name(('a.0', 'b', 'var')) == 'a.0.b.running_var'


def test_ignored_names_match_in_full():
    source = tensors() | {'features.1.num_batches_tracked': np.array(3), 'aux.weight': np.ones(2)}
    pattern = r'.*num_batches_tracked|aux\..*'
    want = to_variables(tensors(), shapes(), 'x')
    ours = to_variables(source, shapes(), 'x', ignore=pattern)
    jax.tree.map(np.testing.assert_array_equal, ours, want)
    with pytest.raises(UserError, match=r'the network has, 1 tensors: aux\.weight:'):
        to_variables(source, shapes(), 'x', ignore=r'.*num_batches_tracked|aux')


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (
            lambda x: [x.pop(name) for name in list(x) if name.startswith('features')],
            r'file lacks 6 tensors: features\.0\.bias, features\.0\.weight, features\.1\.bias, '
            r'\.\.\.: these are the weights of another network',
        ),
        (
            lambda x: x.update(b=np.ones(1), a=np.ones(1)),
            'file holds, beyond what the network has, 2 tensors: a, b: these are',
        ),
        (
            lambda x: x.update(other=x.pop('gain')),
            'lacks 1 tensors: gain and holds, beyond what the network has, 1 tensors: other: these',
        ),
        (
            lambda x: x.update({'project.weight': np.ones((6, 4))}),
            r'1 tensors: project\.weight becomes \(4, 6\) where the network has \(4, 5\): these',
        ),
        (lambda x: x.update({'project.weight': np.ones((5, 4, 3, 3))}), r'becomes \(3, 3, 4, 5\)'),
        (lambda x: x.update({'project.weight': np.ones(20)}), r'becomes \(20,\) where'),
        (lambda x: x.update({'features.0.weight': np.ones((4, 2))}), r'becomes \(2, 4\) where'),
    ],
)
def test_tensors_of_another_network(change, says):
    source = tensors()
    change(source)
    with pytest.raises(UserError, match=says) as error:
        to_variables(source, shapes(), 'file')
    assert '\n' not in str(error.value)
