import jax
import numpy as np

from gen_jax.runtime import random


def data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_step_keys_follow_the_contract():
    expected = jax.random.fold_in(random.stream(3, 'train'), 7)
    assert data(random.step_key(3, 'train', 7)) == data(expected)
    assert data(jax.jit(lambda s: random.step_key(3, 'train', s))(7)) == data(expected)


def test_a_sample_key_depends_on_its_index_alone():
    few = random.sample_keys(0, 'sample', np.array([5]))
    many = random.sample_keys(0, 'sample', np.arange(9))
    assert data(few[0]) == data(many[5])


def test_seed_name_and_index_each_change_the_key():
    keys = [
        random.step_key(seed, name, step)
        for seed in (0, 1)
        for name in ('train', 'sample')
        for step in (0, 1)
    ]
    assert len({tuple(data(key)) for key in keys}) == 8
