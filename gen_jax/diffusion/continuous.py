"""Diffusion in continuous time: any process, prediction, weighting and sampler of this room.

EDM, the SDEs of Song et al. 2021 and flow matching are choices of `config.diffusion`; DDPM with its
T steps is `diffusion.gaussian`. With classes, guidance is classifier-free.
"""

from functools import partial

import jax
import jax.numpy as jnp

from gen_jax.config import nearest, require
from gen_jax.diffusion import gaussian, losses, networks, predictions, processes, samplers
from gen_jax.diffusion.gaussian import (
    State,
    hide,
    knob,
    labels,
    with_and_without,
)
from gen_jax.diffusion.guidance import classifier_free
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
TOLD = ('time', 'log_ratio')
SAMPLERS = ('ddim', 'ancestral', 'heun', 'dpmpp_2m')


def defaults(network: str = 'unet') -> dict:
    """The method's part of a config: EDM (Karras et al. 2022) with a small net for the digits."""
    return {
        **networks.defaults(network),
        'diffusion': {
            'process': 'edm',  # vp_linear, vp_cosine, sub_vp, ve, edm, flow
            'range': (),  # least and most beta (vp_linear, sub_vp) or sigma (ve, edm); (): usual
            'prediction': 'edm',  # what the network says: eps, x_0, v, score, velocity, edm
            'told': 'log_ratio',  # what it is told: time (999 t), log_ratio (log(sigma/alpha) / 4)
            'weighting': 'simple',  # of its errors: simple, eps, x_0, edm, min_snr, likelihood
            'times': 'lognormal',  # at which it is trained: uniform, lognormal, logit_normal
            'times_mean': -1.2,  # of the normal in the last two
            'times_std': 1.2,
            'sigma_data': 0.5,  # the data's standard deviation, for prediction and weighting 'edm'
            'label_dropout': 0.0,  # share of labels hidden in training; more than 0: guidance
        },
        'optimizer': optimizer_defaults(learning_rate=1e-3, warmup=1000, clip=1.0),
        'ema_decay': 0.999,
        'sampler': {
            'name': 'heun',  # ddim (eta 0: Euler; 1: Euler ancestral), ancestral, heun, dpmpp_2m
            'churn_range': (0.0, 1e6),  # sigma / alpha at which heun adds noise
            'churn_noise': 1.0,  # its standard deviation, in multiples of what the schedule says
            'spacing': 'karras',  # of times visited: linear, quadratic, trailing, karras, log_snr
            'clip': False,  # keep the estimate of the image in [-1, 1]
        },
        'sample': {
            'knobs': {
                'eta': 0.0,  # noise of ddim: 0 (none) to 1
                'churn': 0.0,  # noise of heun: S_churn, 0 (none) or more
                'guidance': 1.0,  # 0: unconditional, 1: conditional, more: guided
                'steps': 18,  # times visited; heun calls the network twice at each but the last
            }
        },
    }


def create(config) -> Method:
    """Diffusion as `defaults` describes it.

    `sample_step` and `denoise` take in their condition what those of `diffusion.gaussian` take;
    `denoise`'s times are the process's own, float32 [n]. `evaluate_step` gives `loss`, at a drawn
    time.

    Raises:
      UserError: where the config asks for what does not exist or does not fit.
    """
    check(config)
    data, diffusion, sampler = config.data, config.diffusion, config.sampler
    shape = (data.image_size, data.image_size, data.channels)
    num_classes, guided = data.num_classes, diffusion.label_dropout > 0
    process = PROCESSES[diffusion.process](*diffusion.range)
    edm = predictions.edm(diffusion.sigma_data)
    prediction = (predictions.PREDICTIONS | {'edm': edm})[diffusion.prediction]
    weight = losses.weighting(
        diffusion.weighting, process, prediction, sigma_data=diffusion.sigma_data
    )
    network = networks.build(config)
    tx = optimizer(config.optimizer)

    def level(t):
        """(alpha, sigma) at t [n], [n, 1, 1, 1]."""
        return process.alpha(t)[:, None, None, None], process.sigma(t)[:, None, None, None]

    def told(t):
        if diffusion.told == 'time':
            return 999 * t
        return jnp.log(process.sigma(t) / process.alpha(t)) / 4

    def output(variables, x_t, t, label, **options):
        scaled = prediction.scale(*level(t)) * x_t
        return network.apply(variables, scaled, told(t), label, **options)

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        label = jnp.zeros(1, jnp.int32) if num_classes else None
        variables = network.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), label)
        return State(Net.create(variables, tx, ema=True))

    def draw_times(key, n):
        return losses.draw_times(
            diffusion.times, process, key, n, diffusion.times_mean, diffusion.times_std
        )

    def squares(variables, x_0, t, eps, label, **options):
        """The weighted squared error of each example, [b]."""
        alpha, sigma = level(t)
        f = output(variables, alpha * x_0 + sigma * eps, t, label, **options)
        error = f - prediction.target(x_0, eps, alpha, sigma)
        return weight(t) * jnp.mean(error**2, (1, 2, 3))

    def train_step(key, state, batch):
        check_batch(batch, data.image_size, data.channels)
        x_0, label = batch['image'], labels(batch, num_classes)
        key_t, key_eps, key_label, key_dropout = jax.random.split(key, 4)
        t, eps = draw_times(key_t, len(x_0)), jax.random.normal(key_eps, x_0.shape)
        if guided:
            label = hide(key_label, label, diffusion.label_dropout, num_classes)

        def loss_fn(params, extra, drawn):
            x_0, t, eps, label, key = drawn
            options = {'train': True, 'rngs': {'dropout': key}}
            loss = squares({'params': params, **extra}, x_0, t, eps, label, **options).mean()
            return loss, (extra, {})

        drawn = x_0, t, eps, label, key_dropout
        net, metrics = descend(state.net, loss_fn, tx, config.ema_decay, drawn, config.accumulate)
        return State(net), metrics

    def denoise(state, x_t, t, condition):
        label, variables = labels(condition, num_classes), state.net.variables(ema=True)
        t = jnp.asarray(t, jnp.float32)

        def estimate(x_t, t, label):
            return prediction.x_0(output(variables, x_t, t, label), x_t, *level(t))

        if guided:
            both = with_and_without(estimate, x_t, t, label, num_classes)
            x_0 = classifier_free(*both, knob(config, condition, 'guidance', len(x_t)))
        else:
            x_0 = estimate(x_t, t, label)
        return jnp.clip(x_0, -1.0, 1.0) if sampler.clip else x_0

    def sample_step(keys, state, condition):
        steps = knob(config, condition, 'steps', len(keys))
        path = processes.Path(process, steps, sampler.spacing)
        args = partial(denoise, state, condition=condition), path, keys, shape
        if sampler.name == 'ancestral':
            x_0 = samplers.ancestral(*args, 'fixed_small')
        elif sampler.name == 'ddim':
            x_0 = samplers.ddim(*args, knob(config, condition, 'eta', len(keys)))
        elif sampler.name == 'heun':
            churn = knob(config, condition, 'churn', len(keys))
            x_0 = samplers.heun(
                *args, samplers.Churn(churn, *sampler.churn_range, sampler.churn_noise)
            )
        else:
            x_0 = samplers.dpmpp_2m(*args)
        return jnp.clip(x_0, -1.0, 1.0)

    def evaluate_step(keys, state, batch):
        check_batch(batch, data.image_size, data.channels)
        t = jax.vmap(lambda key: draw_times(jax.random.fold_in(key, 0), 1)[0])(keys)
        eps, label = samplers.normal(keys, 1, shape), labels(batch, num_classes)
        return {'loss': squares(state.net.variables(ema=True), batch['image'], t, eps, label)}

    steps = config.sample.knobs.steps
    calls = 2 * steps - 1 if sampler.name == 'heun' else steps
    return Method(
        init, train_step, sample_step, evaluate_step, denoise=denoise, network_calls=calls
    )


def check(config) -> None:
    """Raises UserError where `diffusion`, `sampler` or `sample.knobs` cannot be obeyed."""
    diffusion, sampler, knobs = config.diffusion, config.sampler, config.sample.knobs
    named = (
        ('process', PROCESSES),
        ('prediction', PREDICTIONS),
        ('told', TOLD),
        ('weighting', losses.WEIGHTINGS),
        ('times', losses.TIMES),
    )
    for field, known in named:
        value = diffusion[field]
        require(value in known, f'diffusion.{field}', value, f'a known name{nearest(value, known)}')
    for field, known in (('name', SAMPLERS), ('spacing', processes.SPACINGS)):
        value = sampler[field]
        require(value in known, f'sampler.{field}', value, f'a known name{nearest(value, known)}')
    _check_range(diffusion)
    _check_fit(diffusion, sampler)
    require(diffusion.times_std > 0, 'diffusion.times_std', diffusion.times_std, 'more than 0')
    require(diffusion.sigma_data > 0, 'diffusion.sigma_data', diffusion.sigma_data, 'more than 0')
    gaussian.check_guidance(config)
    require(1 <= knobs.steps <= 10_000, 'sample.knobs.steps', knobs.steps, '1 to 10000')
    gaussian.check_eta(config)
    _check_churn(sampler, knobs.churn)


def _check_range(diffusion) -> None:
    name, ends = diffusion.process, tuple(diffusion.range)
    if not ends:
        return
    require(name in RANGED, 'diffusion.range', ends, f'(), as process={name!r} has none')
    ok = len(ends) == 2 and 0 < ends[0] < ends[1]
    require(ok, 'diffusion.range', ends, 'two numbers, 0 < least < most')


def _check_churn(sampler, churn: float) -> None:
    ends, name = tuple(sampler.churn_range), sampler.name
    ok = len(ends) == 2 and 0 <= ends[0] < ends[1]
    require(ok, 'sampler.churn_range', ends, 'two numbers, 0 <= low < high')
    require(sampler.churn_noise > 0, 'sampler.churn_noise', sampler.churn_noise, 'more than 0')
    require(churn >= 0, 'sample.knobs.churn', churn, '0 or more')
    other = f"0, because config.sampler.name={name!r}: only 'heun' knows churn"
    require(churn == 0 or name == 'heun', 'sample.knobs.churn', churn, other)


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
    require(sampler.name != 'dpmpp_2m', 'sampler.name', 'dpmpp_2m', f'another {here}')
    times = diffusion.times
    require(times != 'lognormal', 'diffusion.times', times, f"'uniform' or 'logit_normal' {here}")
