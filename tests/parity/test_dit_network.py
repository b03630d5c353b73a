"""DiT against the authors' network (record/dit.py ran it) and against diffusers'."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import difference, filled, load
from safetensors.numpy import save_file

from gen_jax.diffusion.dit import SIZES, DiT, positions
from gen_jax.errors import UserError
from gen_jax.interop import diffusers_dit
from gen_jax.interop.dit import from_reference, to_reference

CASES = ('latents', 'odd', 'one_patch', 'no_null')


class Recorded:
    """One case of golden/dit.npz: what the authors' constructor took, and all that went in and out.

    Attributes:
      fields: of the constructor; a null class comes on top of `num_classes` where labels drop out.
      net: ours of the same shape.
      tensors: the weights by the authors' names.
      inputs: x, t and label.
      result: the authors'.
    """

    def __init__(self, name):
        golden = load('dit')
        self.fields = f = json.loads(str(golden[f'{name}.fields']))
        self.net = DiT(
            width=f['hidden_size'],
            depth=f['depth'],
            heads=f['num_heads'],
            patch=f['patch_size'],
            num_classes=f['num_classes'] + (f['class_dropout_prob'] > 0),
            out_channels=f['in_channels'] * (1 + f['learn_sigma']),
        )
        self.tensors = filled(json.loads(str(golden[f'{name}.shapes'])))
        self.tensors['pos_embed'] = golden[f'{name}.pos_embed']
        self.inputs = [golden[f'{name}.{key}'] for key in ('x', 't', 'label')]
        self.result = golden[f'{name}.result']

    def params(self, place='a.pt'):
        return from_reference(self.tensors, self.net, self.fields['in_channels'], place)

    def ours(self):
        return jax.jit(self.net.apply)({'params': self.params()}, *self.inputs)


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_the_authors_network(name):
    case = Recorded(name)
    far = difference(case.ours(), case.result)
    print('max diff / scale', far)
    assert far < 1e-4


@pytest.mark.parametrize('name', CASES)
def test_weights_return_as_they_came(name):
    case = Recorded(name)
    again = to_reference(case.params(), case.net, case.fields['input_size'])
    assert again.keys() == case.tensors.keys()
    for key, x in case.tensors.items():
        rounding = 1e-6 if key == 'pos_embed' else 0
        np.testing.assert_allclose(again[key], x, atol=rounding, rtol=0, err_msg=key)


# On 32x32x4 latents with patches of 2, the table of positions counted.
PUBLISHED = {'S': 32_963_360, 'B': 130_512_416, 'L': 458_102_816, 'XL': 675_129_632}


def count(size, patch):
    """(parameters, numbers in the reference's table of positions) on 32x32x4 latents."""
    net = DiT(**SIZES[size], patch=patch, num_classes=1001, out_channels=8)
    args = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
    trained = sum(x.size for x in jax.tree.leaves(shapes))
    return trained, jax.eval_shape(lambda: positions(32 // patch, 32 // patch, net.width)).size


@pytest.mark.slow
@pytest.mark.parametrize('size', PUBLISHED)
@pytest.mark.parametrize('patch', [2, 4, 8])
def test_parameters_of_the_papers_networks(size, patch):
    theirs = json.loads(str(load('dit')['counts']))
    assert sum(count(size, patch)) == theirs[f'{size}/{patch}']
    assert theirs[f'{size}/2'] == PUBLISHED[size]


def test_trained_parameters_of_the_largest():
    assert count('XL', 2) == (674_834_720, 294_912)


def spoilt(name, change):
    case = Recorded(name)
    change(case.tensors)
    with pytest.raises(UserError) as error:
        case.params()
    assert str(error.value).startswith('a.pt ')
    assert '\n' not in str(error.value)
    return str(error.value)


def test_other_weights_are_refused():
    def no_patches(tensors):
        del tensors['x_embedder.proj.weight']

    def deeper(tensors):
        tensors['blocks.2.attn.qkv.bias'] = np.zeros(72, np.float32)

    def other_patch(tensors):
        tensors['x_embedder.proj.weight'] = np.zeros((24, 4, 4, 4), np.float32)

    def learned(tensors):
        tensors['pos_embed'] = tensors['pos_embed'] + 0.01

    def wider(tensors):
        tensors['pos_embed'] = np.zeros((1, 15, 24), np.float32)

    assert 'lacks 1 tensors: x_embedder.proj.weight' in spoilt('latents', no_patches)
    assert 'blocks.2.attn.qkv.bias' in spoilt('latents', deeper)
    assert 'x_embedder.proj.weight' in spoilt('latents', other_patch)
    assert 'differs by 0.01' in spoilt('latents', learned)
    assert 'shape (1, 15, 24)' in spoilt('latents', wider)


def test_agrees_with_diffusers(tmp_path):
    """Whose blocks have an embedder each, and who differ from the authors in two numbers."""
    torch = pytest.importorskip('torch')
    diffusers = pytest.importorskip('diffusers')
    case = Recorded('latents')
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    ).eval()
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    state = {k: torch.tensor(x) for k, x in diffusers_names(case.tensors, depth=2).items()}
    theirs.load_state_dict(state)
    theirs.save_pretrained(tmp_path / 'transformer')
    read = diffusers_dit.load_into(tmp_path, case.net, 4)
    jax.tree.map(np.testing.assert_array_equal, read, case.params())
    x, t, label = map(torch.tensor, case.inputs)
    with torch.no_grad():
        want = theirs(x.permute(0, 3, 1, 2), t, label).sample.permute(0, 2, 3, 1)
    far = difference(case.ours(), want.numpy())
    print('max diff / scale', far)
    assert far < 1e-4


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'num_attention_heads': 6}, 'num_attention_heads=6, expected 3 as the config makes it'),
        ({'attention_head_dim': 4}, 'attention_head_dim=4, expected 8'),
        ({'out_channels': None}, 'out_channels=4, expected 8'),
        ({'num_layers': '2'}, "num_layers='2', expected a whole number"),
        ({'norm_type': 'layer_norm'}, "norm_type='layer_norm' is not supported"),
        ({'_class_name': 'UNet2DModel'}, 'expected DiTTransformer2DModel'),
        ({'caption_channels': 3}, "field 'caption_channels' is not one"),
        ({}, 'blocks have different embedders (t_embedder.mlp.0.bias)'),
    ],
)
def test_other_folders_of_diffusers_are_refused(tmp_path, changes, says):
    case = Recorded('latents')
    tensors = diffusers_names(case.tensors, depth=2)
    name = 'transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias'
    tensors[name] = tensors[name] + 1
    save_file(tensors, tmp_path / 'diffusion_pytorch_model.safetensors')
    fields = {'_class_name': 'Transformer2DModel', 'num_attention_heads': 3, 'num_layers': 2}
    fields |= {'attention_head_dim': 8, 'in_channels': 4, 'out_channels': 8, 'patch_size': 2}
    (tmp_path / 'config.json').write_text(json.dumps(fields | changes))
    with pytest.raises(UserError, match=re.escape(says)) as error:
        diffusers_dit.load_into(tmp_path, case.net, 4)
    assert '\n' not in str(error.value)


def diffusers_names(tensors, depth):
    """The authors' tensors under the names of DiTTransformer2DModel."""
    names = {
        'x_embedder.proj': ['pos_embed.proj'],
        'final_layer.adaLN_modulation.1': ['proj_out_1'],
        'final_layer.linear': ['proj_out_2'],
    }
    for i in range(depth):
        ours, block = f'blocks.{i}', f'transformer_blocks.{i}'
        names[f'{ours}.adaLN_modulation.1'] = [f'{block}.norm1.linear']
        names[f'{ours}.attn.qkv'] = [f'{block}.attn1.to_{part}' for part in 'qkv']
        names[f'{ours}.attn.proj'] = [f'{block}.attn1.to_out.0']
        names[f'{ours}.mlp.fc1'] = [f'{block}.ff.net.0.proj']
        names[f'{ours}.mlp.fc2'] = [f'{block}.ff.net.2']
    renamed = {}
    for name, x in tensors.items():
        module, _, leaf = name.rpartition('.')
        if not (new_names := names.get(module)):
            continue
        for new, part in zip(new_names, np.split(x, len(new_names)), strict=True):
            renamed[f'{new}.{leaf}'] = part
    for i in range(depth):
        emb = f'transformer_blocks.{i}.norm1.emb'
        for leaf in ('weight', 'bias'):
            for k, layer in ((0, 'linear_1'), (2, 'linear_2')):
                key = f'{emb}.timestep_embedder.{layer}.{leaf}'
                renamed[key] = tensors[f't_embedder.mlp.{k}.{leaf}']
        key = f'{emb}.class_embedder.embedding_table.weight'
        renamed[key] = tensors['y_embedder.embedding_table.weight']
    return renamed
