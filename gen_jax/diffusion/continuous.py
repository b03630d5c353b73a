"""Diffusion in continuous time: any process, prediction, weighting and sampler of this room.

EDM, the SDEs of Song et al. 2021 and flow matching are choices of `config.diffusion`; DDPM with its
T steps is `diffusion.gaussian`. With classes, guidance is classifier-free.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.config import nearest, require
from gen_jax.diffusion import (
    augment,
    gaussian,
    losses,
    networks,
    predictions,
    processes,
    samplers,
    solvers,
)
from gen_jax.diffusion.gaussian import State, hide, knob, labels
from gen_jax.diffusion.guidance import by_label, interval
from gen_jax.diffusion.predictions import Prediction
from gen_jax.diffusion.processes import Path, Process
from gen_jax.errors import UserError
from gen_jax.method import Method, Net, check_batch, descend, optimizer, optimizer_defaults

CHOICES = ('network',)
# What each takes as `config.diffusion.range`.
PROCESSES = {
    'vp_linear': processes.vp_linear,  # betas
    'vp_cosine': processes.vp_cosine,
    'sub_vp': processes.sub_vp,  # betas
    've': processes.ve,  # sigmas
    'edm': processes.edm,  # sigmas
    'flow': processes.flow,
}
RANGED = ('vp_linear', 'sub_vp', 've', 'edm')
PREDICTIONS = (*predictions.PREDICTIONS, 'edm')
TOLD = ('time', 'log_ratio', 'log_sigma')
PAIRINGS = ('random', 'optimal')


def defaults(network: str = 'unet') -> dict:
    """The method's part of a config: EDM (Karras et al. 2022) with a small net for the digits."""
    return {
        **networks.defaults(network),
        'diffusion': {
            'process': 'edm',  # vp_linear, vp_cosine, sub_vp, ve, edm, flow
            'range': (),  # least and most beta (vp_linear, sub_vp) or sigma (ve, edm); (): usual
            'prediction': 'edm',  # what the network says: eps, x_0, v, score, velocity, edm
            # What it is told: time (999 t), log_ratio (log(sigma/alpha) / 4, as EDM's networks), or
            # log_sigma (log(sigma/alpha / 2): score_sde's NCSN++, which count images in [0, 1])
            'told': 'log_ratio',
            'weighting': 'simple',  # of its errors: simple, eps, x_0, edm, min_snr, likelihood
            'gamma': 5.0,  # of min_snr
            'times': 'lognormal',  # at which it is trained: uniform, lognormal, logit_normal
            'times_mean': -1.2,  # of the normal in the last two
            'times_std': 1.2,
            'sigma_data': 0.5,  # the data's standard deviation, for prediction and weighting 'edm'
            'pairing': 'random',  # of image and noise in training: random, optimal (OT-CFM)
            'augment': 0.0,  # probability of each augmentation, which the network song is told
            'label_dropout': 0.0,  # share of labels hidden in training; more than 0: guidance
        },
        'optimizer': optimizer_defaults(learning_rate=1e-3, warmup=1000, clip=1.0),
        'ema_decay': 0.999,
        'sampler': {
            **solvers.defaults('heun', 'karras', 'fixed_small', clip=False, continuous=True),
            'guidance_interval': (),  # least and most sigma / alpha that is guided; (): all
        },
        'sample': {
            'knobs': {
                **solvers.knobs(steps=18, continuous=True),
                'guidance': 1.0,  # 0: unconditional, 1: conditional, more: guided
                'guidance_rescale': 0.0,  # phi, 0 to 1: contrast taken back that guidance adds
            }
        },
    }


class Model(NamedTuple):
    """A network, and what its input and its output mean."""

    network: nn.Module
    process: Process
    prediction: Prediction
    told: str

    @classmethod
    def from_config(cls, config) -> 'Model':
        """The one that a config's `diffusion` and `model` describe."""
        diffusion = config.diffusion
        known = predictions.PREDICTIONS | {'edm': predictions.edm(diffusion.sigma_data)}
        process = PROCESSES[diffusion.process](*diffusion.range)
        network = networks.build(config)
        if diffusion.augment > 0:
            network = network.clone(augment_dim=augment.LABELS)
        return cls(network, process, known[diffusion.prediction], diffusion.told)

    def level(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(alpha, sigma) at t [n], each [n, 1, 1, 1]."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return alpha[:, None, None, None], sigma[:, None, None, None]

    def time(self, t: jax.Array) -> jax.Array:
        """What the network is told of t [n]."""
        if self.told == 'time':
            return 999 * t
        ratio = self.process.sigma(t) / self.process.alpha(t)
        return jnp.log(ratio) / 4 if self.told == 'log_ratio' else jnp.log(ratio / 2)

    def raw(self, variables, x_t, t, label, **options) -> jax.Array:
        """What the network says, [n, h, w, c]."""
        scaled = self.prediction.scale(*self.level(t)) * x_t
        return self.network.apply(variables, scaled, self.time(t), label, **options)


def create(config) -> Method:
    """Diffusion as `defaults` describes it.

    `sample_step` and `denoise` take in their condition what those of `diffusion.gaussian` take, the
    knobs of `defaults`, and where the model was trained to be guided `negative_label` int32 [n], to
    be guided away from, in place of no label. `denoise`'s times are the process's own, float32 [n].
    `evaluate_step` gives `loss`, at a drawn time.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    check(config)
    data, sampler = config.data, config.sampler
    shape = (data.image_size, data.image_size, data.channels)
    model, tx = Model.from_config(config), optimizer(config.optimizer)
    squares = make_squares(config.diffusion, model)

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        label = jnp.zeros(1, jnp.int32) if data.num_classes else None
        variables = model.network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), label)
        return State(Net.create(variables, tx, ema=True))

    def denoise(state, x_t, t, condition):
        t = jnp.asarray(t, jnp.float32)
        raw = partial(model.raw, state.net.variables(ema=True))
        f = guided(config, model, raw, x_t, t, condition)
        x_0 = model.prediction.x_0(f, x_t, *model.level(t))
        return jnp.clip(x_0, -1.0, 1.0) if sampler.clip else x_0

    def sample_step(keys, state, condition):
        number = partial(knob, config, condition, n=len(keys))
        path = Path(model.process, number('steps'), sampler.spacing)
        asked = partial(denoise, state, condition=condition)
        return jnp.clip(solvers.run(config, asked, path, keys, shape, number), -1.0, 1.0)

    def evaluate_step(keys, state, batch):
        check_batch(batch, data.image_size, data.channels)
        times = partial(draw_times, config.diffusion, model, n=1)
        t = jax.vmap(lambda key: times(jax.random.fold_in(key, 0))[0])(keys)
        eps, label = samplers.normal(keys, 1, shape), labels(batch, data.num_classes)
        return {'loss': squares(state.net.variables(ema=True), batch['image'], t, eps, label)}

    return Method(
        init,
        make_train_step(config, model, squares, tx),
        sample_step,
        evaluate_step,
        denoise=denoise,
        network_calls=solvers.calls(config, config.sample.knobs.steps),
    )


def draw_times(diffusion, model: Model, key: jax.Array, n: int) -> jax.Array:
    """The times of n training examples, as `config.diffusion` draws them."""
    mean, std = diffusion.times_mean, diffusion.times_std
    return losses.draw_times(diffusion.times, model.process, key, n, mean, std)


def make_squares(diffusion, model: Model):
    """(variables, x_0, t, eps, label) -> the weighted squared error of each example, [b]."""
    weight = losses.weighting(
        diffusion.weighting,
        model.process,
        model.prediction,
        gamma=diffusion.gamma,
        sigma_data=diffusion.sigma_data,
    )

    def squares(variables, x_0, t, eps, label, **options):
        alpha, sigma = model.level(t)
        f = model.raw(variables, alpha * x_0 + sigma * eps, t, label, **options)
        error = f - model.prediction.target(x_0, eps, alpha, sigma)
        return weight(t) * jnp.mean(error**2, (1, 2, 3))

    return squares


def make_train_step(config, model: Model, squares, tx):
    """(key, state, batch) -> (state, metrics), with `squares` for the loss."""
    data, share = config.data, config.diffusion.label_dropout

    def train_step(key, state, batch):
        check_batch(batch, data.image_size, data.channels)
        x_0, label = batch['image'], labels(batch, data.num_classes)
        key_t, key_eps, key_label, key_dropout, key_augment = jax.random.split(key, 5)
        t = draw_times(config.diffusion, model, key_t, len(x_0))
        eps = jax.random.normal(key_eps, x_0.shape)
        if share > 0:
            label = hide(key_label, label, share, data.num_classes)
        told = {}
        if config.diffusion.augment > 0:
            done = augment.draw(key_augment, len(x_0), config.diffusion.augment)
            x_0, told = augment.apply(x_0, done), {'augment': done.labels()}
        if config.diffusion.pairing == 'optimal':
            eps = eps[losses.optimal_pairing(x_0, eps)]

        def loss_fn(params, extra, drawn):
            *drawn, told, key = drawn
            options = {'train': True, 'rngs': {'dropout': key}, **told}
            return squares({'params': params, **extra}, *drawn, **options).mean(), (extra, {})

        drawn = x_0, t, eps, label, told, key_dropout
        net, metrics = descend(state.net, loss_fn, tx, config.ema_decay, drawn, config.accumulate)
        return State(net), metrics

    return train_step


def guided(config, model: Model, raw, x_t: jax.Array, t: jax.Array, condition: dict) -> jax.Array:
    """What the network says given the condition's label, guided as the config and it say."""
    null, n = config.data.num_classes, len(x_t)
    label = labels(condition, null)
    if config.diffusion.label_dropout == 0:
        if 'negative_label' in condition:
            raise UserError(
                "'negative_label' in the condition of a model that cannot be guided: "
                'expected none; train it with config.diffusion.label_dropout above 0'
            )
        return raw(x_t, t, label)
    guidance, phi = (knob(config, condition, name, n) for name in ('guidance', 'guidance_rescale'))
    if config.sampler.guidance_interval:
        ratio = model.process.sigma(t) / model.process.alpha(t)
        guidance = interval(guidance, ratio, *config.sampler.guidance_interval)
    other = condition.get('negative_label', jnp.full(n, null, jnp.int32))
    return by_label(raw, x_t, t, label, other, guidance, phi)


def check(config) -> None:
    """Raises UserError where `diffusion`, `sampler` or `sample.knobs` cannot be obeyed."""
    diffusion, sampler = config.diffusion, config.sampler
    named = (
        ('process', PROCESSES),
        ('prediction', PREDICTIONS),
        ('told', TOLD),
        ('weighting', losses.WEIGHTINGS),
        ('times', losses.TIMES),
        ('pairing', PAIRINGS),
    )
    for field, known in named:
        value = diffusion[field]
        require(value in known, f'diffusion.{field}', value, f'a known name{nearest(value, known)}')
    for field, known in (('variance', samplers.VARIANCES), ('spacing', processes.SPACINGS)):
        value = sampler[field]
        require(value in known, f'sampler.{field}', value, f'a known name{nearest(value, known)}')
    _check_range(diffusion)
    _check_fit(diffusion, sampler)
    for field in ('gamma', 'times_std', 'sigma_data'):
        require(diffusion[field] > 0, f'diffusion.{field}', diffusion[field], 'more than 0')
    share, named = diffusion.augment, 'diffusion.augment'
    require(0 <= share <= 1, named, share, 'a probability')
    expected = f"0, because config.network={config.network!r}: only 'song' is told"
    require(share == 0 or config.network == 'song', named, share, expected)
    gaussian.check_guidance(config)
    _check_guidance(config)
    solvers.check(config, continuous=True, finite=diffusion.process != 'flow')


def _check_guidance(config) -> None:
    ends, phi = tuple(config.sampler.guidance_interval), config.sample.knobs.guidance_rescale
    ok = not ends or (len(ends) == 2 and 0 <= ends[0] < ends[1])
    expected = '() or two numbers, 0 <= least < most'
    require(ok, 'sampler.guidance_interval', ends, expected)
    require(0 <= phi <= 1, 'sample.knobs.guidance_rescale', phi, '0 to 1')
    able = config.diffusion.label_dropout > 0
    why = 'because config.diffusion.label_dropout=0: the model cannot be guided'
    require(able or not ends, 'sampler.guidance_interval', ends, f'(), {why}')
    require(able or phi == 0, 'sample.knobs.guidance_rescale', phi, f'0, {why}')


def _check_range(diffusion) -> None:
    name, ends = diffusion.process, tuple(diffusion.range)
    if not ends:
        return
    require(name in RANGED, 'diffusion.range', ends, f'(), as process={name!r} has none')
    ok = len(ends) == 2 and 0 < ends[0] < ends[1]
    require(ok, 'diffusion.range', ends, 'two numbers, 0 < least < most')


def _check_fit(diffusion, sampler) -> None:
    """What a flow, which ends where no signal is left, cannot do."""
    if diffusion.process != 'flow':
        expected = "'uniform' or 'lognormal': 'logit_normal' is for process='flow'"
        require(diffusion.times != 'logit_normal', 'diffusion.times', diffusion.times, expected)
        return
    here = "with process='flow', which starts where sigma / alpha is infinite"
    known, spacings = ('velocity', 'v', 'x_0'), ('linear', 'quadratic', 'trailing')
    prediction, told, spacing = diffusion.prediction, diffusion.told, sampler.spacing
    require(prediction in known, 'diffusion.prediction', prediction, f'one of {known} {here}')
    require(told == 'time', 'diffusion.told', told, f"'time' {here}")
    require(spacing in spacings, 'sampler.spacing', spacing, f'one of {spacings} {here}')
    times = diffusion.times
    require(times != 'lognormal', 'diffusion.times', times, f"'uniform' or 'logit_normal' {here}")
