"""Growing: which size a step trains, what it sees, at what rate, and what samples are then."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from games import batch_of, close, differ, judge_of, small, started

from gen_jax import config as house
from gen_jax.errors import UserError
from gen_jax.gans.game import PENALTY
from gen_jax.gans.growing import Growth, forgotten, shown
from gen_jax.method import Net, optimizer


def test_sizes_grow_and_fade_in():
    """n steps of 4x4, then n in which 8x8 fades in, n of it, and so on."""
    growth = Growth(10, 4, 16)
    want = {0: (0, 1), 9: (0, 1), 10: (1, 0), 15: (1, 0.5), 20: (1, 1), 29: (1, 1), 30: (2, 0)}
    want |= {37: (2, 0.7), 40: (2, 1), 50: (2, 1), 55: (2, 1), 1000: (2, 1)}
    for step, expected in want.items():
        np.testing.assert_allclose(growth.at(np.int64(step)), expected, atol=1e-7)
        traced = jax.jit(growth.at)(jnp.int32(step))
        np.testing.assert_allclose(traced, expected, atol=1e-6)


def test_real_images_are_shown_as_they_fade_in():
    x = jnp.arange(64.0).reshape(1, 8, 8, 1)
    halves = x.reshape(1, 4, 2, 4, 2, 1).mean((2, 4))
    np.testing.assert_allclose(shown(x, 4, jnp.float32(1)), halves)
    np.testing.assert_allclose(shown(x, 8, jnp.float32(1)), x)
    blurred = halves.repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(shown(x, 8, jnp.float32(0.25)), 0.75 * blurred + 0.25 * x)


def test_adam_forgets_where_a_size_begins_and_where_it_stands_alone():
    found = [step for step in range(60) if Growth(5, 4, 16).begins(jnp.int32(step))]
    assert found == [5, 10, 15, 20]  # 8x8 begins, is all there; 16x16
    tx = optimizer(house.default('gans.adversarial').optimizer)
    params = {'w': jnp.ones(2)}
    _, moved = tx.update({'w': jnp.ones(2)}, tx.init(params), params)
    net = Net(params, None, moved, {})
    kept, lost = (forgotten(net, jnp.bool_(x)) for x in (False, True))
    close(kept, net)
    adam = next(x for x in jax.tree.leaves(lost.opt_state, is_leaf=is_adam) if is_adam(x))
    assert not any(x.any() for x in jax.tree.leaves(adam))


def test_growth_may_begin_at_any_size_and_has_rates_of_its_own():
    growth = Growth(10, 8, 32, (1.0, 2.0, 3.0))
    assert growth.sizes == [8, 16, 32]
    assert [step for step in range(99) if growth.begins(jnp.int32(step))] == [10, 20, 30, 40]
    # Two moves a step: 8x8 until step 10, 16x16 fades in and stands until step 30.
    tx = growth.scheduled(2.0)
    state, found = tx.init(jnp.ones(())), []
    for _ in range(70):
        update, state = tx.update(jnp.ones(()), state)
        found.append(float(update))
    assert found == [1.0] * 20 + [2.0] * 40 + [3.0] * 10


@pytest.mark.slow
@pytest.mark.parametrize('n_critic', [1, 2])
def test_both_optimisers_follow_the_rates_of_sizes(n_critic):
    found = []
    for rates in (), (1.0, 0.5):
        config = small('progressive', gan__n_critic=n_critic, gan__grow_rates=rates)
        method, state = started(config)
        step, moved = jax.jit(method.train_step, static_argnames='stage'), []
        for i in range(3):  # 4x4 twice, then 8x8
            key, stage = jax.random.key(i), method.stage(i)
            after, _ = step(key, state, batch_of(config), stage=stage)
            pairs = (after.discriminator, state.discriminator), (after.generator, state.generator)
            moved.append([jax.tree.map(jnp.subtract, a.params, b.params) for a, b in pairs])
            state = after
        found.append(moved)
    same, slower = found
    close(same[:2], slower[:2])
    if n_critic == 1:  # so that both discriminators see the same; Adam has begun anew
        close(jax.tree.map(lambda x: x / 2, same[2][0]), slower[2][0], rtol=5e-3)
    for one, other in zip(same[2], slower[2], strict=True):
        assert any(differ(one, other))


@pytest.mark.parametrize(('size', 'alpha'), [(4, 1.0), (8, 0.25), (8, 1.0), (16, 0.25), (16, 1.0)])
def test_penalties_are_of_the_gradient_by_images_of_full_size(size, alpha):
    """The authors tile all images to full size, of which their discriminators take means."""
    shared = {'data__image_size': 16, 'gan__penalty_weight': 3.0}
    aimed = {'gan__penalty': 'wgan_gp', 'gan__penalty_target': 0.5}
    r1 = judge_of(small('progressive', gan__penalty='r1', **shared))
    wgan_gp = judge_of(small('progressive', **aimed, **shared))
    net, keys, k = r1.game.discriminator, r1.asked.keys_of(PENALTY), 16 // size
    variables = net.init(jax.random.key(2), r1.asked.image, None, train=True)
    rng = np.random.default_rng(3)
    real, fake = (jnp.asarray(rng.normal(size=(4, size, size, 1)), jnp.float32) for _ in range(2))

    @jax.jit
    @jax.grad
    def gradient(x):
        x = nn.avg_pool(x, (k, k), (k, k))
        return net.apply(variables, x, None, train=True, alpha=alpha).sum()

    share = jax.vmap(jax.random.uniform)(keys)[:, None, None, None]
    places = [x.repeat(k, 1).repeat(k, 2) for x in (real, share * real + (1 - share) * fake)]
    lengths = [np.sqrt(np.square(gradient(x)).sum((1, 2, 3))) for x in places]
    wanted = 3 * np.square(lengths[0]).mean() / 2, 3 * np.square(lengths[1] / 0.5 - 1).mean()
    growth = {'size': size, 'alpha': jnp.float32(alpha)}
    for judge, want in zip((r1, wgan_gp), wanted, strict=True):
        judge = judge._replace(game=judge.game._replace(growth=growth))
        np.testing.assert_allclose(judge.penalty(variables, real, fake), want, rtol=1e-5)


def is_adam(x):
    return isinstance(x, optax.ScaleByAdamState)


@pytest.mark.slow
def test_a_step_is_compiled_for_each_size_and_samples_are_of_full_size():
    config = small('progressive')
    method, state = started(config)
    assert [method.stage(step) for step in (0, 1, 2, 3, 4, 99)] == [4, 4, 8, 8, 8, 8]
    before = state
    for i, stage in enumerate((4, 4, 8)):
        state, _ = jax.jit(method.train_step, static_argnames='stage')(
            jax.random.key(i), state, batch_of(config), stage=stage
        )
        moved = differ(
            state.generator.params['block_8_to_rgb'], before.generator.params['block_8_to_rgb']
        )
        # At its first step a new size has no weight yet.
        assert not any(moved)
        image = method.sample_step(jax.random.split(jax.random.key(0), 2), state, {})
        assert image.shape == (2, 8, 8, 1)
        if i == 0:  # in squares of 2x2 pixels
            np.testing.assert_array_equal(image[:, ::2, ::2], image[:, 1::2, 1::2])


WRONG = [
    {'gan.grow_steps': -1},
    {'gan.grow_from': 6},
    {'gan.grow_from': 16},  # of images of 8 pixels
    {'gan.grow_rates': (1.0,)},
    {'gan.grow_rates': (1.0, 0.0)},
    {'gan.grow_steps': 0, 'gan.grow_from': 8},
]


@pytest.mark.parametrize('changes', WRONG, ids=str)
def test_a_wrong_config_is_told_in_one_line(changes):
    config = small('progressive')
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=next(iter(changes)).replace('.', r'\.')) as error:
        house.create(config)
    assert '\n' not in str(error.value)
