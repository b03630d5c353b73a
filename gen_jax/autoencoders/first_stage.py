"""Latent diffusion's first stage: Rombach et al. 2022, section 3.1 and appendix G.

    loss = |x - x'| + p LPIPS(x, x') + lambda w(theta) (-D(x')) + regularisation

summed over the numbers of an image, x' what comes back. The discriminator D learns by the hinge
loss and counts from `first_stage.judged_from` steps on; w is the ratio of both gradients by the
last convolution's kernel (Esser et al. 2021, equation 7). Two kinds, `config.kind`:

* 'kl': Gaussian latents, regularised by `kl_weight` times their KL divergence from N(0, I).
* 'vq': codes that learn by gradients (equation 3 of van den Oord et al. 2017), weighed by
  `codebook_weight`, which counts for an image's mean; the rest is then a mean too, as in the
  authors' code.

Nothing is sampled: a diffusion model draws latents (`config.latent`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import struct

from gen_jax.autoencoders.ldm import Decoder, Encoder, FirstStage, KLAutoencoder, VQAutoencoder
from gen_jax.autoencoders.patch import PatchDiscriminator
from gen_jax.autoencoders.posterior import kl_divergence
from gen_jax.autoencoders.quantizer import VectorQuantizer, perplexity, require_room
from gen_jax.config import (
    are_whole,
    nearest,
    require,
    require_average,
    require_unlabelled,
    require_weights,
)
from gen_jax.method import (
    Method,
    Net,
    check_batch,
    descend,
    optimizer,
    optimizer_defaults,
    steps_taken,
)
from gen_jax.metrics import lpips

CHOICES = {'kind': 'first_stage'}
KINDS = {
    'kl': {'kl_weight': 1e-6},  # of the KL divergence, nats per image
    'vq': {
        'codes': 8192,  # K
        'codebook_weight': 1.0,  # of the distance of codes from what they stand for
        'commitment': 0.25,  # and of the encoder's part in it
    },
}
# Of w: it is no larger, and no gradient is taken to be smaller.
LARGEST_WEIGHT, SMALLEST_GRADIENT = 1e4, 1e-4

# See gen_jax.idle.
SERVES = (
    (
        'judge.width judge.layers first_stage.judged_from',
        lambda c: c.first_stage.judge_weight,
        'first_stage.judge_weight',
    ),
    (
        'first_stage.perceptual_weight first_stage.perceptual_weights first_stage.perceptual_heads',
        lambda c: c.first_stage.perceptual,
        'first_stage.perceptual',
    ),
)


def defaults(kind: str = 'kl') -> dict:
    """This method's part of the config: Stable Diffusion's first stage.

    Raises:
      UserError: where there is no such kind.
    """
    require(kind in KINDS, 'kind', kind, f'a known name{nearest(kind, KINDS)}')
    return {
        'kind': kind,
        'model': {
            'channels': 128,  # width of the level next to the image
            'multipliers': (1, 2, 4, 4) if kind == 'kl' else (1, 2, 4),  # width of each level
            'blocks': 2,  # residual ones of each level; the decoder's have one more
            'groups': 32,  # of each group norm
            'latent_channels': 4 if kind == 'kl' else 3,  # numbers at each place
            'dtype': 'float32',  # of the computation: float32 or bfloat16
        },
        'judge': {
            'width': 64,  # of the discriminator's first layer
            'layers': 3,  # of its convolutions, so many halve the image
        },
        'first_stage': {
            'perceptual': '',  # LPIPS's network: vgg, alex, squeeze; '': none
            'perceptual_weight': 1.0,  # p
            'perceptual_weights': '',  # file of that network's weights; '': the cache
            'perceptual_heads': '',  # file of LPIPS's heads; '': the cache
            'judge_weight': 0.5,  # lambda; 0: no discriminator
            'judged_from': 50_001,  # the step from which the discriminator counts
            **KINDS[kind],
        },
        'optimizer': optimizer_defaults(learning_rate=4.5e-6, b1=0.5, b2=0.9),
        'ema_decay': 0.0,  # of the weights that encode and decode; 0: none kept
    }


class State(struct.PyTreeNode):
    """What is trained, and what it is seen through.

    Attributes:
      net: encoder, decoder and codes.
      judge: the discriminator; None where there is none.
      perceptual: LPIPS's variables, which stay; None where there are none.
    """

    net: Net
    judge: Any
    perceptual: Any


def create(config: ml_collections.ConfigDict) -> Method:
    """The first stage that `defaults` describes.

    `evaluate_step` gives 'squared_error', the mean over an image's numbers, and 'kl', nats, or
    'commitment'; it, `encode` (to latents [b, h', w', latent_channels], of 'kl' the means, of
    'vq' before codes stand for them, as latent diffusion learns them) and `decode` (where there are
    codes, of those nearest to what it is given) use the averaged parameters where there are any.

    Raises:
      UserError: where the config asks for what does not exist or does not fit; of `init`, where
        weights of LPIPS's network are not found.
    """
    require_unlabelled(config)
    module = module_of(config)
    _check(config)
    data, kl = config.data, config.kind == 'kl'
    judge = _judge(config)

    def init(key, batch):
        check_batch(batch, data.image_size, data.channels)
        return first_state(config, module.init(key, batch['image']), key)

    def encode(state, batch):
        check_batch(batch, data.image_size, data.channels)
        variables, x = state.net.variables(ema=True), batch['image']
        if kl:
            return latents_of(config, module, variables, x)[0]
        return module.apply(variables, x, method='encode')

    def decode(state, latents, condition):
        del condition
        variables = state.net.variables(ema=True)
        return jnp.clip(module.apply(variables, latents, method='drawn'), -1, 1)

    def evaluate_step(keys, state, batch):
        del keys
        x = batch['image']
        z, _, told = latents_of(config, module, state.net.variables(ema=True), x)
        terms = {'squared_error': jnp.square(decode(state, z, {}) - x).mean((1, 2, 3))}
        return terms | ({'kl': told['kl']} if kl else {'commitment': told['commitment']})

    return Method(
        init,
        make_train_step(config, module, judge),
        evaluate_step=evaluate_step,
        encode=encode,
        decode=decode,
    )


def first_state(config, variables: dict, key: jax.Array) -> State:
    """The state before the first step, with these networks and codes.

    Args:
      config: as `defaults` has it.
      variables: what `module_of(config).init` gives.
      key: of what the discriminator starts from.

    Raises:
      UserError: weights of LPIPS's network are not found.
    """
    data, options, tx = config.data, config.first_stage, optimizer(config.optimizer)
    judge, second = _judge(config), None
    if judge:
        x = jnp.zeros((1, data.image_size, data.image_size, data.channels))
        second = Net.create(judge.init(jax.random.fold_in(key, 1), x, train=True), tx, False)
    net = Net.create(variables, tx, config.ema_decay > 0)
    name, places = options.perceptual, (options.perceptual_weights, options.perceptual_heads)
    perceptual = lpips.load(name, *places, 'first_stage') if name else None
    return State(net, second, jax.tree.map(jnp.asarray, perceptual))


def latents_of(
    config, module: FirstStage, variables: dict, x: jax.Array, keys: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, dict]:
    """Latents, what regularises each image [b], and means by name; drawn where keys [b] are."""
    options = config.first_stage
    if config.kind == 'kl':
        mean, log_var = module.apply(variables, x, method='posterior')
        z = mean
        if keys is not None:
            noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
            z = mean + jnp.exp(log_var / 2) * noise
        flat = (part.reshape(len(x), -1) for part in (mean, log_var))
        found = kl_divergence(*flat)
        return z, options.kl_weight * found, {'kl': found}
    found = module.apply(variables, x, method='codes')
    rest = found.codebook + options.commitment * found.commitment
    told = {'codebook': found.codebook, 'commitment': found.commitment}
    told |= {'perplexity': perplexity(found.indices, options.codes)}
    return found.z, options.codebook_weight * rest, told


def reconstruction(config, perceptual, back: jax.Array, x: jax.Array) -> jax.Array:
    """How far images are from what they were, [b]: a sum over numbers, of 'vq' a mean.

    Args:
      config: with `kind` and `first_stage`.
      perceptual: LPIPS's variables, where it counts.
      back, x: images that came back, and that were, [b, h, w, c].
    """
    options = config.first_stage
    distance = jnp.abs(back - x).mean((1, 2, 3))
    if options.perceptual:
        apart = lpips.lpips(perceptual, back, x, options.perceptual)
        distance += options.perceptual_weight * apart
    return distance * (x[0].size if config.kind == 'kl' else 1)


def make_train_step(config, module: FirstStage, judge: PatchDiscriminator | None) -> Callable:
    """`Method.train_step`."""
    data, options, tx = config.data, config.first_stage, optimizer(config.optimizer)
    judge_step = judge and make_judge_step(config, module, judge)

    def train_step(key, state, batch):
        check_batch(batch, data.image_size, data.channels)
        counts = (steps_taken(state.net) >= options.judged_from).astype(jnp.float32)

        def loss_fn(params, extra, keyed):
            keys, x = keyed
            variables = {'params': params, **extra}
            z, rest, told = latents_of(config, module, variables, x, keys)
            far = partial(reconstruction, config, state.perceptual, x=x)
            back = module.apply(variables, z, method='decode')
            apart = far(back)
            loss, metrics = (apart + rest).mean(), {'reconstruction': apart, **told}
            if judge:
                fooled = partial(_fooling, judge, state.judge.variables())
                weight = balance(module, variables, z, lambda y: far(y).mean(), fooled)
                loss += counts * options.judge_weight * weight * fooled(back)
                metrics['balance'] = weight
            return loss, (extra, jax.tree.map(jnp.mean, metrics))

        keyed = jax.random.split(key, len(batch['image'])), batch['image']
        net, metrics = descend(state.net, loss_fn, tx, config.ema_decay, keyed, config.accumulate)
        if not judge_step:
            return state.replace(net=net), metrics
        second, found = judge_step(counts, net, state.judge, keyed)
        found = {f'judge_{name}': value for name, value in found.items()}
        return state.replace(net=net, judge=second), metrics | found

    return train_step


def make_judge_step(config, module: FirstStage, judge: PatchDiscriminator) -> Callable:
    """(how much it counts, the first stage's net, the judge's, (keys, x)) -> (the last, metrics).

    By the hinge loss, of the images that come back from the net after its own step.
    """
    tx = optimizer(config.optimizer)

    def judge_step(counts, net, second, keyed):
        def loss_fn(params, extra, keyed):
            keys, x = keyed
            z, _, _ = latents_of(config, module, net.variables(), x, keys)
            back = module.apply(net.variables(), z, method='decode')
            on_real, extra = _judged(judge, {'params': params, **extra}, x)
            on_back, extra = _judged(judge, {'params': params, **extra}, back)
            loss = (jax.nn.relu(1 - on_real).mean() + jax.nn.relu(1 + on_back).mean()) / 2
            right = {'real_accuracy': (on_real > 0).mean(), 'fake_accuracy': (on_back < 0).mean()}
            return counts * loss, (extra, right)

        return descend(second, loss_fn, tx, None, keyed, config.accumulate)

    return judge_step


def _judged(judge: PatchDiscriminator, variables: dict, x: jax.Array) -> tuple[jax.Array, dict]:
    """What the discriminator says of patches, and its statistics after that."""
    return judge.apply(variables, x, train=True, mutable=['batch_stats'])


def _fooling(judge: PatchDiscriminator, variables: dict, back: jax.Array) -> jax.Array:
    """What is small where the discriminator takes images for real: a mean over patches."""
    return -_judged(judge, variables, back)[0].mean()


def balance(module: FirstStage, variables: dict, z: jax.Array, apart, fooled) -> jax.Array:
    """w(theta): by how much the reconstruction's gradient is the larger (Esser et al. 2021, eq. 7).

    By the last convolution's kernel; no gradient flows through it.

    Args:
      module, variables: the networks.
      z: latents.
      apart, fooled: losses, of images that come back -> scalar.
    """
    fixed = jax.lax.stop_gradient(variables)
    last = fixed['params']['decoder']['conv_out']

    def back(kernel):
        decoder = fixed['params']['decoder'] | {'conv_out': last | {'kernel': kernel}}
        params = fixed['params'] | {'decoder': decoder}
        return module.apply(fixed | {'params': params}, jax.lax.stop_gradient(z), method='decode')

    images, pull = jax.vjp(back, last['kernel'])
    sizes = [jnp.linalg.norm(pull(jax.grad(loss)(images))[0]) for loss in (apart, fooled)]
    weight = jnp.minimum(sizes[0] / (sizes[1] + SMALLEST_GRADIENT), LARGEST_WEIGHT)
    return jax.lax.stop_gradient(weight)


def module_of(config) -> FirstStage:
    """The networks that a config describes.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    model, channels = config.model, config.data.channels
    for field in ('channels', 'blocks', 'groups', 'latent_channels'):
        expected = 'a whole number of at least 1'
        require(model[field] >= 1, f'model.{field}', model[field], expected)
    multipliers = tuple(model.multipliers)
    expected = 'one whole number of at least 1 per level, such as (1, 2, 4)'
    fits = len(multipliers) > 0 and are_whole(multipliers)
    require(fits, 'model.multipliers', multipliers, expected)
    expected = f'a divisor of model.channels={model.channels}'
    require(model.channels % model.groups == 0, 'model.groups', model.groups, expected)
    factor, size = 2 ** (len(multipliers) - 1), config.data.image_size
    expected = f'a multiple of {factor}, as model.multipliers halve it {len(multipliers) - 1} times'
    require(size % factor == 0, 'data.image_size', size, expected)
    dtypes = ('float32', 'bfloat16')
    require(model.dtype in dtypes, 'model.dtype', model.dtype, "'float32' or 'bfloat16'")
    shared = {'channels': model.channels, 'multipliers': multipliers, 'blocks': model.blocks}
    shared |= {'groups': model.groups, 'dtype': jnp.dtype(model.dtype)}
    dim, decoder = model.latent_channels, Decoder(features=channels, **shared)
    if config.kind == 'kl':
        return KLAutoencoder(Encoder(features=2 * dim, **shared), decoder, dim)
    codes = config.first_stage.codes
    vectors = (size // factor) ** 2 * config.batch_size // config.accumulate
    require_room('first_stage.codes', codes, dim, vectors)
    quantizer = VectorQuantizer(codes, dim)
    return VQAutoencoder(Encoder(features=dim, **shared), decoder, dim, quantizer=quantizer)


def _judge(config) -> PatchDiscriminator | None:
    if not config.first_stage.judge_weight:
        return None
    options, size = config.judge, config.data.image_size
    for field in ('width', 'layers'):
        expected = 'a whole number of at least 1'
        require(options[field] >= 1, f'judge.{field}', options[field], expected)
    # Halved, and a pixel less for each of the two convolutions that follow.
    left = size // 2**options.layers
    expected = f'fewer: images of data.image_size={size} leave {left} pixels, of which 3 are needed'
    require(left >= 3, 'judge.layers', options.layers, expected)
    return PatchDiscriminator(options.width, options.layers, jnp.dtype(config.model.dtype))


def _check(config) -> None:
    options, size = config.first_stage, config.data.image_size
    known = '', *lpips.NETS
    expected = f"'' or one of {', '.join(lpips.NETS)}"
    require(options.perceptual in known, 'first_stage.perceptual', options.perceptual, expected)
    if options.perceptual:
        least = lpips.NETS[options.perceptual].smallest_side
        require(size >= least, 'data.image_size', size, f'at least {least}, which LPIPS needs')
    numbers = (field for field in options if isinstance(options[field], float | int))
    require_weights('first_stage', options, *numbers)
    require_average(config)
