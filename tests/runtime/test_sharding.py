import ast
import importlib.util
import re
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from gen_jax.config import create
from gen_jax.data import pipeline
from gen_jax.errors import UserError
from gen_jax.runtime import sharding

ROOT = Path(__file__).parents[2]


def mesh_of(data, fsdp, tensor):
    """A mesh of any size: rules look at sizes only, so no devices are needed."""
    return AbstractMesh((data, fsdp, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def specs(mesh, shapes, rules=()):
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    return {name: s.spec for name, s in sharding.state_shardings(mesh, tree, rules).items()}


def test_one_device_replicates_everything():
    assert specs(mesh_of(1, 1, 1), {'w': (64, 128)}) == {'w': P(None, None)}


def test_the_shape_rule():
    found = specs(
        mesh_of(2, 4, 2),
        {'conv': (3, 3, 64, 128), 'odd': (3, 3, 64, 127), 'bias': (4096,), 'small': (8, 8)},
    )
    assert found == {
        'conv': P(None, None, 'fsdp', 'tensor'),
        'odd': P(None, None, 'fsdp', None),
        'bias': P(),
        'small': P(),
    }


def test_a_regex_overrides_the_shape():
    found = specs(
        mesh_of(1, 2, 2), {'conv': (64, 128), 'out': (64, 128)}, (('out', (None, 'fsdp')),)
    )
    assert found == {'conv': P('fsdp', 'tensor'), 'out': P(None, 'fsdp')}


def test_what_a_device_holds_of_some_fields():
    net = {
        'params': {'w': np.zeros((64, 128), np.float32)},
        'ema': {'w': np.zeros((64, 128), np.float32)},
        'opt_state': [{'mu': {'params_of': np.zeros((8, 8), np.int16)}, 'count': np.int32(0)}],
    }
    state = {'net': net, 'ema_like': np.zeros(3, np.float32)}
    placed = sharding.state_shardings(mesh_of(4, 2, 1), state)
    shapes = sharding.laid_out(state, placed)
    half = 64 * 128 * 4 // 2  # of what fsdp splits
    assert sharding.held(shapes, ('params',)) == half
    assert sharding.held(shapes, ('opt_state', 'ema')) == half + 8 * 8 * 2 + 4


@pytest.mark.parametrize('spec', [('fsdp',) * 3, ('model', None), ('tensor', None)])
def test_a_rule_that_does_not_fit_is_refused(spec):
    with pytest.raises(UserError, match=r'config.mesh.rules: .w. .*\(9, 128\)'):
        specs(mesh_of(1, 3, 2), {'w': (9, 128)}, (('w', spec),))


@pytest.mark.parametrize('spec', [('fsdp', 'fsdp'), ('tensor', 'tensor')])
def test_a_rule_that_names_an_axis_twice_is_refused(spec):
    with pytest.raises(UserError, match='none twice') as error:
        specs(mesh_of(1, 2, 2), {'w': (64, 128)}, (('w', spec),))
    assert '\n' not in str(error.value)


def test_a_rule_for_what_is_not_there_is_refused():
    net = {'conv1': {'kernel': np.zeros((3, 3, 8, 8)), 'bias': np.zeros(8)}}
    state = {'generator': net, 'discriminator': {'dense': np.zeros((8, 4))}}
    sharding.check_rules((('conv', ('fsdp',)), ('discriminator/d', ('fsdp',))), state)
    says = "'Conv' is found in the path of no parameter: .* 'generator/conv1/kernel'"
    with pytest.raises(UserError, match=says):
        sharding.check_rules((('dense', ('fsdp',)), ('Conv', ('fsdp',))), state)


@pytest.mark.parametrize('name', ['ddpm_digits', 'gan_fashion_mnist'])
def test_the_rule_of_the_documentation_fits(name):
    (rules,) = re.findall(r'mesh\.rules="(.*)"', (ROOT / 'docs/scale.md').read_text())
    spec = importlib.util.spec_from_file_location(name, ROOT / f'configs/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.mesh.rules = ast.literal_eval(rules)
    method = create(config)
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in pipeline.batch_spec(config).items()}
    state = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))
    sharding.check_rules(config.mesh.rules, state)
    placed = jax.tree.leaves(sharding.state_shardings(mesh_of(2, 4, 1), state, config.mesh.rules))
    assert sum(x.spec == P(None, None, None, 'fsdp') for x in placed) > 30


def test_a_mesh_of_the_wrong_size_is_refused():
    config = ml_collections.ConfigDict({'data': 3, 'fsdp': 2, 'tensor': 1})
    with pytest.raises(UserError, match='data=3 x fsdp=2 x tensor=1 = 6 devices, but there are'):
        sharding.make_mesh(config, jax.devices()[:1])


def test_one_process_reads_the_whole_batch():
    config = ml_collections.ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    assert sharding.rows(sharding.batch_sharding(mesh), 6).tolist() == [*range(6)]


class Rows:
    """A sharding of which this process holds some rows."""

    def __init__(self, *held):
        self._held = held

    def addressable_devices_indices_map(self, shape):
        return {i: (slice(*rows),) for i, rows in enumerate(self._held)}


@pytest.mark.parametrize(
    ('held', 'expected'),
    [
        ([(0, 2), (2, 4)], [0, 1, 2, 3]),
        ([(4, 6), (6, 8)], [4, 5, 6, 7]),
        ([(6, 8), (6, 8)], [6, 7]),  # two devices share rows: tensor splits the model over them
        ([(0, 8), (0, 8)], [*range(8)]),  # tensor spans the processes: each reads everything
        ([(6, 8), (0, 2)], [0, 1, 6, 7]),  # chips of a host that are no neighbours on the mesh
        ([(None,), (None,)], [*range(8)]),
    ],
)
def test_a_process_reads_the_rows_its_devices_hold(held, expected, monkeypatch):
    found = sharding.rows(Rows(*held), 8)
    assert found.tolist() == expected
    # What it has read lies where it belongs.
    whole = np.arange(16.0).reshape(8, 2)
    monkeypatch.setattr(jax, 'device_put', lambda x, device: (device, x))
    monkeypatch.setattr(jax, 'make_array_from_single_device_arrays', lambda *given: given)
    shape, _, parts = sharding.to_global(whole[found], Rows(*held), found, 8)
    assert shape == (8, 2)
    for device, values in parts:
        np.testing.assert_array_equal(values, whole[slice(*held[device])])


def test_a_batch_that_does_not_divide_is_refused_with_the_next_that_does():
    with pytest.raises(UserError, match=r'config.batch_size=10 .* 4 parts .* try 12'):
        sharding.check_divides(10, mesh_of(2, 2, 3), 'batch_size')
    sharding.check_divides(12, mesh_of(2, 2, 3), 'batch_size')


@pytest.mark.parametrize(('batch_size', 'nearest'), [(20, 32), (24, 32), (50, 64), (3, 32)])
def test_a_batch_whose_parts_do_not_divide_is_told_one_whose_parts_do(batch_size, nearest):
    told = (
        rf'config.batch_size={batch_size} .* 32, the 8 parts .*config.accumulate=4: try {nearest}$'
    )
    with pytest.raises(UserError, match=told):
        sharding.check_divides(batch_size, mesh_of(4, 2, 1), 'batch_size', accumulate=4)
    sharding.check_divides(nearest, mesh_of(4, 2, 1), 'batch_size', accumulate=4)
