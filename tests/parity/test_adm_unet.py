"""ADM's networks against the authors', and EDM's, which record/adm.py has run."""

import json
from functools import partial

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gen_jax.diffusion.adm import ADMClassifier, ADMUNet
from gen_jax.errors import UserError
from gen_jax.interop.adm import (
    PUBLISHED,
    Published,
    from_edm,
    from_reference,
    load,
    to_reference,
)

AUTHORS = ('new_order', 'odd', 'improved', 'added', 'classifier', 'plain_classifier')
CASES = (*AUTHORS, 'edm')


class Recorded:
    """One case of golden/adm.npz: a reference's numbers, and all that went in and out.

    Attributes:
      net: ours of the same shape.
      read: (tensors, **changes) -> our parameters.
      tensors: the weights by the reference's names.
      inputs: x, t and, where the network takes it, label.
      result: the reference's.
    """

    def __init__(self, name):
        arrays = golden.load('adm')
        told = json.loads(str(arrays[f'{name}.told']))
        net, self.classes = told['net'], told['classes']
        self.size = net.get('image_size') or net['img_resolution']
        self.new_order = net.get('use_new_attention_order', False)
        self.net = {'edm': edm, 'classifier': classifier}.get(told['source'], unet)(
            net, self.classes
        )
        self.tensors = golden.filled(told['shapes'])
        keys = [f'{name}.{key}' for key in ('x', 't', 'label')]
        self.inputs = [arrays[key] for key in keys if key in arrays]
        self.result = arrays[f'{name}.result']
        self.is_edms = told['source'] == 'edm'

    def read(self, tensors, **changes):
        if self.is_edms:
            return from_edm(tensors, self.net, self.size, **changes)
        changes = {'new_order': self.new_order, **changes}
        return from_reference(tensors, self.net, self.size, **changes)

    def run(self, params):
        return np.asarray(apply(self.net, params, *self.inputs))


@partial(jax.jit, static_argnums=0)
def apply(net, params, *args):
    return net.apply({'params': params}, *args)


def fields(net):
    """Ours for theirs."""
    return {
        'channels': net['model_channels'],
        'multipliers': tuple(net['channel_mult']),
        'blocks': net['num_res_blocks'],
        'attention': tuple(net['attention_resolutions']),
        'heads': 0 if 'num_head_channels' in net else net.get('num_heads', 1),
        'head_channels': net.get('num_head_channels', 0),
        'scale_shift': net['use_scale_shift_norm'],
        'resample_in_blocks': net.get('resblock_updown', False),
    }


def unet(net, classes):
    return ADMUNet(**fields(net), num_classes=classes, out_channels=net['out_channels'])


def classifier(net, classes):
    assert not classes
    return ADMClassifier(**fields(net), num_classes=net['out_channels'])


def edm(net, classes):
    return ADMUNet(
        channels=net['model_channels'],
        multipliers=tuple(net['channel_mult']),
        blocks=net['num_blocks'],
        attention=tuple(net['attn_resolutions']),
        num_classes=classes,
        out_channels=net['out_channels'],
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_agrees_with_the_reference(name):
    case = Recorded(name)
    got = case.run(case.read(case.tensors))
    print('max diff / scale', golden.difference(got, case.result))
    assert golden.difference(got, case.result) < 1e-4


def test_the_other_order_gives_another_result():
    case = Recorded('classifier')
    got = case.run(case.read(case.tensors, new_order=True))
    assert golden.difference(got, case.result) > 1e-2


@pytest.mark.parametrize('name', AUTHORS)
def test_weights_return_as_they_came(name):
    case = Recorded(name)
    again = to_reference(case.read(case.tensors), case.net, case.size, case.new_order)
    assert again.keys() == case.tensors.keys()
    for key, x in case.tensors.items():
        np.testing.assert_array_equal(again[key], x, err_msg=key)


def test_what_stands_around_edms_network_is_left_out():
    case = Recorded('edm')
    around = {f'model.{name}': x for name, x in case.tensors.items()}
    around['model.enc.4x4_down.skip.resample_filter'] = np.full((1, 1, 2, 2), 0.25, np.float32)
    same = jax.tree.map(np.array_equal, case.read(around), case.read(case.tensors))
    assert all(jax.tree.leaves(same))


def count(net, image_size, channels=3):
    """Parameters of a network; no memory."""
    x, t, label = jnp.zeros((1, image_size, image_size, channels)), jnp.zeros(1), jnp.zeros(1, int)
    labels = [label] if isinstance(net, ADMUNet) else []
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, t, *labels)
    return sum(x.size for x in jax.tree.leaves(shapes))


# Counted in the authors' modules on torch's meta device, as their README files make them.
@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'channels', 'total'),
    [
        ('64x64_diffusion', 3, 295_904_454),
        ('128x128_diffusion', 3, 421_529_606),
        ('256x256_diffusion', 3, 553_838_086),
        ('256x256_diffusion_uncond', 3, 552_814_086),
        ('512x512_diffusion', 3, 558_997_638),
        ('64x64_classifier', 3, 65_438_568),
        ('128x128_classifier', 3, 42_568_040),
        ('256x256_classifier', 3, 54_096_360),
        ('512x512_classifier', 3, 54_448_360),
        ('64_256_upsampler', 6, 311_795_910),
        ('128_512_upsampler', 6, 308_835_270),
        ('lsun_bedroom', 3, 552_814_086),
        ('cifar10_uncond_50M_500K', 3, 52_546_438),
        ('imagenet64_uncond_100M_1500K', 3, 121_063_942),
        ('imagenet64_cond_270M_250K', 3, 273_049_350),
        ('upsample_cond_500K', 6, 279_792_390),
        ('lsun_uncond_100M_1200K_bs128', 3, 113_676_678),
    ],
)
def test_published_sizes(name, channels, total):
    net, image_size, *_ = PUBLISHED[name]
    assert count(net, image_size, channels) == total


@pytest.mark.slow
def test_size_of_edms_network_for_imagenet():
    assert count(ADMUNet(num_classes=1000), 64) == 295_899_267


def test_a_published_file_is_known_by_its_name(tmp_path, monkeypatch):
    case = Recorded('classifier')
    monkeypatch.setitem(PUBLISHED, 'tiny', Published(case.net, case.size, noise={}))
    save_file(case.tensors, tmp_path / 'tiny.pt')
    net, params = load(tmp_path / 'tiny.pt')
    assert net == case.net
    same = jax.tree.map(np.array_equal, params, case.read(case.tensors))
    assert all(jax.tree.leaves(same))
    with pytest.raises(UserError, match=r"256x256_difusion\.pt.* did you mean '256x256_diffusion'"):
        load(tmp_path / '256x256_difusion.pt')


def without(tensors, name):
    del tensors[name]


@pytest.mark.parametrize(
    ('name', 'change', 'says'),
    [
        ('added', lambda x: without(x, 'input_blocks.0.0.weight'), 'lacks 1 tensors: input_bl'),
        ('added', lambda x: without(x, 'output_blocks.1.1.conv.bias'), 'lacks 1 tensors: output'),
        ('added', lambda x: x.update(label_emb=np.zeros(3)), 'beyond .*1 tensors: label_emb'),
        (
            'added',
            lambda x: x.update({'middle_block.1.qkv.weight': np.zeros((193, 64, 1))}),
            r'other shapes .*middle_block.1.qkv.weight becomes \(64, 193\)',
        ),
        ('classifier', lambda x: without(x, 'out.2.positional_embedding'), 'lacks 1 tensors: out'),
        (
            'classifier',
            lambda x: x.update({'out.2.positional_embedding': np.zeros((64, 5))}),
            r'becomes \(5, 64\) where the network has \(17, 64\)',
        ),
        ('edm', lambda x: without(x, 'dec.4x4_in0.qkv.weight'), 'lacks 1 tensors: dec.4x4_in0.qkv'),
        (
            'edm',
            lambda x: x.update({'map_augment.weight': np.zeros((128, 9))}),
            'beyond what the network has, 1 tensors: map_augment.weight',
        ),
    ],
)
def test_other_weights_are_refused(name, change, says):
    case = Recorded(name)
    change(case.tensors)
    with pytest.raises(UserError, match=says) as error:
        case.read(case.tensors, place='a.pt')
    assert str(error.value).startswith('a.pt ')
    assert '\n' not in str(error.value)
