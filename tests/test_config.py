import importlib.util
from pathlib import Path

import pytest

from gen_jax import latent
from gen_jax.config import create, default, nearest, validate, vary
from gen_jax.errors import UserError
from gen_jax.runtime import workdir

INF, NAN = float('inf'), float('nan')
RATES = 'learning_rate', 'eps', 'weight_decay', 'clip'
CONFIGS = sorted((Path(__file__).parents[1] / 'configs').glob('*.py'))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize('variant', ['', 'tiny'])
def test_every_config_is_valid_and_has_a_tiny_variant(path, variant):
    module = load(path)
    create(module.get_config(variant))
    assert '--config' in module.__doc__ or 'python main.py' in module.__doc__


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_variant_can_be_made(path, tmp_path):
    module = load(path)
    with pytest.raises(UserError, match='unknown variant') as told:
        module.get_config('qqqqqq')
    variants = str(told.value).partition('known are: ')[2].split(', ')
    assert 'tiny' in variants
    for variant in variants:
        config = module.get_config(variant)
        if latent.stage_of(config):
            first = path.with_name(f'{Path(config.latent.workdir).name}.py')
            stage = load(first).get_config('tiny' if 'tiny' in variant else '')
            stage.data.image_size = config.data.image_size
            workdir.claim(stage, tmp_path / variant)
            config.latent.workdir = str(tmp_path / variant)
        latent.method(config)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_an_unknown_variant_names_the_nearest(path):
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        load(path).get_config('tinny')


def test_an_unknown_field_names_the_nearest():
    config = default('diffusion.gaussian')
    with config.unlocked():
        config.batchsize = 3
    with pytest.raises(UserError, match=r"config\.batchsize, did you mean 'batch_size'"):
        validate(config)


def test_an_unknown_nested_field_names_its_path():
    config = default('diffusion.gaussian')
    with config.data.unlocked():
        config.data.sizes = 3
    with pytest.raises(UserError, match=r'config\.data\.sizes'):
        validate(config)


@pytest.mark.parametrize(
    'field',
    [
        'method',  # which says what else there must be
        'network',  # likewise
        'seed',
        'data',
        'data.flip',  # read long after the start
        'model',
        'model.groups',
        'optimizer',
        'optimizer.clip',
        'mesh.rules',
        'sample.knobs',
        'sample.knobs.eta',
        'explore',
        'eval.dims',
    ],
)
def test_a_field_that_is_not_there_is_named(field):
    config = default('diffusion.gaussian')
    *rooms, name = field.split('.')
    room = config
    for part in rooms:
        room = room[part]
    del room[name]
    with pytest.raises(UserError, match=f'config.{field} is not there: start from default'):
        create(config)


@pytest.mark.parametrize(
    ('method', 'field', 'chooses'),
    [
        ('autoencoders.vae', 'model.chanels', 'network'),
        ('autoencoders.vae', 'vae.capacity', 'objective'),
        ('autoencoders.vae', 'pixels.sigmas', ''),
        ('autoencoders.first_stage', 'first_stage.beta', 'kind'),
        ('autoencoders.first_stage', 'model.chanels', ''),
    ],
)
def test_an_unknown_field_names_the_choice_that_says_its_parts_fields(method, field, chooses):
    config = default(method)
    part, name = field.split('.')
    with config.unlocked():
        config[part][name] = 1
    with pytest.raises(UserError) as error:
        validate(config)
    told = str(error.value)
    assert told.startswith(f'unknown field config.{field}')
    assert told.endswith(f'; default(METHOD, {chooses}=...) chooses it' if chooses else '?')


def test_another_method_lacks_fields():
    """As `--config.method=autoencoders.vae` makes it of a config of diffusion."""
    config = default('diffusion.gaussian')
    config.method = 'autoencoders.vae'
    with pytest.raises(UserError, match=r'config\.objective is not there'):
        create(config)


def test_a_field_set_to_another_type_is_refused_where_it_happens():
    config = default('diffusion.gaussian')
    with pytest.raises(TypeError):
        config.batch_size = 'many'


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('steps', 0),
        ('batch_size', -1),
        ('accumulate', 0),
        ('accumulate', 3),  # does not divide 64
        ('log_every', 0),
        ('checkpoint_every', 0),
        ('keep', 0),
        ('sample_every', -1),
        ('data.image_size', 0),
        ('data.channels', 0),
        ('data.num_classes', -1),
        ('data.fit', 'stretch'),
        ('data.threads', 0),
        ('data.prefetch', 0),
        ('mesh.data', 0),
        ('mesh.fsdp', -1),
        ('sample.n', 0),
        ('sample.batch_size', 0),
        ('sample.grid', 0),
        ('sample.format', 'gif'),
        ('sample.label', 0),  # no classes by default
        ('sample.label', -2),
        *((f'optimizer.{name}', value) for name in RATES for value in (INF, NAN)),
        ('optimizer.learning_rate', -1e-3),
        ('optimizer.learning_rate', 0.0),
        ('optimizer.warmup', -1),
        ('optimizer.weight_decay', -0.1),
        ('optimizer.clip', -1.0),
        ('optimizer.b1', 1.0),
        ('optimizer.b2', NAN),
        ('optimizer.eps', 0.0),
        ('data.crop', 0.0),
        ('data.crop', 1.1),
        ('optimizer.decay', 'step'),
        ('optimizer.decay_steps', -1),
        ('eval.n', 1),
        ('eval.every_n', 1),
        ('eval.batch_size', -1),
        ('eval.every', -1),
        ('eval.every_metrics', ('fid',)),  # never asked for
        ('eval.best', 'lowest fid'),  # likewise
    ],
)
def test_bad_values_are_named_in_one_line(field, value):
    config = default('diffusion.gaussian')
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as error:
        validate(config)
    assert f'config.{field}={value!r}' in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('best', ['fid', 'lowest', 'smallest fid', 'lowest fid kid', 'lowest  fid'])
def test_a_malformed_choice_of_the_best_checkpoint_is_told(best):
    config = default('diffusion.gaussian')
    config.eval.update({'every': 5, 'every_metrics': ('fid',), 'best': 'lowest fid'})
    validate(config)
    config.eval.best = best
    with pytest.raises(UserError, match=f"config.eval.best='{best}': expected 'lowest NAME'"):
        validate(config)


def test_what_is_padded_is_not_cropped():
    config = default('diffusion.gaussian')
    config.data.update(fit='pad', crop=0.9)
    with pytest.raises(UserError, match=r"config\.data\.crop=0\.9: expected 1 where .*fit='pad'"):
        validate(config)


def against(config) -> str:
    """What `create` has against a config; '' where nothing."""
    try:
        create(config)
    except UserError as error:
        return str(error)
    return ''


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_what_a_tuple_cannot_hold_ends_in_one_line(path):
    """Its items have no types that ml_collections would keep."""
    plain = load(path).get_config('tiny')
    names = [name for name, value in workdir.flat(plain).items() if isinstance(value, list)]
    assert 'eval.metrics' in names
    for name in names:
        for items in (('a', 'b'), (0.5, float('nan')), (None, None)):
            config = plain.copy_and_resolve_references()
            config.update_from_flattened_dict({name: items})
            assert '\n' not in against(config)


def test_an_unknown_method_is_named():
    with pytest.raises(UserError, match='no_such_method'):
        default('no_such_method')
    with pytest.raises(UserError, match=r'diffusion\.no_such'):
        default('diffusion.no_such')


def test_vary_changes_only_what_the_variant_names():
    config = vary(default('diffusion.gaussian'), 'small', small={'data.image_size': 16})
    other = default('diffusion.gaussian')
    assert config.data.image_size == 16
    config.data.image_size = other.data.image_size
    assert config == other


def test_nearest_lists_what_is_known_where_nothing_is_near():
    assert nearest('qqq', ['steps', 'seed']) == '; known are: seed, steps'
