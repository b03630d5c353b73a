"""Diffusion in continuous time: any process, prediction, weighting and sampler of this room.

EDM, the SDEs of Song et al. 2021 and flow matching are choices of `config.diffusion`; DDPM with its
T steps is `diffusion.gaussian`. With classes, guidance is classifier-free.
"""

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.config import guided_by, nearest, require, require_average
from gen_jax.diffusion import (
    augment,
    conditions,
    continuous_time,
    guides,
    likelihood,
    losses,
    networks,
    predictions,
    processes,
    samplers,
    solvers,
    uses,
)
from gen_jax.diffusion.conditions import guided, hide
from gen_jax.diffusion.gaussian import State, first_state
from gen_jax.diffusion.predictions import Prediction
from gen_jax.diffusion.processes import Path, Process
from gen_jax.method import (
    Method,
    check_batch,
    descend,
    knob,
    labels,
    optimizer,
    optimizer_defaults,
    ramped_decay,
    steps_taken,
)

CHOICES = {'network': 'model'}
# Methods that can guide this one's samples.
GUIDES = ('diffusion.continuous', 'diffusion.noised_classifier')
TIME = 'continuous'
PREDICTIONS = (*predictions.PREDICTIONS, 'edm')
PAIRINGS = ('random', 'optimal')
VARIANCES = (*samplers.VARIANCES, 'between')

# See gen_jax.idle.
SERVES = (
    *continuous_time.SERVES,
    *conditions.SERVES,
    *solvers.SERVES,
    (
        'diffusion.sigma_data',
        lambda c: 'edm' in (c.diffusion.prediction, c.diffusion.weighting),
        "prediction or weighting 'edm'",
    ),
    (
        'likelihood.dequantisation likelihood.tolerance',
        lambda c: c.likelihood.divergence,
        'likelihood.divergence',
    ),
    (
        'likelihood.probes',
        lambda c: c.likelihood.divergence in ('rademacher', 'gaussian'),
        "likelihood.divergence='rademacher' or 'gaussian'",
    ),
)


def defaults(network: str = 'unet') -> dict:
    """The method's part of a config: EDM (Karras et al. 2022) with a small net for the digits."""
    return {
        **networks.defaults(network),
        'diffusion': {
            **continuous_time.FIELDS,
            # Least time of training with times 'uniform', and of the likelihood; with other times
            # and no likelihood it changes nothing. 0: sampling's last
            't_min': 0.0,
            'prediction': 'edm',  # what the network says: eps, x_0, v, score, velocity, edm
            'weighting': 'simple',  # of its errors: simple, eps, x_0, edm, min_snr, likelihood
            'gamma': 5.0,  # of min_snr
            'sigma_data': 0.5,  # the data's standard deviation, for prediction and weighting 'edm'
            # Of image and noise in training: random, optimal (OT-CFM: a flow of no classes, by
            # samplers that add no noise)
            'pairing': 'random',
            'augment': 0.0,  # probability of each augmentation, which the network song is told
            'label_dropout': 0.0,  # share of labels hidden in training; more than 0: guidance
        },
        'optimizer': optimizer_defaults(learning_rate=1e-3, warmup=1000, clip=1.0),
        'ema_decay': 0.999,
        'ema_rampup': 0.0,  # most of its half-life, as a share of the steps so far; 0: no limit
        'likelihood': {
            # Of the probability-flow ODE, by which --mode=evaluate finds bits per dimension:
            # rademacher, gaussian, exact (small images only); '': it finds none
            'divergence': '',
            'probes': 1,  # drawn for each image
            'dequantisation': 'uniform',  # of the images' levels: uniform, none
            'tolerance': 1e-5,  # of the solver
        },
        'sampler': {
            **solvers.defaults('heun', 'karras', 'fixed_small', clip=False, continuous=True),
            **conditions.SAMPLER,
        },
        'sample': {
            'knobs': {
                **solvers.knobs(steps=18, continuous=True),
                **conditions.KNOBS,
            }
        },
        'guide': dict(conditions.GUIDE),
        'latent': dict(conditions.LATENT),
    }


class Model(NamedTuple):
    """A network, and what its input and its output mean.

    Attributes:
      network: says `prediction` of x_t.
      process: what samplers go through.
      taught: what training and the likelihood do, which may begin earlier.
      prediction: the meaning of its output.
      told: the meaning of its time, one of `continuous_time.TOLD`.
    """

    network: nn.Module
    process: Process
    taught: Process
    prediction: Prediction
    told: str

    @classmethod
    def from_config(cls, config) -> 'Model':
        """The one that a config's `diffusion` and `model` describe."""
        diffusion = config.diffusion
        known = predictions.PREDICTIONS | {'edm': predictions.edm(diffusion.sigma_data)}
        process, network = continuous_time.process(diffusion), networks.build(config)
        if diffusion.augment > 0:
            network = network.clone(augment_dim=augment.LABELS)
        taught = process._replace(t_min=diffusion.t_min or process.t_min)
        return cls(network, process, taught, known[diffusion.prediction], diffusion.told)

    def raw(self, variables, x_t, t, label, **options) -> jax.Array:
        """What the network says, [n, h, w, c]."""
        scaled = self.prediction.scale(*self.process.level(t)) * x_t
        told = continuous_time.time(self.told, self.process, t)
        return self.network.apply(variables, scaled, told, label, **options)


def seen(diffusion) -> dict:
    """As `continuous_time.seen`, and how noise is drawn, which classifiers do at random."""
    return {**continuous_time.seen(diffusion), 'pairing': diffusion.get('pairing', 'random')}


def create(config, guide: Method | None = None) -> Method:
    """Diffusion as `defaults` describes it.

    `sample_step` and `denoise` take in their condition what those of `diffusion.gaussian` take, and
    the knobs of `defaults`; with pairing 'optimal' they leave those of `solvers.NOISE` alone.
    `denoise`'s times are the process's own, float32 [n]. `evaluate_step` gives `loss`, at a drawn
    time; where `likelihood.divergence` names one also `ode_bits_per_dim`, or with
    `likelihood.dequantisation` 'none' `ode_density_bits_per_dim`, of the probability-flow ODE, and
    `ode_network_calls`, how many these took.

    Args:
      config: as `defaults` has it.
      guide: what guides samples: a method with `log_prob` or `denoise` at the same times. See
        `guides.guided`.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    check(config)
    data, sampler = config.data, config.sampler
    shape = (data.image_size, data.image_size, data.channels)
    model, tx = Model.from_config(config), optimizer(config.optimizer)
    squares = make_squares(config.diffusion, model)
    steered = guides.steering(config, guide, model.process.level)
    score = tells_score(config.diffusion)

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        label = jnp.zeros(1, jnp.int32) if data.num_classes else None
        variables = model.network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), label)
        return first_state(config, variables)

    def denoise(state, x_t, t, condition):
        t = jnp.asarray(t, jnp.float32)
        raw = partial(model.raw, guides.own(state).net.variables(ema=True))
        f = guided(config, raw, model.process.level, x_t, t, condition)
        x_0 = model.prediction.x_0(f, x_t, *model.process.level(t))
        return steered(x_0, state, x_t, t, condition)

    def visited(condition, n):
        steps = knob(config, condition, 'steps', n)
        return Path(model.process, steps, sampler.spacing, sampler.rho)

    def sample_step(keys, state, condition):
        known = {k: x for k, x in condition.items() if score or k not in solvers.NOISE}
        number = partial(knob, config, known, n=len(keys))
        asked, path = partial(denoise, state, condition=condition), visited(condition, len(keys))
        return conditions.bounded(config, solvers.run(config, asked, path, keys, shape, number))

    def evaluate_step(keys, state, batch):
        check_batch(batch, data.image_size, data.channels)
        times = partial(continuous_time.draw_times, config.diffusion, model.taught, n=1)
        t = jax.vmap(lambda key: times(jax.random.fold_in(key, 0))[0])(keys)
        eps, label = samplers.normal(keys, 1, shape), labels(batch, data.num_classes)
        variables = state.net.variables(ema=True)
        # In training OT-CFM's noise is not independent of the images, and its loss another.
        name = 'loss' if score else 'loss_of_random_pairs'
        found = {name: squares(variables, batch['image'], t, eps, label)}
        if config.likelihood.divergence:
            found |= bits(config.likelihood, model, variables, keys, batch['image'], label)
        return found

    method = Method(
        init,
        make_train_step(config, model, squares, tx),
        sample_step,
        evaluate_step,
        denoise=denoise,
        edits=uses.edits(denoise, visited, score),
        network_calls=solvers.calls(config, config.sample.knobs.steps),
    )
    return guides.guided(method, guide)


def tells_score(diffusion) -> bool:
    """Whether estimates tell the score: noise that is drawn for its image is no longer Gaussian."""
    return diffusion.pairing == 'random'


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
        alpha, sigma = model.process.level(t)
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
        t = continuous_time.draw_times(config.diffusion, model.taught, key_t, len(x_0))
        eps = jax.random.normal(key_eps, x_0.shape)
        if share > 0:
            label = hide(key_label, label, share, data.num_classes)
        told = {}
        if config.diffusion.augment > 0:
            done = augment.draw(key_augment, len(x_0), config.diffusion.augment)
            x_0, told = augment.apply(x_0, done), {'augment': done.labels()}
        if not tells_score(config.diffusion):
            eps = eps[losses.optimal_pairing(x_0, eps)]

        def loss_fn(params, extra, drawn):
            *drawn, told, key = drawn
            options = {'train': True, 'rngs': {'dropout': key}, **told}
            return squares({'params': params, **extra}, *drawn, **options).mean(), (extra, {})

        drawn = x_0, t, eps, label, told, key_dropout
        decay = ramped_decay(config, steps_taken(state.net))
        net, metrics = descend(state.net, loss_fn, tx, decay, drawn, config.accumulate)
        return State(net), metrics

    return train_step


def bits(options, model: Model, variables, keys, image, label) -> dict:
    """Bits per dimension as `config.likelihood` asks for them, neither guided nor clipped."""

    def denoise(x_t, t):
        f = model.raw(variables, x_t, t, label)
        return model.prediction.x_0(f, x_t, *model.process.level(t))

    tolerance = options.tolerance
    found = likelihood.bits_per_dim(
        denoise,
        model.taught,
        jax.vmap(jax.random.fold_in, (0, None))(keys, 2),
        image,
        options.dequantisation,
        options.divergence,
        options.probes,
        rtol=tolerance,
        atol=tolerance,
    )
    name = 'ode_bits_per_dim' if options.dequantisation == 'uniform' else 'ode_density_bits_per_dim'
    return {name: found['bits_per_dim'], 'ode_network_calls': found['nfe']}


def check(config) -> None:
    """Raises UserError where `diffusion`, `sampler` or `sample.knobs` cannot be obeyed."""
    diffusion, sampler = config.diffusion, config.sampler
    continuous_time.check(diffusion)
    named = (
        ('prediction', PREDICTIONS),
        ('weighting', losses.WEIGHTINGS),
        ('pairing', PAIRINGS),
    )
    for field, known in named:
        value = diffusion[field]
        require(value in known, f'diffusion.{field}', value, f'a known name{nearest(value, known)}')
    for field, known in (('variance', VARIANCES), ('spacing', processes.SPACINGS)):
        value = sampler[field]
        require(value in known, f'sampler.{field}', value, f'a known name{nearest(value, known)}')
    expected = (
        "'uniform' with weighting='likelihood', which bounds the likelihood of no other times"
    )
    fits = diffusion.weighting != 'likelihood' or diffusion.times == 'uniform'
    require(fits, 'diffusion.times', diffusion.times, expected)
    _check_pairing(config)
    _check_flow(diffusion, sampler)
    t_min, most = diffusion.t_min, min(0.1, continuous_time.process(diffusion).t_max)
    expected = f"0 (the process's) or more, below {most:g}"
    require(0 <= t_min < most, 'diffusion.t_min', t_min, expected)
    _check_likelihood(config)
    require(diffusion.gamma > 0, 'diffusion.gamma', diffusion.gamma, 'more than 0')
    std = diffusion.sigma_data
    require(0 < std < math.inf, 'diffusion.sigma_data', std, 'a number, more than 0')
    share, named = diffusion.augment, 'diffusion.augment'
    require(0 <= share <= 1, named, share, 'a probability')
    expected = f"0, because config.network={config.network!r}: only 'song' is told"
    require(share == 0 or config.network == 'song', named, share, expected)
    conditions.check(config)
    require_average(config)
    finite, score = diffusion.process != 'flow', tells_score(diffusion)
    solvers.check(config, continuous=True, finite=finite, score=score)


def _check_pairing(config) -> None:
    """What OT-CFM cannot do: its noise is Gaussian only of all images together."""
    diffusion, classes, guide = config.diffusion, config.data.num_classes, guided_by(config)
    conditional = 'noise of images that the network is told more of is not what samples start from'
    for misfit, what, why in (
        (diffusion.process != 'flow', f'process={diffusion.process!r}', 'OT-CFM is of flows'),
        # Cheng and Schwing 2025, The Curse of Conditions.
        (classes > 0, f'config.data.num_classes={classes}', conditional),
        (diffusion.augment > 0, f'augment={diffusion.augment}', conditional),
        (guide, f'config.guide of {guide!r}', f'guidance is {solvers.NO_SCORE}'),
    ):
        fits = tells_score(diffusion) or not misfit
        require(fits, 'diffusion.pairing', diffusion.pairing, f"'random' with {what}: {why}")


def _check_likelihood(config) -> None:
    asked, data = config.likelihood, config.data
    if asked.divergence:
        shape = data.image_size, data.image_size, data.channels
        likelihood.check(shape, asked, 'config.likelihood.')


def _check_flow(diffusion, sampler) -> None:
    """What a flow, which ends where no signal is left, cannot do."""
    if diffusion.process != 'flow':
        return
    known, spacings = ('velocity', 'v', 'x_0'), ('linear', 'quadratic', 'trailing')
    prediction, spacing, here = diffusion.prediction, sampler.spacing, continuous_time.IN_FLOWS
    require(prediction in known, 'diffusion.prediction', prediction, f'one of {known} {here}')
    require(spacing in spacings, 'sampler.spacing', spacing, f'one of {spacings} {here}')
