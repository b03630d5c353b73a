"""`config.init_from` of GANs: files by their authors' names become a config's state."""

import json

import golden
import jax
import numpy as np
import pytest
from gan_weights import gan_weights
from safetensors.numpy import save_file
from styled import equalized

from gen_jax import sample, train
from gen_jax.config import create, default
from gen_jax.errors import UserError
from gen_jax.gans import adversarial
from gen_jax.gans.stylegan2 import Discriminator
from gen_jax.interop import gans, published
from gen_jax.interop.gan_resnets import from_biggan, from_studiogan
from gen_jax.interop.stylegan2 import discriminator_from_reference, generator_from_reference
from gen_jax.runtime.config_file import ConfigFile
from gen_jax.runtime.images import save_png
from gen_jax.runtime.program import Program

STUDIO = {'channels': 8, 'latent_dim': 6}
# By case of golden/gan_resnets.npz: the config of a paper, its model's changes, and who reads it.
RESNETS = {
    'sngan': ('sngan_cifar10', {**STUDIO, 'd_multipliers': (2, 2, 2, 2)}, from_studiogan),
    'sagan': ('sngan_cifar10:sagan', {**STUDIO, 'd_multipliers': (2, 2, 2, 2)}, from_studiogan),
    'studio_biggan': (
        'biggan_cifar10',
        {'channels': 8, 'latent_dim': 8, 'shared_dim': 6, 'd_multipliers': (2, 2, 2, 2)},
        from_studiogan,
    ),
    'biggan_cifar': ('biggan_cifar10:authors', STUDIO, from_biggan),
    'dcgan': ('dcgan_cifar10', {}, from_studiogan),
}
NAMES = {
    from_studiogan: 'model={}-best-weights-step=7.safetensors',
    from_biggan: '{}.safetensors',
}


def configured(name, **model):
    name, _, variant = name.partition(':')
    place = golden.FOLDER.parents[2] / 'configs' / f'{name}.py'
    config = ConfigFile().parse(f'{place}:{variant}' if variant else str(place))
    config.model.update(model)
    return config


def resnet(case, **data):
    """The config, and {'G', 'G_ema', 'D': weights by the reference's names}, all different."""
    name, model, read = RESNETS[case]
    told = json.loads(str(golden.load('gan_resnets')[f'{case}.told']))
    config = configured(name, **model)
    classes = 0 if told['net']['label'] == 'W/O' else told['classes']
    config.data.update({'num_classes': classes, **data})

    def weights(side, times):
        return {k: np.float32(times * x) for k, x in gan_weights(told['shapes'][side]).items()}

    return config, {'G': weights('g', 1), 'G_ema': weights('g', 2), 'D': weights('d', 1)}, read


def write(folder, sets, pattern):
    folder.mkdir(exist_ok=True)
    for player, tensors in sets.items():
        save_file(tensors, folder / pattern.format(player))
    return str(folder)


def state_of(config):
    create(config)
    return published.state_of(config, jax.random.key(0))


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize('case', RESNETS)
def test_a_folder_becomes_both_players(tmp_path, case):
    config, sets, read = resnet(case)
    config.ema_decay, config.gan.n_critic = 0.9, 1
    pattern = NAMES[read]
    # Of which the first keeps the newest too, and the second others.
    other = (
        'model={}-current-weights-step=9.safetensors' if read is from_studiogan else '{}_best0.pt'
    )
    write(tmp_path, {x: {'another': np.zeros(1, np.float32)} for x in sets}, other)
    config.init_from = write(tmp_path, sets, pattern)
    state, game = state_of(config), adversarial.game_of(config)
    own, averaged = (read(sets[player], game.generator, 32) for player in ('G', 'G_ema'))
    kept = {**own, 'batch_stats': averaged['batch_stats']}
    assert_same(state.generator.variables(), {**kept, 'params': own['params']})
    assert_same(state.generator.variables(ema=True), {**kept, 'params': averaged['params']})
    assert_same(state.discriminator.variables(), read(sets['D'], game.discriminator, 32))
    assert state.discriminator.ema is None


def test_stylegan2_draws_the_authors_image(tmp_path):
    """golden/stylegan2.npz has what the authors' code makes of ws."""
    told = json.loads(str(golden.load('stylegan2')['g_skip.told']))
    config = configured(
        'stylegan2_ffhq1024',
        latent_dim=told['z_dim'],
        w_dim=told['w_dim'],
        channel_base=told['channel_base'],
        channel_max=told['channel_max'],
    )
    config.data.update({'image_size': 16, 'num_classes': 3})
    config.init_from = str(tmp_path / 'ffhq.pt')
    save_file({k: np.array(x) for k, x in equalized(told['shapes']).items()}, config.init_from)
    state = state_of(config)
    arrays = {k: golden.load('stylegan2')[f'g_skip.{k}'] for k in ('ws', 'image', 'label')}
    label = {'label': arrays['label']}
    image = jax.jit(create(config).latents.synthesis)(state, arrays['ws'], label)
    assert golden.difference(image, np.clip(arrays['image'], -1, 1)) < 1e-4
    net = adversarial.game_of(config).generator
    read = generator_from_reference(equalized(told['shapes']), net)
    assert_same(state.generator.variables(), read)
    assert_same(state.generator.ema, read['params'])
    assert float(state.path_length) == 0


def test_studiogans_name_of_a_layer_of_stylegan2():
    told = json.loads(str(golden.load('stylegan2')['d_resnet.told']))
    names = 'channel_base', 'channel_max', 'architecture', 'group'
    net = Discriminator(num_classes=told['c_dim'], **{name: told[name] for name in names})
    tensors = golden.filled(told['shapes'])
    studios = {name.replace('b4.out.', 'linear1.'): x for name, x in tensors.items()}
    assert studios.keys() != tensors.keys()
    assert_same(*(discriminator_from_reference(x, net) for x in (studios, tensors)))


def test_a_generator_alone_meets_a_fresh_discriminator(tmp_path):
    config, sets, _ = resnet('sngan')
    config.init_from = write(tmp_path, {'G': sets['G']}, '{}.safetensors') + '/G.safetensors'
    state, key = state_of(config), jax.random.key(0)
    _, fresh = adversarial.first_calls(config, adversarial.game_of(config))
    assert_same(state.discriminator.variables(), jax.jit(fresh)(key))
    assert state.generator.ema is None  # as the recipe has none


def test_without_an_average_the_trained_weights_are_drawn_from(tmp_path):
    config, sets, _ = resnet('studio_biggan')
    config.init_from = write(tmp_path, {x: sets[x] for x in 'GD'}, 'model={}-current.safetensors')
    state = state_of(config)
    assert_same(state.generator.ema, state.generator.params)


@pytest.mark.slow
def test_a_published_game_is_sampled_and_trained_on(tmp_path):
    config, sets, read = resnet('biggan_cifar')
    # Without G, whose place the average takes: the two must not share the memory that a step frees.
    config.init_from = write(tmp_path / 'published', {x: sets[x] for x in ('G_ema', 'D')}, '{}.pt')
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    for i, x in enumerate(pixels):
        folder = tmp_path / 'data' / f'class_{i % 5}'
        folder.mkdir(parents=True, exist_ok=True)
        save_png(folder / f'{i}.png', x)
    changes = {
        'steps': 1,
        'batch_size': 8,
        'log_every': 1,
        'checkpoint_every': 1,
        'sample_every': 0,
        'gan.n_critic': 1,
        'data.source': f'folder:{tmp_path / "data"}',
        'data.threads': 1,
        'sample.n': 4,
        'sample.batch_size': 4,
        'sample.grid': 4,
    }
    config.update_from_flattened_dict(changes)
    sample.run(config, tmp_path / 'drawn')
    assert len(list((tmp_path / 'drawn').glob('samples/at_step_00000000_seed_0/*.png'))) == 4
    assert train.run(config, tmp_path / 'run') == 0
    program = Program(config, create(config))
    _, state = sample.load(program, tmp_path / 'run')
    # Adam's steps are of the learning rate, 2e-4: what was published is not far.
    began = read(sets['G_ema'], adversarial.game_of(config).generator, 32)['params']
    far = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.generator.params, began)
    assert 0 < max(jax.tree.leaves(far)) < 1e-3


@pytest.mark.parametrize(
    ('changes', 'files', 'message'),
    [
        ({}, {}, 'has no generator: expected G_ema.pth or G.pth .and D.pth, to train.'),
        ({}, {'D': 'D.pth'}, 'has no generator'),
        ({}, {'G': 'generator.pth'}, 'has no generator'),
        (
            {},
            {'G': 'G_best0.pth', 'G_ema': 'G_best1.pth'},
            'several sets of weights .G_best0.pth, G',
        ),
        ({}, {'G': 'G_best0.pth', 'G_ema': 'G_ema_copy0.pth'}, 'several sets of weights'),
        ({'image_size': 96}, {'G': 'G.pth'}, r'has \d+ values in linear0.weight, .* of 12x12'),
        ({}, {'G': 'D.pth', 'D': 'G.pth'}, 'D.pth lacks .* weights of another network'),
        ({'num_classes': 7}, {'G': 'G.pth'}, r'has other shapes in \d+ tensors'),
        ({'channels': 1}, {'G': 'G.pth'}, 'has other shapes in'),
    ],
)
def test_refuses_folders_in_one_line(tmp_path, changes, files, message):
    config, sets, _ = resnet('sngan', **changes)
    for player, name in files.items():
        save_file(sets[player], tmp_path / name)
    config.init_from = str(tmp_path)
    with pytest.raises(UserError, match=message):
        state_of(config)


def test_a_missing_file_is_one_line(tmp_path):
    config = configured('stylegan2_cifar10:tiny')
    config.init_from = str(tmp_path / 'G.pth')
    with pytest.raises(
        UserError, match=r"config\.init_from='.*G\.pth' is not there: expected a gen"
    ):
        state_of(config)


def test_refuses_a_discriminator_of_other_images(tmp_path):
    """The authors' tells its size by its names."""
    told = json.loads(str(golden.load('stylegan2')['d_resnet.told']))
    widths = {name: told[name] for name in ('channel_base', 'channel_max')}
    config = configured('stylegan2_ffhq1024', label_layers=8, **widths)
    config.data.update({'image_size': 32, 'num_classes': told['c_dim']})
    sets = {'D': golden.filled(told['shapes']), 'G': {'nothing': np.zeros(1, np.float32)}}
    config.init_from = write(tmp_path, sets, '{}.pt')
    with pytest.raises(
        UserError, match=r'D\.pt is of other images than config\.data\.image_size=32'
    ):
        state_of(config)


def test_what_a_deep_network_lacks_is_one_line():
    _, sets, _ = resnet('sngan')
    deep = adversarial.game_of(configured('biggan_imagenet:deep', channels=8, latent_dim=6))
    for net, weights in zip(deep[:2], (sets['G'], sets['D']), strict=True):
        with pytest.raises(UserError, match='weights of another network'):
            from_studiogan(weights, net, 128)


@pytest.mark.parametrize('network', ['dcgan', 'progressive', 'mlp'])
def test_refuses_other_networks(network):
    config = default('gans.adversarial', network=network)
    config.init_from = 'G.pth'
    message = f"is for GANs of {', '.join(gans.NETWORKS)}: config.network='{network}' starts from"
    with pytest.raises(UserError, match=message):
        published.state_of(config, jax.random.key(0))
