"""`config.init_from`: published weights that a run starts from, or that are sampled and judged.

Who reads them is found by the config's method and network; how each file is read, and what it must
be, stands in the modules that are named here.
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from gen_jax.autoencoders import vdvae
from gen_jax.config import require
from gen_jax.diffusion import continuous, gaussian, noised_classifier
from gen_jax.diffusion.adm import classifier_from_config
from gen_jax.errors import UserError
from gen_jax.interop import (
    adm,
    diffusers_ddpm,
    diffusers_dit,
    diffusers_first_stage,
    dit,
    gans,
    ncsnv2,
    song,
)
from gen_jax.interop import vdvae as vdvae_names
from gen_jax.interop.diffusers_folder import check_schedule
from gen_jax.interop.noise import require_linear
from gen_jax.interop.tensors import read_tensors

MODELS = {'diffusion.gaussian': gaussian.Model, 'diffusion.continuous': continuous.Model}


def state_of(config, key: jax.Array):
    """The state before the first step with the weights of `config.init_from`.

    Averages are the weights that were read, where a GAN's folder has none of its own; the optimiser
    starts afresh: sample, or go on training.

    Args:
      config: valid, of one of METHODS, and of latents where the weights are.
      key: of what else there is to a state.

    Raises:
      UserError: there are no such weights for this method and network, or they are others than the
        config describes.
    """
    if config.method not in METHODS:
        raise UserError(
            f'config.init_from={config.init_from!r} is for {", ".join(METHODS)}: '
            f"config.method={config.method!r} starts from ''"
        )
    return METHODS[config.method](config, key)


def _diffusion(config, key):
    del key
    if config.network == 'unet':
        expected = f"'' with config.method={config.method!r}, or another config.network"
        fits = config.method == 'diffusion.gaussian'
        require(fits, 'init_from', config.init_from, expected)
        return diffusers_ddpm.gaussian_state(config, config.init_from)
    variables = NETWORKS[config.network](config, MODELS[config.method].from_config(config).network)
    return gaussian.first_state(config, jax.tree.map(jnp.asarray, variables))


def _classifier(config, key):
    del key
    variables = adm.variables_of(config, classifier_from_config(config))
    return noised_classifier.first_state(config, jax.tree.map(jnp.asarray, variables))


def _vdvae(config, key):
    del key
    module, data = vdvae.module_of(config), config.data
    image = data.image_size, data.image_size, data.channels
    tensors = read_tensors(config.init_from)
    params = vdvae_names.from_reference(tensors, module, image, config.init_from)
    return vdvae.first_state(config, {'params': jax.tree.map(jnp.asarray, params)})


def _dit(config, net) -> dict:
    """The variables of a DiT, from the authors' file or a folder of diffusers."""
    path, channels, diffusion = config.init_from, config.data.channels, config.diffusion
    found = diffusion.prediction, diffusion.told
    expected = f"('eps', 'time'), which the weights in {path} are trained for"
    named = 'diffusion.prediction, config.diffusion.told'
    require(found == ('eps', 'time'), named, found, expected)
    folder, steps = Path(path).is_dir(), config.method == 'diffusion.gaussian'
    if not (folder and steps and check_schedule(diffusion, path)):
        require_linear(diffusion, path)
    if not folder:
        return {'params': dit.from_reference(read_tensors(path), net, channels, path)}
    return {'params': diffusers_dit.load_into(path, net, channels)}


NETWORKS = {
    'adm': adm.variables_of,
    'dit': _dit,
    'refinenet': ncsnv2.variables_of,
    'song': song.variables_of,
}
METHODS = {
    'diffusion.gaussian': _diffusion,
    'diffusion.continuous': _diffusion,
    'diffusion.noised_classifier': _classifier,
    'autoencoders.first_stage': diffusers_first_stage.state_of,
    'autoencoders.vdvae': _vdvae,
    'gans.adversarial': gans.state_of,
}
