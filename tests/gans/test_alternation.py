"""Who moves when, what each player learns from, and the statistics and averages that samples take.

On networks of two dense layers, which compile quickly; running statistics on DCGAN's.
"""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from games import NOISE, batch_of, close, differ, judge_of, small, started, stepped
from PIL import Image

from configs import dcgan_fashion_mnist
from gen_jax import evaluate, sample, train
from gen_jax.errors import UserError
from gen_jax.gans.adversarial import discriminator_step, game_of, generator_step
from gen_jax.gans.game import Judge
from gen_jax.gans.latents import within
from gen_jax.method import play


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
    batches = {'batches': 4, 'batch_size': config.batch_size, 'accumulate': 1}
    assert rows['diversity_ssim']['standing'] == batches


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
