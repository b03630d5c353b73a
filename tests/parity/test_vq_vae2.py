"""VQ-VAE-2 against the unofficial port that record/vq_vae2.py has run, with the same weights."""

import json
import math
import re
from functools import cache

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gen_jax import config as house
from gen_jax.autoencoders import vq_vae2
from gen_jax.autoencoders.quantizer import moved
from gen_jax.interop.tensors import to_variables

TOLERANCE = 1e-4
CASES = 'colour', 'grey'
LEVELS = {'top_quantizer': 'quantize_t', 'quantizer': 'quantize_b'}
# Our modules and the port's; of its sequences the number of what comes after the blocks depends on
# how many of these there are.
PLACES = {
    r'^encoder\.down_(\d)': lambda m, n: f'enc_b.blocks.{2 * int(m[1])}',
    r'^encoder\.in': lambda m, n: 'enc_b.blocks.4',
    r'^top_encoder\.down_0': lambda m, n: 'enc_t.blocks.0',
    r'^top_encoder\.in': lambda m, n: 'enc_t.blocks.2',
    r'^top_encoder\.out': lambda m, n: 'quantize_conv_t',
    r'^to_bottom': lambda m, n: 'quantize_conv_b',
    r'^top_decoder\.in': lambda m, n: 'dec_t.blocks.0',
    r'^top_decoder\.up_0': lambda m, n: f'dec_t.blocks.{n + 2}',
    r'^decoder\.up': lambda m, n: 'upsample_t',
    r'^decoder\.decoder\.in': lambda m, n: 'dec.blocks.0',
    r'^decoder\.decoder\.up_(\d)': lambda m, n: f'dec.blocks.{n + 2 + 2 * int(m[1])}',
}
# Where blocks begin in the port's sequences.
BLOCKS = {
    'encoder': ('enc_b', 5),
    'top_encoder': ('enc_t', 3),
    'top_decoder': ('dec_t', 1),
    'decoder.decoder': ('dec', 1),
}


def their_name(blocks):
    """From our parameter's name, with torch's leaf, to the port's."""

    def rename(name):
        found = re.match(r'(.+)\.blocks\.(conv|out)_(\d+)\.(\w+)', name)
        if found:
            place, first = BLOCKS[found[1]]
            layer = {'conv': 1, 'out': 3}[found[2]]
            return f'{place}.blocks.{first + int(found[3])}.conv.{layer}.{found[4]}'
        for ours, theirs in PLACES.items():
            if found := re.match(ours + r'\.(\w+)$', name):
                return f'{theirs(found, blocks)}.{name.rsplit(".", 1)[1]}'
        raise KeyError(name)

    return rename


def config_of(fields, size):
    config = house.default('autoencoders.vq_vae2')
    config.data.update({'image_size': size, 'channels': fields['in_channel']})
    model = {'channels': fields['channel'], 'hidden': fields['n_res_channel']}
    config.model.update(model | {'blocks': fields['n_res_block']})
    config.vq.update({'codes': fields['n_embed'], 'dim': fields['embed_dim']})
    return config


@cache
def setup(case):
    """What was recorded; our module and variables of the port's numbers."""
    arrays = {k.removeprefix(f'{case}.'): x for k, x in golden.load('vq_vae2').items()}
    fields, shapes = (json.loads(str(arrays[name])) for name in ('fields', 'shapes'))
    module = vq_vae2.module_of(config_of(fields, 8))
    expected = jax.eval_shape(module.init, jax.random.key(0), arrays['x'])
    read = lambda tensors: to_variables(  # noqa: E731
        tensors, {'params': expected['params']}, 'the recording', their_name(fields['n_res_block'])
    )
    params = read(golden.filled(shapes))['params']
    return arrays, module, {'params': params, 'codebook': codebook(arrays)}, read


def codebook(arrays, when=''):
    return {
        ours: {
            'codes': arrays[f'{when}{theirs}.embed'].T,
            'counts': arrays[f'{when}{theirs}.cluster_size'],
            'sums': arrays[f'{when}{theirs}.embed_avg'].T,
        }
        for ours, theirs in LEVELS.items()
    }


@pytest.mark.parametrize('case', CASES)
def test_codes_and_what_comes_back(case):
    arrays, module, variables, _ = setup(case)

    @jax.jit
    def run(variables, x):
        found = module.apply(variables, x, method='codes')
        z = module.latents(found)
        return [level.indices for level in found], module.apply(variables, z, method='numbers')

    (top, bottom), numbers = run(variables, arrays['x'])
    np.testing.assert_array_equal(top, arrays['indices_t'])
    np.testing.assert_array_equal(bottom, arrays['indices_b'])
    assert len(np.unique(bottom)) > 2
    back = numbers[..., : arrays['x'].shape[-1]]
    print(case, golden.difference(back, arrays['back']))
    assert golden.difference(back, arrays['back']) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_loss_gradients_and_codes_after_a_step(case):
    """The squared error and a quarter of both commitments (the port's train_vqvae.py)."""
    arrays, module, variables, read = setup(case)

    def loss_of(params):
        given = variables | {'params': params}
        (log_likelihood, found), told = module.apply(
            given, arrays['x'], True, mutable=['assigned'], rngs={'restart': jax.random.key(0)}
        )
        commitment = sum(level.commitment.mean() for level in found)
        return 0.25 * commitment - log_likelihood.mean() / arrays['x'][0].size, told['assigned']

    run = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, assigned), gradient = run(variables['params'])
    after = moved(variables['codebook'], assigned, 0.99)
    # The density's constant, of a variance of 1 / 2.
    np.testing.assert_allclose(loss - math.log(math.pi) / 2, arrays['loss'], rtol=1e-5)
    tensors = {k.removeprefix('grad.'): x for k, x in arrays.items() if k.startswith('grad.')}
    want, got = flatten_dict(read(tensors)['params']), flatten_dict(gradient)
    assert want.keys() == got.keys()
    # Each at its own scale, unless next to others it is nothing but rounding.
    least = 1e-4 * max(np.abs(x).max() for x in want.values())
    apart = {
        path: np.abs(got[path] - x).max() / max(np.abs(x).max(), least) for path, x in want.items()
    }
    print(case, 'gradients', max(apart.values()))
    assert max(apart.values()) < TOLERANCE, max(apart, key=apart.get)
    after, want = flatten_dict(after), flatten_dict(codebook(arrays, 'after.'))
    for path, x in want.items():
        np.testing.assert_allclose(
            after[path], x, rtol=0, atol=1e-5 * np.abs(x).max(), err_msg=str(path)
        )


@pytest.mark.parametrize('hidden', [32, 64])
def test_sizes(hidden):
    """With the port's residual blocks and with the paper's, of 256x256 images."""
    config = house.default('autoencoders.vq_vae2')
    config.batch_size = 1
    config.data.update({'image_size': 256, 'channels': 3})
    assert config.model.hidden == 64
    config.model.hidden = hidden
    batch = {'image': jnp.zeros((1, 256, 256, 3))}
    method = house.create(config)
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(state.net.params))
    assert count == json.loads(str(golden.load('vq_vae2')['counts']))[str(hidden)]
    # The paper's latents of 32x32 and 64x64.
    assert jax.eval_shape(method.encode, state, batch).shape == (1, 32, 32, 5 * 64)
