"""The rules of a game, `config.gan`: what there is, and what does not fit together."""

import math

from gen_jax.config import (
    are_positive,
    nearest,
    require,
    require_average,
    require_known,
    require_least,
    require_weights,
)
from gen_jax.gans import networks
from gen_jax.gans.augment import AUGMENTATIONS
from gen_jax.gans.objectives import OBJECTIVES
from gen_jax.gans.penalties import PENALTIES
from gen_jax.gans.style_layers import sizes_up_to

# Of z, as samples are drawn.
SPREAD = {
    'temperature': 1.0,  # standard deviation of z; below 1: less variety
    'truncation': 0.0,  # largest |z| at temperature 1 (BigGAN); 0: any
}
# Of generators that map z to styles (Karras et al. 2019 and 2020).
STYLE = {
    'style_mixing': 0.9,  # share of images with the styles of two z; 0: none
    'path_length': 2.0,  # weight of path length regularisation; 0: none
    'path_length_every': 4,  # training steps
}
# Of networks that can grow (Karras et al. 2018).
GROWTH = {
    # Training steps of each size, and as many until the next has faded in; 0: all at full size
    'grow_steps': 0,
    'grow_from': 4,  # pixels, of the size that is trained first
    # Learning rate of each size from there on, over the optimizer's; (): the same for all
    'grow_rates': (),
}
STYLE_KNOBS = {
    'psi': 1.0,  # truncation in w; 1: none, 0: the mean
}

# See gen_jax.idle.
SERVES = (
    (
        'gan.penalty_weight gan.penalty_target gan.penalty_every',
        lambda c: c.gan.penalty,
        'gan.penalty',
    ),
    (
        'gan.auxiliary_weight',
        lambda c: c.model.get('condition') == 'auxiliary',
        "model.condition='auxiliary'",
    ),
    ('gan.path_length_every', lambda c: c.gan.path_length, 'gan.path_length'),
    ('gan.instance_noise_steps', lambda c: c.gan.instance_noise, 'gan.instance_noise'),
    ('model.label_layers model.shared_dim', lambda c: c.data.num_classes, 'data.num_classes'),
)


def rules_for(network: str) -> dict:
    """`config.gan` for a network: the non-saturating game, alone.

    Each stabiliser is off, but for those that a network's papers have; any may be turned on with
    any other.
    """
    return {
        # minimax, non_saturating, least_squares (LSGAN), hinge, wasserstein
        'objective': 'non_saturating',
        'label_smoothing': 0.0,  # s: the discriminator's target for real images is 1 - s
        'fake_smoothing': 0.0,  # its target for generated ones
        'n_critic': 1,  # steps of the discriminator for one of the generator; divides the batch
        'd_rate_ratio': 1.0,  # the discriminator's learning rate over the generator's
        'penalty': '',  # on its gradient: wgan_gp, dragan, r1, r2, r1_r2; '': none
        'penalty_weight': 10.0,  # lambda, or gamma
        'penalty_target': 1.0,  # the norm that wgan_gp and dragan draw it to
        # Training steps from one penalty to the next, which is as much stronger (lazy
        # regularisation, Karras et al. 2020); Adam is told of the steps in between
        'penalty_every': 1,
        'drift': 0.0,  # weight of E[D(x)^2] of real images (Karras et al. 2018)
        'clip_weights': 0.0,  # largest parameter of a critic (WGAN); 0: any
        'instance_noise': 0.0,  # deviation of noise on all that the discriminator sees
        'instance_noise_steps': 0,  # training steps until it has faded to 0; 0: it stays
        'augment': (),  # DiffAugment: color, translation, cutout
        'consistency': 0.0,  # weight of consistency regularisation, of real images
        'consistency_fake': 0.0,  # and of generated ones
        'feature_matching': 0.0,  # its share of the generator's loss, 0 to 1 (Salimans et al.)
        # Steps of the discriminator that the generator looks ahead; with minimax (Metz et al. 2017)
        # and wasserstein it then sees what becomes of real images' logits too
        'unroll': 0,
        'auxiliary_weight': 1.0,  # of the classifier's losses, with model.condition='auxiliary'
        **(STYLE if network in networks.STYLED else {}),
        **({'path_length': 0.0} if network == 'stylegan' else {}),  # StyleGAN2 came with it
        **(GROWTH if network in networks.GROWING else {}),
    }


def knobs_for(network: str) -> dict:
    """What samples can be asked for, `config.sample.knobs`."""
    if network in networks.STYLED:
        return dict(STYLE_KNOBS)
    # Of a z of which only the direction is taken, neither changes anything.
    return {} if network in networks.NORMALISED else dict(SPREAD)


def sample_for(network: str) -> dict:
    """A network's own part of `config.sample`."""
    knobs = {'knobs': knobs_for(network)}
    if network not in networks.BATCH_NORMED:
        return knobs
    # Batches that standing statistics are means over; 0: samples take the running statistics.
    return knobs | {'standing': 0}


def check(config) -> None:
    """Raises UserError where the rules do not exist or do not fit each other or the networks."""
    networks.build(config)  # Numbers of networks that are wrong by themselves come first.
    rules, batch = config.gan, config.batch_size
    require_known('gan', rules, objective=OBJECTIVES, penalty=('', *PENALTIES))
    for name in rules.augment:
        expected = f'known names{nearest(name, AUGMENTATIONS)}'
        require(name in AUGMENTATIONS, 'gan.augment', rules.augment, expected)
    require_least('gan', rules, n_critic=1, penalty_every=1, unroll=0)
    if 'path_length' in rules:
        require_least('gan', rules, path_length_every=1)
    packing = config.model.get('packing', 1)
    parts = rules.n_critic * config.accumulate * packing
    product = 'n_critic * accumulate' + ' * model.packing' * (packing > 1)
    require(batch % parts == 0, 'batch_size', batch, f'a multiple of {product} = {parts}')
    if 'mbstd_group' in config.model:
        part, group = batch // parts, config.model.mbstd_group
        expected = f'a number that divides batch_size / ({product}) = {part}, or is no less'
        require(part % min(group, part) == 0, 'model.mbstd_group', group, expected)
    for field in ('label_smoothing', 'fake_smoothing'):
        require(0 <= rules[field] < 1, f'gan.{field}', rules[field], '0 or more, below 1')
    s, fake = rules.label_smoothing, rules.fake_smoothing
    expected = f"less than 1 - gan.label_smoothing = {1 - s:g}, real images' target"
    require(s + fake < 1, 'gan.fake_smoothing', fake, expected)
    require_weights(
        'gan',
        rules,
        'penalty_weight',
        'clip_weights',
        'instance_noise',
        'instance_noise_steps',
        'consistency',
        'consistency_fake',
        'auxiliary_weight',
        'drift',
        *(('grow_steps',) if 'grow_steps' in rules else ()),
        *(('path_length',) if 'path_length' in rules else ()),
    )
    for field in ('feature_matching', *(('style_mixing',) if 'style_mixing' in rules else ())):
        require(0 <= rules[field] <= 1, f'gan.{field}', rules[field], '0 to 1')
    for field in ('d_rate_ratio', 'penalty_target'):
        fits = 0 < rules[field] < math.inf
        require(fits, f'gan.{field}', rules[field], 'a positive number, and finite')
    if 'grow_steps' in rules:
        _check_growth(rules, config.data.image_size)
    _check_fit(config)
    for field, value in config.sample.knobs.items():
        require(0 <= value < math.inf, f'sample.knobs.{field}', value, '0 or more, and finite')
    if 'standing' in config.sample:
        standing = config.sample.standing
        require(standing >= 0, 'sample.standing', standing, 'a whole number, 0 or more')
    require_average(config)


def _check_growth(rules, image_size: int) -> None:
    sizes = sizes_up_to(image_size)
    require(rules.grow_from in sizes, 'gan.grow_from', rules.grow_from, f'one of {sizes}')
    rates, n = rules.grow_rates, len([size for size in sizes if size >= rules.grow_from])
    expected = f'() or {n} positive numbers, one for each size from gan.grow_from={rules.grow_from}'
    fits = not rates or (len(rates) == n and are_positive(rates))
    require(fits, 'gan.grow_rates', rates, expected)
    still = rules.grow_steps or (rules.grow_from == 4 and not rates)
    expected = 'more than 0 with gan.grow_from or gan.grow_rates, which are of networks that grow'
    require(still, 'gan.grow_steps', rules.grow_steps, expected)


def _check_fit(config) -> None:
    """Raises UserError where one rule forbids another."""
    rules, model = config.gan, config.model
    objective = OBJECTIVES[rules.objective]
    critic = objective.boundary is None
    lazy = rules.penalty and rules.penalty_every > 1
    expected = (
        '0 with gan.penalty_every above 1: steps that look ahead have no penalty of their own'
    )
    require(not (rules.unroll and lazy), 'gan.unroll', rules.unroll, expected)
    smoothed = rules.label_smoothing or rules.fake_smoothing
    smooth = ', '.join(name for name, other in OBJECTIVES.items() if other.smooths)
    expected = f'one of {smooth}, which have targets to smooth'
    require(objective.smooths or not smoothed, 'gan.objective', rules.objective, expected)
    expected = "0 but for gan.objective='wasserstein'"
    require(critic or not rules.clip_weights, 'gan.clip_weights', rules.clip_weights, expected)
    # Batch norm divides by deviations that may be as small as they like.
    spectral = model.get('d_spectral', config.network == 'biggan')
    spectral = spectral and not model.get('d_batch_norm', False)
    penalised = rules.penalty and rules.penalty_weight
    bounded = penalised or rules.clip_weights or spectral
    expected = (
        'gan.penalty (with a weight), gan.clip_weights or model.d_spectral (without '
        'model.d_batch_norm) with it, to bound its gradient'
    )
    require(not critic or bounded, 'gan.objective', rules.objective, expected)
    aims = not rules.penalty or PENALTIES[rules.penalty].targets
    expected = f'1 with gan.penalty={rules.penalty!r}, which draws the norm to 0'
    require(aims or rules.penalty_target == 1, 'gan.penalty_target', rules.penalty_target, expected)
    # Of deep_conv's discriminator it takes the place of spectral normalisation.
    normed = model.get('d_batch_norm', config.network == 'deep_conv' and not model.d_spectral)
    normed = normed and rules.penalty == 'wgan_gp'
    expected = (
        "'' or another where the discriminator's batch norm ties the images of a batch together"
    )
    require(not normed, 'gan.penalty', rules.penalty, expected)
