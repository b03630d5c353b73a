"""The game: who moves when, what each rule changes, and the method's side of the contract.

On networks of two dense layers, which compile quickly; running statistics on DCGAN's.
"""

import functools
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from games import NOISE, SMALL, batch_of, close, differ, judge_of, small, started, stepped
from PIL import Image
from scipy.stats import truncnorm

from configs import dcgan_fashion_mnist
from gen_jax import config as house
from gen_jax import evaluate, sample, train
from gen_jax.errors import UserError
from gen_jax.gans import adversarial, networks
from gen_jax.gans.adversarial import (
    discriminator_step,
    game_of,
    generator_step,
    instance_noise,
    shortened,
)
from gen_jax.gans.game import (
    PATH,
    PENALTY,
    Judge,
    discriminator_loss,
    generate,
    generator_loss,
    styles,
    unrolled,
)
from gen_jax.gans.latents import within
from gen_jax.method import Net, play, steps_taken
from gen_jax.runtime.program import Program

# --- the alternation -----------------------------------------------------------------------------


@pytest.mark.slow
def test_each_step_changes_its_own_net_only():
    config = small()
    _, state = started(config)
    judge = judge_of(config)
    after, metrics = jax.jit(lambda s: discriminator_step(judge, s))(state)
    assert not any(differ(after.generator, state.generator))
    assert all(differ(after.discriminator.params, state.discriminator.params))
    assert set(metrics) == {'d_loss', 'd_grad_norm', 'd_real_accuracy', 'd_fake_accuracy'}
    after, metrics = jax.jit(lambda s: generator_step(judge, s, 0.9))(state)
    assert not any(differ(after.discriminator, state.discriminator))
    assert all(differ(after.generator.params, state.generator.params))
    assert set(metrics) == {'g_loss', 'g_grad_norm', 'g_diversity'}


@pytest.mark.slow
@pytest.mark.parametrize('n_critic', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_rounds_follow_each_other_on_parts_of_the_batch(n_critic):
    """So many rounds of the discriminator, then the generator against the newest."""
    config = small(gan__n_critic=n_critic)
    method, state = started(config)
    key, batch = jax.random.key(1), batch_of(config)
    d_key, g_key = jax.random.split(key)
    game, middle = game_of(config), state
    for i in range(n_critic):
        image = batch['image'][i::n_critic]
        asked = game.draw(jax.random.fold_in(d_key, i), image, None)
        middle, _ = discriminator_step(Judge(game, asked, NOISE), middle)
    last = Judge(game, game.draw(g_key, image, None), NOISE)
    want, wanted = generator_step(last, middle, 0.999)
    _, stale = generator_step(last, state, 0.999)
    got, metrics = jax.jit(method.train_step)(key, state, batch)
    np.testing.assert_allclose(metrics['g_loss'], wanted['g_loss'], rtol=1e-5)
    assert abs(metrics['g_loss'] - stale['g_loss']) > 1e-5
    close(got.discriminator.params, want.discriminator.params, atol=1e-6)
    close(got.generator.params, want.generator.params, atol=1e-6)
    assert got.step == 1


@pytest.mark.slow
def test_a_batch_in_parts_makes_the_same_step():
    rules = {'gan__penalty': 'wgan_gp', 'gan__objective': 'wasserstein', 'optimizer__eps': 1e-3}
    _, whole, _ = stepped(**rules)
    _, parts, _ = stepped(**rules, accumulate=2)
    close(parts.generator.params, whole.generator.params, atol=1e-6)
    close(parts.discriminator.params, whole.discriminator.params, atol=1e-6)


@pytest.mark.slow
def test_each_net_learns_at_its_own_rate():
    """Adam's first step is the rate times a sign, whatever the gradient."""
    before, after, _ = stepped(gan__d_rate_ratio=3.0)
    moved = [
        max(jnp.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in (
            (after.generator.params, before.generator.params),
            (after.discriminator.params, before.discriminator.params),
        )
    ]
    np.testing.assert_allclose(moved, [2e-4, 6e-4], rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(('ema_decay', 'accumulate'), [(0.9, 1), (0.0, 1), (0.9, 2)])
def test_running_statistics_are_those_of_the_generator_that_samples(ema_decay, accumulate):
    """Of a batch in parts the means of theirs."""
    config = small('dcgan', ema_decay=ema_decay, accumulate=accumulate)
    method, state = started(config)
    key, batch = jax.random.key(1), batch_of(config)
    after, _ = jax.jit(method.train_step)(key, state, batch)
    asked = game_of(config).draw(jax.random.split(key)[1], batch['image'], None)
    sampler = after.generator.ema if ema_decay else after.generator.params
    variables = {'params': sampler, **state.generator.extra}
    each = [
        play(game_of(config).generator, variables, asked.z[i::accumulate])[1]
        for i in range(accumulate)
    ]
    want = jax.tree.map(lambda *stats: sum(stats) / accumulate, *each)
    close(after.generator.extra, want, atol=1e-6)
    assert (after.generator.ema is None) == (ema_decay == 0)
    assert after.discriminator.ema is None


SPECTRAL = {'model__g_spectral': True, 'model__condition': 'none'}


def standing_batches(config, key):
    """The z [batches, b, d] that standing statistics are taken from."""
    keys = jax.random.split(key, config.sample.standing)
    z_keys = [jax.random.split(key, 3)[0] for key in keys]
    shape = config.batch_size, config.model.latent_dim
    return [jax.random.normal(z_key, shape) for z_key in z_keys]


@pytest.mark.slow
@pytest.mark.parametrize(('network', 'options'), [('dcgan', {}), ('resnet', SPECTRAL)])
def test_one_batch_with_its_own_standing_statistics_is_drawn_as_in_training(network, options):
    config = small(network, **options, sample__standing=1)
    method, state = started(config)
    # Averaged weights that are not those which spectral vectors are kept of.
    ema = jax.tree.map(lambda x: x + 0.1 * jnp.sin(x * 99), state.generator.ema)
    state = state.replace(generator=state.generator.replace(ema=ema))
    key = jax.random.key(3)
    settled = jax.jit(method.settle)(key, state)
    (z,) = standing_batches(config, key)
    generator = game_of(config).generator
    want, _, _ = play(generator, state.generator.variables(ema=True), z)
    got = method.latents.synthesis(settled, z[:, None], {})
    np.testing.assert_allclose(got, jnp.clip(want, -1, 1), atol=1e-5)
    assert jnp.abs(method.latents.synthesis(state, z[:, None], {}) - got).max() > 0.01
    # Nothing else has changed.
    kept = settled.generator.replace(extra=state.generator.extra)
    assert not any(differ(settled.replace(generator=kept), state))


@pytest.mark.slow
@pytest.mark.parametrize('truncation', [0.0, 0.5])
def test_standing_statistics_are_means_over_batches_of_what_is_drawn(truncation):
    config = small('dcgan', sample__standing=3, sample__knobs__truncation=truncation)
    method, state = started(config)
    # Large variances.
    ema = jax.tree.map(lambda x: 100 * x, state.generator.ema)
    state = state.replace(generator=state.generator.replace(ema=ema))
    key, found = jax.random.key(3), []
    for z in standing_batches(config, key):
        sown = {}

        def kept(next_fun, args, kwargs, context, sown=sown):
            """What goes into each batch norm."""
            if type(context.module).__name__ == 'BatchNorm':
                sown[context.module.name] = args[0]
            return next_fun(*args, **kwargs)

        inside = within(z, jnp.full((len(z), 1), truncation))
        with nn.intercept_methods(kept):
            play(game_of(config).generator, state.generator.variables(ema=True), inside)
        found.append({name: (x.mean((0, 1, 2)), x.var((0, 1, 2))) for name, x in sown.items()})
    settled = jax.jit(method.settle)(key, state).generator.extra['batch_stats']
    assert settled.keys() == found[0].keys()
    for name, stats in settled.items():
        for i, part in enumerate(('mean', 'var')):
            want = np.mean([each[name][i] for each in found], 0)
            np.testing.assert_allclose(stats[part], want, rtol=1e-4)


@pytest.mark.slow
def test_samples_take_standing_statistics_where_asked_and_say_so(tmp_path):
    config = dcgan_fashion_mnist.get_config('tiny')
    train.run(config, tmp_path)
    sample.run(config, tmp_path)
    with config.unlocked():
        config.sample.standing = 4
    with pytest.raises(UserError, match=r'sample\.standing was 0, is 4'):
        sample.run(config, tmp_path)
    (plain,) = (tmp_path / 'samples').glob('at_step_*')
    plain.rename(tmp_path / 'plain')
    sample.run(config, tmp_path)
    images = [
        np.stack([np.asarray(Image.open(x)) for x in sorted(folder.glob('*.png'))])
        for folder in (tmp_path / 'plain', plain)
    ]
    assert len(images[0]) == len(images[1])
    assert (images[0] != images[1]).mean() > 0.2
    evaluate.run(config, tmp_path)
    rows = json.loads((tmp_path / 'metrics.json').read_text())
    assert rows['diversity_ssim']['standing'] == 4


@pytest.mark.slow
def test_the_average_begins_and_grows_as_told():
    config = small(ema_decay=0.9, ema_start=2, optimizer__learning_rate=0.1)
    method, state = started(config)
    step, before = jax.jit(method.train_step), None
    for i in range(3):
        before, (state, _) = state, step(jax.random.key(i), state, batch_of(config))
        if i < 2:
            close(state.generator.ema, state.generator.params)
    mixed = jax.tree.map(
        lambda a, b: 0.9 * a + 0.1 * b, before.generator.ema, state.generator.params
    )
    close(state.generator.ema, mixed, rtol=1e-5, atol=1e-7)


# --- rules ---------------------------------------------------------------------------------------


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
    ({}, {'model__pieces': 2}),
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
@pytest.mark.parametrize('changes', [{}, CRITIC], ids=['', 'a critic, penalised and clipped'])
def test_the_generator_looks_ahead(changes):
    """One unrolled step is the discriminator's own step, and the gradient passes through it."""
    config = small(gan__unroll=1, **changes)
    _, state = started(config)
    judge, net = judge_of(config), state.discriminator
    fake = generate(judge.game, state.generator.variables(), judge.asked)[0]
    ahead = unrolled(judge, net, fake)
    after, _ = discriminator_step(judge, state)
    close(ahead.params, after.discriminator.params, atol=1e-6)
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


# --- styles --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_styles_change_from_some_layer_on():
    config = small('stylegan2', gan__style_mixing=1.0, batch_size=32)
    _, state = started(config)
    judge, variables = judge_of(config), state.generator.variables()
    ws, _ = styles(judge.game, variables, judge.asked._replace(label=None))
    first = ws[:, :1]
    own = np.asarray((ws == first).all(-1))  # [b, num_ws]
    assert own[:, 0].all()
    assert not own[:, -1].any()
    assert (np.diff(own.astype(int), axis=1) <= 0).all()  # once changed, it stays
    assert len(set(own.sum(1))) > 1
    plain = judge.game._replace(rules=ml_collections.FrozenConfigDict({'style_mixing': 0.0}))
    ws, _ = styles(plain, variables, judge.asked._replace(label=None))
    assert (ws == ws[:, :1]).all()


@pytest.mark.slow
@pytest.mark.parametrize(('size', 'layers'), [(8, 4), (16, 6), (32, 8)])
def test_styles_change_in_a_layer_of_the_size_that_grows(size, layers):
    """As networks_stylegan.py draws it: from 1 to cur_layers - 1, all of which come up."""
    options = {'data__image_size': 32, 'model__w_dim': 4, 'model__mapping_layers': 1}
    config = small('stylegan', **options, gan__style_mixing=1.0, batch_size=64)
    _, state = started(config)
    judge, variables = judge_of(config), state.generator.variables()
    game = judge.game._replace(growth={'size': size, 'alpha': 1.0})
    ws, _ = styles(game, variables, judge.asked._replace(label=None))
    own = np.asarray((ws == ws[:, :1]).all(-1))  # [b, num_ws]
    assert set(own.sum(1)) == set(range(1, layers))


@pytest.mark.slow
def test_path_lengths_are_taken_at_every_kth_step():
    config = small('stylegan2', gan__path_length=2.0, gan__path_length_every=2, gan__penalty='r1')
    method, state = started(config)
    step, found = jax.jit(method.train_step), [float(state.path_length)]
    for i in range(3):
        state, metrics = step(jax.random.key(i), state, batch_of(config))
        found.append(float(metrics['g_path_length']))
    assert state.path_length == found[-1]
    assert 0 == found[0] < found[1] == found[2] < found[3]
    assert state.generator.extra['w_avg']['w_avg'].any()


class Straight(nn.Module):
    """Styles that are linear in z."""

    @nn.compact
    def mapping(self, z, label=None, train=False):
        return nn.Dense(3)(z)[:, None]


def test_path_lengths_pull_as_strongly_as_told(monkeypatch):
    """The gradient of weight * every * E[(l - a)^2], of every second image of each part."""
    rules = {'gan__path_length': 3.0, 'gan__path_length_every': 5}
    config, seen = small('stylegan2', **rules, batch_size=8), []

    def lengths(synthesis, ws, y):
        """Of ws and y alone, which is quick."""
        seen.append(len(ws))
        return jnp.square(ws[:, 0]).sum(-1) + y[:, 0, 0, 0]

    monkeypatch.setattr(adversarial, 'path_lengths', lengths)
    asked = judge_of(config).asked._replace(label=None)
    game = game_of(config)._replace(g_tx=optax.sgd(1.0), generator=Straight())
    variables = game.generator.init(jax.random.key(0), asked.z, method='mapping')
    net = Net.create(variables, game.g_tx, True)
    keys = asked.keys_of(PATH)

    def loss(params, z, keys):
        ws = game.generator.apply({'params': params}, z, method='mapping')
        y = jnp.stack([jax.random.normal(key, (8, 8, 1)) for key in keys])
        found = lengths(None, ws, y)
        a = 0.3 + 0.01 * (found.mean() - 0.3)
        return 3 * 5 * ((found - a) ** 2).mean(), a

    for n in (1, 2):
        seen.clear()
        after, told = shortened(game._replace(accumulate=n), asked, (net, jnp.float32(0.3)))
        assert set(seen) == {4 // n}
        each = [
            jax.grad(loss, has_aux=True)(net.params, asked.z[i::n][::2], keys[i::n][::2])
            for i in range(n)
        ]
        gradient, a = jax.tree.map(lambda *x: sum(x) / len(x), *each)
        assert any(x.any() for x in jax.tree.leaves(gradient))
        close(after.params, jax.tree.map(jnp.subtract, net.params, gradient), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(told, a, rtol=1e-5)
        assert not any(differ(after.ema, net.ema))


# --- the contract --------------------------------------------------------------------------------


@pytest.mark.slow
def test_samples_do_not_depend_on_how_many_there_are():
    config = small('dcgan')
    method, state = started(config)
    keys, sample = jax.random.split(jax.random.key(2), 5), jax.jit(method.sample_step)
    together = sample(keys, state, {})
    assert (together.shape, together.dtype) == ((5, 16, 16, 1), jnp.float32)
    assert jnp.abs(together).max() <= 1
    np.testing.assert_allclose(sample(keys[3:4], state, {})[0], together[3], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('network', 'usual', 'changes'),
    [
        ('mlp', {'temperature': 1.0, 'truncation': 0.0}, {'temperature': 0.5, 'truncation': 0.5}),
        ('stylegan2', {'psi': 1.0}, {'psi': 0.5}),
    ],
)
def test_knobs_are_per_sample_and_traced(network, usual, changes):
    method, state = started(config := small(network))
    assert config.sample.knobs.to_dict() == usual
    # A mean w apart from what is drawn.
    extra = {name: jax.tree.map(lambda x: x + 1.0, y) for name, y in state.generator.extra.items()}
    state = state.replace(generator=state.generator.replace(extra=extra))
    keys = jax.random.split(jax.random.key(2), 2)
    usual = {name: jnp.full(2, value) for name, value in usual.items()}
    sample = jax.jit(method.sample_step).lower(keys, state, usual).compile()
    want = sample(keys, state, usual)
    np.testing.assert_allclose(jax.jit(method.sample_step)(keys, state, {}), want, atol=1e-5)
    for name, value in changes.items():
        got = sample(keys, state, usual | {name: usual[name].at[0].set(value)})
        assert jnp.abs(got[0] - want[0]).max() > 1e-4, name
        np.testing.assert_allclose(got[1], want[1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('network', 'knobs'),
    [('mlp', {'temperature': 0.5, 'truncation': 0.1}), ('stylegan2', {'psi': 0.3})],
)
def test_decoding_takes_latents_as_they_are(network, knobs):
    """Whatever samples are asked for: path lengths are of the whole prior."""
    config = small(network)
    method, state = started(config)
    if network == 'stylegan2':
        w_avg = jax.tree.map(lambda x: x + 1, state.generator.extra['w_avg'])
        extra = state.generator.extra | {'w_avg': w_avg}
        state = state.replace(generator=state.generator.replace(extra=extra))
    z = 2 * jax.random.normal(jax.random.key(1), (2, config.model.latent_dim))
    whole = jax.jit(method.decode)(state, z, {})
    config.sample.knobs.update(knobs)
    again = jax.jit(house.create(config).decode)(state, z, {})
    np.testing.assert_array_equal(again, whole)
    assert jnp.ptp(whole) > 0


def test_truncated_noise_is_the_truncated_normal():
    z = jax.random.normal(jax.random.key(0), (20_000,))
    limits = jnp.float32([0.5, 2.0])[:, None]
    for limit, found in zip((0.5, 2.0), np.asarray(within(z[None], limits)), strict=True):
        share = np.linspace(0.02, 0.98, 25)
        want = truncnorm.ppf(share, -limit, limit)
        np.testing.assert_allclose(np.quantile(found, share), want, atol=0.03)
        assert np.abs(found).max() <= limit * (1 + 1e-5)
    np.testing.assert_array_equal(within(z, jnp.zeros(1)), z)
    assert np.isfinite(within(jnp.float32([-6.0, 6.0]), jnp.full(1, 9.0))).all()


WRONG = [
    {'gan.objective': 'hing'},
    {'gan.penalty': 'r3'},
    {'gan.augment': ('colour',)},
    {'gan.n_critic': 0},
    {'batch_size': 9, 'gan.n_critic': 2},
    {'gan.label_smoothing': 1.0},
    {'gan.fake_smoothing': -0.1},
    {'gan.d_rate_ratio': 0.0},
    {'gan.penalty_weight': -1.0},
    {'gan.penalty_target': 0.0},
    {'gan.penalty_target': 2.0, 'gan.penalty': 'r1'},
    {'gan.penalty_every': 0},
    {'gan.feature_matching': 1.5},
    {'gan.unroll': -1},
    {'gan.unroll': 1, 'gan.penalty': 'r1', 'gan.penalty_every': 4},
    {'gan.clip_weights': 0.1},  # of a game that is no critic's
    {'gan.objective': 'wasserstein'},  # with nothing that bounds its gradient
    {'gan.objective': 'hinge', 'gan.label_smoothing': 0.1},
    {'model.condition': 'concat'},  # without labels
    {'ema_decay': 1.0},
    {'ema_start': -1},
    {'sample.knobs.temperature': -1.0},
    {'sample.standing': -1},
]


@pytest.mark.parametrize('changes', WRONG, ids=lambda x: next(iter(x)))
def test_a_wrong_config_is_told_in_one_line(changes):
    config = small()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=next(iter(changes)).replace('.', r'\.')) as error:
        house.create(config)
    assert '\n' not in str(error.value)


CRITIC_OF_BATCHES = {'gan.objective': 'wasserstein', 'model.d_spectral': True}
MISFITS = [
    ('stylegan2', {'model.mbstd_group': 3}),
    ('stylegan2', {'model.mbstd_group': 4, 'batch_size': 24, 'gan.n_critic': 2, 'accumulate': 2}),
    ('progressive', {'data.image_size': 2}),
    ('dcgan', CRITIC_OF_BATCHES),
]


@pytest.mark.parametrize(('network', 'changes'), MISFITS)
def test_what_does_not_fit_a_network_is_told_in_one_line(network, changes):
    with pytest.raises(UserError, match=f'config.{next(iter(changes))}=') as error:
        house.create(small(network, **changes))
    assert '\n' not in str(error.value)


def test_what_fits_is_not_refused():
    house.create(small('stylegan2', model__mbstd_group=64, batch_size=6))
    house.create(small('dcgan', **CRITIC_OF_BATCHES, model__d_batch_norm=False))


def test_path_length_is_stylegan2s():
    for network, weight in (('stylegan', 0.0), ('stylegan2', 2.0)):
        assert house.default('gans.adversarial', network=network).gan.path_length == weight


@pytest.mark.parametrize('network', ['mlp', 'dcgan'])
def test_spectral_normalisation_is_of_every_kernel(network):
    """Minibatch discrimination's too, or the slope had no bound."""
    changes = {'model.d_spectral': True, 'model.minibatch_kernels': 2}
    changes |= {'model.d_batch_norm': False} if network == 'dcgan' else {}
    config = small(network, **changes)
    state = jax.eval_shape(house.create(config).init, jax.random.key(0), batch_of(config))
    net = state.discriminator
    kernels = {path[:-1] for path in flatten_dict(net.params) if path[-1] == 'kernel'}
    assert kernels == {path[:-1] for path in flatten_dict(net.extra['spectral'])}


def test_batch_norm_forbids_a_penalty_of_single_images():
    changes = {'gan__penalty': 'wgan_gp', 'gan__objective': 'wasserstein'}
    with pytest.raises(UserError, match='ties the images of a batch'):
        house.create(small('dcgan', **changes))
    house.create(small('dcgan', **changes, model__d_batch_norm=False))
    with pytest.raises(UserError, match='ties the images of a batch'):
        house.create(small('deep_conv', **changes))
    house.create(small('deep_conv', **changes, model__d_spectral=True))


def test_a_wrong_image_is_told():
    method, state = started(small())
    for image in (jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 5, 5, 1))):
        with pytest.raises(UserError, match='has shape'):
            method.train_step(jax.random.key(0), state, {'image': image})


def test_advice():
    fine = {'d_real_accuracy': 0.8, 'd_fake_accuracy': 0.995, 'g_diversity': 0.9}
    assert adversarial.advise(fine) == {}
    wins = adversarial.advise(fine | {'d_real_accuracy': 0.999})
    assert '99.5%' in wins['the discriminator wins']
    collapsed = adversarial.advise({'g_diversity': 0.1})
    assert '10%' in collapsed['mode collapse']


def test_the_loop_says_once_what_goes_wrong(caplog):
    loop = train.Loop.__new__(train.Loop)
    loop.faults, loop.said = set(), set()
    both = {'a': 'do x', 'b': 'do y'}
    advice = [
        {'a': 'do x'},
        {'b': 'do y'},
        {'a': 'do x'},
        {'a': 'do x'},
        both,
        both,
        {},
        both,
        both,
    ]
    program = types.SimpleNamespace(method=types.SimpleNamespace(advise=advice.__getitem__))
    loop.program = program
    for i in range(len(advice)):
        loop.warn(i, i)
    said = [record.getMessage() for record in caplog.records]
    assert said[:2] == ['step 3: a: do x', 'step 5: b: do y']
    assert sorted(said[2:]) == ['step 8: a: do x', 'step 8: b: do y']


RESIDUAL = {**SMALL['resnet'], 'data.num_classes': 10}
# What a run has beside parameters, of which a resumed one has to know how far it was.
KINDS = {
    'lazy penalty, fading noise': (
        'mlp',
        {
            'data.image_size': 8,
            'gan.penalty': 'r1',
            'gan.penalty_every': 2,
            'gan.instance_noise': 0.1,
            'gan.instance_noise_steps': 5,
        },
    ),
    'spectral vectors, statistics of classes': ('resnet', {**RESIDUAL, 'gan.n_critic': 2}),
    'BigGAN, augmented': (
        'biggan',
        {
            **RESIDUAL,
            'model.attention': (4,),
            'model.shared_dim': 4,
            'gan.augment': ('color', 'translation', 'cutout'),
            'gan.consistency': 1.0,
            'ema_start': 2,
        },
    ),
    'critic': (
        'dcgan',
        {
            'model.d_batch_norm': False,
            'gan.objective': 'wasserstein',
            'gan.penalty': 'wgan_gp',
            'gan.n_critic': 2,
            'accumulate': 2,
        },
    ),
    'path length, mean of w': (
        'stylegan2',
        {
            'gan.penalty': 'r1',
            'gan.penalty_every': 2,
            'gan.style_mixing': 0.9,
            'gan.path_length': 2.0,
            'gan.path_length_every': 2,
            'ema_rampup': 0.05,
        },
    ),
    'a size that fades in': ('progressive', {}),
}


@pytest.mark.slow
@pytest.mark.usefixtures('traced_once', 'compiled_once')
@pytest.mark.parametrize('kind', KINDS)
def test_resumed_equals_uninterrupted(tmp_path, capsys, kind):
    network, changes = KINDS[kind]
    config = house.default('gans.adversarial', network=network)
    config.update_from_flattened_dict(SMALL.get(network, {}) | changes)
    changes = {'checkpoint_every': 4, 'sample_every': 0, 'log_every': 2, 'tensorboard': False}
    config.update(changes)

    def fingerprint(folder, steps):
        config.steps = steps
        train.run(config, tmp_path / folder)
        return capsys.readouterr().out.split('fingerprint ')[1].split()[0]

    whole = fingerprint('whole', 5)
    assert fingerprint('parts', 3) != whole  # between two lazy steps, and half faded in
    assert fingerprint('parts', 5) == whole
