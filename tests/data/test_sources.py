import gzip
import importlib.util
import io
import json
import os
import pickle
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_digits
from tensorflow_datasets.proto import tf_example_pb2

from gen_jax.config import default
from gen_jax.data import fitting, folder, sources, tfds_source
from gen_jax.data.sources import open_source
from gen_jax.errors import UserError

FASHION_MNIST = 'GEN_JAX_FASHION_MNIST'


def data(**fields):
    """config.data with its defaults, without the method that `default` asks for."""
    fake = type('Fake', (), {'defaults': staticmethod(dict)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('gen_jax.config.method_module', lambda name: fake)
        config = default('fake').data
    config.update(fields)
    return config


def save(path, colour, size=(4, 4), mode='RGB'):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def error_of(split='train', **fields):
    with pytest.raises(UserError) as error:
        open_source(data(**fields), split)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_digits_splits_are_disjoint_and_cover_everything():
    train, test, everything = (open_source(data(), s) for s in ('train', 'test', 'all'))
    assert (len(train), len(test), len(everything)) == (1501, 296, 1797)

    def all_of(source):
        return sorted(
            (e['label'], e['image'].tobytes()) for e in map(source.__getitem__, range(len(source)))
        )

    assert sorted(all_of(train) + all_of(test)) == all_of(everything)
    counts = np.bincount([test[i]['label'] for i in range(len(test))])
    assert (counts.min(), counts.max()) == (29, 30)


def test_digits_values_and_order():
    everything = open_source(data(), 'all')
    file = load_digits()
    for i in (0, 1000, 1796):
        example = everything[i]
        assert (example['image'].shape, example['image'].dtype) == ((8, 8, 1), np.uint8)
        assert example['label'] == file.target[i]
        # No v / 16 * 255 but v = 8 lies halfway between two integers; 127.5 goes up.
        expected = np.floor(file.images[i] / 16 * 255 + 0.5)
        np.testing.assert_array_equal(example['image'][..., 0], expected)


def test_digits_are_fitted():
    image = open_source(data(image_size=12, fit='pad'), 'all')[0]['image']
    np.testing.assert_array_equal(image[2:10, 2:10], open_source(data(), 'all')[0]['image'])
    assert open_source(data(image_size=12), 'all')[0]['image'].shape == (12, 12, 1)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'source': 'digit'}, "config.data.source='digit', did you mean 'digits'"),
        ({'source': 'tfds'}, "did you mean 'tfds:NAME'"),
        ({'source': 'digits:8'}, "unknown config.data.source='digits:8'"),
        ({'split': 'tets'}, "no split 'tets', did you mean 'test'"),
        ({'channels': 3}, 'set config.data.channels=1'),
        ({'source': 'shapes'}, 'set config.data.channels=3'),
        ({'num_classes': 9}, 'digits has 10 classes, but config.data.num_classes=9'),
        ({'source': 'folder:/nope'}, 'folder:/nope is not a folder'),
        (
            {'source': 'sprites:2x1x1x1x2', 'split': 'test', 'image_size': 64},
            "sprites:2x1x1x1x2 'test' has no examples: choose another split",
        ),
        ({'crop': 0.8}, 'digits has no larger images to crop, but config.data.crop=0.8'),
        ({'source': 'folder:/', 'channels': 2}, 'expected 1 .grey. or 3 .colour.'),
    ],
)
def test_mistakes_are_told_in_one_line(fields, message):
    with pytest.raises(UserError) as error:
        open_source(data(**fields), fields.get('split', 'train'))
    assert error.match(message)


def test_folder_with_classes(tmp_path):
    save(tmp_path / 'b' / '2.png', (1, 2, 3))
    save(tmp_path / 'b' / '10.JPG', (200, 200, 200), (9, 5))
    save(tmp_path / 'a' / 'x.webp', 50, (3, 3), 'L')
    (tmp_path / 'a' / 'notes.txt').write_text('skipped')
    (tmp_path / '.hidden').mkdir()
    fields = data(source=f'folder:{tmp_path}', channels=3, image_size=4, num_classes=2)
    source = open_source(fields, 'train')
    source = pickle.loads(pickle.dumps(source))
    assert (len(source), source.num_classes) == (3, 2)
    assert [source[i]['label'] for i in range(3)] == [0, 1, 1]
    assert {source[i]['image'].shape for i in range(3)} == {(4, 4, 3)}
    assert source[2]['image'][0, 0].tolist() == [1, 2, 3]  # '10.JPG' sorts before '2.png'


class Together:
    """A source that is read together only, and tells in `asked` of what."""

    num_classes = 3

    def __init__(self, n):
        self.n, self.asked = n, []

    def __len__(self):
        return self.n

    def __getitems__(self, indices):
        self.asked.append(indices)
        return [{'image': np.full((2, 2, 1), i, np.uint8), 'label': i % 3} for i in indices]


def test_what_can_be_read_together_is():
    source = Together(7)
    parts = list(sources.images_of(source, 3))
    assert source.asked == [[0, 1, 2], [3, 4, 5], [6]]
    assert [part[:, 0, 0, 0].tolist() for part in parts] == source.asked
    assert sources.labels_of(source).tolist() == [i % 3 for i in range(7)]
    assert source.asked[3:] == [[*range(7)]]


def test_labels_are_had_without_images(tmp_path, monkeypatch):
    for i, name in enumerate('abb'):
        save(tmp_path / name / f'{i}.png', 10 * i, mode='L')
    kinds = {
        f'folder:{tmp_path}': {'image_size': 4},
        'digits': {},
        'shapes': {'channels': 3},
        'sprites:3x2x2x2x2': {'image_size': 8},
    }
    for name, fields in kinds.items():
        source = open_source(data(source=name, **fields), 'train')
        some = range(0, len(source), max(1, len(source) // 20))
        want = [source[i]['label'] for i in some]
        with monkeypatch.context() as without:
            without.setattr(type(source), '__getitem__', None)
            without.setattr(type(source), '__getitems__', None, raising=False)
            found = sources.labels_of(source)
        assert found[list(some)].tolist() == want, name
        assert len(found) == len(source)


def test_folder_without_classes(tmp_path):
    for i in range(3):
        save(tmp_path / f'{i}.png', 10 * i, mode='L')
    source = open_source(data(source=f'folder:{tmp_path}', image_size=4), 'train')
    assert source.num_classes == 0
    assert [(source[i]['label'], source[i]['image'][0, 0, 0]) for i in range(3)] == [
        (0, 0),
        (0, 10),
        (0, 20),
    ]
    assert 'has no labels' in error_of(source=f'folder:{tmp_path}', num_classes=2)
    assert "eval_split='train'" in error_of(source=f'folder:{tmp_path}', split='test')


def test_folder_splits_share_the_numbers_of_their_classes(tmp_path):
    for name in ('train/a', 'train/b', 'test/b'):
        save(tmp_path / name / '0.png', 0, mode='L')
    fields = {'source': f'folder:{tmp_path}', 'image_size': 4, 'num_classes': 2}
    test = open_source(data(**fields), 'test')
    # 'b' is the only class there is in `test`, and still number 1.
    assert [test[i]['label'] for i in range(len(test))] == [1]
    assert "no split 'tset', did you mean 'test'" in error_of('tset', **fields)
    save(tmp_path / 'test' / 'bb' / '0.png', 0, mode='L')
    assert "that the train split lacks, did you mean 'b'" in error_of('test', **fields)


def test_folder_mistakes(tmp_path):
    source = f'folder:{tmp_path}'
    assert 'has no images' in error_of(source=source)
    (tmp_path / 'a').mkdir()
    assert 'a has no images' in error_of(source=source)
    save(tmp_path / 'a' / '0.png', 0)
    save(tmp_path / 'stray.png', 0)
    assert 'stray.png' in error_of(source=source)


@pytest.mark.parametrize('other', ['val', 'valid', 'validation', 'eval'])
@pytest.mark.parametrize('layout', ['', 'a'])
def test_splits_that_lack_test_are_not_taken_for_classes(tmp_path, other, layout):
    source = f'folder:{tmp_path}'
    save(tmp_path / 'train' / layout / '0.png', 0)
    for split in ('train', 'test'):
        alone = error_of(split, source=source)
        assert f'{tmp_path} has train alone, expected train and test' in alone
    save(tmp_path / other / layout / '0.png', 0)
    for split in ('train', 'test', other):
        error = error_of(split, source=source)
        assert error.endswith(f'expected train and test: rename {other} to test')
    (tmp_path / other).rename(tmp_path / 'test')
    assert [len(open_source(data(source=source), split)) for split in ('train', 'test')] == [1, 1]


def test_a_class_may_be_called_train(tmp_path):
    for name in ('bus', 'train'):
        save(tmp_path / name / '0.png', 0)
    source = open_source(data(source=f'folder:{tmp_path}', num_classes=2), 'train')
    assert sources.labels_of(source).tolist() == [0, 1]


def test_splits_of_two_layouts_are_told_apart(tmp_path):
    source = f'folder:{tmp_path}'
    save(tmp_path / 'train' / 'a' / '0.png', 0)
    save(tmp_path / 'test' / '0.png', 0)
    assert f'{tmp_path}/test has images (0.png) and no class folders' in error_of(
        'test', source=source
    )
    (tmp_path / 'train').rename(tmp_path / 'labelled')
    (tmp_path / 'test').rename(tmp_path / 'train')
    (tmp_path / 'labelled').rename(tmp_path / 'test')
    assert f'{tmp_path}/test has folders (a) and no images' in error_of('test', source=source)


def test_names_with_a_dot_folders_and_other_suffixes_are_no_images(tmp_path):
    for name in ('a/0.png', 'a/1.bmp', 'b/0.png'):
        save(tmp_path / name, 0)
    (tmp_path / '._x.png').write_bytes(b'what macOS leaves beside x.png')
    (tmp_path / 'b' / 'cut.png').mkdir()
    assert len(open_source(data(source=f'folder:{tmp_path}', num_classes=2), 'train')) == 2
    (tmp_path / 'a' / '0.png').unlink()
    assert 'a has no images; expected files ending in .png' in error_of(source=f'folder:{tmp_path}')


@pytest.mark.parametrize('path', ['~nosuchuser/x', 'a' * 300])
def test_a_path_that_cannot_be_is_told(path):
    assert f'folder:{path} is not a folder' in error_of(source=f'folder:{path}')


@pytest.mark.parametrize('kind', ['png', 'jpg', 'webp'])
def test_a_truncated_image_is_found_at_open(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    path = tmp_path / f'broken.{kind}'
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(path) in error_of(source=f'folder:{tmp_path}', channels=3)


def test_large_folders_have_their_headers_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, 'FULLY_CHECKED', 1)
    save(tmp_path / '0.png', 0)
    save(tmp_path / '1.png', 0)
    source = f'folder:{tmp_path}'
    assert len(open_source(data(source=source), 'train')) == 2
    (tmp_path / '2.png').write_bytes(b'text')
    assert '2.png is not an image' in error_of(source=source)


def tfds_fields(tmp_path, name, **fields):
    return {'source': f'tfds:{name}', 'tfds_dir': str(tmp_path), 'image_size': 28, **fields}


def test_unknown_tfds_names_suggest_the_nearest(tmp_path):
    error = error_of(**tfds_fields(tmp_path, 'fashion_mnst'))
    assert error == "TFDS has no data set 'fashion_mnst', did you mean 'fashion_mnist'?"
    assert 'tensorflow.org/datasets' in error_of(**tfds_fields(tmp_path, 'qqqqqqqqqq'))
    assert "has no 'image' feature" in error_of(**tfds_fields(tmp_path, 'imdb_reviews'))
    assert 'foo not found' in error_of(**tfds_fields(tmp_path, 'cifar10/foo'))


def test_files_of_another_format_are_not_read_as_array_record(tmp_path):
    folder_ = tmp_path / 'cifar10' / '3.0.2'
    folder_.mkdir(parents=True)
    info = {'name': 'cifar10', 'version': '3.0.2', 'fileFormat': 'tfrecord'}
    (folder_ / 'dataset_info.json').write_text(json.dumps(info))
    error = error_of(**tfds_fields(tmp_path, 'cifar10', channels=3))
    assert 'not array_record; set config.data.tfds_dir to another folder' in error


@pytest.mark.slow
def test_offline_the_missing_file_and_its_place_are_named(tmp_path, monkeypatch):
    pytest.importorskip('tensorflow')

    def no_network(*_, **__):
        raise socket.gaierror('offline')

    monkeypatch.setattr(socket, 'getaddrinfo', no_network)
    for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy'):
        monkeypatch.delenv(name, raising=False)
    error = error_of(**tfds_fields(tmp_path, 'cifar10', channels=3))
    assert 'put cifar-10-binary.tar.gz from https://www.cs.toronto.edu/' in error
    assert error.endswith(f'into {tmp_path}/downloads/manual/')


SHARDS = {'train': (4, 2), 'test': (3,)}


def write_tfds(root):
    """What TFDS leaves of a small Fashion-MNIST: image i is i everywhere, and so is its label."""
    place, numbers = root / 'fashion_mnist' / '3.0.1', iter(range(10))
    place.mkdir(parents=True)
    splits = []
    for name, lengths in SHARDS.items():
        for k, n in enumerate(lengths):
            shard = f'fashion_mnist-{name}.array_record-{k:05d}-of-{len(lengths):05d}'
            writer = ArrayRecordWriter(str(place / shard), 'group_size:1')
            for i in (next(numbers) for _ in range(n)):
                file, example = io.BytesIO(), tf_example_pb2.Example()
                Image.new('L', (28, 28), i).save(file, 'png')
                feature = example.features.feature
                feature['image'].bytes_list.value.append(file.getvalue())
                feature['label'].int64_list.value.append(i)
                writer.write(example.SerializeToString())
            writer.close()
        template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
        split = {'name': name, 'numBytes': '1', 'filepathTemplate': template}
        splits.append({**split, 'shardLengths': [str(n) for n in lengths]})
    info = {'name': 'fashion_mnist', 'version': '3.0.1', 'fileFormat': 'array_record'}
    (place / 'dataset_info.json').write_text(json.dumps({**info, 'splits': splits}))
    return place


def test_prepared_files_are_read(tmp_path):
    write_tfds(tmp_path)
    fields = tfds_fields(tmp_path, 'fashion_mnist', num_classes=10)
    source = pickle.loads(pickle.dumps(open_source(data(**fields), 'train')))
    assert sources.labels_of(source).tolist() == [0, 1, 2, 3, 4, 5]
    images = [example['image'] for example in source.__getitems__([5, 0, 4])]
    assert [image.shape for image in images] == [(28, 28, 1)] * 3
    assert [image.mean() for image in images] == [5, 0, 4]
    crops = [fitting.Crop(0.9, 0.5, 0.5)] * 2
    parts = source.cropped(np.array([3, 1]), 0.8, crops)
    assert [(part['image'].shape, part['image'].mean(), part['label']) for part in parts] == [
        ((28, 28, 1), 3, 3),
        ((28, 28, 1), 1, 1),
    ]


@pytest.mark.parametrize(
    ('split', 'says'),
    [
        ('trian', "has no split 'trian', did you mean 'train'?"),
        ('train[:2]+tst', "has no split 'train[:2]+tst'; known are: test, train"),
        ('train[9:]', "'train[9:]': Requested slice [9:6] incompatible with 6 examples."),
        ('train[:x]', "'train[:x]': Error parsing split 'train[:x]'. See format at"),
        ('train[:0]', "tfds:fashion_mnist 'train[:0]' has no examples"),
        ('train[5:2]', "tfds:fashion_mnist 'train[5:2]' has no examples"),
    ],
)
def test_why_a_prepared_split_cannot_be_is_told(tmp_path, split, says):
    write_tfds(tmp_path)
    assert says in error_of(split, **tfds_fields(tmp_path, 'fashion_mnist'))


@pytest.mark.parametrize('left', [100, None])
@pytest.mark.parametrize('split', ['train', 'train[:4]'])
def test_prepared_files_that_are_damaged_are_told(tmp_path, left, split):
    place = write_tfds(tmp_path)
    shard = place / 'fashion_mnist-train.array_record-00000-of-00002'
    content = shard.read_bytes()
    shard.unlink()
    if left:
        shard.write_bytes(content[:left])
    error = error_of(split, **tfds_fields(tmp_path, 'fashion_mnist'))
    assert error.startswith('fashion_mnist/3.0.1 cannot be read: ')
    assert f'if its files in {place} are damaged, delete that folder' in error


def test_damage_between_the_records_read_at_open_is_told_when_it_is_read(tmp_path):
    place = write_tfds(tmp_path)
    source = open_source(data(**tfds_fields(tmp_path, 'fashion_mnist', num_classes=10)), 'train')
    for shard in place.glob('*train*'):
        shard.write_bytes(b'')
    source = pickle.loads(pickle.dumps(source))
    for read in (source.labels, lambda: source[3]):
        with pytest.raises(UserError, match='cannot be read'):
            read()


def test_a_process_reads_what_the_first_has_prepared_meanwhile(tmp_path, monkeypatch):
    fields = tfds_fields(tmp_path / 'mine', 'fashion_mnist', num_classes=10)
    write_tfds(tmp_path / 'first')

    def wait(name):
        shutil.copytree(tmp_path / 'first', tmp_path / 'mine')

    monkeypatch.setattr(tfds_source.jax, 'process_index', lambda: 1)
    monkeypatch.setattr(tfds_source.multihost_utils, 'sync_global_devices', wait)
    assert len(open_source(data(**fields), 'train')) == 6


def test_files_that_do_not_appear_are_waited_for_so_long_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, 'SHOWN_WITHIN', 1)
    monkeypatch.setattr(tfds_source.jax, 'process_index', lambda: 1)
    start = time.monotonic()
    error = error_of(**tfds_fields(tmp_path, 'fashion_mnist'))
    assert 'put config.data.tfds_dir on a disk that all processes mount' in error
    assert 1 < time.monotonic() - start < 5


@pytest.mark.slow
def test_files_that_one_process_does_not_see_end_all(main, tmp_path):
    write_tfds(tmp_path / '0')
    (tmp_path / '1').mkdir()
    with socket.create_server(('', 0)) as free:
        port = free.getsockname()[1]
    vae = Path(__file__).parents[2] / 'configs/vae_fashion_mnist.py:tiny'
    flags = (
        f'--config={vae}',
        '--config.data.source=tfds:fashion_mnist',
        f'--workdir={tmp_path}/run',
    )
    joined = f'--coordinator=localhost:{port}', '--processes=2'
    pair = [
        main(
            *flags, *joined, f'--process={i}', f'--config.data.tfds_dir={tmp_path}/{i}', wait=False
        )
        for i in range(2)
    ]
    told = [process.communicate(timeout=100)[1] for process in pair]
    # The one that ends first may take the other with it before that has spoken.
    assert all(process.returncode for process in pair), told
    assert f'tfds:fashion_mnist is in {tmp_path}/' in ''.join(told), told
    assert 'for process 0, but not for process 1: put' in ''.join(told), told
    assert not (tmp_path / 'run').exists()


def test_without_tensorflow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert "pip install -e '.[tf]'" in error_of(**tfds_fields(tmp_path, 'cifar10', channels=3))


@pytest.mark.slow
def test_fashion_mnist(tmp_path):
    files = os.environ.get(FASHION_MNIST)
    if not files:
        pytest.skip(f'{FASHION_MNIST} does not name the folder of the four .gz files')
    pytest.importorskip('tensorflow')
    manual = tmp_path / 'downloads' / 'manual'
    manual.mkdir(parents=True)
    for file in Path(files).glob('*.gz'):
        shutil.copy(file, manual)
    fields = tfds_fields(tmp_path, 'fashion_mnist', num_classes=10)
    train = open_source(data(**fields), 'train')
    test = pickle.loads(pickle.dumps(open_source(data(**fields), 'test')))
    assert (len(train), len(test), train.num_classes) == (60_000, 10_000, 10)
    assert (test[0]['image'].shape, test[0]['image'].dtype) == ((28, 28, 1), np.uint8)

    labels = [example['label'] for example in test.__getitems__(range(len(test)))]
    assert np.bincount(labels).tolist() == [1000] * 10
    assert sources.labels_of(test).tolist() == labels
    # TFDS shuffles what it writes; the mean over all pixels of the files themselves stays.
    mean = np.mean([example['image'].mean() for example in test.__getitems__(range(len(test)))])
    assert abs(mean - _mean_of_idx(manual / 't10k-images-idx3-ubyte.gz')) < 1e-6

    padded = open_source(data(**{**fields, 'image_size': 32, 'fit': 'pad'}), 'test')
    np.testing.assert_array_equal(padded[5]['image'][2:30, 2:30], test[5]['image'])
    assert "no split 'tets', did you mean 'test'" in error_of('tets', **fields)
    assert 'set config.data.channels=1' in error_of(**{**fields, 'channels': 3})


def _mean_of_idx(path):
    with gzip.open(path) as file:
        return np.frombuffer(file.read()[16:], np.uint8).mean()


@pytest.mark.parametrize(
    ('source', 'names'),
    [
        ('tfds:mnist', [str(i) for i in range(10)]),
        ('tfds:fashion_mnist', ['T-shirt/top', 'Trouser', 'Pullover', 'Dress']),
        ('tfds:celeb_a', None),
        ('digits', None),
    ],
)
def test_classes_are_told_where_no_image_is(tmp_path, source, names):
    data = default('diffusion.gaussian').data
    data.source, data.tfds_dir = source, str(tmp_path)
    found = sources.class_names(data)
    assert (found and list(found)[: len(names)]) == names
    assert list(tmp_path.iterdir()) == []
