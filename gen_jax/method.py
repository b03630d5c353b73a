"""The contract: what a generative model is to the rest of the house.

A method is a handful of pure functions over one state pytree. It knows maths and nothing else: no
device, no disk, no clock, no global, no flag. Everything that runs it (training, sampling,
evaluation) is written once, against this file.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from gen_jax.errors import UserError

# Knobs with which latents are the prior's, whatever samples are asked for.
UNTRUNCATED = {'temperature': 1.0, 'truncation': 0.0, 'psi': 1.0}


class Latents(NamedTuple):
    """What a generator draws from, in two steps.

    Attributes:
      dim: length of z, which is standard normal.
      mapping: (state, z [n, dim], condition) -> ws [n, layers, d], what tells each layer its style;
        z itself, as one layer, where there are no styles.
      synthesis: (state, ws, condition, keys=None) -> images [n, h, w, c] in [-1, 1]; keys [n] are
        of noise inside, which without them never changes.
      styled: whether there are styles.
      truncation: the knob that trades variety for quality; '' where there is none.
      direction: whether of z its direction alone counts.
    """

    dim: int
    mapping: Callable
    synthesis: Callable
    styled: bool
    truncation: str
    direction: bool = False


class Method(NamedTuple):
    """One generative model as pure functions over one state pytree.

    A `batch` is a dict: `image` float32 [b, h, w, c] in [-1, 1], `label` int32 [b], and whatever
    else the task adds. A `condition` is a dict with leading axis n: the same names, and the
    sampler's numbers (`guidance`, `eta`, `temperature`, ... float32 [n]), which are traced, so
    that changing them never recompiles. A field that is None is a thing this method cannot do.

    Attributes:
      init: (key, batch) -> state. Only the batch's shapes and dtypes may matter.
      train_step: (key, state, batch) -> (state, {name: scalar}); where `stage` is not None, also
        with the keyword `stage`, for each of which it is compiled anew.
      sample_step: (keys[n], state, condition) -> images [n, h, w, c] in [-1, 1]. Sample i depends
        on keys[i] and condition[i] only, never on n.
      evaluate_step: (keys[b], state, batch) -> {name: [b]}, one number per example.
      encode: (state, batch) -> latents [b, ...], deterministic.
      decode: (state, latents, condition) -> images [b, h, w, c] in [-1, 1], deterministic.
      denoise: (state, x_t, t, condition) -> estimate of the clean image, shaped like x_t.
      noised: (h, w, c) of an x_t; None: an image's.
      log_prob: (state, x_t, t, label int32 [n]) -> log p(label | x_t, t) of noised images, [n].
      edits: what can be done to given images, {task: (keys[n], state, condition) -> (given,
        result)}, both [n, h, w, c] in [-1, 1]: what the task left of the images, and what was made
        of it. The condition has `image` too, and what else `gen_jax.edit` puts there.
      num_classes: what `label` may be of, of `log_prob`'s and of a condition's where these are not
        the config's; 0: `config.data.num_classes`.
      latent_dim: length d of `decode`'s latents [b, d], where their prior is standard normal.
      latents: of a generator that draws in one go.
      settle: (key, state) -> state, with what samples need once beforehand, such as statistics;
        what is trained stays as it is.
      network_calls: calls of the network in one `sample_step`, as the config has it.
      stage: (step) -> hashable, of what a training step is, where that is not always the same.
      lazy: {field of the config: n}, weights of terms that only every n-th step has, the first one
        too; where a weight is 0, no step has its term.
      advise: ({name: mean over some steps}) -> {what goes wrong in training: what to do}.
    """

    init: Callable
    train_step: Callable
    sample_step: Callable | None = None
    evaluate_step: Callable | None = None
    encode: Callable | None = None
    decode: Callable | None = None
    denoise: Callable | None = None
    noised: tuple[int, int, int] | None = None
    log_prob: Callable | None = None
    edits: dict[str, Callable] | None = None
    num_classes: int = 0
    latent_dim: int | None = None
    latents: Latents | None = None
    settle: Callable | None = None
    network_calls: int = 1
    stage: Callable | None = None
    lazy: dict[str, int] | None = None
    advise: Callable | None = None


class Net(struct.PyTreeNode):
    """One trained network. A GAN's state holds two.

    Attributes:
      params: the trained parameters, float32.
      ema: their exponential moving average, or None where the method keeps none.
      opt_state: the optimiser's state.
      extra: mutable collections such as batch statistics; {} where there are none.
    """

    params: Any
    ema: Any
    opt_state: Any
    extra: Any

    @classmethod
    def create(cls, variables: dict, tx: optax.GradientTransformation, ema: bool) -> 'Net':
        """A fresh net from `module.init`'s variables: EMA starts as the parameters themselves."""
        extra = {name: value for name, value in variables.items() if name != 'params'}
        params = variables['params']
        return cls(params, jax.tree.map(jnp.copy, params) if ema else None, tx.init(params), extra)

    def variables(self, ema: bool = False) -> dict:
        """What `module.apply` takes; with `ema`, the averaged parameters where they are kept."""
        params = self.ema if ema and self.ema is not None else self.params
        return {'params': params, **self.extra}


def descend(
    net: Net,
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    ema_decay: float | jax.Array | None,
    batch: Any,
    accumulate: int = 1,
) -> tuple[Net, dict]:
    """One optimiser step, and one step of the moving average. Clipping lives in `tx`.

    Args:
      net: the network to improve.
      loss_fn: (params, extra, batch) -> (scalar loss, (extra, metrics)). The loss and the metrics
        are means over the batch's examples; `extra` begins as `net.extra` and replaces it.
      tx: the optimiser that made `net.opt_state`.
      ema_decay: d in `ema <- d * ema + (1 - d) * params`; ignored where `net.ema` is None.
      batch: all that `loss_fn` knows of the examples, what was drawn for each included: a pytree
        of arrays with leading axis b. A leaf that is a single key stands for draws of the whole
        batch, such as dropout's.
      accumulate: k, which divides b. The memory of one gradient falls k-fold: `loss_fn` sees k
        parts of b / k examples one after the other, each with a key of its own, and each gets the
        `extra` of the part before. The step follows the mean gradient.

    Returns:
      The net after the step, and `metrics` (their mean) with `loss` and `grad_norm` (the global L2
      norm of the mean gradient before clipping) added.
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        (loss, (extra, metrics)), grads = gradient(net.params, net.extra, batch)
    else:
        (loss, (extra, metrics)), grads = _accumulated(gradient, net, batch, accumulate)
    updates, opt_state = tx.update(grads, net.opt_state, net.params)
    params = optax.apply_updates(net.params, updates)
    ema = net.ema
    if ema is not None:
        ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
    metrics = {**metrics, 'loss': loss, 'grad_norm': optax.tree.norm(grads)}
    return Net(params, ema, opt_state, extra), metrics


def play(module: nn.Module, variables: dict, *args, **options) -> tuple[Any, dict, dict]:
    """The output in training, the collections with what training keeps, and what was sown."""
    extra = {name: value for name, value in variables.items() if name != 'params'}
    mutable = [*extra, 'intermediates']
    out, changed = module.apply(variables, *args, train=True, mutable=mutable, **options)
    sown = {name: values[0] for name, values in changed.pop('intermediates', {}).items()}
    return out, extra | changed, sown


def steps_taken(net: Net) -> jax.Array:
    """How often a net's optimiser has moved it, which Adam counts (as may a schedule after it)."""
    return optax.tree.get_all_with_path(net.opt_state, 'count')[0][1]


def ramped_decay(config, step: jax.Array) -> float | jax.Array:
    """The `ema_decay` after `step` steps: `config.ema_decay`, and less of it at the start.

    With `config.ema_rampup` r > 0 the half-life of the average is at most r times the steps so far
    (Karras et al. 2022, the authors' `training_loop`, where r is 0.05), so that the first, random
    parameters are soon forgotten.
    """
    if not config.ema_rampup:
        return config.ema_decay
    return jnp.minimum(config.ema_decay, 0.5 ** (1 / (config.ema_rampup * step)))


def parts(batch: Any, k: int) -> Any:
    """A batch as `descend` takes it in k parts, [k, b / k, ...] of each leaf; k divides b."""

    def cut(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) and not x.ndim:
            return jax.random.split(x, k)
        # Every k-th example: each device then finds its share of a part in its share of the batch.
        return x.reshape(-1, k, *x.shape[1:]).swapaxes(0, 1)  # [k, b / k, ...]

    return jax.tree.map(cut, batch)


def _accumulated(gradient: Callable, net: Net, batch: Any, k: int) -> tuple:
    """What `gradient` would give for the whole batch, from k parts of it in turn."""

    def add(carry, part):
        extra, total = carry
        (loss, (extra, metrics)), grads = gradient(net.params, extra, part)
        return (extra, jax.tree.map(jnp.add, total, grads)), (loss, metrics)

    # A loop, as XLA runs unrolled parts side by side, and then keeps the activations of all.
    start = net.extra, jax.tree.map(jnp.zeros_like, net.params)
    (extra, total), each = jax.lax.scan(add, start, parts(batch, k))
    loss, metrics = jax.tree.map(lambda x: x.mean(0), each)
    return (loss, (extra, metrics)), jax.tree.map(lambda x: x / k, total)


def optimizer_defaults(**changes: float) -> dict:
    """A config's `optimizer` part, as `optimizer` takes it, with a method's own numbers in it."""
    return {
        'learning_rate': 1e-3,
        'warmup': 0,  # steps from 0 to learning_rate
        'decay': 'cosine',  # how it falls to 0: cosine or linear
        'decay_steps': 0,  # the step at which it is 0; 0: constant
        'b1': 0.9,
        'b2': 0.999,
        'eps': 1e-8,
        'weight_decay': 0.0,
        'clip': 0.0,  # largest global gradient norm; 0: none
        **changes,
    }


def optimizer(config) -> optax.GradientTransformation:
    """Adam with linear warm-up and clipping by global norm, from a config's `optimizer` part.

    Args:
      config: `learning_rate`; `warmup`, steps over which it rises linearly from 0 (0: none);
        `decay_steps`, the step, warm-up counted, at which it has fallen to 0 (0: constant), `decay`
        'cosine' or 'linear'; `b1`, `b2`, `eps` of Adam; `weight_decay`, decoupled (0: plain Adam);
        `clip`, the largest global gradient norm (0: no clipping).
    """
    peak, warmup = config.learning_rate, config.warmup
    rate = optax.linear_schedule(0.0, peak, warmup) if warmup else peak
    if config.decay_steps:
        left = config.decay_steps - warmup
        if config.decay == 'cosine':
            fall = optax.cosine_decay_schedule(peak, left)
        else:
            fall = optax.linear_schedule(peak, 0.0, left)
        rate = optax.join_schedules([rate, fall], [warmup]) if warmup else fall
    return optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay),
    )


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


def recognised(logits: jax.Array, label: jax.Array) -> dict:
    """Logits [b, k] and labels [b] -> accuracy [b], 0 or 1, and cross_entropy [b], nats."""
    return {
        'accuracy': (jnp.argmax(logits, -1) == label).astype(jnp.float32),
        'cross_entropy': optax.softmax_cross_entropy_with_integer_labels(logits, label),
    }


def check_batch(batch: dict, image_size: int, channels: int) -> None:
    """Raises UserError where a batch breaks the contract; looks at shapes and dtypes only."""
    image = batch['image']
    want = f'float32 [b, {image_size}, {image_size}, {channels}] in [-1, 1]'
    if image.dtype != jnp.float32:
        raise UserError(
            f"batch['image'] is {image.dtype}, expected {want}: "
            'scale uint8 pixels with gen_jax.data.pipeline.to_float'
        )
    if image.ndim != 4 or image.shape[1:] != (image_size, image_size, channels):
        raise UserError(
            f"batch['image'] has shape {image.shape}, expected {want}: "
            'set config.data.image_size and config.data.channels to what the data has'
        )
