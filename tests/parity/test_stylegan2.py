"""StyleGAN2 against the authors', which record/stylegan2.py has run: values and penalties."""

import json
from functools import cache, partial

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from styled import equalized

from gen_jax.errors import UserError
from gen_jax.gans.style_layers import convolved
from gen_jax.gans.stylegan2 import Discriminator, Generator
from gen_jax.interop.stylegan2 import discriminator_from_reference, generator_from_reference
from gen_jax.nn.fir import downsample, upfirdn2d, upsample
from gen_jax.nn.fir_conv import down_conv, up_conv

TOLERANCE = 1e-4
GENERATORS = ('g_skip', 'g_resnet', 'g_orig')
DISCRIMINATORS = ('d_resnet', 'd_orig')


@cache
def recorded(case):
    """The arrays of one case, and what was told of it."""
    arrays = {k.removeprefix(f'{case}.'): x for k, x in golden.load('stylegan2').items()}
    return arrays, json.loads(str(golden.load('stylegan2')[f'{case}.told']))


def generator(case):
    """Ours, and the recorded weights by the authors' names."""
    _, told = recorded(case)
    net = Generator(
        latent_dim=told['z_dim'],
        w_dim=told['w_dim'],
        image_size=told['img_resolution'],
        channels=told['img_channels'],
        channel_base=told['channel_base'],
        channel_max=told['channel_max'],
        mapping_layers=told['layers'],
        architecture=told['architecture'],
        num_classes=told['c_dim'],
    )
    return net, equalized(told['shapes'])


def discriminator(case):
    _, told = recorded(case)
    net = Discriminator(
        channel_base=told['channel_base'],
        channel_max=told['channel_max'],
        architecture=told['architecture'],
        group=told['group'],
        num_classes=told['c_dim'],
    )
    return net, equalized(told['shapes'])


def assert_gradients_agree(got, arrays, read):
    """Each parameter's gradient is compared at its own scale, unless it is mostly cancellation.

    Of R1 the biases' is: they change it by the curvature of the minibatch standard deviation alone.
    """
    want = read({k.removeprefix('grad.'): x for k, x in arrays.items() if k.startswith('grad.')})
    want, got = flatten_dict(want['params']), flatten_dict(got)
    assert want.keys() == got.keys()
    largest = max(np.abs(x).max() for x in want.values())
    for path, x in want.items():
        scale, difference = np.abs(x).max(), np.abs(got[path] - x).max()
        assert difference < TOLERANCE * max(scale, 1e-2 * largest), path
        assert difference < 1e-3 * max(scale, 1e-6 * largest), path


@pytest.mark.slow
@pytest.mark.parametrize('case', GENERATORS)
def test_generator(case):
    arrays, told = recorded(case)
    net, tensors = generator(case)

    @jax.jit
    def run(variables, z, label, ws):
        call = partial(net.apply, variables, method='mapping')
        truncated = call(z, label, psi=told['psi'], cutoff=told['cutoff'])
        got, changed = call(z, label, train=True, mutable=['w_avg'])
        image = net.apply(variables, ws, method='synthesis')
        return {'ws': got, 'truncated': truncated, 'image': image, **changed['w_avg']}

    variables = generator_from_reference(tensors, net)
    got = run(variables, arrays['z'], arrays['label'], arrays['ws'])
    for name, x in got.items():
        print(name, 'max diff / scale', golden.difference(x, arrays[name]))
        assert golden.difference(x, arrays[name]) < TOLERANCE, name


@pytest.mark.slow
def test_gradient_of_path_length_penalty():
    """Karras et al. 2020, equation 4: a gradient of a gradient, down to the mapping network."""
    arrays, told = recorded('g_skip')
    net, tensors = generator('g_skip')
    variables = generator_from_reference(tensors, net)

    def penalty(params):
        apply = partial(net.apply, {**variables, 'params': params})
        ws = apply(arrays['z'], arrays['label'], method='mapping')
        by_w = jax.grad(lambda ws: (apply(ws, method='synthesis') * arrays['noise']).sum())(ws)
        lengths = jnp.sqrt(jnp.square(by_w).sum(2).mean(1))
        return jnp.square(lengths - told['pl_mean']).mean(), lengths

    got, lengths = jax.jit(jax.grad(penalty, has_aux=True))(variables['params'])
    assert golden.difference(lengths, arrays['lengths']) < TOLERANCE
    buffers = {name: x for name, x in tensors.items() if name.endswith(('noise_const', 'w_avg'))}
    assert_gradients_agree(got, arrays, lambda x: generator_from_reference(x | buffers, net))


@pytest.mark.slow
@pytest.mark.parametrize('case', DISCRIMINATORS)
def test_discriminator(case):
    arrays, _ = recorded(case)
    net, tensors = discriminator(case)
    variables = discriminator_from_reference(tensors, net)
    got = jax.jit(partial(net.apply, train=False))(variables, arrays['x'], arrays['label'])
    want = arrays['logits']
    print('max diff / scale', np.abs(got - want).max() / np.abs(want).max())
    np.testing.assert_allclose(got, want, atol=TOLERANCE * np.abs(want).max())


@pytest.mark.slow
def test_gradient_of_r1_penalty():
    """Mescheder et al. 2018, equation 9."""
    arrays, _ = recorded('d_resnet')
    net, tensors = discriminator('d_resnet')
    variables = discriminator_from_reference(tensors, net)

    def penalty(params):
        def logits(x):
            return net.apply({'params': params}, x, arrays['label'], train=True).sum()

        penalties = jnp.square(jax.grad(logits)(arrays['x'])).sum((1, 2, 3))
        return penalties.mean(), penalties

    got, r1 = jax.jit(jax.grad(penalty, has_aux=True))(variables['params'])
    assert golden.difference(r1, arrays['r1']) < TOLERANCE
    assert_gradients_agree(got, arrays, lambda x: discriminator_from_reference(x, net))


def test_upfirdn2d():
    """Gain and flips are a matter of the taps."""
    arrays, told = recorded('ops')

    def run(x, taps, up, down, pad, gain, flip):
        taps = np.float32(taps[::-1] if flip else taps) * gain**0.5
        return upfirdn2d(x, taps, up, down, pad)

    got = jax.jit(lambda x: [run(x, *options) for options in told])(arrays['x'])
    for i, x in enumerate(got):
        assert golden.difference(x, arrays[f'fir_{i}']) < 1e-5, i


def test_convolutions_that_resize():
    """Of a filter that is not symmetric; a 1x1 convolution and the filter may change places."""
    arrays, _ = recorded('ops')
    x, taps = jnp.asarray(arrays['conv_x']), arrays['taps']
    pointwise, kernel = arrays['kernel_1'][0, 0], arrays['kernel_3']

    @jax.jit
    def run(x):
        return {
            'up_3': up_conv(x, kernel, taps),
            'down_3': down_conv(x, kernel, taps),
            'up_1': upsample(convolved(x, pointwise), taps),
            'down_1': convolved(downsample(x, taps), pointwise),
        }

    for name, got in run(x).items():
        assert golden.difference(got, arrays[f'conv_{name}']) < 1e-5, name


def test_other_weights_are_refused():
    net, tensors = generator('g_orig')
    del tensors['synthesis.b8.torgb.bias']
    with pytest.raises(UserError, match=r'^a.pt lacks 1 tensors: synthesis.b8.torgb.bias'):
        generator_from_reference(tensors, net, 'a.pt')
    with pytest.raises(UserError, match=r"^a.pt has no tensor 'b\*.fromrgb.weight'"):
        discriminator_from_reference(tensors, Discriminator(), 'a.pt')
    net, tensors = discriminator('d_orig')
    tensors['b8.skip.weight'] = np.zeros((7, 7, 1, 1))
    with pytest.raises(UserError, match=r'^a.pt holds, beyond .*, 1 tensors: b8.skip.weight'):
        discriminator_from_reference(tensors, net, 'a.pt')
