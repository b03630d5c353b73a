"""Styles that change on the way through the generator, and path lengths."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from games import batch_of, close, differ, judge_of, small, started

from gen_jax.gans import adversarial
from gen_jax.gans.adversarial import game_of, shortened
from gen_jax.gans.game import PATH, styles
from gen_jax.method import Net


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
