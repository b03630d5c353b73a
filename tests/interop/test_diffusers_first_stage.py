"""Reading first stages' folders as diffusers saves them; agreement itself is in tests/parity."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from gen_jax.autoencoders.ldm import KLAutoencoder, VQAutoencoder
from gen_jax.config import create, default
from gen_jax.errors import UserError
from gen_jax.interop import diffusers_first_stage, published
from gen_jax.interop.diffusers_folder import WEIGHTS

# Shapes of weights, in torch's layout, of one level of 8 channels and one block.
CONV, NORM, DENSE = (8, 8, 3, 3), (8,), (8, 8)
RESNET = {'norm1': NORM, 'conv1': CONV, 'norm2': NORM, 'conv2': CONV}
ATTENTION = {'group_norm': NORM} | dict.fromkeys(('to_q', 'to_k', 'to_v', 'to_out.0'), DENSE)
MIDDLE = {
    **{f'mid_block.resnets.{i}.{name}': shape for i in (0, 1) for name, shape in RESNET.items()},
    **{f'mid_block.attentions.0.{name}': shape for name, shape in ATTENTION.items()},
    'conv_norm_out': NORM,
}
ENCODER = MIDDLE | {f'down_blocks.0.resnets.0.{name}': shape for name, shape in RESNET.items()}
DECODER = MIDDLE | {
    f'up_blocks.0.resnets.{i}.{name}': shape for i in (0, 1) for name, shape in RESNET.items()
}
SHARED = {
    'in_channels': 1,
    'out_channels': 1,
    'block_out_channels': [8],
    'norm_num_groups': 4,
    'down_block_types': ['DownEncoderBlock2D'],
    'up_block_types': ['UpDecoderBlock2D'],
}
FIELDS = {
    'AutoencoderKL': {**SHARED, 'latent_channels': 2, 'scaling_factor': 0.5, 'shift_factor': 0.25},
    'VQModel': {**SHARED, 'latent_channels': 3, 'vq_embed_dim': 2, 'num_vq_embeddings': 5},
}


def shapes_of(kind, width=2):
    # Channels: latent_channels; what latents have; what the encoder and `quant_conv` make.
    z, dim, made, quantised = (2, 2, 4, 4) if kind == 'AutoencoderKL' else (3, width, 3, width)
    return {
        'encoder.conv_in': (8, 1, 3, 3),
        **{f'encoder.{name}': shape for name, shape in ENCODER.items()},
        'encoder.conv_out': (made, 8, 3, 3),
        'quant_conv': (quantised, made, 1, 1),
        'post_quant_conv': (z, dim, 1, 1),
        'decoder.conv_in': (8, z, 3, 3),
        **{f'decoder.{name}': shape for name, shape in DECODER.items()},
        'decoder.conv_out': (1, 8, 3, 3),
    }


def write(folder, kind, **changes):
    """A folder of random weights; returns them."""
    rng, tensors, width = np.random.default_rng(0), {}, 2
    if isinstance(changes.get('vq_embed_dim'), int):
        width = changes['vq_embed_dim']
    for name, shape in shapes_of(kind, width).items():
        tensors[f'{name}.weight'] = rng.normal(size=shape).astype(np.float32)
        tensors[f'{name}.bias'] = rng.normal(size=shape[0]).astype(np.float32)
    if kind == 'VQModel':
        tensors['quantize.embedding.weight'] = rng.normal(size=(5, width)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    fields = {'_class_name': kind, **FIELDS[kind], **changes}
    (folder / 'config.json').write_text(json.dumps(fields))
    return tensors


@pytest.mark.parametrize('nested', ['', 'vae'])
def test_an_autoencoder_kl(tmp_path, nested):
    tensors = write(tmp_path / nested, 'AutoencoderKL')
    module, variables, scale = diffusers_first_stage.load(str(tmp_path))
    assert isinstance(module, KLAutoencoder)
    assert scale == (0.5, 0.25)
    assert len(jax.tree.leaves(variables)) == len(tensors)
    conv = variables['params']['encoder']['conv_in']
    np.testing.assert_array_equal(
        conv['kernel'], tensors['encoder.conv_in.weight'].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(conv['bias'], tensors['encoder.conv_in.bias'])
    query = variables['params']['decoder']['mid_attention_0']['to_q']['kernel']
    np.testing.assert_array_equal(query, tensors['decoder.mid_block.attentions.0.to_q.weight'].T)
    mean, log_var = module.apply(variables, np.zeros((1, 4, 4, 1)), method='posterior')
    assert mean.shape == log_var.shape == (1, 4, 4, 2)


@pytest.mark.parametrize('nested', ['', 'vqvae'])
def test_a_vq_model(tmp_path, nested):
    tensors = write(tmp_path / nested, 'VQModel')
    module, variables, scale = diffusers_first_stage.load(str(tmp_path))
    assert isinstance(module, VQAutoencoder)
    assert scale == (0.18215, 0.0)
    assert len(jax.tree.leaves(variables)) == len(tensors)
    codes = variables['params']['quantizer']['codes']
    np.testing.assert_array_equal(codes, tensors['quantize.embedding.weight'])


def test_a_folder_is_a_run_of_the_method(tmp_path):
    data = default('diffusion.gaussian').data
    data.num_classes = 10  # which a model of latents may be told
    for kind, changes in (('AutoencoderKL', {}), ('VQModel', {'vq_embed_dim': 3})):
        write(tmp_path / kind, kind, **changes)
        _, variables, _ = diffusers_first_stage.load(tmp_path / kind)
        config = diffusers_first_stage.config_of(tmp_path / kind, data)
        state = published.state_of(config, jax.random.key(0))
        jax.tree.map(np.testing.assert_array_equal, state.net.params, variables['params'])
        assert state.judge is None
        batch = {'image': np.zeros((2, 8, 8, 1), np.float32)}
        shape = jax.eval_shape(create(config).init, jax.random.key(0), batch)
        assert jax.tree.map(np.shape, state) == jax.tree.map(lambda x: x.shape, shape)
    write(tmp_path, 'VQModel')
    with pytest.raises(UserError, match='codes as wide as the latents'):
        diffusers_first_stage.config_of(tmp_path, data)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'model.channels': 16}, 'has config.model.channels=8: expected 16 as here'),
        ({'model.groups': 2}, 'has config.model.groups=4: expected 2'),
        ({'data.channels': 3}, 'has config.data.channels=1: expected 3'),
    ],
)
def test_a_run_that_starts_from_another_is_refused(tmp_path, changes, says):
    write(tmp_path, 'AutoencoderKL')
    config = diffusers_first_stage.config_of(tmp_path, default('diffusion.gaussian').data)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=says) as error:
        published.state_of(config, jax.random.key(0))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('name', 'theirs'),
    [
        ('quantizer.codes', 'quantize.embedding.weight'),
        ('post_quant_conv.bias', 'post_quant_conv.bias'),
        ('encoder.mid_resnet_1.norm2.weight', 'encoder.mid_block.resnets.1.norm2.weight'),
        (
            'encoder.down_2_resnet_1.conv_shortcut.bias',
            'encoder.down_blocks.2.resnets.1.conv_shortcut.bias',
        ),
        (
            'encoder.down_0_downsampler.weight',
            'encoder.down_blocks.0.downsamplers.0.conv.weight',
        ),
        ('decoder.up_1_upsampler.bias', 'decoder.up_blocks.1.upsamplers.0.conv.bias'),
        (
            'decoder.mid_attention_0.to_out.weight',
            'decoder.mid_block.attentions.0.to_out.0.weight',
        ),
    ],
)
def test_names(name, theirs):
    assert diffusers_first_stage.torch_name(name) == theirs


WRONG = [
    ('AutoencoderKL', '_class_name', 'UNet2DModel'),
    ('AutoencoderKL', 'act_fn', 'relu'),
    *(('AutoencoderKL', 'block_out_channels', value) for value in ([], None, 8, [0])),
    *(('VQModel', 'norm_num_groups', value) for value in (3, 0, None)),
    *(('AutoencoderKL', 'latent_channels', value) for value in (None, '2')),
    *(('VQModel', 'layers_per_block', value) for value in ('x', None)),
    ('AutoencoderKL', 'in_channels', None),
    ('AutoencoderKL', 'out_channels', None),
    ('VQModel', 'vq_embed_dim', '2'),
    ('VQModel', 'num_vq_embeddings', None),
]


@pytest.mark.parametrize(('kind', 'field', 'value'), WRONG)
def test_a_field_that_cannot_be_is_named(tmp_path, kind, field, value):
    write(tmp_path, kind, **{field: value})
    with pytest.raises(UserError) as error:
        diffusers_first_stage.load(str(tmp_path))
    assert f'{tmp_path}/config.json: {field}={value!r}' in str(error.value)
    assert 'expected' in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'down_block_types': ['DownBlock2D']}, 'DownBlock2D.*expected'),
        ({'down_block_types': None}, 'expected .*DownEncoderBlock2D'),
        ({'use_quant_conv': False}, 'use_post_quant_conv differ'),
        ({'something': 1}, "field 'something'"),
        ({'latent_channels': 3}, 'another network'),
        ({'layers_per_block': 2}, 'lacks .* tensors: decoder.up_blocks.0.resnets.2'),
    ],
)
def test_networks_that_cannot_be_are_told_in_one_line(tmp_path, changes, says):
    write(tmp_path, 'AutoencoderKL', **changes)
    with pytest.raises(UserError, match=says) as error:
        diffusers_first_stage.load(str(tmp_path))
    assert '\n' not in str(error.value)
