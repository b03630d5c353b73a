"""DDPM (Ho et al. 2020) and improved DDPM (Nichol and Dhariwal 2021), in T discrete steps.

Sampled by their own sampler or by DDIM (Song et al. 2021); with classes, guidance is
classifier-free (Ho and Salimans 2022). Times count from 0: t is the papers' t-1.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gen_jax.config import nearest, require, require_average
from gen_jax.diffusion import (
    bound,
    conditions,
    discrete,
    guides,
    losses,
    networks,
    predictions,
    samplers,
    solvers,
    uses,
)
from gen_jax.diffusion.conditions import guided, hide
from gen_jax.diffusion.predictions import Prediction
from gen_jax.diffusion.schedules import SPACINGS, DiscreteProcess, Trajectory
from gen_jax.method import (
    Method,
    Net,
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
GUIDES = ('diffusion.gaussian', 'diffusion.noised_classifier')
TIME = 'discrete'
seen = discrete.seen
VARIANCES = (*samplers.VARIANCES, 'learned_range')
PREDICTIONS = ('eps', 'x_0', 'v')
LOSSES = ('simple', 'hybrid', 'vlb')
WEIGHTINGS = ('simple', 'eps', 'x_0', 'min_snr')
TIMES = ('uniform', 'loss_second_moment')
# Spacings that begin at the last time whatever the steps are (Lin et al. 2024, section 3.3).
REACHING = ('linspace', 'trailing')

# See gen_jax.idle.
SERVES = (
    *discrete.SERVES,
    *conditions.SERVES,
    *solvers.SERVES,
    ('diffusion.vlb_weight', lambda c: c.diffusion.loss == 'hybrid', "diffusion.loss='hybrid'"),
)


class State(struct.PyTreeNode):
    """All that training changes.

    With times 'loss_second_moment', `net.extra['times']` is the history of `losses.second_moment`.
    """

    net: Net


def defaults(network: str = 'unet') -> dict:
    """The method's part of a config: a small net for the house's default data, the 8x8 digits."""
    return {
        **networks.defaults(network),
        'diffusion': {
            **discrete.FIELDS,
            'prediction': 'eps',  # what the network says: eps, x_0, v
            'learned_variance': False,  # whether it also says variances, in as many channels more
            # simple (of what it says), vlb (the bound, with fixed_large where no variance is
            # learned), hybrid (simple, and the bound for the variances only)
            'loss': 'simple',
            'vlb_weight': 1e-3,  # of the bound in hybrid, lambda
            'weighting': 'simple',  # of simple's errors: simple, eps, x_0, min_snr
            'gamma': 5.0,  # of min_snr
            'times': 'uniform',  # at which it is trained: uniform, loss_second_moment
            'label_dropout': 0.0,  # share of labels hidden in training; more than 0: guidance
        },
        'optimizer': optimizer_defaults(learning_rate=2e-4, warmup=5000, clip=1.0),
        'ema_decay': 0.9999,
        'ema_rampup': 0.0,  # most of its half-life, as a share of the steps so far; 0: no limit
        'sampler': {
            **solvers.defaults('ddim', 'linear', 'fixed_large', clip=True, continuous=False),
            **conditions.SAMPLER,
        },
        'sample': {'knobs': {**solvers.knobs(steps=50, continuous=False), **conditions.KNOBS}},
        'guide': dict(conditions.GUIDE),
        'latent': dict(conditions.LATENT),
    }


def create(config, guide: Method | None = None) -> Method:
    """Gaussian diffusion as `defaults` describes it.

    `sample_step` and `denoise` take in their condition `label` int32 [n] where the model knows
    classes, `guidance` float [n] where it was trained to be guided (1: the plain conditional
    model); `sample_step` also `steps` int32 [n], each 1 .. T, and `eta` float [n] for DDIM. It
    calls the network as often as the largest number of steps says. They, and `evaluate_step`, use
    the averaged parameters. `evaluate_step` gives what `bound.evaluate` does; it runs the network T
    times.

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
    num_classes = data.num_classes
    model = Model.from_config(config)
    process = model.process
    steered = guides.steering(config, guide, model.process.level)

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        label = jnp.zeros(1, jnp.int32) if num_classes else None
        variables = model.network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), label)
        return first_state(config, variables)

    def estimate(state, x_t, t, condition) -> bound.Estimate:
        raw = partial(model.raw, guides.own(state).net.variables(ema=True))
        found = model.estimate(guided(config, raw, model.process.level, x_t, t, condition), x_t, t)
        return found._replace(x_0=steered(found.x_0, state, x_t, t, condition))

    def denoise(state, x_t, t, condition):
        return estimate(state, x_t, t, condition).x_0

    def with_share(state, x_t, t, condition):
        return estimate(state, x_t, t, condition)[1:]

    def visited(condition, n):
        steps = knob(config, condition, 'steps', n)
        return Trajectory.create(process, steps, sampler.spacing, sampler.rho)

    def sample_step(keys, state, condition):
        number = partial(knob, config, condition, n=len(keys))
        learned = (sampler.name, sampler.variance) == ('ancestral', 'learned_range')
        says = partial(with_share if learned else denoise, state, condition=condition)
        times = visited(condition, len(keys))
        return conditions.bounded(config, solvers.run(config, says, times, keys, shape, number))

    def evaluate_step(keys, state, batch):
        check_batch(batch, data.image_size, data.channels)
        variables, label = state.net.variables(ema=True), labels(batch, num_classes)

        def plain(x_t, t):
            return model.estimate(model.raw(variables, x_t, t, label), x_t, t, sampler.clip)

        return bound.evaluate(plain, process, keys, batch['image'], sampler.variance)

    steps = len(process.visited(config.sample.knobs.steps, sampler.spacing, sampler.rho))
    method = Method(
        init,
        make_train_step(config, model),
        sample_step,
        evaluate_step,
        denoise=denoise,
        edits=uses.edits(denoise, visited),
        network_calls=solvers.calls(config, steps),
    )
    return guides.guided(method, guide)


def first_state(config, variables: dict) -> State:
    """The state before the first step, from what `network.init` gives."""
    if config.diffusion.times == 'loss_second_moment':
        variables = {**variables, 'times': losses.no_losses(config.diffusion.timesteps)}
    return State(Net.create(variables, optimizer(config.optimizer), ema=True))


class Model(NamedTuple):
    """A network, and what it says of x_t = alpha_t x_0 + sigma_t eps (Ho et al. 2020, eq. 4).

    Attributes:
      network: (x_t, what it is told of t, label, train) -> [n, h, w, c or 2c].
      process: with all T times.
      prediction: what it says in its first c channels.
      eps: whether that is the noise.
      learned: whether there are c more, for the variance.
      told: what it is told, one of TOLD.
    """

    network: nn.Module
    process: DiscreteProcess
    prediction: Prediction
    eps: bool
    learned: bool
    told: str

    @classmethod
    def from_config(cls, config) -> 'Model':
        """The model that `config.diffusion`, `network`, `model` and `data` describe."""
        diffusion, network = config.diffusion, networks.build(config)
        name, learned = diffusion.prediction, diffusion.learned_variance
        if learned:
            network = network.clone(out_channels=2 * config.data.channels)
        process, prediction = discrete.process(diffusion), predictions.PREDICTIONS[name]
        return cls(network, process, prediction, name == 'eps', learned, diffusion.told)

    def raw(self, variables: dict, x_t, t, label, **options) -> jax.Array:
        """All that the network says, [n, h, w, c or 2c]."""
        told = discrete.time(self.told, len(self.process.tau), t)
        return self.network.apply(variables, x_t, told, label, **options)

    def split(self, raw: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """What it says of x_t, and of the variance: `share` of `bound.Estimate`."""
        if not self.learned:
            return raw, None
        f, v = jnp.split(raw, 2, -1)  # [n, h, w, c]
        return f, (v + 1) / 2

    def estimate(self, raw: jax.Array, x_t, t, clip: bool = False) -> bound.Estimate:
        """All that `raw` says; with `clip`, of x_0 what lies in [-1, 1]."""
        (f, share), (alpha, sigma) = self.split(raw), self.process.level(t)
        x_0 = self.prediction.x_0(f, x_t, alpha, sigma)
        # Not computed back where it was said: near x_0 that loses digits.
        eps = f if self.eps else predictions.noise(x_t, x_0, alpha, sigma)
        return bound.Estimate(eps, jnp.clip(x_0, -1.0, 1.0) if clip else x_0, share)


def make_train_step(config, model: Model) -> Callable:
    """`Method.train_step`."""
    data, diffusion, tx = config.data, config.diffusion, optimizer(config.optimizer)
    T, num_classes = diffusion.timesteps, data.num_classes
    resampled = diffusion.times == 'loss_second_moment'
    objective = make_objective(diffusion, model)

    def draw_times(key, history, b):
        """(t, how much the loss there counts) [b]; None: as any other."""
        if not resampled:
            return jax.random.randint(key, b, 0, T), None
        p = losses.second_moment(history)
        t = jax.random.choice(key, T, (b,), p=p)
        return t, 1 / (T * p[t])

    def train_step(key, state, batch):
        check_batch(batch, data.image_size, data.channels)
        x_0, label = batch['image'], labels(batch, num_classes)
        key_t, key_eps, key_label, key_dropout = jax.random.split(key, 4)
        t, counts = draw_times(key_t, state.net.extra.get('times'), len(x_0))
        eps = jax.random.normal(key_eps, x_0.shape)
        alpha, sigma = model.process.level(t)
        x_t = alpha * x_0 + sigma * eps
        if diffusion.label_dropout > 0:
            label = hide(key_label, label, diffusion.label_dropout, num_classes)

        def loss_fn(params, extra, drawn):
            x_0, x_t, t, eps, counts, label, key = drawn
            options = {'train': True, 'rngs': {'dropout': key}}
            raw = model.raw({'params': params, **extra}, x_t, t, label, **options)
            each = objective(raw, x_0, x_t, t, eps)
            if resampled:
                history = losses.remember(extra['times'], t, each.mean((1, 2, 3)))
                extra, each = extra | {'times': history}, counts[:, None, None, None] * each
            return jnp.mean(each), (extra, {})

        drawn = x_0, x_t, t, eps, counts, label, key_dropout
        decay = ramped_decay(config, steps_taken(state.net))
        net, metrics = descend(state.net, loss_fn, tx, decay, drawn, config.accumulate)
        return State(net), metrics

    return train_step


def make_objective(diffusion, model: Model) -> Callable:
    """(raw, x_0, x_t, t, eps) -> the loss of each value, [b, h, w, c].

    The bound is in bits, and T times its term at t: what it is on average over t drawn uniformly.
    """
    weight = losses.weighting(diffusion.weighting, model.process, model.prediction, diffusion.gamma)
    variance = 'learned_range' if model.learned else 'fixed_large'
    term = bound.make_term(model.process, variance)
    per_bit = len(model.process.tau) / np.log(2)

    def objective(raw, x_0, x_t, t, eps):
        (f, share), level = model.split(raw), model.process.level(t)
        target = model.prediction.target(x_0, eps, *level)
        simple = weight(t)[:, None, None, None] * (target - f) ** 2  # eq. 14
        if diffusion.loss == 'simple':
            return simple
        # In hybrid the bound trains the variance only (Nichol and Dhariwal 2021, section 3.1).
        mean = f if diffusion.loss == 'vlb' else jax.lax.stop_gradient(f)
        vlb = per_bit * term(t, x_0, model.prediction.x_0(mean, x_t, *level), share)
        return vlb if diffusion.loss == 'vlb' else simple + diffusion.vlb_weight * vlb

    return objective


def check(config) -> None:
    """Raises UserError where `diffusion`, `sampler` or `sample.knobs` cannot be obeyed."""
    diffusion, sampler = config.diffusion, config.sampler
    named = (
        (diffusion, 'prediction', PREDICTIONS),
        (diffusion, 'loss', LOSSES),
        (diffusion, 'weighting', WEIGHTINGS),
        (diffusion, 'times', TIMES),
        (sampler, 'variance', VARIANCES),
        (sampler, 'spacing', SPACINGS),
    )
    for part, field, known in named:
        room, value = 'sampler' if part is sampler else 'diffusion', part[field]
        require(value in known, f'{room}.{field}', value, f'a known name{nearest(value, known)}')
    discrete.check(diffusion)
    require(diffusion.gamma > 0, 'diffusion.gamma', diffusion.gamma, 'more than 0')
    weight = diffusion.vlb_weight
    require(0 < weight < np.inf, 'diffusion.vlb_weight', weight, 'more than 0, and finite')
    _check_fit(diffusion, sampler)
    conditions.check(config)
    require_average(config)
    T, finite = diffusion.timesteps, not diffusion.zero_snr
    solvers.check(config, continuous=False, finite=finite, most=T)


def _check_fit(diffusion, sampler) -> None:
    """What does not go together."""
    loss, learned, weighting = diffusion.loss, diffusion.learned_variance, diffusion.weighting
    require(
        not (diffusion.zero_snr and diffusion.prediction == 'eps'),
        'diffusion.prediction',
        'eps',
        "'v' or 'x_0' with zero_snr=True: the last x_t holds nothing of x_0 that eps would tell",
    )
    fits = sampler.spacing in REACHING or not diffusion.zero_snr
    expected = f'one of {REACHING} with zero_snr=True: only the last time is pure noise, which'
    require(fits, 'sampler.spacing', sampler.spacing, f'{expected} samples start from')
    expected = (
        "'simple' or 'x_0' with zero_snr=True: this weight of the last time, which samples start"
    )
    counts = not diffusion.zero_snr or weighting in ('simple', 'x_0')
    require(counts, 'diffusion.weighting', weighting, f'{expected} from, is 0')
    expected = "'hybrid' or 'vlb' with learned_variance=True: nothing else trains variances"
    require(loss != 'simple' or not learned, 'diffusion.loss', loss, expected)
    expected = "'simple' or 'vlb' with learned_variance=False: 'hybrid' trains variances too"
    require(loss != 'hybrid' or learned, 'diffusion.loss', loss, expected)
    expected = "'simple' with loss='vlb', which has weights of its own"
    require(loss != 'vlb' or weighting == 'simple', 'diffusion.weighting', weighting, expected)
    fits = learned == (sampler.variance == 'learned_range')
    expected = "'learned_range'" if learned else "'fixed_large' or 'fixed_small'"
    expected += f' with config.diffusion.learned_variance={learned}'
    require(fits, 'sampler.variance', sampler.variance, expected)
