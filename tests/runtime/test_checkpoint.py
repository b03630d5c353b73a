import contextlib
import gc
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from gen_jax.errors import UserError
from gen_jax.runtime.checkpoint import Checkpoints, fingerprint

# Orbax leaves event loops open when a restore fails; collecting them is not ours to mend.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture(autouse=True)
def collect():
    yield
    gc.collect()


def state(value=0.0, width=4):
    return {'net': {'w': jnp.full((3, width), value), 'b': jnp.arange(width) + value}, 'ema': None}


def shape(of):
    where = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), of)


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state(float(step)), {'next': step * 10})
    checkpoints.close()
    return tmp_path


def restore(folder, *args):
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        return checkpoints.restore(*args)


def truncate(folder):
    """Cuts the files that hold the numbers in half."""
    files = [path for path in folder.glob('state/**/d/*') if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_the_newest_comes_back_with_its_data(saved):
    step, back, data = restore(saved, shape(state()))
    assert (step, data) == (4, {'next': 40})
    assert fingerprint(back) == fingerprint(state(4.0))


@pytest.mark.slow
def test_only_the_newest_are_kept(saved):
    assert sorted(int(p.name) for p in saved.iterdir() if p.name.isdigit()) == [2, 3, 4]


@pytest.mark.slow
def test_a_step_can_be_asked_for_and_an_unknown_one_is_named(saved):
    assert restore(saved, shape(state()), 3)[0] == 3
    with pytest.raises(UserError, match=r'no checkpoint of step 1 .*\[2, 3, 4\]'):
        restore(saved, shape(state()), 1)


@pytest.mark.slow
def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(saved, caplog):
    truncate(saved / '4')
    step, back, _ = restore(saved, shape(state()))
    assert step == 3
    assert fingerprint(back) == fingerprint(state(3.0))
    assert str(saved / '4') in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize('lost', ['state', 'data', 'state/_METADATA'])
def test_a_checkpoint_with_a_part_missing_is_passed_over(saved, lost):
    path = saved / '4' / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert restore(saved, shape(state()))[0] == 3


@pytest.mark.slow
def test_where_none_is_readable_one_line_says_so(saved):
    for step in (2, 3, 4):
        truncate(saved / str(step))
    with pytest.raises(UserError, match='no readable checkpoint') as error:
        restore(saved, shape(state()))
    assert '\n' not in str(error.value)


@pytest.mark.slow
def test_another_config_is_told_by_the_leaves_that_differ(saved):
    with pytest.raises(UserError, match=r'net/w: checkpoint float32\[3, 4\], config float32\[3, 5'):
        restore(saved, shape(state(width=5)))
    extra = {**state(), 'more': jnp.zeros(2)}
    with pytest.raises(UserError, match=r'more: checkpoint has none, config float32\[2\]'):
        restore(saved, shape(extra))
    less = {'net': {'w': state()['net']['w']}, 'ema': None}
    with pytest.raises(UserError, match=r'net/b: checkpoint float32\[4\], config has none'):
        restore(saved, shape(less))


@pytest.mark.slow
def test_what_a_state_has_none_for_is_not_read(saved):
    whole = state(4.0)
    b_alone = {'net': {'w': None, 'b': whole['net']['b']}, 'ema': None}
    for less in ({'net': None, 'ema': None}, b_alone):
        _, back, data = restore(saved, shape(less))
        assert jax.tree.structure(back) == jax.tree.structure(less)
        jax.tree.map(np.testing.assert_array_equal, back, less)
        assert data == {'next': 40}


@pytest.mark.slow
def test_an_empty_folder_gives_none_and_a_missing_one_an_error(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / 'new', keep=1)) as checkpoints:
        assert checkpoints.restore(shape(state())) is None
    with pytest.raises(UserError, match='train first'):
        Checkpoints(tmp_path / 'missing')


@pytest.mark.slow
def test_later_checkpoints_are_set_aside_and_their_steps_written_again(saved):
    truncate(saved / '4')
    checkpoints = Checkpoints(saved, keep=3)
    checkpoints.set_aside_after(3)
    assert checkpoints.restore(shape(state()))[0] == 3
    checkpoints.save(4, state(44.0), {})
    checkpoints.close()
    assert fingerprint(restore(saved, shape(state()))[1]) == fingerprint(state(44.0))
    assert len(list(saved.glob('damaged_4_*'))) == 1


@pytest.mark.slow
def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    step_fn = jax.jit(lambda x: x + 1, donate_argnums=0)
    now = jnp.zeros(4_000_000)
    checkpoints = Checkpoints(tmp_path, keep=8)
    for step in range(1, 6):
        now = step_fn(now)
        checkpoints.save(step, {'x': now}, {})
    for _ in range(20):
        now = step_fn(now)
    checkpoints.close()
    for step in range(1, 6):
        _, back, _ = restore(tmp_path, shape({'x': now}), step)
        assert np.unique(np.asarray(back['x'])).tolist() == [step]


@pytest.mark.slow
def test_fingerprint_sees_every_bit_name_shape_and_type():
    base = {'a': jnp.array([1.0, 2.0])}
    others = [
        {'a': jnp.array([1.0, np.nextafter(np.float32(2), np.float32(3))])},
        {'b': jnp.array([1.0, 2.0])},
        {'a': jnp.array([[1.0, 2.0]])},
        {'a': jnp.array([1.0, 2.0]).view(jnp.int32)},
    ]
    assert fingerprint(base) == fingerprint(json.loads('{"a": 0}') | base)
    assert len({fingerprint(tree) for tree in [base, *others]}) == 5
