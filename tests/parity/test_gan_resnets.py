"""SNGAN, SAGAN, BigGAN, DCGAN and their kin against the codes that record/gan_resnets.py ran."""

import functools
import json

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gan_weights import gan_weights

from gen_jax.errors import UserError
from gen_jax.gans import biggan, deep_conv, resnet
from gen_jax.interop.gan_resnets import from_biggan, from_studiogan

CASES = (
    *('sngan', 'wgan_gp', 'sagan', 'acgan', 'studio_biggan'),
    *('dcgan', 'dcgan_spectral', 'biggan_cifar', 'biggan', 'biggan_deep'),
)
# Multipliers of the generator and the discriminator, and how often the latter halves.
SHAPES = {
    ('studio', 32): ((4, 4, 4, 4), (2, 2, 2, 2), 2),
    ('studio', 64): ((16, 8, 4, 2, 1), (1, 2, 4, 8, 16), 4),
    ('biggan', 32): ((4, 4, 4, 4), (4, 4, 4, 4), 2),
    ('biggan', 64): ((16, 16, 8, 4, 2), (1, 2, 4, 8, 16), 4),
}


class Recorded:
    """One case of golden/gan_resnets.npz.

    Attributes:
      generator, discriminator: ours of the same shape.
      weights: of side 'g' or 'd', by the reference's names.
      is_studios: whose code it was.
      arrays: the results g0, g1, g2 and d0, d1, d2.
    """

    def __init__(self, name):
        cut = len(name) + 1
        arrays = golden.load('gan_resnets')
        self.arrays = {key[cut:]: x for key, x in arrays.items() if key[:cut] == f'{name}.'}
        told = json.loads(str(self.arrays['told']))
        self.net, self.shapes, self.counts = told['net'], told['shapes'], told['counts']
        self.is_studios = 'backbone' in self.net
        self.size = self.net['size']
        self.classes = 0 if self.net['label'] == 'W/O' else told['classes']
        if self.net.get('backbone') == 'deep_conv':
            self.generator = deep_conv.Generator(self.net['z'])
            self.discriminator = deep_conv.Discriminator(spectral=self.net['d_spectral'])
        else:
            self.generator, self.discriminator = self.make_both(name)

    def make_both(self, name):
        """The generator and the discriminator of residual blocks."""
        g, d, halvings = SHAPES['studio' if self.is_studios else 'biggan', self.size]
        both = {
            'channels': self.net['channels'],
            'attention': tuple(self.net['attention']),
            'num_classes': self.classes,
            'epsilon': 1e-4 if self.is_studios else 1e-5,
        }
        generator = self.make_generator(name, multipliers=g, **both)
        make = biggan.DeepDiscriminator if name == 'biggan_deep' else resnet.Discriminator
        return generator, make(
            multipliers=d,
            halvings=halvings,
            head='auxiliary' if self.net['label'] == 'AC' else 'projection',
            spectral=self.net.get('d_spectral', True),
            batch_norm=not self.net.get('d_spectral', True),
            **both,
        )

    def make_generator(self, name, **fields):
        fields |= {'latent_dim': self.net['z'], 'spectral': self.net.get('g_spectral', True)}
        if self.net.get('backbone') == 'resnet':
            return resnet.Generator(**fields)
        shared = self.net['shared']
        make = biggan.DeepGenerator if name == 'biggan_deep' else biggan.Generator
        return make(shared_dim=shared, hierarchical=shared > 0, **fields)

    def weights(self, side):
        return gan_weights(self.shapes[side])

    def read(self, side, weights):
        read = from_studiogan if self.is_studios else from_biggan
        return read(weights, self.module(side), self.size, 'a.pth')

    def module(self, side):
        return self.generator if side == 'g' else self.discriminator

    def inputs(self, side):
        if side == 'g':
            return self.arrays['z']
        rng = np.random.default_rng(0)
        rng.standard_normal(self.arrays['z'].shape, np.float32)
        return rng.uniform(-1, 1, (3, self.size, self.size, 3)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 4))
def step(net, variables, x, label, train):
    """The result and the variables after it."""
    mutable = [name for name in variables if name != 'params'] if train else []
    y, new = net.apply(variables, x, label, train=train, mutable=[*mutable, 'intermediates'])
    found = new.pop('intermediates', {})
    if y.ndim == 1:
        y = jnp.concatenate([y[:, None], *found.get('class_logits', ())], 1)
    return y, {**variables, **new}


def results(case, side, variables):
    """Of two batches in training, and of one example in evaluation with the first statistics."""
    net, x, label = case.module(side), case.inputs(side), jnp.int32(case.arrays['label'])
    train = functools.partial(step, net, label=label, train=True)
    # What is read of BigGAN's code has taken the first step of power iteration.
    first, after = train(variables, x) if case.is_studios else (None, variables)
    second, after = train(after, x[::-1] / 2)
    if not case.is_studios:
        after = train(after, x)[1]  # In evaluation they are a step ahead.
    after = {**after, 'batch_stats': variables.get('batch_stats', {})}
    return first, second, step(net, after, x[:1], label[:1], False)[0]


def both_sides(name):
    """Cases, of which the largest take long to compile."""
    slow = [pytest.mark.slow] if name in ('biggan', 'biggan_deep') else []
    return [pytest.param(name, side, marks=slow) for side in 'gd']


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'side'), [case for name in CASES for case in both_sides(name)])
def test_agrees_with_the_reference(name, side):
    case = Recorded(name)
    variables = case.read(side, case.weights(side))
    assert sum(x.size for x in jax.tree.leaves(variables['params'])) == case.counts[side == 'd']
    for i, y in enumerate(results(case, side, variables)):
        if y is not None:
            want = case.arrays[f'{side}{i}']
            y = np.asarray(y)[:, ::3, ::3] if side == 'g' else np.asarray(y)
            # A single logit has no deviation, but the first batch's have.
            worst = np.abs(y - want).max() / case.arrays[f'{side}0'].std()
            print('max diff / scale', worst)
            assert worst < 1e-4


# Counted in StudioGAN's and the BigGAN authors' modules, as their configs and scripts make them.
SNGAN = resnet.Generator(num_classes=10), resnet.Discriminator(num_classes=10)
LARGE_G = {'num_classes': 1000, 'multipliers': (16, 16, 8, 4, 2, 1)}
LARGE_D = {'num_classes': 1000, 'multipliers': (1, 2, 4, 8, 16, 16), 'halvings': 5}
LARGER_D = LARGE_D | {'multipliers': (1, 2, 4, 8, 8, 16, 16), 'halvings': 6}
AT_64 = {'attention': (64,)}
WIDE = AT_64 | {'channels': 96}
BIG = biggan.Generator(**LARGE_G | WIDE, latent_dim=120), resnet.Discriminator(**LARGE_D | WIDE)
LARGER = (
    biggan.Generator(**LARGE_G | WIDE | {'multipliers': (16, 16, 8, 8, 4, 2, 1)}, latent_dim=140),
    resnet.Discriminator(**LARGER_D | WIDE),
)
DEEP = AT_64 | {'channels': 128}


@pytest.mark.parametrize(
    ('nets', 'size', 'totals'),
    [
        (SNGAN, 32, (4_304_387, 1_055_105)),
        (
            (resnet.Generator(), resnet.Discriminator(spectral=False, batch_norm=True)),
            32,
            (4_276_739, 1_055_879),
        ),
        (
            (SNGAN[0].clone(spectral=True, attention=(16,)), SNGAN[1].clone(attention=(16,))),
            32,
            (4_386_308, 1_075_586),
        ),
        (
            (resnet.Generator(**LARGE_G), resnet.Discriminator(**LARGE_D)),
            128,
            (41_996_931, 39_443_137),
        ),
        (
            (
                resnet.Generator(**LARGE_G | AT_64, spectral=True),
                resnet.Discriminator(**LARGE_D | AT_64),
            ),
            128,
            (42_017_412, 39_448_258),
        ),
        (BIG, 128, (70_433_988, 87_982_370)),
        (LARGER, 256, (82_235_844, 99_225_890)),
        (
            (
                biggan.DeepGenerator(**LARGE_G | DEEP, latent_dim=128),
                biggan.DeepDiscriminator(**LARGE_D | DEEP),
            ),
            128,
            (50_244_484, 34_590_210),
        ),
    ],
)
def test_published_sizes(nets, size, totals):
    generator, discriminator = nets
    z, x = jnp.zeros((1, generator.latent_dim)), jnp.zeros((1, size, size, 3))
    assert (count(generator, z), count(discriminator, x)) == totals


def count(net, x):
    """Parameters of a network; no memory."""
    label = jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, label, train=False))
    return sum(x.size for x in jax.tree.leaves(shapes['params']))


def without(tensors, name):
    del tensors[name]


@pytest.mark.parametrize(
    ('name', 'side', 'change', 'says'),
    [
        (
            'sagan',
            'g',
            lambda x: without(x, 'linear0.weight_u'),
            'lacks 1 tensors: linear0.weight_u',
        ),
        (
            'sngan',
            'd',
            lambda x: without(x, 'blocks.1.0.conv2d1.weight_orig'),
            'lacks 1 tensors: blo',
        ),
        ('sngan', 'g', lambda x: x.update(more=np.zeros(3)), 'beyond .*1 tensors: more'),
        (
            'biggan_cifar',
            'd',
            lambda x: without(x, 'embed.weight'),
            'lacks 1 tensors: embed.weight',
        ),
        (
            'biggan_cifar',
            'g',
            lambda x: x.update({'linear.bias': np.zeros(16)}),
            r'other shapes .*linear.bias becomes \(16,\)',
        ),
    ],
)
def test_other_weights_are_refused(name, side, change, says):
    case = Recorded(name)
    tensors = case.weights(side)
    change(tensors)
    with pytest.raises(UserError, match=says) as error:
        case.read(side, tensors)
    assert str(error.value).startswith('a.pth ')
    assert '\n' not in str(error.value)


def test_what_torch_counts_beside_is_left_out():
    case = Recorded('wgan_gp')
    tensors = case.weights('g') | {'blocks.0.0.bn1.num_batches_tracked': np.int64(7)}
    assert set(case.read('g', tensors)) == {'params', 'batch_stats'}
