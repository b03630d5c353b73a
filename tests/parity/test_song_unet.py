"""DDPM++ and NCSN++ against the authors' networks and EDM's (record/song_*.py have run them)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import difference, filled, load

from gen_jax.config import default
from gen_jax.diffusion.song import SongUNet
from gen_jax.errors import UserError
from gen_jax.interop.song import (
    from_edm,
    from_score_sde,
    read_score_sde,
    to_edm,
    to_score_sde,
    variables_of,
)
from gen_jax.nn import fir

SCORE_SDE = ('ddpmpp', 'ncsnpp_vp', 'ncsnpp', 'ncsnpp_256')
EDM = ('vp_labels', 've_labels', 'skips', 'residual_no_fir')


def like_score_sde(model, channels):
    """Our module for what the authors' configs say under `model`."""
    return SongUNet(
        channels=model['nf'],
        multipliers=tuple(model['ch_mult']),
        blocks=model['num_res_blocks'],
        attention=tuple(model['attn_resolutions']),
        embedding=model['embedding_type'],
        encoder={'none': 'standard', 'input_skip': 'skip'}.get(
            model['progressive_input'], model['progressive_input']
        ),
        decoder={'none': 'standard', 'output_skip': 'skip'}[model['progressive']],
        fir=model['fir'],
        scale_by_sigma=model['scale_by_sigma'],
        out_channels=channels,
    )


def like_edm(fields):
    """Our module for what the constructor of EDM's SongUNet takes."""
    return SongUNet(
        channels=fields.get('model_channels', 128),
        multipliers=tuple(fields['channel_mult']),
        blocks=fields.get('num_blocks', 4),
        attention=tuple(fields.get('attn_resolutions', (16,))),
        embedding=fields['embedding_type'],
        encoder=fields['encoder_type'],
        decoder=fields.get('decoder_type', 'standard'),
        fir=len(fields['resample_filter']) == 4,
        num_classes=fields.get('label_dim', 0),
        augment_dim=fields.get('augment_dim', 0),
        out_channels=fields['out_channels'],
    )


class Recorded:
    """One case of a golden file: a network of the reference, and all that went in and out.

    Attributes:
      net: ours of the same shape.
      size: pixels.
      tensors: the weights by the reference's names.
      inputs: x and t, and of EDM's label and augment.
      result: the reference's.
    """

    def __init__(self, file, name):
        golden = load(file)
        case = json.loads(str(golden[f'{name}.case']))
        self.net = like_edm(case) if file == 'song_edm' else like_score_sde(**case)
        self.tensors = filled(json.loads(str(golden[f'{name}.shapes'])))
        self.inputs = {
            key: golden[f'{name}.{key}']
            for key in ('x', 't', 'label', 'augment')
            if f'{name}.{key}' in golden
        }
        self.size = self.inputs['x'].shape[1]
        self.result = golden[f'{name}.result']

    def ours(self, variables):
        return jax.jit(self.net.apply)(variables, **self.inputs)


def score_sde(name):
    """(case, our variables with its weights)."""
    case = Recorded('song_score_sde', name)
    return case, from_score_sde(case.tensors, case.net, case.size)


def edm(name):
    """(case, our variables with its weights)."""
    case = Recorded('song_edm', name)
    return case, from_edm(case.tensors, case.net, case.size)


@pytest.mark.slow
@pytest.mark.parametrize('name', SCORE_SDE)
def test_agrees_with_the_authors_network(name):
    case, variables = score_sde(name)
    far = difference(case.ours(variables), case.result)
    print('max diff / scale', far)
    assert far < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('name', EDM)
def test_agrees_with_edm(name):
    case, variables = edm(name)
    far = difference(case.ours(variables), case.result)
    print('max diff / scale', far)
    assert far < 1e-4


@pytest.mark.slow
def test_labels_and_augmentation_matter():
    case, variables = edm('ve_labels')
    x, t, label, augment = case.inputs.values()
    apply = jax.jit(case.net.apply)
    for changed in (
        apply(variables, x, t, label=label[::-1], augment=augment),
        apply(variables, x, t, label=label, augment=2 * augment),
        apply(variables, x, t),
    ):
        assert difference(changed, case.result) > 1e-2
    for nobody in (-1, 5):
        none = apply(variables, x, t, label=np.full(3, nobody), augment=0 * augment)
        np.testing.assert_allclose(apply(variables, x, t), none, atol=1e-5)


@pytest.mark.slow
def test_filters_agree():
    golden = load('song_score_sde')
    cases = json.loads(str(golden['fir.cases']))
    assert len(cases) == 8
    for name, (function, shape, taps, options) in cases.items():
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        y = getattr(fir, function)(x, taps, **options)
        np.testing.assert_allclose(y, golden[f'fir.{name}'], atol=2e-5, err_msg=name)


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(ours[name], x, err_msg=name)


@pytest.mark.parametrize('name', SCORE_SDE)
def test_the_authors_weights_return_as_they_came(name):
    case, variables = score_sde(name)
    same(to_score_sde(variables, case.net, case.size), case.tensors)


@pytest.mark.parametrize('name', EDM)
def test_edm_weights_return_as_they_came(name):
    case, variables = edm(name)
    same(to_edm(variables, case.net, case.size), case.tensors)


def parameters(net, size):
    """(trained, fixed) numbers of a network; no memory."""
    args = jnp.zeros((1, size, size, net.out_channels)), jnp.ones(1)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
    return [
        sum(x.size for x in jax.tree.leaves(shapes.get(k, {}))) for k in ('params', 'constants')
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'total', 'fixed'),
    [
        ('ddpmpp', 61_804_419, 0),
        ('ddpmpp_deep', 106_632_579, 0),
        ('ncsnpp', 62_758_915, 128),
        ('ncsnpp_deep', 107_587_075, 128),
        ('ncsnpp_vp', 62_693_251, 0),
        ('ncsnpp_ffhq_256', 65_574_549, 128),
    ],
)
def test_published_sizes(name, total, fixed):
    """The authors count the frequencies, which they do not train."""
    known = json.loads(str(load('song_score_sde')['published']))[name]
    assert known['parameters'] == total
    ours = parameters(like_score_sde(known['model'], 3), known['size'])
    assert ours == [total - fixed, fixed]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'total'),
    [
        ('cifar10_uncond_vp', 55_733_891),
        ('cifar10_cond_vp', 55_735_299),
        ('cifar10_uncond_ve', 56_397_827),
        ('cifar10_cond_ve', 56_400_643),
        ('ffhq_vp', 61_805_571),
        ('ffhq_ve', 62_761_091),
    ],
)
def test_edm_published_sizes(name, total):
    known = json.loads(str(load('song_edm')['published']))[name]
    assert known['parameters'] == total
    fields = known['fields']
    assert parameters(like_edm(fields), fields['img_resolution'])[0] == total


def refused(load, tensors, net, size):
    with pytest.raises(UserError) as error:
        load(tensors, net, size, 'a.pt')
    assert str(error.value).startswith('a.pt ')
    assert '\n' not in str(error.value)
    return str(error.value)


def test_other_weights_of_the_authors_are_refused():
    case, _ = score_sde('ncsnpp')
    net, tensors = case.net, case.tensors
    without = {k: x for k, x in tensors.items() if k != 'all_modules.4.Dense_0.bias'}
    assert 'all_modules.4.Dense_0.bias' in refused(from_score_sde, without, net, 8)
    more = tensors | {'all_modules.99.weight': np.zeros(3)}
    assert 'all_modules.99.weight' in refused(from_score_sde, more, net, 8)
    wider = tensors | {'all_modules.0.W': np.zeros(8)}
    assert 'all_modules.0.W becomes (8,)' in refused(from_score_sde, wider, net, 8)
    with_classes = net.clone(num_classes=3)
    assert 'lacks 2 tensors' in refused(from_score_sde, tensors, with_classes, 8)


def test_other_weights_of_edm_are_refused():
    case, _ = edm('skips')
    net, tensors, name = case.net, case.tensors, 'enc.8x8_block0.qkv.weight'
    without = {k: x for k, x in tensors.items() if k != name}
    assert name in refused(from_edm, without, net, 8)
    assert 'dec.16x16_aux_conv' in refused(from_edm, tensors, net, 16)
    filters = tensors | {'enc.4x4_down.conv0.resample_filter': np.ones((1, 1, 4, 4))}
    assert 'expected fir=True' in refused(from_edm, filters, net, 8)


@pytest.mark.slow
def test_prefixes_and_buffers_of_published_files():
    case, plain = score_sde('ncsnpp')
    tensors = {f'module.{k}': x for k, x in case.tensors.items()}
    again = from_score_sde(tensors | {'module.sigmas': np.ones(1000)}, case.net, 8)
    jax.tree.map(np.testing.assert_array_equal, plain, again)
    case, plain = edm('skips')
    tensors = {f'model.{k}': x for k, x in case.tensors.items()}
    taps = {'model.enc.4x4_down.conv0.resample_filter': np.ones((1, 1, 2, 2))}
    jax.tree.map(np.testing.assert_array_equal, plain, from_edm(tensors | taps, case.net, 8))


def checkpoint(tmp_path, tensors, averages):
    torch = pytest.importorskip('torch')
    model = {f'module.{k}': torch.tensor(x) for k, x in tensors.items()}
    ema = {'decay': 0.999, 'num_updates': 3, 'shadow_params': [*map(torch.tensor, averages)]}
    path = tmp_path / 'checkpoint_24.pth'
    torch.save({'optimizer': {}, 'model': model, 'ema': ema, 'step': 3}, path)
    return path


def test_averages_are_what_a_checkpoint_gives(tmp_path):
    case, _ = score_sde('ncsnpp')
    tensors = {'sigmas': np.geomspace(50, 0.01, 10, dtype=np.float32)} | case.tensors
    fixed = ('sigmas', 'all_modules.0.W')
    want = {k: x if k in fixed else x + 1 for k, x in tensors.items()}
    averages = [x for k, x in want.items() if k not in fixed]
    path = checkpoint(tmp_path, tensors, averages)
    same(read_score_sde(path), want)
    config = default('diffusion.continuous', network='song')
    means = {'process': 've', 'range': (0.02, 100.0), 'prediction': 'score', 'told': 'log_sigma'}
    config.diffusion.update(means)
    config.init_from = str(path)
    found = variables_of(config, case.net)
    jax.tree.map(np.testing.assert_array_equal, found, from_score_sde(want, case.net, 8))
    with pytest.raises(UserError, match='averages for') as error:
        read_score_sde(checkpoint(tmp_path, tensors, averages[1:]))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('tree', [{'model': 3}, [1], {'a': 1}])
def test_what_is_no_checkpoint_is_refused(tmp_path, tree):
    torch = pytest.importorskip('torch')
    torch.save(tree, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='no checkpoint of score_sde') as error:
        read_score_sde(tmp_path / 'a.pth')
    assert '\n' not in str(error.value)
