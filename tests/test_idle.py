"""A flag that would change nothing is refused, and only that."""

import importlib
import pkgutil

import pytest

from gen_jax import autoencoders, diffusion, gans, idle
from gen_jax.config import default
from gen_jax.errors import UserError
from gen_jax.runtime import workdir

CONTINUOUS = ('diffusion.continuous', {})
GAUSSIAN = ('diffusion.gaussian', {})
GAN = ('gans.adversarial', {'network': 'dcgan'})
FIRST_STAGE = ('autoencoders.first_stage', {})
# Of each field: a method, fields with which it is idle, another value of it, and what has it count.
FIELDS = {
    'optimizer.decay': (GAUSSIAN, {}, 'linear', {'optimizer.decay_steps': 9000}),
    'ema_rampup': (GAUSSIAN, {'ema_decay': 0.0}, 0.1, {'ema_decay': 0.9}),
    'ema_start': (GAN, {'ema_decay': 0.0}, 5, {'ema_decay': 0.9}),
    'data.fit': (GAUSSIAN, {'data.source': 'shapes'}, 'pad', {'edit.images': '/x'}),
    'data.tfds_dir': (GAUSSIAN, {}, '/x', {'data.source': 'tfds:mnist'}),
    'eval.resize': (GAUSSIAN, {'eval.network': 'digits'}, 'clean', {'eval.network': 'inception'}),
    'eval.dims': (GAUSSIAN, {'eval.network': 'digits'}, 192, {'eval.network': 'inception'}),
    'eval.perceptual_weights': (GAUSSIAN, {}, '/x', {'eval.perceptual': 'vgg'}),
    'eval.perceptual_heads': (GAUSSIAN, {}, '/x', {'eval.perceptual': 'vgg'}),
    'eval.every_n': (GAUSSIAN, {}, 5, {'eval.every': 100}),
    'edit.mask': (GAUSSIAN, {}, 'left', {'edit.task': 'repaint'}),
    'edit.strength': (GAUSSIAN, {}, 0.1, {'edit.task': 'vary'}),
    'edit.jump': (GAUSSIAN, {'edit.task': 'inpaint'}, 2, {'edit.task': 'repaint'}),
    'edit.repeats': (GAUSSIAN, {'edit.task': 'inpaint'}, 2, {'edit.task': 'repaint'}),
    'edit.eta': (GAUSSIAN, {}, 0.5, {'edit.task': 'inpaint'}),
    'edit.results': (GAUSSIAN, {}, 2, {'edit.task': 'interpolate'}),
    'explore.space': (GAN, {'explore.task': 'mixing'}, 'z', {'explore.task': 'interpolate'}),
    'explore.layers': (GAN, {}, (0, 1), {'explore.task': 'mixing'}),
    'explore.spread': (GAN, {}, 2.0, {'explore.task': 'traverse'}),
    'explore.samples': (GAN, {}, 99, {'explore.task': 'boundary'}),
    'explore.attribute': (GAN, {}, 'class:1', {'explore.task': 'boundary'}),
    'explore.images': (GAN, {}, '/x', {'explore.task': 'project'}),
    'explore.steps': (GAN, {}, 3, {'explore.task': 'project'}),
    'explore.learning_rate': (GAN, {}, 0.3, {'explore.task': 'project'}),
    'explore.extended': (GAN, {}, True, {'explore.task': 'project'}),
    'explore.pixel_weight': (GAN, {}, 0.0, {'explore.task': 'project'}),
    'gan.penalty_weight': (GAN, {}, 1.0, {'gan.penalty': 'r1'}),
    'gan.penalty_target': (GAN, {}, 2.0, {'gan.penalty': 'wgan_gp'}),
    'gan.penalty_every': (GAN, {}, 2, {'gan.penalty': 'r1'}),
    'gan.auxiliary_weight': (
        ('gans.adversarial', {'network': 'resnet'}),
        {'model.condition': 'none'},
        0.1,
        {'model.condition': 'auxiliary'},
    ),
    'gan.path_length_every': (
        ('gans.adversarial', {'network': 'stylegan2'}),
        {'gan.path_length': 0.0},
        2,
        {'gan.path_length': 1.0},
    ),
    'gan.instance_noise_steps': (GAN, {}, 10, {'gan.instance_noise': 0.1}),
    'model.label_layers': (
        ('gans.adversarial', {'network': 'stylegan2'}),
        {'data.num_classes': 0},
        1,
        {'data.num_classes': 10},
    ),
    'model.shared_dim': (
        ('gans.adversarial', {'network': 'biggan'}),
        {'data.num_classes': 0},
        2,
        {'data.num_classes': 10},
    ),
    'diffusion.beta_min': (GAUSSIAN, {'diffusion.betas': 'cosine'}, 1e-5, {'diffusion.betas': ''}),
    'diffusion.beta_max': (GAUSSIAN, {'diffusion.betas': 'cosine'}, 0.03, {'diffusion.betas': ''}),
    'diffusion.gamma': (GAUSSIAN, {}, 1.0, {'diffusion.weighting': 'min_snr'}),
    'diffusion.vlb_weight': (GAUSSIAN, {}, 1.0, {'diffusion.loss': 'hybrid'}),
    'latent.step': (GAUSSIAN, {}, '5', {'latent.workdir': '/x'}),
    'latent.factor': (GAUSSIAN, {}, 0.5, {'latent.workdir': '/x'}),
    'diffusion.levels': (CONTINUOUS, {}, 9, {'diffusion.process': 'ladder'}),
    'diffusion.times_mean': (
        CONTINUOUS,
        {'diffusion.times': 'uniform'},
        0.0,
        {'diffusion.times': 'lognormal'},
    ),
    'diffusion.times_std': (
        CONTINUOUS,
        {'diffusion.times': 'levels'},
        2.0,
        {'diffusion.times': 'logit_normal'},
    ),
    'diffusion.sigma_data': (
        CONTINUOUS,
        {'diffusion.prediction': 'eps'},
        0.3,
        {'diffusion.weighting': 'edm'},
    ),
    'likelihood.probes': (
        CONTINUOUS,
        {'likelihood.divergence': 'exact'},
        3,
        {'likelihood.divergence': 'gaussian'},
    ),
    'likelihood.dequantisation': (CONTINUOUS, {}, 'none', {'likelihood.divergence': 'exact'}),
    'likelihood.tolerance': (CONTINUOUS, {}, 1e-4, {'likelihood.divergence': 'exact'}),
    'sampler.rho': (GAUSSIAN, {}, 5.0, {'sampler.spacing': 'karras'}),
    'sampler.spacing': (CONTINUOUS, {'sampler.name': 'adaptive'}, 'linear', {'sampler.name': ''}),
    'sampler.share': (CONTINUOUS, {}, 0.1, {'sampler.variance': 'between'}),
    'sampler.churn_range': (CONTINUOUS, {}, (0.1, 1.0), {'sample.knobs.churn': 9.0}),
    'sampler.churn_noise': (CONTINUOUS, {}, 1.1, {'sample.knobs.churn': 9.0}),
    'sampler.order': (GAUSSIAN, {}, 3, {'sampler.name': 'unipc'}),
    'sampler.corrections': (GAUSSIAN, {}, 3, {'sampler.name': 'annealed_langevin'}),
    'sampler.solver': (CONTINUOUS, {}, 'dopri5', {'sampler.name': 'adaptive'}),
    'judge.width': (FIRST_STAGE, {'first_stage.judge_weight': 0.0}, 8, {}),
    'judge.layers': (FIRST_STAGE, {'first_stage.judge_weight': 0.0}, 2, {}),
    'first_stage.judged_from': (FIRST_STAGE, {'first_stage.judge_weight': 0.0}, 2, {}),
    'first_stage.perceptual_weight': (FIRST_STAGE, {}, 0.1, {'first_stage.perceptual': 'vgg'}),
    'first_stage.perceptual_weights': (FIRST_STAGE, {}, '/x', {'first_stage.perceptual': 'vgg'}),
    'first_stage.perceptual_heads': (FIRST_STAGE, {}, '/x', {'first_stage.perceptual': 'vgg'}),
    'vae_gan.equilibrium': (('autoencoders.vae_gan', {}), {}, 0.5, {'vae_gan.margin': 0.1}),
}
FIELDS |= {
    name: (*FIELDS[name][:3], {'first_stage.judge_weight': 0.5})
    for name in ('judge.width', 'judge.layers', 'first_stage.judged_from')
}


def made(method, choices, *changes):
    config = default(method, **choices)
    for fields in changes:
        config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize('field', FIELDS)
def test_what_nothing_reads_is_told_and_what_counts_is_taken(tmp_path, field):
    how, without, value, served = FIELDS[field]
    known = made(*how, without)
    idle.require_none(known, [field], tmp_path)  # its default
    asked = made(*how, without, {field: value})
    with pytest.raises(UserError, match=rf'^config\.{field}=.* changes nothing without .*leave'):
        idle.require_none(asked, [field], tmp_path)
    idle.require_none(made(*how, without, {field: value}, served), [field], tmp_path)
    # Left over by what a flag turned off, it stays; so it does in a run that began with it.
    idle.require_none(asked, ['steps'], tmp_path)
    workdir.claim(asked, tmp_path)
    idle.require_none(asked, [field], tmp_path)


def test_every_field_of_the_rows_is_tested():
    rows = list(idle.SERVES)
    for room in (autoencoders, diffusion, gans):
        for one in pkgutil.iter_modules(room.__path__, f'{room.__name__}.'):
            rows += getattr(importlib.import_module(one.name), 'SERVES', ())
    assert {field for fields, *_ in rows for field in fields.split()} == FIELDS.keys()
