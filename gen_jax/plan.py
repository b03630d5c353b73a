"""--mode=plan: what a config needs and costs on TPUs that are not there.

Programs are compiled for the topology by libtpu. Times are bounds, from the compiler's figures and
the chip's; nothing is measured.
"""

import bisect
import copy
import logging
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ml_collections

from gen_jax import latent
from gen_jax.errors import UserError
from gen_jax.interop import weights
from gen_jax.runtime import cost, process, sharding, workdir
from gen_jax.runtime import topology as topologies
from gen_jax.runtime.program import Program
from gen_jax.runtime.topology import GIB, Topology


def run(config, folder: Path, topology: str | None = None) -> None:
    """Prints what each topology makes of a config, and leaves plan.json. Reads no data.

    Args:
      config: of any method.
      folder: the workdir.
      topology: comma-separated names, such as 'v5e:4x4,v4:2x2x1'; None: `topology.SWEEP`.

    Raises:
      UserError: an unknown topology, no libtpu, a config that is wrong; where one topology is
        asked for, also what `plan` raises. In a list the others are planned all the same.
    """
    latent.method(config)
    asked = topologies.parse(topology)
    topologies.require_compiler()
    plans = []
    for where in asked:
        try:
            plans.append(process.apart(plan, config, where))
        except UserError as error:
            if len(asked) == 1:
                raise
            plans.append({'topology': where.name, 'chips': where.chips, 'refused': str(error)})
        print(in_full(plans[-1]), flush=True)
        workdir.make(folder)
        workdir.write_json(folder / 'plan.json', plans)
    if len(plans) > 1:
        print(in_short(plans))


@weights.shapes_only()
def plan(config, where: Topology) -> dict:
    """What plan.json holds of one topology. Parts are per device, rates of them all.

    `train_step`, `sample_step` and `network_call` are what `cost.measure` gives or, where they do
    not fit, `needed` and `available` bytes and `fitting`, the flags with which they do.

    Raises:
      UserError: the mesh does not divide the devices, or a batch the mesh; what the compiler
        refuses.
    """
    program = Program(config, latent.method(config), topologies.devices(where))
    has = program.method
    asked = {'train_step': True, 'sample_step': has.sample_step, 'network_call': has.denoise}
    parts = {name: part(program, where, name) for name, yes in asked.items() if yes}
    return {
        'topology': where.name,
        'chips': where.chips,
        'devices': program.mesh.size,
        'mesh': dict(program.mesh.shape),
        'batch_size': config.batch_size,
        'steps': config.steps,
        'network_calls': has.network_calls,
        'hbm': where.chip.hbm / where.chip.devices,
        **parts,
        **rates(config, parts, has.network_calls, where.chips),
    }


def rates(config, parts: dict, network_calls: int, chips: int) -> dict:
    """images/s, hours to `config.steps` and chip-hours, of the parts that fit."""
    found = {}
    if seconds := parts['train_step'].get('seconds'):
        hours = config.steps * seconds / 3600
        found = {
            'train_images_per_second': config.batch_size / seconds,
            'hours': hours,
            'chip_hours': hours * chips,
        }
    # The compiler's figures count what is inside the sampler's loop once.
    sampling = parts.get('network_call', parts.get('sample_step', {}))
    if seconds := sampling.get('seconds'):
        calls = network_calls if 'network_call' in parts else 1
        found['sample_images_per_second'] = config.sample.batch_size / (calls * seconds)
    return found


# Each part's batch size in the config, and how its program is made.
PARTS = {
    'train_step': ('batch_size', Program.lower_train),
    'sample_step': ('sample.batch_size', Program.lower_sample),
    'network_call': ('sample.batch_size', Program.lower_call),
}


def part(program: Program, where: Topology, name: str) -> dict:
    """What plan.json holds of one of `PARTS`."""
    logging.info('%s: compiling %s', where.name, name)
    size, lower = PARTS[name]
    training = name == 'train_step'
    try:
        return train_step(program, where) if training else cost.measure(lower(program), where.chip)
    except cost.OutOfMemory as full:
        fitting = partial(_first_fitting, program, where, lower)
        times = full.needed / full.available
        # What keeps the batch's size is nearest to the recipe.
        kept = fitting(more_parts(program, times)) if training else None
        ways = [kept or fitting(smaller_batches(program, size, times))]
        if training:
            ways.append(fitting(finer_meshes(program)))
        return {
            'needed': full.needed,
            'available': full.available,
            'fitting': [changes for changes in ways if changes],
        }


def train_step(program: Program, where: Topology) -> dict:
    """What `cost.measure` gives of a step, on average where steps differ, and their `kinds`."""
    kinds = kinds_of_steps(program)
    shares = [
        (kind['share'], of_step(lacking(program, kind), where, kind['step'])) for kind in kinds
    ]
    if len(kinds) == 1:
        return shares[0][1]
    return {**cost.mean(shares, where.chip), 'kinds': kinds}


def mean_flops(program: Program) -> float:
    """`Program.flops` on average over the training steps of the last one's stage."""
    kinds = [
        kind for kind in kinds_of_steps(program) if program.stage(kind['step']) == program.stage()
    ]
    total = sum(kind['share'] for kind in kinds)
    counted = (kind['share'] * lacking(program, kind).flops(kind['step']) for kind in kinds)
    return sum(counted) / total


def lacking(program: Program, kind: dict) -> Program:
    """The program of the steps of a kind, as `kinds_of_steps` tells it."""
    without = dict.fromkeys(kind['without'], 0.0)
    return with_changes(program, without) if without else program


def kinds_of_steps(program: Program) -> list[dict]:
    """What training steps there are, the last first.

    Returns:
      Of each kind the last `step`, the weights that it is `without` (of `Method.lazy`), and its
      `share` of `config.steps`.
    """
    n, lazy = program.config.steps, program.method.lazy or {}
    last, times = {}, Counter()
    for step in reversed(range(n)):
        kind = program.stage(step), tuple(field for field, every in lazy.items() if step % every)
        last.setdefault(kind, step)
        times[kind] += 1
    return [
        {'step': step, 'without': kind[1], 'share': times[kind] / n} for kind, step in last.items()
    ]


def of_step(program: Program, where: Topology, step: int) -> dict:
    """What `cost.measure` gives of one training step, all parts of its batch counted."""
    config, k = program.config, program.config.accumulate
    lowered = program.lower_train(step)
    if k == 1:
        return cost.measure(lowered, where.chip, lambda: program.flops(step) / program.mesh.size)
    whole = cost.measure(lowered, where.chip)
    one = with_changes(program, {'batch_size': config.batch_size // k, 'accumulate': 1})
    kept = sharding.held(program.state_shape, ('opt_state', 'ema'))
    return cost.in_parts(whole, of_step(one, where, step), k, kept, where.chip)


# Changes that may make a program fit which needs `times` the memory there is: those that change
# least first, those that spare most last.


def more_parts(program: Program, times: float) -> list[dict]:
    """Values of `accumulate` with which the batch stays as it is."""
    config = program.config
    most = config.batch_size // sharding.parts(program.mesh)
    least = max(config.accumulate + 1, math.ceil(config.accumulate * times))
    tried = [{'accumulate': k} for k in range(least, most + 1) if most % k == 0]
    return [changes for changes in tried if _allowed(config, changes)]


def finer_meshes(program: Program) -> list[dict]:
    """Meshes of as many devices that cut the state into more slices."""
    mesh, parts = program.mesh.shape, sharding.parts(program.mesh)
    return [
        {'mesh.data': parts // fsdp, 'mesh.fsdp': fsdp}
        for fsdp in range(mesh['fsdp'] + 1, parts + 1)
        if parts % fsdp == 0
    ]


def smaller_batches(program: Program, size: str, times: float) -> list[dict]:
    """For each halving of a batch size the largest below it that the mesh and the method take."""
    config, tried = program.config, []
    step = sharding.parts(program.mesh) * (config.accumulate if size == 'batch_size' else 1)
    n = _get(config, size)
    for k in range(max(1, math.ceil(math.log2(times))), n.bit_length()):
        whole = range(n // 2**k // step * step, n // 2 ** (k + 1), -step)
        tried += [x for x in whole if _allowed(config, {size: x})][:1]
    return [{size: n} for n in tried]


def _allowed(config, changes: dict) -> bool:
    """Whether the method takes a changed config."""
    try:
        latent.method(changed(config, changes))
    except UserError:
        return False
    return True


def _first_fitting(
    program: Program, where: Topology, lower: Callable, tried: list[dict]
) -> dict | None:
    """The first changes with which the program compiles, of some that each spare more memory."""

    def fits(changes):
        logging.info('%s: trying %s', where.name, changes)
        try:
            cost.measure(lower(with_changes(program, changes)), where.chip)
        except (cost.OutOfMemory, UserError):  # of config.mesh.rules, or the compiler's
            return False
        return True

    # Each may take minutes to compile. The first is a good guess; the others by halves.
    if tried and fits(tried[0]):
        return tried[0]
    first = bisect.bisect_left(tried, True, lo=1, key=fits)
    return tried[first] if first < len(tried) else None


def with_changes(program: Program, changes: dict) -> Program:
    """The program of a changed config on the same devices."""
    config = changed(program.config, changes)
    return Program(config, latent.method(config), list(program.mesh.devices.flat))


def changed(config, changes: dict) -> ml_collections.ConfigDict:
    """A copy of a config with {'dotted.field': value} in it."""
    other = copy.deepcopy(config)
    other.update_from_flattened_dict(changes)
    return other


def _get(config, field: str):
    for name in field.split('.'):
        config = config[name]
    return config


def in_full(plan: dict) -> str:
    """One topology's plan, as a person reads it."""
    if 'refused' in plan:
        return f'\n{plan["topology"]}: {plan["refused"]}'
    parts = {name: plan[name] for name in PARTS if name in plan}
    lines = [f'\n{title(plan)}']
    measured = {name: part for name, part in parts.items() if 'memory' in part}
    if measured:
        lines += [row('per device', *measured)]
        lines += [row(name, *values) for name, values in _rows(measured)]
    if kinds := parts.get('train_step', {}).get('kinds'):
        told = f'the mean of {len(kinds)} kinds of steps, memory what the largest needs'
        lines += [f'  train_step is {told}']
    lines += [does_not_fit(name, part) for name, part in parts.items() if name not in measured]
    return '\n'.join(lines + _totals(plan))


def title(plan: dict) -> str:
    """The topology, its mesh, the batch."""
    mesh = ' x '.join(f'{axis}={size}' for axis, size in plan['mesh'].items())
    return (
        f'{plan["topology"]}: {plan["chips"]} chips, {plan["devices"]} devices as {mesh}, '
        f'batch {plan["batch_size"]}, {plan["hbm"] / GIB:.0f} GiB a device'
    )


def does_not_fit(name: str, part: dict) -> str:
    """One line: what it needs, and with what it would fit."""
    ways = [' '.join(f'--config.{k}={v}' for k, v in flags.items()) for flags in part['fitting']]
    return (
        f'{name} does not fit: it needs {part["needed"] / GIB:.2f} GiB of the '
        f'{part["available"] / GIB:.2f} there are; '
        + (f'it fits with {", or with ".join(ways)}' if ways else 'nothing that was tried does')
    )


def row(name: str, *cells) -> str:
    """One line of a table."""
    return f'  {name:28}' + ''.join(f'{cell:>24}' for cell in cells)


def _rows(parts: dict) -> list[tuple[str, list[str]]]:
    """(name, a cell for each part)."""

    def cells(cell):
        return [cell(part) for part in parts.values()]

    def ms(seconds):
        return '-' if seconds is None else f'{seconds * 1e3:.3f}'

    kinds = dict.fromkeys(kind for part in parts.values() for kind in part['collectives'])
    return [
        *(
            (f'{kind}, GiB', cells(lambda part, kind=kind: f'{part["memory"][kind] / GIB:.3f}'))
            for kind in next(iter(parts.values()))['memory']
        ),
        ('GFLOPs', cells(lambda part: f'{part["flops"] / 1e9:,.2f}')),
        ('memory traffic, GB', cells(lambda part: f'{part["bytes"] / 1e9:,.3f}')),
        *((kind, cells(lambda part, kind=kind: _collective(part, kind))) for kind in kinds),
        ("compiler's optimal time, ms", cells(lambda part: ms(part['optimal_seconds']))),
        *(
            (f'roofline: {bound}, ms', cells(lambda part, bound=bound: ms(part['roofline'][bound])))
            for bound in ('flops', 'memory', 'interconnect')
        ),
    ]


def _collective(part: dict, kind: str) -> str:
    found = part['collectives'].get(kind)
    return f'{found["count"]:,g} x, {found["sent"] / 1e6:,.2f} MB sent' if found else '-'


def _totals(plan: dict) -> list[str]:
    """What comes of it, at best."""
    lines = []
    if 'hours' in plan:
        lines.append(
            f'  training at best {plan["train_images_per_second"]:,.0f} images/s: '
            f'{plan["steps"]:,} steps in {plan["hours"]:.3g} hours, '
            f'{plan["chip_hours"]:.3g} chip-hours'
        )
    if 'sample_images_per_second' in plan:
        lines.append(
            f'  sampling at best {plan["sample_images_per_second"]:,.4g} images/s, in '
            f'{plan["network_calls"]} network calls'
        )
    return lines


def in_short(plans: list[dict]) -> str:
    """The sweep, a line each."""

    def line(plan):
        if 'hours' not in plan:
            return row(plan['topology'], 'refused' if 'refused' in plan else 'does not fit')
        return row(
            plan['topology'],
            f'{plan["train_step"]["memory"]["total"] / GIB:.2f} of {plan["hbm"] / GIB:.0f}',
            f'{plan["train_images_per_second"]:,.0f}',
            f'{plan["hours"]:.3g}',
            f'{plan["chip_hours"]:.3g}',
            f'{plan.get("sample_images_per_second", math.nan):,.4g}',
        )

    heads = 'GiB a device', 'images/s, training', 'hours', 'chip-hours', 'images/s, sampling'
    return '\n'.join(['', row('at best', *heads), *map(line, plans)])
