"""DDPM (Ho et al. 2020), sampled by its own sampler or by DDIM (Song et al. 2021).

The network predicts the noise; with classes, guidance is classifier-free (Ho and Salimans 2022).
Times count from 0: t is the paper's t-1.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gen_jax.config import nearest, require
from gen_jax.diffusion import bound, networks, samplers
from gen_jax.diffusion.guidance import classifier_free
from gen_jax.diffusion.samplers import VARIANCES
from gen_jax.diffusion.schedules import (
    SPACINGS,
    DiscreteProcess,
    Trajectory,
    linear_betas,
    spaced_times,
)
from gen_jax.errors import UserError
from gen_jax.method import Method, Net, check_batch, descend, optimizer, optimizer_defaults

CHOICES = ('network',)
NAMES = ('ddpm', 'ddim')


class State(struct.PyTreeNode):
    """All that training changes."""

    net: Net


def defaults(network: str = 'unet') -> dict:
    """The method's part of a config: a small net for the house's default data, the 8x8 digits."""
    return {
        **networks.defaults(network),
        'diffusion': {
            'timesteps': 1000,  # T
            'beta_min': 1e-4,  # variance of the first step's noise
            'beta_max': 0.02,  # variance of the last step's noise
            'label_dropout': 0.0,  # share of labels hidden in training; more than 0: guidance
        },
        'optimizer': optimizer_defaults(learning_rate=2e-4, warmup=5000, clip=1.0),
        'ema_decay': 0.9999,
        'sampler': {
            'name': 'ddim',  # ddpm (ancestral), ddim
            'variance': 'fixed_large',  # of ddpm and of the bound: fixed_large, fixed_small
            'spacing': 'linear',  # of the times visited: linear, quadratic
            'clip': True,  # keep the estimate of the image in [-1, 1]
        },
        'sample': {
            'knobs': {
                'eta': 0.0,  # noise of ddim: 0 (none) to 1
                'guidance': 1.0,  # 0: unconditional, 1: conditional, more: guided
                'steps': 50,  # times visited, of all T
            }
        },
    }


def create(config) -> Method:
    """Gaussian diffusion as `defaults` describes it.

    `sample_step` and `denoise` take in their condition `label` int32 [n] where the model knows
    classes, `guidance` float [n] where it was trained to be guided (1: the plain conditional
    model); `sample_step` also `steps` int32 [n], each 1 .. T, and `eta` float [n] for DDIM. It
    calls the network as often as the largest number of steps says. They, and `evaluate_step`, use
    the averaged parameters. `evaluate_step` gives what `bound.evaluate` does; it runs the network T
    times.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    check(config)
    data, diffusion, sampler = config.data, config.diffusion, config.sampler
    shape = (data.image_size, data.image_size, data.channels)
    T, num_classes = diffusion.timesteps, data.num_classes
    guided = diffusion.label_dropout > 0
    process = DiscreteProcess.from_betas(linear_betas(T, diffusion.beta_min, diffusion.beta_max))
    # x_t = scale_t x_0 + noise_std_t eps (eq. 4)
    scale, noise_std = np.float32((np.sqrt(process.alpha_bar), np.sqrt(1 - process.alpha_bar)))
    network = networks.build(config)
    tx = optimizer(config.optimizer)

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        label = jnp.zeros(1, jnp.int32) if num_classes else None
        variables = network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), label)
        return State(Net.create(variables, tx, ema=True))

    def train_step(key, state, batch):
        check_batch(batch, data.image_size, data.channels)
        x_0, label = batch['image'], labels(batch, num_classes)
        key_t, key_eps, key_label, key_dropout = jax.random.split(key, 4)
        t = jax.random.randint(key_t, len(x_0), 0, T)
        eps = jax.random.normal(key_eps, x_0.shape)
        x_t = over(scale, t) * x_0 + over(noise_std, t) * eps
        if guided:
            label = hide(key_label, label, diffusion.label_dropout, num_classes)

        def loss_fn(params, extra, noised):
            x_t, t, label, eps, key = noised
            apply = partial(network.apply, train=True, rngs={'dropout': key})
            eps_theta = apply({'params': params, **extra}, x_t, t, label)
            return jnp.mean((eps - eps_theta) ** 2), (extra, {})  # eq. 14

        noised = x_t, t, label, eps, key_dropout
        net, metrics = descend(state.net, loss_fn, tx, config.ema_decay, noised, config.accumulate)
        return State(net), metrics

    def predict(state, x_t, t, label, guidance=None):
        """(eps_hat, x_0_hat); guided if told how much."""
        eps_theta = partial(network.apply, state.net.variables(ema=True))
        if guidance is None:
            eps = eps_theta(x_t, t, label)
        else:
            eps = guide(eps_theta, x_t, t, label, num_classes, guidance)
        x_0 = (x_t - over(noise_std, t) * eps) / over(scale, t)
        return eps, jnp.clip(x_0, -1.0, 1.0) if sampler.clip else x_0

    def denoise(state, x_t, t, condition):
        guidance = knob(config, condition, 'guidance', len(x_t)) if guided else None
        return predict(state, x_t, t, labels(condition, num_classes), guidance)[1]

    def sample_step(keys, state, condition):
        steps = knob(config, condition, 'steps', len(keys))
        trajectory = Trajectory.create(process, steps, sampler.spacing)
        args = partial(denoise, state, condition=condition), trajectory, keys, shape
        if sampler.name == 'ddpm':
            x_0 = samplers.ancestral(*args, sampler.variance)
        else:
            x_0 = samplers.ddim(*args, knob(config, condition, 'eta', len(keys)))
        return jnp.clip(x_0, -1.0, 1.0)

    def evaluate_step(keys, state, batch):
        check_batch(batch, data.image_size, data.channels)
        plain = partial(predict, state, label=labels(batch, num_classes))
        return bound.evaluate(plain, process, keys, batch['image'], sampler.variance)

    calls = len(spaced_times(T, config.sample.knobs.steps, sampler.spacing))
    return Method(
        init, train_step, sample_step, evaluate_step, denoise=denoise, network_calls=calls
    )


def guide(
    eps_theta: Callable,
    x_t: jax.Array,
    t: jax.Array,
    label: jax.Array,
    null: int,
    guidance: jax.Array,
) -> jax.Array:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6, with guidance = 1 + w).

    Args:
      eps_theta: (x_t, t, label) -> noise; called once, on both halves of a doubled batch.
      x_t: [n, h, w, c].
      t: [n].
      label: int32 [n].
      null: the label that stands for none.
      guidance: [n]; 0 is the unconditional model, 1 the conditional one.

    Returns:
      The noise, [n, h, w, c].
    """
    return classifier_free(*with_and_without(eps_theta, x_t, t, label, null), guidance)


def with_and_without(
    function: Callable, x_t: jax.Array, t: jax.Array, label: jax.Array, null: int
) -> tuple[jax.Array, jax.Array]:
    """`function(x_t, t, label)` and what it gives for the null class, of one doubled batch."""
    both = jnp.concatenate([label, jnp.full_like(label, null)])  # [2n]
    result = function(jnp.tile(x_t, (2, 1, 1, 1)), jnp.tile(t, 2), both)  # [2n, h, w, c]
    return tuple(jnp.split(result, 2))


def hide(key: jax.Array, label: jax.Array, share: float, null: int) -> jax.Array:
    """Labels [b], about that share of them replaced by the null class."""
    return jnp.where(jax.random.bernoulli(key, share, label.shape), null, label)


def over(table, t: jax.Array) -> jax.Array:
    """The table's values at t [n], shaped [n, 1, 1, 1]."""
    return jnp.asarray(table)[t][:, None, None, None]


def labels(batch: dict, num_classes: int) -> jax.Array | None:
    """`batch['label']` where the model knows classes, else None."""
    if num_classes and 'label' not in batch:
        raise UserError(
            "no 'label': a model of config.data.num_classes="
            f'{num_classes} classes needs int32 [n] below {num_classes} in its batch or condition'
        )
    return batch['label'] if num_classes else None


def knob(config, condition: dict, name: str, n: int) -> jax.Array:
    """One of the sampler's numbers, [n]: the condition's, else the config's, whose type it has."""
    default = config.sample.knobs[name]
    dtype = jnp.int32 if isinstance(default, int) else jnp.float32
    return jnp.broadcast_to(jnp.asarray(condition.get(name, default), dtype), n)


def check(config) -> None:
    """Raises UserError where `diffusion`, `sampler` or `sample.knobs` cannot be obeyed."""
    diffusion, sampler, knobs = config.diffusion, config.sampler, config.sample.knobs
    T, low, high = diffusion.timesteps, diffusion.beta_min, diffusion.beta_max
    require(2 <= T <= 10_000, 'diffusion.timesteps', T, '2 to 10000')
    require(0 < low <= high, 'diffusion.beta_min', low, f'0 < beta_min <= beta_max={high}')
    require(high < 1, 'diffusion.beta_max', high, 'less than 1')
    check_guidance(config)
    for field, known in (('name', NAMES), ('variance', VARIANCES), ('spacing', SPACINGS)):
        value = sampler[field]
        require(value in known, f'sampler.{field}', value, f'a known name{nearest(value, known)}')
    require(1 <= knobs.steps <= T, 'sample.knobs.steps', knobs.steps, f'1 to timesteps={T}')
    check_eta(config)


def check_guidance(config) -> None:
    """Raises UserError where labels are to be hidden that are not there, or guidance cannot be."""
    dropout, scale = config.diffusion.label_dropout, config.sample.knobs.guidance
    require(0 <= dropout < 1, 'diffusion.label_dropout', dropout, 'a probability below 1')
    require(
        dropout == 0 or config.data.num_classes > 0,
        'diffusion.label_dropout',
        dropout,
        '0, because config.data.num_classes=0: there are no labels to hide',
    )
    require(0 <= config.ema_decay < 1, 'ema_decay', config.ema_decay, '0 <= ema_decay < 1')
    require(
        scale == 1 or dropout > 0,
        'sample.knobs.guidance',
        scale,
        '1, because config.diffusion.label_dropout=0: the model cannot be guided',
    )


def check_eta(config) -> None:
    """Raises UserError where the sampler is asked for a share of noise that it does not know."""
    eta, name = config.sample.knobs.eta, config.sampler.name
    require(0 <= eta <= 1, 'sample.knobs.eta', eta, '0 to 1')
    require(
        eta == 0 or name == 'ddim',
        'sample.knobs.eta',
        eta,
        f"0, because config.sampler.name={name!r}: only 'ddim' knows eta",
    )
