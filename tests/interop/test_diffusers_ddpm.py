"""Reading and writing diffusers folders without torch; agreement itself is in tests/parity."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gen_jax.config import default
from gen_jax.diffusion import gaussian
from gen_jax.diffusion.unet import UNet
from gen_jax.errors import UserError
from gen_jax.interop.diffusers_ddpm import (
    WEIGHTS,
    gaussian_state,
    load_unet,
    save_unet,
    torch_name,
)

NET = UNet(
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    attention=(4,),
    dropout=0.1,
    groups=4,
    num_classes=4,
    out_channels=1,
)


@pytest.fixture(scope='module')
def params():
    args = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(NET.init, jax.random.key(0), *args)['params']
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


@pytest.fixture
def folder(params, tmp_path):
    save_unet(NET, params, 8, str(tmp_path))
    return tmp_path


def edit_json(path, **changes):
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, **changes}))


def edit_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def config():
    config = default('diffusion.gaussian')
    config.update_from_flattened_dict(
        {
            'data.num_classes': 3,
            'diffusion.label_dropout': 0.1,
            'model.channels': 8,
            'model.groups': 4,
        }
    )
    return config


def test_round_trip(folder, params):
    unet, again = load_unet(str(folder))
    assert unet == NET
    same(params, again)
    assert sorted(path.name for path in folder.iterdir()) == ['config.json', WEIGHTS]


@pytest.mark.parametrize(
    ('path', 'name'),
    [
        (('conv_in', 'kernel'), 'conv_in.weight'),
        (('time_embedding', 'linear_1', 'bias'), 'time_embedding.linear_1.bias'),
        (('class_embedding', 'embedding'), 'class_embedding.weight'),
        (('down_0_resnet_1', 'norm1', 'scale'), 'down_blocks.0.resnets.1.norm1.weight'),
        (('down_2_downsampler_0', 'conv', 'bias'), 'down_blocks.2.downsamplers.0.conv.bias'),
        (('mid_attention_0', 'to_out', 'kernel'), 'mid_block.attentions.0.to_out.0.weight'),
        (('up_10_resnet_2', 'conv_shortcut', 'bias'), 'up_blocks.10.resnets.2.conv_shortcut.bias'),
    ],
)
def test_names(path, name):
    assert torch_name(path) == name


def test_nested_folder_and_old_attention_names(folder, params):
    """A pipeline's folder has unet/; google/ddpm-cifar10-32 has the names of early diffusers."""
    (folder / 'unet').mkdir()
    for name in ('config.json', WEIGHTS):
        (folder / name).rename(folder / 'unet' / name)
    old = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}

    def rename(tensors):
        for name in list(tensors):
            for new, first in old.items():
                if f'.{new}.' in name:
                    tensors[name.replace(f'.{new}.', f'.{first}.')] = tensors.pop(name)

    edit_tensors(folder / 'unet', rename)
    assert not any('to_q' in name for name in load_file(folder / 'unet' / WEIGHTS))
    same(params, load_unet(str(folder))[1])


def test_half_precision_becomes_float32(folder, params):
    def halve(tensors):
        tensors.update({name: x.astype(np.float16) for name, x in tensors.items()})

    edit_tensors(folder, halve)
    loaded = load_unet(str(folder))[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), params, loaded)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(loaded))


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        ({'freq_shift': 0}, 'freq_shift=0 is not supported, expected 1'),
        ({'attention_head_dim': 8}, 'attention_head_dim=8'),
        ({'novelty': 1}, "field 'novelty'"),
        ({'down_block_types': ['DownBlock2D', 'SkipDownBlock2D']}, 'SkipDownBlock2D'),
        ({'up_block_types': ['UpBlock2D', 'UpBlock2D']}, 'opposite order'),
        ({'sample_size': None}, 'sample_size=None'),
        ({'block_out_channels': [8, 12]}, 'expected multiples of the first'),
        ({'num_class_embeds': None}, 'beyond what config.json describes, 1 tensors: class_emb'),
        ({'num_class_embeds': 5}, r'class_embedding.weight becomes \(4, 32\).*\(5, 32\)'),
        ({'layers_per_block': 2}, 'lacks .* tensors: down_blocks'),
    ],
)
def test_networks_we_cannot_be_are_named(folder, fields, says):
    edit_json(folder / 'config.json', **fields)
    with pytest.raises(UserError, match=says) as error:
        load_unet(str(folder))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        *(('block_out_channels', value) for value in ([], None, 64, '64', [0, 0], [8, True])),
        *(('norm_num_groups', value) for value in (3, 0, None, 4.0)),
        *(('layers_per_block', value) for value in ('2', None, 0)),
        *(('in_channels', value) for value in (None, 0)),
        *(('out_channels', value) for value in (None, [1])),
        *(('dropout', value) for value in (None, '0.1', 1.0, -0.1)),
        *(('num_class_embeds', value) for value in ('4', 0)),
        *(('sample_size', value) for value in (7, True, [8, 8], 0)),
        ('_class_name', 'UNet2DConditionModel'),
    ],
)
def test_a_field_that_is_no_such_number_is_named(folder, field, value):
    edit_json(folder / 'config.json', **{field: value})
    with pytest.raises(UserError) as error:
        load_unet(str(folder))
    assert f'{folder}/config.json: {field}={value!r}' in str(error.value)
    assert 'expected' in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'downs', [None, 2, [], 'DownBlock2D', ['DownBlock2D'] * 3, ['DownBlock2D', None]]
)
def test_blocks_that_are_not_those_of_the_levels_are_told(folder, downs):
    ups = ['UpBlock2D'] * len(downs) if isinstance(downs, list) else downs
    edit_json(folder / 'config.json', down_block_types=downs, up_block_types=ups)
    with pytest.raises(UserError, match='not supported, expected 2 of DownBlock2D') as error:
        load_unet(str(folder))
    assert '\n' not in str(error.value)


def test_missing_fields_have_diffusers_defaults(folder):
    fields = json.loads((folder / 'config.json').read_text())
    for name in ('act_fn', 'add_attention', 'upsample_type'):  # published files are older
        del fields[name]
    (folder / 'config.json').write_text(json.dumps(fields))
    assert load_unet(str(folder))[0] == NET
    del fields['norm_eps']
    (folder / 'config.json').write_text(json.dumps(fields))
    with pytest.raises(UserError, match='norm_eps=1e-05'):
        load_unet(str(folder))


def test_a_tensor_without_a_module_is_named(folder):
    edit_tensors(folder, lambda tensors: tensors.update(step=np.zeros(1, np.float32)))
    with pytest.raises(UserError, match='1 tensors: step: these'):
        load_unet(str(folder))


FLOAT8 = b'{"conv_in.bias":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (struct.pack('<Q', len(FLOAT8)) + FLOAT8 + bytes(8), 'of type F8_E4M3, which cannot'),
        (b'version https://git-lfs.github.com/spec/v1\n', "fetch them with 'git lfs pull'"),
        (b'<!DOCTYPE html>', 'is a web page'),
        (b'', 'is empty'),
    ],
    ids=['float8', 'pointer', 'page', 'empty'],
)
def test_weights_that_cannot_be_read_are_told_as_everywhere(folder, content, says):
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        load_unet(str(folder))
    assert str(folder / WEIGHTS) in str(error.value)
    assert '\n' not in str(error.value)


def test_torchs_file_is_read_where_there_is_no_other(folder):
    torch = pytest.importorskip('torch')
    unet, params = load_unet(str(folder))
    tensors = {name: torch.tensor(x) for name, x in load_file(folder / WEIGHTS).items()}
    torch.save(tensors, folder / 'diffusion_pytorch_model.bin')
    (folder / WEIGHTS).unlink()
    again, found = load_unet(str(folder))
    assert again == unet
    jax.tree.map(np.testing.assert_array_equal, found, params)
    (folder / 'diffusion_pytorch_model.bin').write_bytes(b'x')
    with pytest.raises(UserError, match=r'model\.bin is neither safetensors nor'):
        load_unet(str(folder))


def test_damaged_folders_are_named(folder):
    edit_tensors(folder, lambda tensors: tensors.pop('conv_in.bias'))
    with pytest.raises(UserError, match=r'lacks 1 tensors: conv_in\.bias'):
        load_unet(str(folder))
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r'not found, nor diffusion_pytorch_model\.bin: expected'):
        load_unet(str(folder))
    (folder / 'config.json').write_text('{')
    with pytest.raises(UserError, match='is not JSON'):
        load_unet(str(folder))
    (folder / 'config.json').write_text('[]')
    with pytest.raises(UserError, match='is no JSON object'):
        load_unet(str(folder))
    with pytest.raises(UserError, match=r'nowhere/config\.json not found'):
        load_unet('nowhere')


@pytest.mark.slow
def test_gaussian_state_is_the_methods(folder, params):
    method = gaussian.create(config())
    state = gaussian_state(config(), str(folder))
    batch = {'image': jnp.zeros((2, 8, 8, 1))}
    want = jax.eval_shape(method.init, jax.random.key(0), batch)
    assert jax.eval_shape(lambda: state) == want
    same(params, state.net.params)
    same(params, state.net.ema)


@pytest.mark.parametrize(
    ('field', 'value', 'says'),
    [
        ('model.groups', 8, 'groups=4, the config makes 8'),
        ('model.blocks', 2, 'blocks=1, the config makes 2'),
        ('data.num_classes', 4, 'num_classes=4, the config makes 5'),
        ('data.channels', 3, 'expected config.data.channels=3'),
    ],
)
def test_gaussian_state_checks_the_network(folder, field, value, says):
    wrong = config()
    wrong.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=says):
        gaussian_state(wrong, str(folder))


@pytest.mark.parametrize(
    ('size', 'attention', 'says'),
    [
        (4, (4,), r'has attention=\(2,\) at config.data.image_size=4, the config makes \(4,\)'),
        (16, (16,), r'attention=\(8,\) at config.data.image_size=16, the config makes \(16,\)'),
        (8, (), r'attention=\(4,\) at config.data.image_size=8, the config makes \(\)'),
    ],
)
def test_gaussian_state_checks_which_levels_have_attention(folder, size, attention, says):
    wrong = config()
    wrong.update_from_flattened_dict({'data.image_size': size, 'model.attention': attention})
    with pytest.raises(UserError, match=says):
        gaussian_state(wrong, str(folder))


def test_gaussian_state_of_images_of_another_size(folder):
    """The folder's network is of 8 pixels, with attention where 4 are left."""
    larger = config()
    larger.update_from_flattened_dict({'data.image_size': 16, 'model.attention': (8,)})
    state = gaussian_state(larger, str(folder))
    batch = {'image': jnp.zeros((2, 16, 16, 1))}
    want = jax.eval_shape(gaussian.create(larger).init, jax.random.key(0), batch)
    assert jax.eval_shape(lambda: state) == want


@pytest.mark.slow
@pytest.mark.parametrize('nested', [False, True])
def test_gaussian_state_checks_the_schedule(folder, nested):
    place = folder / 'scheduler' if nested else folder
    place.mkdir(exist_ok=True)
    file = place / 'scheduler_config.json'
    file.write_text(json.dumps({'num_train_timesteps': 1000, 'beta_start': 1e-4}))
    gaussian_state(config(), str(folder))
    edit_json(file, prediction_type='v_prediction')
    with pytest.raises(UserError, match="prediction_type='v_prediction', but"):
        gaussian_state(config(), str(folder))


@pytest.mark.parametrize(
    ('field', 'value', 'ours'),
    [
        ('num_train_timesteps', 500, 1000),
        ('trained_betas', [0.1, 0.2], None),
        ('beta_schedule', 'scaled_linear', 'linear'),
        ('beta_start', 0.001, 1e-4),
        ('beta_end', 0.01, 0.02),
        ('rescale_betas_zero_snr', True, False),
    ],
)
def test_every_field_of_a_schedule_must_be_the_configs(folder, field, value, ours):
    (folder / 'scheduler_config.json').write_text(json.dumps({field: value}))
    with pytest.raises(UserError) as error:
        gaussian_state(config(), str(folder))
    assert f'{field}={value!r}, but config.diffusion makes {ours!r}' in str(error.value)


def test_what_a_schedule_does_not_say_is_diffusers_default(folder):
    (folder / 'scheduler_config.json').write_text('{}')
    other = config()
    other.diffusion.timesteps = 500
    with pytest.raises(UserError, match=r'num_train_timesteps=1000, but config.* makes 500'):
        gaussian_state(other, str(folder))


@pytest.mark.slow
def test_gaussian_state_takes_other_schedules_where_the_config_has_them(folder):
    theirs = {
        'beta_schedule': 'squaredcos_cap_v2',
        'prediction_type': 'v_prediction',
        'rescale_betas_zero_snr': True,
    }
    (folder / 'scheduler_config.json').write_text(json.dumps(theirs))
    settings = config()
    settings.sampler.spacing = 'trailing'
    for name, value in {'betas': 'cosine', 'prediction': 'v', 'zero_snr': True}.items():
        with pytest.raises(UserError, match=r'but config\.diffusion makes'):
            gaussian_state(settings, str(folder))
        settings.diffusion[name] = value
    gaussian_state(settings, str(folder))
    settings.diffusion.told = 'thousandths'
    with pytest.raises(UserError, match=r"expected config\.diffusion\.told='time'"):
        gaussian_state(settings, str(folder))
