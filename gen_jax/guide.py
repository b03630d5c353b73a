"""`config.guide`: another trained model that guides what --mode=sample, evaluate and edit make.

What it does to samples is said in gen_jax/diffusion/guides.py; its state is read by sample.load.
"""

import logging
from pathlib import Path

import ml_collections

from gen_jax.config import create, default, guided_by, method_module, nearest
from gen_jax.errors import UserError, in_one_line
from gen_jax.method import Method
from gen_jax.runtime import workdir
from gen_jax.runtime.config_file import ConfigFile


def method(config: ml_collections.ConfigDict) -> Method:
    """The method of a config, guided where `config.guide` names a run.

    Raises:
      UserError: as `create`; there is no such run, or it cannot guide this model.
    """
    guided = guided_by(config)
    if guided and not config.sample.knobs.guide:
        logging.warning('%s guides nothing while config.sample.knobs.guide=0', _named(config))
    return create(config, create(read(config)) if guided else None)


def read(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of what `config.guide` names, as a guide's.

    Raises:
      UserError: there is no such run or file, or it cannot guide this model.
    """
    if config.guide.config:
        guide = ConfigFile().parse(config.guide.config)
        guide.init_from = config.guide.init_from
    else:
        guide = parsed(Path(config.guide.workdir), _named(config))
    _check_fit(config, guide)
    if 'sampler' in guide:
        # Estimates are guided by label alike, and clipped together.
        free = guide.diffusion.label_dropout > 0
        guide.sampler.guidance_interval = config.sampler.guidance_interval if free else ()
        guide.sampler.clip = False
    return guide


def _named(config) -> str:
    return f'config.guide.{"config" if config.guide.config else "workdir"}={guided_by(config)!r}'


def parsed(folder: Path, named: str) -> ml_collections.ConfigDict:
    """A run's config, with defaults for what there was not when it was trained.

    Args:
      folder: of the run.
      named: what names it, for errors.
    """
    path = folder / 'config.json'
    if not path.is_file():
        raise UserError(
            f'{named}: expected the folder of a trained run, with config.json: train it first, '
            f'by main.py --config=FILE --workdir={folder}'
        )
    flat = workdir.read_json(path)
    try:
        choices = getattr(method_module(flat['method']), 'CHOICES', {})
        config = default(flat['method'], **{name: flat[name] for name in choices if name in flat})
        known = workdir.flat(config)
        config.update_from_flattened_dict(flat)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f'{path} is no config of this version ({in_one_line(error)}): expected what '
            '--mode=train leaves'
        ) from None
    if unknown := [name for name in flat if name not in known]:
        raise UserError(f'{path}: unknown field config.{unknown[0]}{nearest(unknown[0], known)}')
    return config


def _check_fit(config, guide) -> None:
    """Raises UserError where a guide knows other images, noise, times or classes than the model."""
    module = method_module(config.method)
    if guide.method not in module.GUIDES:
        raise UserError(
            f'{_named(config)} is of config.method={guide.method!r}: expected a run of '
            f'{" or ".join(module.GUIDES)}, which can guide {config.method}'
        )
    if (time := guide.get('time', module.TIME)) != module.TIME:
        raise UserError(
            f'{_named(config)} has config.time={time!r}: expected {module.TIME!r}, the time of '
            f'{config.method}; train a guide of default(METHOD, time={module.TIME!r})'
        )
    theirs, ours = (
        {f'data.{name}': x.data[name] for name in ('image_size', 'channels')}
        | {f'diffusion.{name}': value for name, value in module.seen(x.diffusion).items()}
        for x in (guide, config)
    )
    # In an order in which the first that differ are there in both.
    for field, want in ours.items():
        if (have := theirs[field]) != want:
            raise UserError(
                f'{_named(config)} has config.{field}={have!r}: expected {want!r} as this '
                'model has, for both to see the same noised images; train a guide with it'
            )
    have, want = guide.data.num_classes, config.data.num_classes
    classifies = guide.method != config.method
    if have != want and not (classifies and not want) and not (have == 0 and not classifies):
        raise UserError(
            f'{_named(config)} has config.data.num_classes={have}: expected {want}, the classes '
            'that this model is told'
        )
