"""Inception against torch-fidelity's and pytorch-fid's, from pixels to features.

The real weights cannot be shipped. Random ones, of a size at which every layer matters, go through
a torch file to both.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gen_jax.errors import UserError
from gen_jax.metrics.features import inception, resize

torch = pytest.importorskip('torch')
pytest.importorskip('pytorch_fid')
pytest.importorskip('torch_fidelity')

from pytorch_fid import inception as pytorch_fid  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402

NAMES = ['64', '192', '768', '2048', 'logits_unbiased', 'logits']


def randomize(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.3, generator=generator)
        elif isinstance(module, torch.nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
    net.fc.weight.data.normal_(0, 2048**-0.5, generator=generator)
    net.fc.bias.data.normal_(0, 1, generator=generator)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    """A file of random weights as torch-fidelity saves its own."""
    folder = tmp_path_factory.mktemp('inception')
    torch.save({}, folder / 'empty.pth')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, 'load_state_dict', lambda self, tensors: None)
        net = FeatureExtractorInceptionV3('random', NAMES, str(folder / 'empty.pth'))
    randomize(net)
    torch.save(net.state_dict(), folder / 'weights.pth')
    return folder / 'weights.pth'


@pytest.fixture(scope='module')
def torch_fidelity(path):
    """uint8 [b, h, w, 3] -> {name: [b, d]}, sFID's features by a hook."""
    net = FeatureExtractorInceptionV3('random', NAMES, str(path))
    spatial = []
    net.Mixed_6d.branch1x1.register_forward_hook(lambda net, args, out: spatial.append(out))

    def run(images):
        with torch.no_grad():
            found = dict(zip(NAMES, net(nchw(images)), strict=True))
        found['spatial'] = spatial.pop()[:, :7].permute(0, 2, 3, 1).flatten(1)
        return found

    return run


@pytest.fixture(scope='module')
def pytorch_fid_net(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid, 'load_state_dict_from_url', lambda *_, **__: torch.load(path))
        return pytorch_fid.InceptionV3((0, 1, 2, 3)).eval()


@pytest.fixture(scope='module')
def variables(path):
    return inception.load(path)


@pytest.fixture(scope='module')
def features(variables):
    """(pixels, resize) -> every output. Compiles once per batch size."""
    apply = jax.jit(inception.Inception(inception.OUTPUTS).apply)
    return lambda images, name: apply(variables, resize.RESIZES[name].prepare(images))


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def nchw(images):
    """uint8 [b, 3, h, w]; grey is converted to colour, as the oracles' data loaders do."""
    images = np.repeat(images, 3 // images.shape[3], 3)
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def assert_close(ours, theirs):
    """Agreement to 1e-4 of the largest value; and the values are worth comparing."""
    theirs = np.asarray(theirs)
    assert theirs.shape == ours.shape
    assert 0.01 < theirs.std() < 100
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


shapes = pytest.mark.parametrize(
    'shape',
    [
        (3, 32, 32, 3),
        (1, 8, 8, 1),
        pytest.param((1, 75, 120, 3), marks=pytest.mark.slow),
        pytest.param((3, 75, 120, 3), marks=pytest.mark.slow),
        pytest.param((1, 400, 310, 3), marks=pytest.mark.slow),
    ],
    ids=str,
)


@shapes
def test_torch_fidelity(shape, features, torch_fidelity):
    images = pixels(shape)
    ours, theirs = features(images, 'tf1'), torch_fidelity(images)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert_close(ours[name], theirs[name])


@shapes
def test_pytorch_fid(shape, features, pytorch_fid_net):
    images = pixels(shape)
    with torch.no_grad():
        maps = pytorch_fid_net(nchw(images).float() / 255)
    ours = features(images, 'pytorch_fid')
    for name, theirs in zip(NAMES, maps, strict=False):
        assert_close(ours[name], theirs.mean((2, 3)))


@pytest.mark.slow
def test_float32_features_are_as_good_as_torchs(features, path):
    """Against torch-fidelity in float64, ours err no more than a few roundings."""
    images = pixels((1, 32, 32, 3))
    net = FeatureExtractorInceptionV3(
        'random', NAMES, str(path), feature_extractor_internal_dtype='float64'
    )
    with torch.no_grad():
        theirs = dict(zip(NAMES, net(nchw(images)), strict=True))
    ours = features(images, 'tf1')
    for name in NAMES:
        scale = np.abs(theirs[name].numpy()).max()
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=2e-5 * scale)


def test_only_what_is_asked_for(variables, features):
    """One output alone is the same; it needs neither the head nor what lies after it."""
    images = pixels((1, 8, 8, 1))
    x = resize.RESIZES['tf1'].prepare(images)
    alone = jax.jit(inception.Inception(('192',)).apply)(variables, x)
    assert alone.keys() == {'192'}
    np.testing.assert_allclose(alone['192'], features(images, 'tf1')['192'], rtol=1e-5, atol=1e-6)


def test_load_reads_every_tensor(path, variables):
    tensors = {k: v for k, v in torch.load(path).items() if not k.endswith('num_batches_tracked')}
    leaves = flatten_dict(variables)
    assert len(leaves) == len(tensors)
    assert sum(x.size for x in leaves.values()) == sum(x.numel() for x in tensors.values())
    assert all(x.dtype == jnp.float32 for x in leaves.values())


def test_torchvisions_inception_is_refused(path, tmp_path):
    """Published weights of the same architecture, with 1000 classes: another network."""
    tensors = torch.load(path)
    tensors['fc.weight'], tensors['fc.bias'] = (
        tensors['fc.weight'][:1000],
        tensors['fc.bias'][:1000],
    )
    torch.save(tensors, tmp_path / 'other.pth')
    with pytest.raises(UserError, match=r'fc\.(weight|bias)') as error:
        inception.load(tmp_path / 'other.pth')
    assert '\n' not in str(error.value)
