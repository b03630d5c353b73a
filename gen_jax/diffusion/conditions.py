"""What samples are to be: labels and the sampler's numbers, from a condition or a config.

Shared by the methods of this room. With classes, guidance is classifier-free (Ho and Salimans
2022): in training some labels are hidden behind one more class, the null class.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.config import are_ends, guided_by, require
from gen_jax.diffusion.guidance import by_label, interval
from gen_jax.method import knob, labels

# A method's share of `config.sampler` and of `config.sample.knobs`.
SAMPLER = {
    'guidance_interval': (),  # least and most sigma / alpha that is guided; (): all
}
# `config.guide`: a trained run that guides samples, of a classifier of noised images or of a worse
# model; what it takes is said in gen_jax.diffusion.guides.
GUIDE = {
    'workdir': '',  # its folder; '': none
    'step': '',  # its checkpoint: a number, or best; '': the newest
    # In place of a run: FILE[:variant] of a config, and published weights for it (gen_jax.interop)
    'config': '',
    'init_from': '',
}
# `config.latent`: a trained first stage, whose latents are learned (gen_jax.latent).
LATENT = {
    # The folder of its run, or of an AutoencoderKL or VQModel of diffusers; '': images are learned
    'workdir': '',
    'step': '',  # its checkpoint: a number, or best; '': the newest
    'factor': 0.0,  # that its latents are multiplied by; 0: what makes their deviation 1
}
# See gen_jax.idle.
SERVES = (
    ('latent.step latent.factor', lambda c: c.latent.workdir, 'latent.workdir'),
    (
        'diffusion.gamma',
        lambda c: c.diffusion.weighting == 'min_snr',
        "diffusion.weighting='min_snr'",
    ),
)
KNOBS = {
    'guidance': 1.0,  # 0: unconditional, 1: conditional, more: guided
    'guidance_rescale': 0.0,  # phi, 0 to 1: contrast taken back that guidance adds
    'negative_label': -1,  # a class to be guided away from, in place of no label; -1: none
    # By `config.guide`: a classifier's scale, or of a worse model the weight beyond 1; 0: none
    'guide': 0.0,
}


def hide(key: jax.Array, label: jax.Array, share: float, null: int) -> jax.Array:
    """Labels [b], about that share of them replaced by the null class."""
    return jnp.where(jax.random.bernoulli(key, share, label.shape), null, label)


def guided(
    config, raw: Callable, level: Callable, x_t: jax.Array, t: jax.Array, condition: dict
) -> jax.Array:
    """What a network says given the condition's label, guided as the config and it say.

    Args:
      config: of the method.
      raw: (x_t, t, label) -> what the network says of x_t, and beyond its c channels of the
        variance, which remains that for the label.
      level: t -> (alpha, sigma), each [n, 1, 1, 1].
      x_t: [n, h, w, c].
      t: [n].
      condition: `label`, and where the model can be guided those of KNOBS that say how, each [n].
    """
    null, n = config.data.num_classes, len(x_t)
    label = labels(condition, null)
    if config.diffusion.label_dropout == 0:
        return raw(x_t, t, label)
    names = 'guidance', 'guidance_rescale', 'negative_label'
    guidance, phi, negative = (knob(config, condition, name, n) for name in names)
    if config.sampler.guidance_interval:
        alpha, sigma = (x[:, 0, 0, 0] for x in level(t))  # [n]
        guidance = interval(guidance, sigma / alpha, *config.sampler.guidance_interval)
    other = jnp.where(negative < 0, null, negative)
    return by_label(raw, x_t, t, label, other, guidance, phi)


def check(config) -> None:
    """Raises UserError where labels are to be hidden that are not there, or guidance cannot be."""
    dropout, scale = config.diffusion.label_dropout, config.sample.knobs.guidance
    require(0 <= dropout < 1, 'diffusion.label_dropout', dropout, 'a probability below 1')
    require(
        dropout == 0 or config.data.num_classes > 0,
        'diffusion.label_dropout',
        dropout,
        '0, because config.data.num_classes=0: there are no labels to hide',
    )
    ends, knobs = tuple(config.sampler.guidance_interval), config.sample.knobs
    phi, negative, null = knobs.guidance_rescale, knobs.negative_label, config.data.num_classes
    expected = '() or two finite numbers, 0 <= least < most'
    require(not ends or are_ends(ends), 'sampler.guidance_interval', ends, expected)
    require(math.isfinite(scale), 'sample.knobs.guidance', scale, 'a finite number')
    require(0 <= phi <= 1, 'sample.knobs.guidance_rescale', phi, '0 to 1')
    expected = f'-1 (none) or a class below data.num_classes={null}'
    require(-1 <= negative < max(null, 1), 'sample.knobs.negative_label', negative, expected)
    able = dropout > 0
    why = 'because config.diffusion.label_dropout=0: the model cannot be guided'
    require(able or scale == 1, 'sample.knobs.guidance', scale, f'1, {why}')
    some = able or guided_by(config)
    require(some or not ends, 'sampler.guidance_interval', ends, f'(), {why}')
    require(able or phi == 0, 'sample.knobs.guidance_rescale', phi, f'0, {why}')
    require(able or negative == -1, 'sample.knobs.negative_label', negative, f'-1, {why}')
    _check_guide(config.guide, knobs.guide)


def _check_guide(guide, scale: float) -> None:
    why = "because config.guide.workdir='' names no run that guides"
    there = guide.workdir or guide.config
    require(there or scale == 0, 'sample.knobs.guide', scale, f'0, {why}')
    expected = "'' with config.guide.workdir: one of them guides"
    require(not (guide.workdir and guide.config), 'guide.config', guide.config, expected)
    expected = 'a file or folder of weights' if guide.config else "'' without config.guide.config"
    fits = bool(guide.config) == bool(guide.init_from)
    require(fits, 'guide.init_from', guide.init_from, expected)
    require(guide.workdir or not guide.step, 'guide.step', guide.step, f"'', {why}")
    require(math.isfinite(scale), 'sample.knobs.guide', scale, 'a finite number')


def bounded(config, x: jax.Array) -> jax.Array:
    """Samples as images, in [-1, 1]; latents have no bounds."""
    return x if config.latent.workdir else jnp.clip(x, -1.0, 1.0)
