"""What each rule of the game changes: penalties, schedules, noise, looking ahead, labels.

On networks of two dense layers, which compile quickly.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from games import batch_of, close, differ, judge_of, small, started, stepped

from gen_jax import config as house
from gen_jax.errors import UserError
from gen_jax.gans import adversarial, networks
from gen_jax.gans.adversarial import discriminator_step, game_of, instance_noise
from gen_jax.gans.game import PENALTY, discriminator_loss, generate, generator_loss, unrolled
from gen_jax.method import play, steps_taken
from gen_jax.runtime.program import Program


@functools.cache
def text(**changes):
    """What a training step computes, as text."""
    config = small(**changes)
    method = house.create(config)
    batch = batch_of(config)
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    traced = jax.make_jaxpr(method.train_step)(jax.random.key(0), state, batch)
    return str(traced), str(traced.consts)


R1 = {'gan__penalty': 'r1'}
GP = {'gan__penalty': 'wgan_gp'}
NOISY = {'gan__instance_noise': 0.1}
CLASSES = {'data__num_classes': 3, 'model__condition': 'concat'}
GUESSING = {'network': 'resnet', 'data__num_classes': 3, 'model__condition': 'auxiliary'}
STYLED = {'network': 'stylegan', 'gan__grow_steps': 0, 'gan__style_mixing': 0.0}
SHORT = {**STYLED, 'gan__path_length': 1.0}
GROWING = {**STYLED, 'gan__grow_steps': 2}
FIELDS = [
    ({}, {'gan__objective': 'hinge'}),
    ({}, {'gan__label_smoothing': 0.1}),
    ({}, {'gan__fake_smoothing': 0.1}),
    ({}, {'gan__n_critic': 2}),
    ({}, {'gan__d_rate_ratio': 2.0}),
    ({}, R1),
    (R1, {'gan__penalty_weight': 1.0}),
    (R1, {'gan__penalty_every': 2}),
    (GP, {'gan__penalty_target': 2.0}),
    ({}, {'gan__drift': 0.1}),
    ({'gan__objective': 'wasserstein', **GP}, {'gan__clip_weights': 0.1}),
    ({}, NOISY),
    (NOISY, {'gan__instance_noise_steps': 9}),
    ({}, {'gan__augment': ('cutout',)}),
    ({}, {'gan__consistency': 1.0}),
    ({}, {'gan__consistency_fake': 1.0}),
    ({}, {'gan__feature_matching': 0.5}),
    ({}, {'gan__unroll': 1}),
    (GUESSING, {'gan__auxiliary_weight': 2.0}),
    (STYLED, {'gan__style_mixing': 0.5}),
    (STYLED, {'gan__path_length': 1.0}),
    (SHORT, {'gan__path_length_every': 3}),
    (STYLED, {'gan__grow_steps': 2}),
    (GROWING, {'gan__grow_from': 8}),
    (GROWING, {'gan__grow_rates': (1.0, 2.0)}),
    ({}, CLASSES),
    ({}, {'model__latent_dim': 4}),
    ({}, {'model__g_widths': (7,)}),
    ({}, {'model__d_widths': (7,)}),
    ({}, {'model__packing': 2}),
    ({}, {'model__output': 'linear'}),
    ({}, {'model__pieces': (2,)}),
    (CLASSES, {'model__label_widths': (0, 3)}),
    (CLASSES, {'model__label_widths': (4, 0)}),
    ({}, {'model__dropout': 0.5}),
    ({}, {'model__d_spectral': True}),
    ({}, {'model__minibatch_kernels': 2}),
    ({}, {'optimizer__learning_rate': 1e-3}),
    ({}, {'optimizer__warmup': 5}),
    ({}, {'optimizer__decay_steps': 5}),
    ({'optimizer__decay_steps': 5}, {'optimizer__decay': 'linear'}),
    ({}, {'optimizer__b1': 0.6}),
    ({}, {'optimizer__b2': 0.6}),
    ({}, {'optimizer__eps': 1e-3}),
    ({}, {'optimizer__weight_decay': 0.1}),
    ({}, {'optimizer__clip': 1.0}),
    ({}, {'ema_decay': 0.5}),
    ({}, {'ema_rampup': 0.5}),
    ({}, {'ema_start': 5}),
]


@pytest.mark.parametrize(('base', 'change'), FIELDS, ids=lambda x: next(reversed(x), 'none'))
def test_every_field_changes_the_step(base, change):
    assert text(**base | change) != text(**base)


def test_every_field_has_its_turn():
    """But for those of samples, and of other networks' models."""
    fields = set()
    for network in networks.NETWORKS:
        kinds = adversarial.defaults(network)
        of_rules = {f'gan__{name}' for name in kinds.pop('gan')}
        del kinds['network'], kinds['sample']
        inside = {
            f'{kind}__{name}' for kind, part in kinds.items() if type(part) is dict for name in part
        }
        alone = {name for name, part in kinds.items() if type(part) is not dict}
        fields |= of_rules | (inside | alone if network == 'mlp' else set())
    assert {name for _, change in FIELDS for name in change} == fields | {'data__num_classes'}


@pytest.mark.slow
def test_clipping_bounds_every_parameter_of_the_critic():
    _, after, _ = stepped(gan__objective='wasserstein', gan__clip_weights=0.01)
    largest = [jnp.abs(x).max() for x in jax.tree.leaves(after.discriminator.params)]
    assert max(largest) == pytest.approx(0.01)
    assert max(jnp.abs(x).max() for x in jax.tree.leaves(after.generator.params)) > 0.1


@pytest.mark.slow
def test_a_lazy_penalty_comes_at_every_kth_step_and_is_as_much_stronger():
    config = small(**R1, gan__penalty_every=3)
    method, state = started(config)
    judge, net = judge_of(config), state.discriminator
    plain = judge.penalty(net.variables(), judge.asked.image, judge.asked.image)
    step, moves, told = jax.jit(method.train_step), [], []
    for i in range(4):
        state, metrics = step(jax.random.key(i), state, batch_of(config))
        moves.append(int(steps_taken(state.discriminator)))
        told.append(float(metrics['d_penalty']))
    assert moves == [2, 3, 4, 6]  # Adam takes two steps at steps 0 and 3
    np.testing.assert_allclose(told[0], 3 * plain, rtol=1e-5)  # of the data: whatever is drawn
    assert told[1] == told[2] == 0 < told[3]


@pytest.mark.parametrize('name', ['r1', 'wgan_gp'])
def test_of_images_that_are_judged_together_the_gradient_is_by_all(name):
    rules = {'gan__penalty': name, 'gan__penalty_weight': 3.0}
    config = small(**rules, model__packing=2, batch_size=4)
    _, state = started(config)
    judge, variables = judge_of(config), state.discriminator.variables()
    real, fake = judge.asked.image, judge.asked.image[::-1] / 2
    keys = judge.asked.keys_of(PENALTY)
    # Of two neighbours one share of the way.
    share = jnp.repeat(jnp.stack([jax.random.uniform(key) for key in keys[::2]]), 2)
    share = share[:, None, None, None]
    x = real if name == 'r1' else share * real + (1 - share) * fake
    gradients = jax.jacobian(lambda x: judge(variables, x)[0])(x)  # [2, 4, 4, 4, 1]
    squares = jnp.square(gradients).sum((1, 2, 3, 4))
    want = squares.mean() / 2 if name == 'r1' else jnp.square(jnp.sqrt(squares) - 1).mean()
    np.testing.assert_allclose(judge.penalty(variables, real, fake), 3 * want, rtol=1e-5)


@pytest.mark.slow
def test_what_is_lazy_is_told_and_gone_where_its_weight_is_0():
    rules = {**R1, 'gan__penalty_every': 16}
    assert adversarial.create(small(**rules)).lazy == {'gan.penalty_weight': 16}
    # At every step the penalty is no step of its own.
    for none in (R1, {**rules, 'gan__penalty_weight': 0.0}):
        assert adversarial.create(small(**none)).lazy == {}
    styled = {'gan__path_length': 2.0, 'gan__path_length_every': 4, **rules}
    expected = {'gan.penalty_weight': 16, 'gan.path_length': 4}
    assert adversarial.create(small('stylegan2', **styled)).lazy == expected

    def flops(**changes):
        config = small(**changes)
        return Program(config, adversarial.create(config)).flops()

    assert flops(**rules, gan__penalty_weight=0.0) == flops() < flops(**rules)


def test_no_penalty_is_never_lazy():
    plain, lazy = (stepped(gan__penalty_every=k)[1] for k in (1, 3))
    close(plain.discriminator.params, lazy.discriminator.params)


def test_adam_is_told_of_lazy_steps():
    """Karras et al. 2020, appendix B: rate, beta_1 and beta_2 for k / (k + 1) steps."""
    options = ml_collections.ConfigDict(
        {'learning_rate': 0.1, 'warmup': 0, 'decay_steps': 0, 'b1': 0.5, 'b2': 0.9}
        | {'eps': 1e-8, 'weight_decay': 0.0, 'clip': 0.0}
    )
    tx, params = adversarial.lazy_optimizer(options, 2.0, 4), {'w': jnp.zeros(1)}
    state = tx.init(params)
    for gradient in (1.0, 3.0):
        updates, state = tx.update({'w': jnp.full(1, gradient)}, state, params)
    b1, b2 = 0.5**0.8, 0.9**0.8
    m = (b1 * (1 - b1) + (1 - b1) * 3) / (1 - b1**2)
    v = (b2 * (1 - b2) + (1 - b2) * 9) / (1 - b2**2)
    np.testing.assert_allclose(updates['w'], -0.16 * m / np.sqrt(v), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('network', 'player', 'changes'),
    [
        ('mlp', 'discriminator', {'gan__n_critic': 2}),
        ('mlp', 'discriminator', {**R1, 'gan__n_critic': 2, 'gan__penalty_every': 2}),
        ('stylegan2', 'generator', {'gan__path_length': 2.0, 'gan__path_length_every': 1}),
    ],
)
def test_schedules_are_in_training_steps(network, player, changes):
    """However many steps of Adam are in one."""
    config = small(network, **changes, optimizer__decay_steps=4)
    method, state = started(config)
    step, moved = jax.jit(method.train_step), []
    for i in range(5):
        before, (state, _) = state, step(jax.random.key(i), state, batch_of(config))
        moved.append(any(differ(getattr(state, player).params, getattr(before, player).params)))
    assert moved == [True, True, True, True, False]


@pytest.mark.slow
def test_feature_matching_alone_forgets_the_objective():
    losses = [
        stepped(gan__objective=name, gan__feature_matching=1.0)[2]['g_loss']
        for name in ('non_saturating', 'least_squares')
    ]
    config = small()
    for name, got in zip(('non_saturating', 'least_squares'), losses, strict=True):
        # |E f(x) - E f(G(z))|^2 of the new discriminator's hidden layer.
        state, after, _ = stepped(gan__objective=name, gan__feature_matching=1.0)
        key = jax.random.split(jax.random.key(1))[1]
        asked = game_of(config).draw(key, batch_of(config)['image'], None)
        fake = generate(game_of(config), state.generator.variables(), asked)[0]
        params = after.discriminator.params
        dense = params['dense_0']

        def hidden(x, dense=dense):
            return np.maximum(0, x.reshape(len(x), -1) @ dense['kernel'] + dense['bias']).mean(0)

        want = ((hidden(asked.image) - hidden(fake)) ** 2).sum()
        np.testing.assert_allclose(got, want, rtol=1e-4)


def test_instance_noise_fades():
    rules = ml_collections.ConfigDict({'instance_noise': 0.4, 'instance_noise_steps': 10})
    found = [float(instance_noise(rules, jnp.int32(step))) for step in (0, 5, 10, 20)]
    np.testing.assert_allclose(found, [0.4, 0.2, 0, 0], atol=1e-7)
    rules.instance_noise_steps = 0
    assert float(instance_noise(rules, jnp.int32(99))) == pytest.approx(0.4)


def test_the_discriminator_sees_noise_of_that_deviation_on_each_image():
    config = small(**NOISY, batch_size=500)
    judge = judge_of(config, noise=jnp.float32(0.3))
    added, to_made = (judge.view(judge.asked.image, made) - judge.asked.image for made in (0, 1))
    assert added.std() == pytest.approx(0.3, rel=0.05)
    assert jnp.abs(added[0] - added[1]).max() > 0.1
    # Real and generated images do not share it.
    correlation = np.corrcoef(np.ravel(added), np.ravel(to_made))[0, 1]
    assert abs(correlation) < 0.05


CRITIC = {'gan__objective': 'wasserstein', 'gan__penalty': 'wgan_gp', 'gan__clip_weights': 0.02}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('steps', 'changes'),
    [(1, {}), (1, CRITIC), (2, {'model__d_spectral': True})],
    ids=['', 'a critic, penalised and clipped', 'spectral vectors move too'],
)
def test_the_generator_looks_ahead(steps, changes):
    """Unrolled steps are the discriminator's own, and the gradient passes through them."""
    config = small(gan__unroll=steps, **changes)
    _, state = started(config)
    judge, net = judge_of(config), state.discriminator
    fake = generate(judge.game, state.generator.variables(), judge.asked)[0]
    ahead = unrolled(judge, net, fake)
    after = state
    for _ in range(steps):
        after, _ = discriminator_step(judge, after)
    close(ahead.params, after.discriminator.params, atol=1e-6)
    close(ahead.extra, after.discriminator.extra, atol=1e-6)
    through = jax.grad(
        lambda x: sum(p.sum() for p in jax.tree.leaves(unrolled(judge, net, x).params))
    )(fake)
    assert np.abs(through).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize('objective', ['minimax', 'wasserstein', 'non_saturating'])
def test_looking_ahead_a_zero_sum_game_is_descended_whole(objective):
    """Metz et al. 2017: f of the discriminator after two steps, here of Adam written out.

    Of other objectives the generator has its own loss.
    """
    bounded = {'gan__clip_weights': 9.0} if objective == 'wasserstein' else {}
    fast = {'optimizer__learning_rate': 0.1, 'optimizer__eps': 1e-2}
    config = small(gan__unroll=2, gan__objective=objective, **fast, **bounded)
    _, state = started(config)
    judge, options = judge_of(config), config.optimizer
    generator, real, z = state.generator, judge.asked.image, judge.asked.z

    def dense(layer, x):
        return x @ layer['kernel'] + layer['bias']

    def hidden(net, x):
        return jnp.maximum(dense(net['dense_0'], x), 0)

    def logits(net, x):
        return dense(net['out'], hidden(net, x.reshape(len(x), -1)))

    def f(net, fake):
        a, b = logits(net, real), logits(net, fake)
        if objective == 'wasserstein':
            return a.mean() - b.mean()
        return jnp.log(nn.sigmoid(a)).mean() + jnp.log(1 - nn.sigmoid(b)).mean()

    def moved(i, w, m, v):
        m, v = m / (1 - options.b1**i), v / (1 - options.b2**i)
        return w + options.learning_rate * m / (jnp.sqrt(jnp.maximum(v, 1e-30)) + options.eps)

    def by_hand(params):
        fake, net = jnp.tanh(dense(params['out'], hidden(params, z))), state.discriminator.params
        first = second = jax.tree.map(jnp.zeros_like, net)
        for i in (1, 2):
            up = jax.grad(f)(net, fake)
            first, second = (
                jax.tree.map(lambda m, g, b=b, k=k: b * m + (1 - b) * g**k, moment, up)
                for moment, b, k in ((first, options.b1, 1), (second, options.b2, 2))
            )
            net = jax.tree.map(functools.partial(moved, i), net, first, second)
        if objective == 'non_saturating':
            return -jnp.log(nn.sigmoid(logits(net, fake))).mean()
        return f(net, fake)

    def ours(params):
        return generator_loss(judge, state.discriminator, params, generator.extra, judge.asked)[0]

    got, want = (jax.value_and_grad(x)(generator.params) for x in (ours, by_hand))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-6)
    close(got[1], want[1], rtol=1e-3, atol=1e-6)


def test_labels_reach_both_networks():
    config = small(**CLASSES)
    method, state = started(config)
    sample, keys = jax.jit(method.sample_step), jax.random.split(jax.random.key(2), 2)
    one, other = (sample(keys, state, {'label': jnp.int32([0, i])}) for i in (1, 2))
    np.testing.assert_array_equal(one[0], other[0])
    assert jnp.abs(one[1] - other[1]).max() > 1e-3
    judge = judge_of(config)
    turned = judge._replace(asked=judge.asked._replace(label=2 - judge.asked.label))
    x, variables = judge.asked.image, state.discriminator.variables()
    assert jnp.abs(judge(variables, x)[0] - turned(variables, x)[0]).max() > 1e-3
    with pytest.raises(UserError, match="no 'label'"):
        method.train_step(jax.random.key(0), state, {'image': x})


@pytest.mark.slow
def test_both_players_lose_by_what_the_classifier_misses():
    """AC-GAN (Odena et al. 2017): cross-entropies of real and of generated images' labels."""
    config = small(**GUESSING, model__d_spectral=False, gan__auxiliary_weight=3.0)
    _, state = started(config)
    judge = judge_of(config)
    game, asked, net = judge.game, judge.asked, state.discriminator
    fake = generate(game, state.generator.variables(), asked)[0]
    logits, guesses = [], []
    for x in (asked.image, fake):
        found, _, sown = play(game.discriminator, net.variables(), x, asked.label)
        logits.append(found)
        guesses.append(-jax.nn.log_softmax(sown['class_logits'])[jnp.arange(4), asked.label].mean())
    hinge = jax.nn.relu(1 - logits[0]).mean() + jax.nn.relu(1 + logits[1]).mean()
    got, _ = discriminator_loss(judge, state.generator.variables(), net.params, net.extra, asked)
    np.testing.assert_allclose(got, hinge + 3 * (guesses[0] + guesses[1]), rtol=1e-5)
    generator = state.generator
    got, _ = generator_loss(judge, net, generator.params, generator.extra, asked)
    np.testing.assert_allclose(got, -logits[1].mean() + 3 * guesses[1], rtol=1e-5)
