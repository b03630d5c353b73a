"""Plans, and the figures they stand on; where libtpu is installed, as it makes them."""

import importlib.util
import json
import re
import runpy
import types
from pathlib import Path

import jax
import numpy as np
import plan_scaling
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gen_jax import plan
from gen_jax.config import create, default
from gen_jax.errors import UserError
from gen_jax.runtime import config_file, cost, process, sharding, topology
from gen_jax.runtime.program import Program

ROOT = Path(__file__).parents[1]
VAE = f'--config={ROOT}/configs/vae_fashion_mnist.py:tiny'
needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'), reason='could not import libtpu'
)


@pytest.mark.parametrize(
    ('names', 'says'),
    [
        ('v9:2x2', r"'v9:2x2' is of no known TPU; known are such as v3:2x4, .*v6e:2x4$"),
        ('', 'known are such as'),
        ('v5e', 'v5e comes as v5e:1x1, v5e:2x2, .*v5e:16x16$'),
        ('v5e:4x4,v5e:3x3', "'v5e:3x3': v5e comes as"),
        ('v4:4x4', 'v4 comes as v4:1x1x1, .*v4:2x2x1'),
    ],
)
def test_an_unknown_topology_lists_the_known(names, says):
    with pytest.raises(UserError, match=says):
        topology.parse(names)


def test_topologies_in_a_list_and_by_default():
    four, pair = topology.parse('v5e:4x4, v3:2x2')
    assert (four.name, four.chips, four.chip.devices) == ('v5e:4x4', 16, 1)
    assert (pair.chips, pair.chip.devices) == (4, 2)
    kinds = {where.name.split(':')[0] for where in topology.parse(None)}
    assert kinds == {'v4', 'v5e', 'v6e'}


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tpu\]'"):
        topology.devices(topology.parse('v5e:2x2')[0])


@pytest.mark.parametrize(
    ('message', 'expected'),
    [
        (
            'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory '
            'space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.',
            (20.5 * 2**30, 15.75 * 2**30),
        ),
        (
            'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
            'temporaries (1.5T) exceeds available HBM (512M).',
            (1.5 * 2**40, 2**29),
        ),
        ('RESOURCE_EXHAUSTED: Ran out of scoped vmem: used 20M of 16M', None),
        ('INTERNAL: Used 20.50G of 15.75G hbm', None),
    ],
)
def test_what_the_compiler_says_of_memory(message, expected):
    assert cost.exhausted(message) == expected


def test_memory_in_all_counts_an_alias_once():
    n = 1000
    add = jax.jit(lambda x, y: x + y, donate_argnums=0)
    number = jax.ShapeDtypeStruct((n,), np.float32)
    found = cost.memory(add.lower(number, number).compile())
    assert (found['arguments'], found['outputs'], found['aliased']) == (8 * n, 4 * n, 4 * n)
    assert found['total'] == 8 * n + found['temporaries'] + found['code']


def test_images_hours_and_chip_hours():
    config = default('diffusion.gaussian')
    config.steps, config.batch_size, config.sample.batch_size = 7200, 32, 16
    parts = {
        'train_step': {'seconds': 0.5},
        'sample_step': {'seconds': 0.001},  # its loop counts once, so this says nothing
        'network_call': {'seconds': 0.02},
    }
    assert plan.rates(config, parts, network_calls=50, chips=4) == pytest.approx(
        {
            'train_images_per_second': 64,
            'hours': 1,
            'chip_hours': 4,
            'sample_images_per_second': 16,
        }
    )
    del parts['network_call']
    assert plan.rates(config, parts, 1, 4)['sample_images_per_second'] == pytest.approx(16_000)
    parts['train_step'] = parts['sample_step'] = {'needed': 2, 'available': 1, 'fitting': []}
    assert plan.rates(config, parts, 50, 4) == {}


def described(data, fsdp, method='diffusion.gaussian', **fields):
    """As much of a program as the search for a smaller one looks at."""
    config = plan.changed(default(method), fields)
    mesh = AbstractMesh((data, fsdp, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    return types.SimpleNamespace(config=config, mesh=mesh)


@pytest.mark.parametrize(
    ('batch_size', 'accumulate', 'times', 'expected'),
    [
        (64, 1, 1.1, [32, 16, 8]),
        (64, 1, 3.0, [16, 8]),
        (64, 4, 1.1, [32]),  # each of four parts is split over eight devices
        (24, 1, 1.5, [8]),  # 12 does not divide
        (8, 1, 1.5, []),
    ],
)
def test_smaller_batches_divide_the_mesh(batch_size, accumulate, times, expected):
    program = described(4, 2, batch_size=batch_size, accumulate=accumulate)
    tried = plan.smaller_batches(program, 'batch_size', times)
    assert [changes['batch_size'] for changes in tried] == expected


def test_sampling_is_not_divided_by_accumulation():
    program = described(4, 1, **{'sample.batch_size': 16, 'accumulate': 4})
    assert plan.smaller_batches(program, 'sample.batch_size', 1.5) == [
        {'sample.batch_size': 8},
        {'sample.batch_size': 4},
    ]


def test_finer_meshes_keep_the_number_of_devices():
    assert plan.finer_meshes(described(6, 2)) == [
        {'mesh.data': 4, 'mesh.fsdp': 3},
        {'mesh.data': 3, 'mesh.fsdp': 4},
        {'mesh.data': 2, 'mesh.fsdp': 6},
        {'mesh.data': 1, 'mesh.fsdp': 12},
    ]
    assert plan.finer_meshes(described(1, 8)) == []


@pytest.mark.parametrize(
    ('accumulate', 'times', 'expected'),
    [(1, 1.1, [2, 3, 4, 6, 12]), (1, 3.5, [4, 6, 12]), (2, 1.5, [3, 4, 6, 12]), (12, 1.1, [])],
)
def test_more_parts_divide_the_batch_and_the_mesh(accumulate, times, expected):
    program = described(4, 2, batch_size=96, accumulate=accumulate)
    assert [changes['accumulate'] for changes in plan.more_parts(program, times)] == expected


def test_what_a_method_refuses_is_not_tried():
    """A discriminator of five steps divides each part of its batch by five."""
    fields = {'gan.n_critic': 5, 'batch_size': 200, 'data.image_size': 16}
    program = described(4, 2, 'gans.adversarial', **fields)
    sizes = [changes['batch_size'] for changes in plan.smaller_batches(program, 'batch_size', 1.1)]
    assert sizes == [80, 40]
    program.config.batch_size = 160
    assert [changes['accumulate'] for changes in plan.more_parts(program, 1.1)] == [2, 4]


@pytest.mark.parametrize('least', [1, 5, 8, 9])
def test_the_first_that_fits_is_found_in_few_compilations(monkeypatch, least):
    (where,) = topology.parse('v5e:2x4')
    compiled = []

    def measure(k, chip):
        compiled.append(k)
        if k < least:
            raise cost.OutOfMemory(2, 1)

    monkeypatch.setattr(plan, 'with_changes', lambda program, changes: changes['accumulate'])
    monkeypatch.setattr(cost, 'measure', measure)
    tried = [{'accumulate': k} for k in range(1, 9)]
    found = plan._first_fitting(None, where, lambda k: k, tried)
    assert found == (None if least == 9 else {'accumulate': least})
    assert len(compiled) <= (1 if least == 1 else 4)


def test_a_changed_config_leaves_the_first_alone():
    config = default('diffusion.gaussian')
    assert plan.changed(config, {'mesh.fsdp': 4}).mesh.fsdp == 4
    assert config.mesh.fsdp == 1


@pytest.mark.parametrize(
    ('asked', 'devices', 'nearest'),
    [
        ((-1, 3, 1), 16, 'data=4 x fsdp=4 x tensor=1'),
        ((3, 2, 1), 4, 'data=2 x fsdp=2 x tensor=1'),
        ((-1, 1, 5), 6, 'data=1 x fsdp=1 x tensor=6'),
        ((-1, 64, 1), 16, 'data=1 x fsdp=16 x tensor=1'),
    ],
)
def test_a_mesh_that_does_not_divide_names_the_nearest_that_does(asked, devices, nearest):
    sizes = dict(zip(sharding.AXES, asked, strict=True))
    with pytest.raises(UserError, match=f'there are {devices}: try {nearest}$'):
        sharding.make_mesh(sizes, [None] * devices)


@pytest.mark.parametrize(('batch_size', 'nearest'), [(130, 128), (200, 256), (3, 128)])
def test_a_batch_that_does_not_divide_names_the_nearest_that_does(batch_size, nearest):
    mesh = AbstractMesh((64, 2, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    with pytest.raises(UserError, match=f'batch_size={batch_size} .* 128 parts .* try {nearest}$'):
        sharding.check_divides(batch_size, mesh, 'batch_size')


def test_the_state_is_cut_into_nearly_as_many_slices_as_there_are_chips():
    config = default('diffusion.gaussian')
    config.model.channels, config.model.multipliers, config.model.groups = 128, (1, 2), 32
    state = jax.eval_shape(
        lambda: create(config).init(
            jax.random.key(0), {'image': np.zeros((1, 8, 8, 1), np.float32)}
        )
    )
    mesh = AbstractMesh((1, 16, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    placed = sharding.state_shardings(mesh, state)
    whole = sum(leaf.size for leaf in jax.tree.leaves(state))
    held = jax.tree.map(lambda leaf, where: np.prod(where.shard_shape(leaf.shape)), state, placed)
    assert whole / sum(jax.tree.leaves(held)) > 14


@needs_libtpu
@pytest.mark.parametrize(
    ('name', 'sizes', 'most', 'plain'),
    [
        ('v5e:16x16', (64, 4, 1), 4.0, 5.4),
        ('v5e:16x16', (32, 4, 2), 6.5, 9.8),
        ('v4:4x4x4', (16, 4, 1), 3.5, 4.8),
        ('v5e:2x4', (2, 4, 1), 3.6, 3.4),  # the plain order is as near as it gets
        ('v5e:1x1', (1, 1, 1), 0.0, 0.0),
    ],
)
def test_neighbours_on_the_mesh_are_neighbours_among_chips(name, sizes, most, plain):
    devices = topology.devices(topology.parse(name)[0])
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)), devices)
    assert sorted(x.id for x in mesh.devices.flat) == sorted(x.id for x in devices)
    assert sharding.hops(np.array(devices).reshape(sizes)) >= plain
    assert sharding.hops(mesh.devices) <= most
    # Whatever the order, processes read each row of a batch, none twice.
    held = NamedSharding(mesh, P(('data', 'fsdp'))).devices_indices_map((len(devices),))
    rows = {}
    for device, (part,) in held.items():
        rows.setdefault(device.process_index, set()).update(range(*part.indices(len(devices))))
    assert sum(map(len, rows.values())) == len(devices)


def test_published_weights_of_a_loss_need_not_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv('GEN_JAX_WEIGHTS', str(tmp_path))
    monkeypatch.setattr(topology, 'devices', lambda where: jax.devices()[:1])
    config = default('autoencoders.first_stage')
    config.first_stage.perceptual, config.data.image_size = 'squeeze', 32

    def part(program, where, name):
        held = jax.tree.leaves(program.state_shape.perceptual)
        # SqueezeNet 1.1 without its classifier, and the seven heads.
        assert sum(np.prod(x.shape) for x in held) == 722_496 + 2_240
        return {}

    monkeypatch.setattr(plan, 'part', part)
    (where,) = topology.parse('v5e:1x1')
    assert plan.plan(config, where)['train_step'] == {}


@needs_libtpu
def test_a_product_costs_what_it_must():
    (where,) = topology.parse('v5e:2x2')
    devices = topology.devices(where)
    mesh = Mesh(np.array(devices), ('data',))
    rows, all_rows = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())
    m, k, n = 4096, 1024, 512
    lowered = jax.jit(
        lambda x, y: x.T @ y, in_shardings=(rows, rows), out_shardings=all_rows
    ).lower(jax.ShapeDtypeStruct((m, k), np.float32), jax.ShapeDtypeStruct((m, n), np.float32))
    found = cost.measure(lowered, where.chip)
    # A quarter of the rows each, and the sum of the products over all four.
    assert found['flops'] == pytest.approx(2 * m * k * n / 4, rel=0.01)
    sent = 4 * k * n * 2 * 3 / 4
    assert found['collectives'] == {'all-reduce': {'count': 1, 'bytes': 4 * k * n, 'sent': sent}}
    assert found['memory']['arguments'] == 4 * m * (k + n) / 4
    assert found['memory']['outputs'] == 4 * k * n
    assert found['bytes'] >= 4 * (m * (k + n) / 4 + k * n)
    assert found['roofline']['flops'] == pytest.approx(found['flops'] / 197e12)
    assert found['roofline']['memory'] == pytest.approx(found['bytes'] / 819e9)
    assert found['roofline']['interconnect'] == pytest.approx(sent / 200e9)
    assert found['seconds'] == max(*found['roofline'].values(), found['optimal_seconds'])


@needs_libtpu
def test_a_loop_is_given_its_flops():
    (where,) = topology.parse('v3:2x2')
    device = topology.devices(where)[0]
    one = NamedSharding(Mesh(np.array([device]), ('data',)), P())
    lowered = jax.jit(
        lambda x: jax.lax.fori_loop(0, 100, lambda i, x: x @ x, x),
        in_shardings=one,
        out_shardings=one,
    ).lower(jax.ShapeDtypeStruct((256, 256), np.float32))
    flops = 100 * 2 * 256**3
    found = cost.measure(lowered, where.chip, lambda: flops)
    assert found['flops'] == flops
    # Half a chip: v3 has two devices.
    assert found['roofline']['flops'] == pytest.approx(flops / (123e12 / 2))
    assert cost.measure(lowered, where.chip)['flops'] < flops / 50


def test_a_step_in_parts_costs_them_all_and_moves_the_optimiser_once():
    chip = topology.CHIPS['v3']  # two devices
    sent = {'all-reduce': {'count': 8, 'bytes': 200e6, 'sent': 332e6}}
    whole = {'memory': {'total': 7}, 'collectives': sent}
    part = {'flops': 123e9, 'bytes': 900e6, 'optimal_seconds': 0.004}
    found = cost.in_parts(whole, part, 4, 50e6, chip)
    # Three of four times the optimiser's 50 MB are not read, nor written.
    assert found == {
        'memory': {'total': 7},
        'flops': 4 * 123e9,
        'bytes': pytest.approx(4 * 900e6 - 300e6),
        'collectives': sent,
        'optimal_seconds': pytest.approx(0.016 - 300e6 / 450e9),
        'roofline': {
            'flops': pytest.approx(0.008),
            'memory': pytest.approx(3300e6 / 450e9),
            'interconnect': pytest.approx(0.002),
        },
        'seconds': pytest.approx(0.016 - 300e6 / 450e9),
    }
    unknown = cost.in_parts(whole, part | {'optimal_seconds': None}, 4, 50e6, chip)
    assert (unknown['optimal_seconds'], unknown['seconds']) == (None, pytest.approx(0.008))


def test_steps_that_differ_cost_their_mean_and_need_what_the_largest_do():
    chip = topology.CHIPS['v5e']
    one = {
        'memory': {'total': 7, 'code': 1},
        'flops': 100e12,
        'bytes': 819e9,
        'collectives': {'all-reduce': {'count': 4, 'bytes': 160e9, 'sent': 200e9}},
        'optimal_seconds': 2.0,
    }
    two = {
        'memory': {'total': 9, 'code': 0},
        'flops': 200e12,
        'bytes': 0,
        'collectives': {
            'all-gather': {'count': 8, 'bytes': 480e9, 'sent': 400e9},
            'all-reduce': {'count': 0, 'bytes': 0, 'sent': 0},
        },
        'optimal_seconds': 6.0,
    }
    assert cost.mean([(0.75, one), (0.25, two)], chip) == {
        'memory': {'total': 9, 'code': 0},
        'flops': pytest.approx(125e12),
        'bytes': pytest.approx(0.75 * 819e9),
        'collectives': {
            'all-reduce': {'count': 3, 'bytes': 120e9, 'sent': pytest.approx(150e9)},
            'all-gather': {'count': 2, 'bytes': 120e9, 'sent': pytest.approx(100e9)},
        },
        'optimal_seconds': pytest.approx(3.0),
        'roofline': {
            'flops': pytest.approx(125 / 197),
            'memory': pytest.approx(0.75),
            'interconnect': pytest.approx(1.25),
        },
        'seconds': pytest.approx(3.0),
    }
    unknown = cost.mean([(0.75, one), (0.25, two | {'optimal_seconds': None})], chip)
    assert (unknown['optimal_seconds'], unknown['seconds']) == (None, pytest.approx(1.25))


def test_steps_are_of_kinds_by_stage_and_by_what_they_lack():
    """Of eleven steps from 0 on: a change after six, one term every second, one every fourth."""
    config = plan.changed(default('gans.adversarial'), {'steps': 11})
    lazy = {'gan.penalty_weight': 4, 'gan.path_length': 2}
    program = types.SimpleNamespace(
        config=config, method=types.SimpleNamespace(lazy=lazy), stage=lambda step: 8 << (step > 5)
    )
    both = tuple(lazy)
    assert plan.kinds_of_steps(program) == [
        {'step': 10, 'without': ('gan.penalty_weight',), 'share': 2 / 11},  # and 6
        {'step': 9, 'without': both, 'share': 2 / 11},  # and 7
        {'step': 8, 'without': (), 'share': 1 / 11},
        {'step': 5, 'without': both, 'share': 3 / 11},  # and 1, 3
        {'step': 4, 'without': (), 'share': 2 / 11},  # and 0
        {'step': 2, 'without': ('gan.penalty_weight',), 'share': 1 / 11},
    ]
    program.method.lazy = None
    program.stage = lambda step: None
    assert plan.kinds_of_steps(program) == [{'step': 10, 'without': (), 'share': 1}]


def test_a_plan_weighs_steps_with_a_lazy_penalty_and_without(monkeypatch):
    """By the operations that programs ask for, in place of compiled ones."""

    def asked(program, where, step):
        nothing = {'bytes': 0, 'collectives': {}, 'optimal_seconds': None}
        return {'memory': {'total': program.flops()}, 'flops': program.flops(), **nothing}

    monkeypatch.setattr(plan, 'of_step', asked)
    (where,) = topology.parse('v5e:1x1')
    config = default('gans.adversarial', network='mlp')
    config.update_from_flattened_dict({'steps': 8, 'gan.penalty': 'r1', 'gan.penalty_every': 4})
    with_it, without = (
        Program(other, create(other)).flops()
        for other in (config, plan.changed(config, {'gan.penalty': ''}))
    )
    found = plan.train_step(Program(config, create(config)), where)
    assert found['flops'] == pytest.approx(without + (with_it - without) / 4)
    assert found['memory'] == {'total': with_it}
    assert [kind['share'] for kind in found['kinds']] == [0.75, 0.25]
    assert with_it > 1.1 * without


@needs_libtpu
@pytest.mark.slow
def test_accumulating_changes_memory_and_not_flops():
    (where,) = topology.parse('v5e:2x2')
    config = default('autoencoders.vae')
    config.batch_size, config.model.channels, config.model.hidden = 1024, 8, 16
    steps = []
    for k in (1, 8):
        config.accumulate = k
        program = Program(config, create(config), topology.devices(where))
        steps.append(plan.part(program, where, 'train_step'))
    at_once, in_parts = steps
    assert in_parts['flops'] == pytest.approx(at_once['flops'], rel=0.02)
    # Eight times over the parameters, and maps of fewer images, which fill less of a tile.
    assert in_parts['bytes'] > at_once['bytes']
    assert in_parts['optimal_seconds'] > at_once['optimal_seconds']
    assert in_parts['roofline']['flops'] == pytest.approx(in_parts['flops'] / 197e12)
    assert in_parts['memory']['temporaries'] < at_once['memory']['temporaries']


@needs_libtpu
def test_what_cannot_fit_is_told_in_bytes():
    (where,) = topology.parse('v5e:1x1')
    one = NamedSharding(Mesh(np.array(topology.devices(where)), ('data',)), P())
    n = 2**17
    lowered = jax.jit(lambda x: (x @ x).sum(), in_shardings=one, out_shardings=one).lower(
        jax.ShapeDtypeStruct((n, n), np.float32)
    )
    with pytest.raises(cost.OutOfMemory) as told:
        cost.measure(lowered, where.chip)
    assert told.value.needed >= 4 * n * n
    assert 15 * 2**30 < told.value.available < 16 * 2**30


@needs_libtpu
@pytest.mark.slow
def test_a_plan_is_printed_and_left(main, tmp_path):
    done = main(VAE, '--mode=plan', '--topology=v5e:2x2,v5e:2x4', f'--workdir={tmp_path}/run')
    assert done.returncode == 0, done.stderr
    plans = json.loads((tmp_path / 'run' / 'plan.json').read_text())
    assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == ['plan.json']
    small, large = plans
    assert small['mesh'] == {'data': 4, 'fsdp': 1, 'tensor': 1}
    step = small['train_step']
    assert step['collectives']['all-reduce']['count'] >= 1
    assert step['memory']['total'] < small['hbm'] == 16 * 2**30
    assert small['hours'] == pytest.approx(4 * step['seconds'] / 3600)
    assert 'sample.batch_size=4 is not a multiple of the 8 parts' in large['refused']
    told = [f'v5e:2x2: compiling {name}_step' for name in ('train', 'sample')]
    assert done.stderr.splitlines() == told
    for line in ('v5e:2x2: 4 chips', 'v5e:2x4: config.', 'all-reduce', 'images/s', 'chip-hours'):
        assert line in done.stdout


@needs_libtpu
@pytest.mark.slow
def test_a_config_that_does_not_fit_is_told_what_does(main, tmp_path):
    args = VAE, '--mode=plan', '--topology=v5e:1x1', f'--workdir={tmp_path}'
    # Twice a prime number: in two parts, or in very many.
    done = main(*args, f'--config.batch_size={2 * 1048573}')
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads((tmp_path / 'plan.json').read_text())
    step = plan['train_step']
    assert step['needed'] > step['available']
    assert step['fitting'] == [{'accumulate': 2}]
    assert 'it fits with --config.accumulate=2\n' in done.stdout


@needs_libtpu
def test_one_topology_that_a_batch_does_not_divide_is_one_line(main, tmp_path):
    done = main(VAE, '--mode=plan', '--topology=v5e:16x16', f'--workdir={tmp_path}/run')
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert 'config.batch_size=8 is not a multiple of the 256 parts' in line
    assert line.endswith('try 256')
    assert list(tmp_path.iterdir()) == []


def test_a_topology_is_for_planning_only(main, tmp_path):
    done = main(VAE, '--topology=v5e:2x2', f'--workdir={tmp_path}/run')
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert '--topology is not for --mode=train' in line
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_papers_is_gone_on_with():
    """By what docs/plan.md holds: every row is of a config, on chips, in cells that are filled."""
    rows = plan_scaling.written((ROOT / 'docs/plan.md').read_text(), 'configs')
    assert rows[1][:2] == ('ddpm_cifar10', 'v5e:2x4')
    assert all(len(row) == 5 and all(row) for row in rows)
    every = plan_scaling.missing([])
    for label, name in every:
        assert (ROOT / f'configs/{label}.py').is_file()
        topology.parse(name)
    # Those for CPUs are of these two data sets.
    papers = {x.stem for x in (ROOT / 'configs').glob('*.py')}
    papers = {x for x in papers if 'fashion_mnist' not in x and 'digits' not in x}
    assert {label for label, _ in every} == papers
    assert plan_scaling.missing(rows) == [one for one in every if one not in {r[:2] for r in rows}]
    fits = {'memory': {'total': 3 * topology.GIB / 2}}
    assert plan_scaling.gib(fits) == '1.50'
    full = {'needed': 20 * topology.GIB, 'available': 15.75 * topology.GIB}
    assert plan_scaling.gib({**full, 'fitting': []}) == '20.0 of 15.8: nothing fits'
    fitting = [{'batch_size': 64}, {'mesh.data': 1, 'mesh.fsdp': 8}]
    expected = '20.0 of 15.8: batch_size=64 or mesh.data=1, mesh.fsdp=8 fits'
    assert plan_scaling.gib({**full, 'fitting': fitting}) == expected


@pytest.mark.parametrize('label', plan_scaling.PAPERS)
def test_a_papers_config_tells_the_figures_of_its_row(label):
    """Of its chips of v5e, or of v6e where it does not fit there."""
    found = runpy.run_path(str(ROOT / f'configs/{label}.py'))
    told = found['__doc__'].partition('\nPlan: ')[2].split('\n\n')[0]
    assert 'docs/plan.md' in told
    figures = re.match(
        r'on (\d+) chips of (\w+), (\S+) hours at best \((\S+) chip-hours?\); (\S+) GiB', told
    )
    rows = plan_scaling.written((ROOT / 'docs/plan.md').read_text(), 'configs')
    fitting = {row[1][:3]: row for row in rows if row[0] == label and row[4] != '-'}
    chip = 'v5e' if 'v5e' in fitting else 'v6e'
    _, name, needed, _, images = fitting[chip]
    (where,) = topology.parse(name)
    config = found['get_config']()
    rate = float(images.replace(',', ''))  # a second
    hours = config.steps * config.batch_size / rate / 3600
    both = (f'{float(f"{x:.2g}"):,g}' for x in (hours, where.chips * hours))
    assert figures.groups() == (f'{where.chips}', chip, *both, needed)


@pytest.mark.parametrize('label', plan_scaling.PAPERS)
def test_the_papers_batches_are_whole_on_every_device(label):
    config = config_file.ConfigFile().parse(str(ROOT / f'configs/{label}.py'))
    for where in topology.parse(','.join(plan_scaling.PAPERS[label])):
        parts = where.chips * where.chip.devices // config.mesh.tensor
        assert config.batch_size % (parts * config.accumulate) == 0, where.name
        assert config.sample.batch_size % parts == 0, where.name


def test_a_table_replaces_that_of_its_name_alone(monkeypatch, tmp_path):
    page = tmp_path / 'plan.md'
    one, other = (f'<!-- {x} -->\n| a |\n|---|\n| 1 |\n<!-- /{x} -->\n' for x in ('weak', 'fsdp'))
    page.write_text(f'before\n{one}between\n{other}after\n')
    monkeypatch.setattr(plan_scaling, 'FLAGS', types.SimpleNamespace(out=str(page)))
    plan_scaling.replace('fsdp', [('x', 'y'), ('1', r'\g<1>')])
    table = '<!-- fsdp -->\n| x | y |\n|---|---|\n| 1 | \\g<1> |\n<!-- /fsdp -->\n'
    assert page.read_text() == f'before\n{one}between\n{table}after\n'


def test_a_row_is_what_a_plan_finds_or_why_there_is_none(monkeypatch):
    memory, found = {'memory': {'total': topology.GIB}}, {}

    def apart(function, config, where):
        assert function is plan.plan
        assert (config.gan.grow_steps, where.name) == (25_000, 'v4:2x2x1')
        if not found:
            raise UserError('libtpu ends in SIGSEGV')
        return found

    monkeypatch.setattr(process, 'apart', apart)
    one = 'progan_cifar10', 'v4:2x2x1'
    assert plan_scaling.planned(*one) == (*one, 'libtpu ends in SIGSEGV', '-', '-')
    found = {'train_step': memory, 'train_images_per_second': 1234.5}
    assert plan_scaling.planned(*one) == (*one, '1.00', 'draws nothing', '1,234')
    found = {'train_step': memory, 'sample_step': memory}
    assert plan_scaling.planned(*one) == (*one, '1.00', '1.00', '-')


def test_what_is_missing_here_is_no_row_and_the_others_are_made(monkeypatch, tmp_path, caplog):
    page = tmp_path / 'plan.md'
    page.write_text('<!-- configs -->\n| a |\n|---|\n| 1 |\n<!-- /configs -->\n')

    def planned(label, name):
        if label == 'two':
            raise UserError('weights are not found')
        return label, name

    monkeypatch.setattr(plan_scaling, 'FLAGS', types.SimpleNamespace(out=str(page)))
    monkeypatch.setattr(topology, 'require_compiler', lambda: None)
    every = [('one', 'v4'), ('two', 'v4'), ('three', 'v4')]
    monkeypatch.setattr(plan_scaling, 'missing', lambda rows: every)
    monkeypatch.setattr(plan_scaling, 'planned', planned)
    assert list(plan_scaling.configs())[1:] == [('1',), every[0], every[2]]
    assert 'no row of two on v4: weights are not found' in caplog.text


def test_what_learns_latents_is_planned_with_its_first_stage(tmp_path):
    config = plan_scaling.of_paper('dit_imagenet', tmp_path)
    assert config.latent.workdir == str(tmp_path)
    assert (
        json.loads((tmp_path / 'config.json').read_text())['method'] == 'autoencoders.first_stage'
    )
    assert plan_scaling.of_paper('ddpm_cifar10', tmp_path / 'none').steps == 800_000
    assert not (tmp_path / 'none').exists()
