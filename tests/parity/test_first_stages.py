"""Latent diffusion's first stages against diffusers, through the folders that it saves."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.autoencoders.ldm import Decoder, Encoder, KLAutoencoder, VQAutoencoder
from gen_jax.autoencoders.patch import PatchDiscriminator
from gen_jax.autoencoders.quantizer import VectorQuantizer
from gen_jax.errors import UserError
from gen_jax.interop import diffusers_first_stage

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')


def blocks(n):
    return {
        'down_block_types': ('DownEncoderBlock2D',) * n,
        'up_block_types': ('UpDecoderBlock2D',) * n,
    }


SMALL = {'block_out_channels': (8, 16), 'norm_num_groups': 4, **blocks(2)}
KL = {**SMALL, 'latent_channels': 3, 'layers_per_block': 2}
VQ = {**SMALL, 'latent_channels': 5, 'vq_embed_dim': 4, 'num_vq_embeddings': 11}
BARE = {'use_quant_conv': False, 'use_post_quant_conv': False}
GREY = {'in_channels': 1, 'out_channels': 1}


def saved(folder, kind, options):
    """A model of theirs with random weights, also where torch's begin at 0 or 1; on disk."""
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def nchw(x):
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def assert_close(ours, theirs):
    theirs = theirs.detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ('options', 'shape'),
    [
        (KL, (2, 8, 8, 3)),
        ({**KL, **GREY}, (1, 12, 6, 1)),
        ({**KL, 'block_out_channels': (8, 8)}, (1, 2, 4, 3)),
        ({**KL, **BARE, 'shift_factor': 0.1}, (1, 4, 4, 3)),
    ],
)
def test_autoencoder_kl(tmp_path, options, shape):
    theirs = saved(tmp_path, 'AutoencoderKL', options)
    module, variables, (factor, shift) = diffusers_first_stage.load(str(tmp_path))
    assert (factor, shift) == (theirs.config.scaling_factor, theirs.config.shift_factor or 0.0)
    x = jax.random.uniform(jax.random.key(0), shape, minval=-1.0)
    mean, log_var = jax.jit(lambda x: module.apply(variables, x, method='posterior'))(x)
    found = theirs.encode(nchw(x)).latent_dist
    assert_close(mean, found.mean)
    assert_close(log_var, found.logvar)
    z = jax.random.normal(jax.random.key(1), mean.shape)
    assert_close(
        jax.jit(lambda z: module.apply(variables, z, method='decode'))(z),
        theirs.decode(nchw(z)).sample,
    )


@pytest.mark.parametrize(
    ('options', 'shape'),
    [(VQ, (2, 8, 8, 3)), ({**VQ, **GREY, 'vq_embed_dim': None}, (1, 6, 10, 1))],
)
def test_vq_model(tmp_path, options, shape):
    theirs = saved(tmp_path, 'VQModel', options)
    x = jax.random.uniform(jax.random.key(0), shape, minval=-1.0)
    latents = theirs.encode(nchw(x)).latents
    with torch.no_grad():  # codes where vectors are, so that not one is nearest to all
        weight = theirs.quantize.embedding.weight
        vectors = latents.permute(0, 2, 3, 1).reshape(-1, weight.shape[1])
        weight.copy_(vectors[: len(weight)])
    theirs.save_pretrained(tmp_path)
    module, variables, _ = diffusers_first_stage.load(str(tmp_path))
    back, found = jax.jit(lambda x: module.apply(variables, x))(x)
    assert_close(module.apply(variables, x, method='encode'), latents)
    quantized, _, (_, _, indices) = theirs.quantize(latents)
    np.testing.assert_array_equal(np.ravel(found.indices), indices)
    assert len(set(np.ravel(found.indices).tolist())) > 5
    assert_close(found.z, quantized)
    assert_close(back, theirs.decode(latents).sample)


def test_gradients_reach_every_parameter(tmp_path):
    theirs = saved(tmp_path, 'AutoencoderKL', KL)
    module, variables, _ = diffusers_first_stage.load(str(tmp_path))
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1.0)

    @jax.jit
    @jax.grad
    def gradient(params):
        def loss(module, x):
            mean, log_var = module.posterior(x)
            z = mean + jnp.exp(log_var / 2)
            return jnp.square(module.decode(z) - x).sum()

        return module.apply({'params': params}, x, method=loss)

    found = gradient(variables['params'])
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found))
    given = nchw(x)
    posterior = theirs.encode(given).latent_dist
    ((theirs.decode(posterior.mean + posterior.std).sample - given) ** 2).sum().backward()
    for name, ours in (
        ('encoder.conv_in', found['encoder']['conv_in']),
        ('encoder.down_blocks.0.downsamplers.0.conv', found['encoder']['down_0_downsampler']),
        ('decoder.up_blocks.1.resnets.0.conv2', found['decoder']['up_1_resnet_0']['conv2']),
    ):
        want = theirs.get_submodule(name).weight.grad.permute(2, 3, 1, 0).numpy()
        np.testing.assert_allclose(
            ours['kernel'], want, rtol=0, atol=1e-4 * np.abs(want).max(), err_msg=name
        )


def size(module, shape=(1, 8, 8, 3)):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def test_published_sizes():
    shared = {'channels': 128, 'blocks': 2, 'groups': 32}
    eighth = {**shared, 'multipliers': (1, 2, 4, 4)}
    for dim, pointwise, want in ((4, True, 83_653_863), (16, False, 83_819_683)):
        nets = Encoder(features=2 * dim, **eighth), Decoder(features=3, **eighth)
        assert size(KLAutoencoder(*nets, dim, pointwise)) == want
    fourth = {**shared, 'multipliers': (1, 2, 4)}
    nets = Encoder(features=3, **fourth), Decoder(features=3, **fourth)
    assert size(VQAutoencoder(*nets, 3, quantizer=VectorQuantizer(8192, 3))) == 55_322_782


WRONG = [
    ({'_class_name': 'UNet2DModel'}, 'AutoencoderKL or VQModel'),
    ({'act_fn': 'relu'}, "act_fn='relu'"),
    ({'something': 1}, "'something'"),
    ({'down_block_types': ['DownBlock2D'] * 2}, 'DownEncoderBlock2D'),
    ({'block_out_channels': [8, 12]}, 'expected multiples of the first'),
    ({'latent_channels': 7}, 'another network'),
    ({'use_quant_conv': False}, 'use_post_quant_conv differ'),
]


@pytest.mark.parametrize(('changes', 'says'), WRONG)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path, changes, says):
    saved(tmp_path, 'AutoencoderKL', KL)
    file = tmp_path / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=says) as error:
        diffusers_first_stage.load(str(tmp_path))
    assert '\n' not in str(error.value)


def test_names_of_old_files(tmp_path):
    """Stable Diffusion's published files have the first names of attention's layers."""
    from safetensors.numpy import load_file, save_file

    saved(tmp_path, 'AutoencoderKL', KL)
    _, want, _ = diffusers_first_stage.load(str(tmp_path))
    file = tmp_path / 'diffusion_pytorch_model.safetensors'
    old = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    tensors = load_file(file)
    for new, first in old.items():
        tensors = {name.replace(f'.{new}.', f'.{first}.'): x for name, x in tensors.items()}
    save_file(tensors, file)
    _, found, _ = diffusers_first_stage.load(str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, found, want)


class PatchGAN(torch.nn.Sequential):
    """Isola et al.'s, written here a second time: convolutions of 4x4, three of them halving."""

    def __init__(self, channels, width, layers):
        parts, before = [], channels
        for i in range(layers + 1):
            after = width * min(2**i, 8)
            stride = 2 if i < layers else 1
            parts.append(torch.nn.Conv2d(before, after, 4, stride, 1, bias=i == 0))
            parts += [torch.nn.BatchNorm2d(after)] * (i > 0)
            parts.append(torch.nn.LeakyReLU(0.2))
            before = after
        super().__init__(*parts, torch.nn.Conv2d(before, 1, 4, 1, 1))


@pytest.mark.parametrize(
    ('layers', 'shape'), [(3, (2, 32, 40, 3)), (1, (3, 9, 8, 1)), (4, (1, 64, 48, 3))]
)
@pytest.mark.parametrize('train', [True, False])
def test_patch_discriminator(layers, shape, train):
    net = PatchDiscriminator(6, layers)
    x = jax.random.uniform(jax.random.key(0), shape, minval=-1.0)
    variables = net.init(jax.random.key(1), x)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.float32(abs(random.normal(size=leaf.shape)) * 0.3 + 0.1), variables
    )
    theirs = PatchGAN(shape[-1], 6, layers).train(train)
    convs = [part for part in theirs if isinstance(part, torch.nn.Conv2d)]
    norms = [part for part in theirs if isinstance(part, torch.nn.BatchNorm2d)]
    params, stats = variables['params'], variables['batch_stats']
    with torch.no_grad():
        for i, part in enumerate(convs):
            kernel = np.array(params[f'conv_{i}']['kernel'].transpose(3, 2, 0, 1))
            part.weight.copy_(torch.from_numpy(kernel))
            if part.bias is not None:
                part.bias.copy_(torch.from_numpy(np.array(params[f'conv_{i}']['bias'])))
        for i, part in enumerate(norms, 1):
            for name, leaf in (
                ('weight', params[f'norm_{i}']['scale']),
                ('bias', params[f'norm_{i}']['bias']),
                ('running_mean', stats[f'norm_{i}']['mean']),
                ('running_var', stats[f'norm_{i}']['var']),
            ):
                getattr(part, name).copy_(torch.from_numpy(np.array(leaf)))
    want = theirs(nchw(x))[:, 0].detach().numpy()
    found, _ = net.apply(variables, x, train=train, mutable=['batch_stats'])
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(('layers', 'size'), [(3, 2_765_633), (2, 663_361)])
def test_patch_discriminators_size(layers, size):
    net = PatchDiscriminator(layers=layers)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 70, 70, 3)))['params']
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == size
