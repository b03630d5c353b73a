"""Files that torch writes are read as torch reads them, bit for bit."""

import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
lpips = pytest.importorskip('lpips')

from gen_jax.errors import UserError  # noqa: E402
from gen_jax.interop.tensors import read, read_tensors  # noqa: E402

LAYOUTS = pytest.mark.parametrize('as_zip', [True, False])
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.complex64, torch.complex128, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
]


def save(tree, path, as_zip):
    torch.save(tree, path, _use_new_zipfile_serialization=as_zip)
    return path


def random(shape, dtype, seed=0):
    """Any bits at all, NaNs included; bool has but two."""
    size = torch.empty(0, dtype=dtype).element_size()
    raw = np.random.default_rng(seed).integers(0, 256, (*shape[:-1], shape[-1] * size), np.uint8)
    return torch.from_numpy(raw % 2 if dtype == torch.bool else raw).view(dtype)


def assert_same(ours, theirs):
    assert str(theirs.dtype) == f'torch.{ours.dtype}'
    assert ours.shape == tuple(theirs.shape)
    raw = theirs.detach().contiguous().reshape(-1).view(torch.uint8)
    assert ours.tobytes() == raw.numpy().tobytes()


@LAYOUTS
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_dtypes_and_views(dtype, as_zip, tmp_path):
    x = random((4, 6), dtype)
    tree = {
        'whole': x,
        'transposed': x.T,
        'rows': x[1::2],
        'columns': x[:, 1:5:2],
        'expanded': x[:1].expand(3, 6),
        'row': x[3],
        'scalar': x[2, 5],
        'none': x[4:],
        'empty': torch.empty(0, 3, dtype=dtype),
        'cube': random((2, 3, 4), dtype, 1).permute(2, 0, 1),
    }
    ours = read_tensors(save(tree, tmp_path / 'x.pt', as_zip))
    assert list(ours) == list(tree)
    for name, theirs in tree.items():
        assert_same(ours[name], theirs)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        self.tied = self.features[0].weight
        self.gain = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer('window', torch.ones(3))
        self.scale = torch.nn.Buffer(torch.ones(2))


@LAYOUTS
def test_state_dicts_and_checkpoints(as_zip, tmp_path):
    net = Network().half()
    optimizer = torch.optim.Adam(net.parameters())
    net.features(torch.ones(2, 3, 8, 8).half()).sum().backward()
    optimizer.step()
    state = net.state_dict()
    checkpoint = {'model': state, 'optimizer': optimizer.state_dict(), 'epoch': 3}
    for tree in (state, dict(net.named_parameters()), dict(net.named_buffers())):
        ours = read_tensors(save(tree, tmp_path / 'x', as_zip))
        assert list(ours) == list(tree)
        for name, theirs in tree.items():
            assert_same(ours[name], theirs)
    ours = read_tensors(save(checkpoint, tmp_path / 'x', as_zip))
    assert list(ours) == list(state)
    whole = read(tmp_path / 'x')
    moments = optimizer.state_dict()['state'][0]['exp_avg']
    assert_same(whole['optimizer']['state'][0]['exp_avg'], moments)
    assert whole['optimizer']['param_groups'][0]['lr'] == 1e-3


@LAYOUTS
def test_plain_values(as_zip, tmp_path):
    tree = OrderedDict(
        size=torch.Size((1, 2)),
        device=torch.device('cuda:1'),
        dtype=torch.bfloat16,
        list=[1, 2.5, 'text', None, True, 2**70, (1, 'ü')],
        nested={'a': {1: [torch.ones(1)]}},
        scores=[np.float64(1.25), np.float32(-0.5), np.int64(-3), np.uint8(200), np.bool_(True)],
        order=np.dtype('>f8'),
    )
    ours = read(save(tree, tmp_path / 'x', as_zip))
    assert ours.pop('nested') == {'a': {1: [1.0]}}
    tree['device'], tree['dtype'], tree['order'] = 'cuda:1', 'bfloat16', 'f8'
    del tree['nested']
    assert ours == dict(tree)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_big_endian(dtype, tmp_path):
    """As a big-endian machine writes it, and torch reads it on any."""
    x = random((5,), dtype)
    swapped = save({'x': x[1:].clone()}, tmp_path / 'little', True)
    raw = read(swapped)['x']
    with zipfile.ZipFile(swapped) as a, zipfile.ZipFile(tmp_path / 'big', 'w') as b:
        for entry in a.namelist():
            content = {'byteorder': b'big', '0': raw.byteswap().tobytes()}
            b.writestr(entry, content.get(entry.rpartition('/')[2], a.read(entry)))
    assert_same(read(tmp_path / 'big')['x'], torch.load(tmp_path / 'big')['x'])
    assert_same(read(tmp_path / 'big')['x'], x[1:])


def test_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        save({'x': torch.arange(5.0)}, tmp_path / 'x', True)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(tmp_path / 'x')['x'].tolist() == [0, 1, 2, 3, 4]


@LAYOUTS
def test_what_is_not_read(as_zip, tmp_path):
    for tree, says in (
        (torch.ones(2).cfloat().conj(), 'resolve_conj'),
        (torch.ones(2).cfloat().conj().imag, 'negative view'),
        (torch.ones(2, 2).to_sparse(), '_rebuild_sparse_tensor.*refused'),
        (torch.nn.Linear(1, 1), 'Linear.*refused'),
    ):
        with pytest.raises(UserError, match=says):
            read(save(tree, tmp_path / 'x', as_zip))


def published_files():
    """Those of the LPIPS package: written by torch long ago."""
    return sorted(Path(lpips.__file__).parent.rglob('*.pth'))


def test_published_files():
    assert len(published_files()) >= 3
    for path in published_files():
        theirs, ours = torch.load(path, 'cpu', weights_only=True), read_tensors(path)
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            assert_same(ours[name], tensor)
