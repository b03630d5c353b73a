"""--mode=inspect: what a config is made of, without running it."""

import dataclasses
from pathlib import Path

import jax
from clu import parameter_overview

from gen_jax import latent
from gen_jax.method import Net
from gen_jax.plan import mean_flops
from gen_jax.runtime import workdir
from gen_jax.runtime.checkpoint import fingerprint
from gen_jax.runtime.program import Program
from gen_jax.sample import load


def run(config, folder: Path, step: str | None = None) -> None:
    """Prints each network's parameters with the exact total, FLOPs of a step, the fingerprint."""
    program = Program(config, latent.method(config))
    workdir.check(config, folder, after_training=True)
    for name, net in nets(program.state_shape).items():
        print(f'{name}:')
        print(parameter_overview.get_parameter_overview(net.params, include_stats=False))
        print(f'{name}: {count(net.params):,} parameters')
    flops, n = mean_flops(program), config.batch_size
    print(f'train_step: {flops:.4g} FLOPs in products and convolutions for a batch of {n}')
    if (folder / 'checkpoints').exists():
        step, state = load(program, folder, step)
        print(f'step {step}, state fingerprint {fingerprint(state)}')


def nets(state) -> dict[str, Net]:
    """The networks of a method's state, by the names of its fields; 'a.b' of a state within."""
    found = {}
    for name, value in ((name, getattr(state, name)) for name in state.__dataclass_fields__):
        if isinstance(value, Net):
            found[name] = value
        elif dataclasses.is_dataclass(value):
            found |= {f'{name}.{inner}': net for inner, net in nets(value).items()}
    return found


def count(params) -> int:
    """How many numbers a pytree of arrays or shapes holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
