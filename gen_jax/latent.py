"""`config.latent`: a trained first stage, whose latents a diffusion model learns and draws.

Latent diffusion (Rombach et al. 2022). The first stage is any run whose method encodes images to
square maps and decodes these: autoencoders.first_stage, vq_vae, vq_vae2; or a published one, in a
folder of diffusers. It stays as it is. What encodes and decodes is part of the model's state, so
that a checkpoint draws images by itself; what else its training needed is not. Its config is read
from its folder each time.
"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gen_jax import guide
from gen_jax.config import create, guided_by, require
from gen_jax.data import sources
from gen_jax.diffusion.staged import Staged, frozen, staged
from gen_jax.errors import UserError
from gen_jax.interop import diffusers_first_stage
from gen_jax.method import Method
from gen_jax.runtime import sharding
from gen_jax.runtime.program import Program

MEASURED, PART = 256, 16  # images that the spread of latents is taken from, so many at a time


def stage_of(config: ml_collections.ConfigDict) -> str:
    """The folder of the first stage whose latents are learned; '' where images are."""
    return config.latent.workdir if 'latent' in config else ''


def method(config: ml_collections.ConfigDict, guided: bool = False) -> Method:
    """The method of a config, of the latents of `config.latent`'s run where there is one.

    Args:
      config: of the model.
      guided: whether `config.guide` may name a run that guides samples.

    Raises:
      UserError: as `create`; there is no such run, or its latents cannot be learned.
    """
    if not stage_of(config):
        return guide.method(config) if guided else create(config)
    inner = of_latents(config)
    return staged(create(inner), create(_stage(config)), inner.data)


def _stage(config) -> ml_collections.ConfigDict:
    """The first stage's config, without what only its training needs."""
    place, named = Path(stage_of(config)), f'config.latent.workdir={stage_of(config)!r}'
    if diffusers_first_stage.is_saved(place):
        step, expected = config.latent.step, "'' with a folder of diffusers, which has no steps"
        require(not step, 'latent.step', step, expected)
        return diffusers_first_stage.config_of(place, config.data)
    stage = guide.parsed(place, named)
    if 'first_stage' in stage:
        stage.first_stage.update({'perceptual': '', 'judge_weight': 0.0})
    return stage


def of_latents(config) -> ml_collections.ConfigDict:
    """The config with what the latents are in place of what images are.

    Raises:
      UserError: it does not fit its first stage.
    """
    place, stage = f'config.latent.workdir={stage_of(config)!r}', _stage(config)
    for field in ('image_size', 'channels', 'fit'):
        have, want = stage.data[field], config.data[field]
        if have != want:
            raise UserError(f'{place} has config.data.{field}={have!r}: expected {want!r} as here')
    require(not config.sampler.clip, 'sampler.clip', True, 'False: latents have no bounds')
    expected = "'' with config.latent.workdir: what guides knows images, not latents"
    require(not guided_by(config), 'guide.workdir', guided_by(config), expected)
    divergence = config.get('likelihood', {}).get('divergence', '')
    expected = "'' with config.latent.workdir: there is no likelihood of images"
    require(not divergence, 'likelihood.divergence', divergence, expected)
    factor = config.latent.factor
    expected = '0 (measured) or more, and finite'
    require(0 <= factor < math.inf, 'latent.factor', factor, expected)
    first = create(stage)
    if first.encode is None or first.decode is None:
        raise UserError(
            f'{place} is of config.method={stage.method!r}, which does not encode and decode: '
            'expected a run of autoencoders.first_stage, vq_vae or vq_vae2'
        )
    z = jax.eval_shape(first.encode, *_described(first, stage.data))
    if len(z.shape) != 4 or z.shape[1] != z.shape[2]:
        raise UserError(
            f'{place} has latents of shape {z.shape[1:]} an image: expected a square map [h, h, d]'
        )
    inner = config.copy_and_resolve_references()
    inner.data.image_size, inner.data.channels = z.shape[1], z.shape[3]
    return inner


def _described(first: Method, data) -> tuple:
    """The state of a method of images as `data` has them, and a batch of one, as shapes."""
    shape = jax.ShapeDtypeStruct((1, data.image_size, data.image_size, data.channels), jnp.float32)
    batch = {'image': shape, 'label': jax.ShapeDtypeStruct((1,), jnp.int32)}
    return jax.eval_shape(first.init, jax.random.key(0), batch), batch


def begun(program: Program, state: Staged, source, load) -> Staged:
    """A state before its first step, with its first stage as it was trained.

    Args:
      program: of the model.
      state: of which nothing but `own` matters.
      source: of the training images, of which some tell how far latents spread; None: there are
        none.
      load: (shape, folder, step, field) -> (step, state) of a run.

    Raises:
      UserError: there is no such first stage, or nothing tells the factor.
    """
    options, stage = program.config.latent, _stage(program.config)
    shape, _ = _described(create(stage), stage.data)
    placed = sharding.state_shardings(program.mesh, shape, program.config.mesh.rules)
    place, step = Path(options.workdir).absolute(), options.step or None
    if diffusers_first_stage.is_saved(place):
        if program.config.init_from and options.factor:
            diffusers_first_stage.check_scale(place, options.factor)
        published = diffusers_first_stage.state_of(stage, jax.random.key(0))
        trained = jax.device_put(published, placed)
    else:
        _, trained = load(sharding.laid_out(shape, placed), place, step, 'config.latent.step')
    factor, where = options.factor, program.state_shape.factor.sharding
    state = state.replace(stage=frozen(trained), factor=jax.device_put(np.float32(1), where))
    expected = 'a number with config.init_from, such as 0.18215: 0 is measured in training'
    require(factor or source is not None, 'latent.factor', factor, expected)
    if not factor:
        # From all of it: a folder's images lie class by class.
        spread = np.linspace(0, len(source) - 1, MEASURED).astype(int).reshape(-1, PART)
        parts = (program.given(sources.read(source, part)) for part in spread)
        factor = 1 / np.std([program.encode(state, part) for part in parts])
    return state.replace(factor=jax.device_put(np.float32(factor), where))
