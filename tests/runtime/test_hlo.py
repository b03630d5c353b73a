import json
import os
import subprocess
import sys

import pytest

from gen_jax.runtime import hlo

# Seven devices: a loop that the program counts, one that a comparison bounds, one of unknown
# length; a pair of start and done; a collective that overlaps with two fusions; a branch.
PROGRAM = """\
HloModule jit_f, is_scheduled=true, num_partitions=7

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%counted (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %x = f32[4,8]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %ar.1 = f32[4,8]{1,0:T(8,128)} all-reduce(%x), channel_id=1, replica_groups={}, to_apply=%add
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%x, %ar.1)
}

%counted_condition (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%bounded (p: (s32[], bf16[2,3])) -> (s32[], bf16[2,3]) {
  %p = (s32[], bf16[2,3]{1,0}) parameter(0)
  %s = (bf16[2,3]{1,0}, bf16[2,3]{1,0}, u32[]{:S(2)}, /*index=3*/u32[]{:S(2)}) \
collective-permute-start(%p), channel_id=2, source_target_pairs={{0,1}}
  %d = bf16[2,3]{1,0:T(8,128)(2,1)} collective-permute-done(%s)
  ROOT %t = (s32[], bf16[2,3]{1,0}) tuple(%p, %d)
}

%bounded_condition (p: (s32[], bf16[2,3])) -> pred[] {
  %p = (s32[], bf16[2,3]{1,0}) parameter(0)
  %n = s32[]{:T(128)} constant(6)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%start_of_gather (p: f32[1,5]) -> (f32[7,5], u32[]) {
  %p = f32[1,5]{1,0} parameter(0)
  %ag.1 = f32[7,5]{1,0} all-gather(%p), channel_id=3, dimensions={0}
  ROOT %c = (f32[7,5]{1,0}, u32[]) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%rest_of_gather (p: f32[1,5]) -> f32[7,5] {
  %p = f32[1,5]{1,0} parameter(0)
  ROOT %ag.2 = f32[7,5]{1,0} all-gather(%p), channel_id=3, dimensions={0}
}

%wrapped (p: f32[14]) -> f32[2] {
  %p = f32[14]{0} parameter(0)
  ROOT %rs = f32[2]{0} reduce-scatter(%p), channel_id=4, dimensions={0}, to_apply=%add
}

%all-reduce-scatter.6 (p: f32[14,3], q: f32[14,3]) -> f32[2,3] {
  %p = f32[14,3]{1,0} parameter(0)
  %ar = f32[14,3]{1,0} all-reduce(%p), channel_id=8, replica_groups=[1,7]<=[7], to_apply=%add
  %i = s32[] partition-id()
  ROOT %part = f32[2,3]{1,0} dynamic-slice(%ar, %i)
}

%taken (p: s8[7,3]) -> s8[7,3] {
  %p = s8[7,3]{1,0} parameter(0)
  ROOT %aa = s8[7,3]{1,0} all-to-all(%p), channel_id=5, dimensions={0}
}

%other (p: s8[7,3]) -> s8[7,3] {
  ROOT %p = s8[7,3]{1,0} parameter(0)
}

ENTRY %main (a: f32[4,8], b: pred[]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %w.1 = (s32[], f32[4,8]{1,0}) while(%a), condition=%counted_condition, body=%counted, \
backend_config={"known_trip_count":{"n":"5"}}
  %w.2 = (s32[], bf16[2,3]{1,0}) while(%a), condition=%bounded_condition, body=%bounded
  %f.1 = (f32[7,5]{1,0}, u32[]) fusion(%a), kind=kCustom, calls=%start_of_gather
  %f.2 = f32[7,5]{1,0} fusion(%f.1), kind=kOutput, calls=%rest_of_gather
  %s = ((f32[14]{0}), f32[2]{0}) async-start(%a), calls=%wrapped
  %d = f32[2]{0} async-done(%s), calls=%wrapped
  %c = s8[7,3]{1,0} conditional(%b), branch_computations={%taken, %other}
  %f.3 = f32[2,3]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.6
  %g.1 = (f32[1,5]{1,0}, f32[2,5]{1,0}) all-gather-start(%a), channel_id=10, \
replica_groups={{0,1},{2,3},{4,5}}, dimensions={0}
  %g.2 = f32[2,5]{1,0} all-gather-done(%g.1)
  %w.3 = (s32[], f32[4,8]{1,0}) while(%a), condition=%counted_condition, body=%counted
  ROOT %r = (f32[3]{0}, f32[]) all-reduce(%a, %a), channel_id=9, to_apply=%add
}
"""


def test_a_programs_collectives():
    reduced, gathered = (5 + 1) * 4 * 8 * 4 + 3 * 4 + 4, 7 * 5 * 4
    scattered = [2 * 4, 2 * 3 * 4]  # by itself, and a fusion's
    among_two = 2 * 5 * 4
    assert hlo.collectives(PROGRAM) == {
        'all-reduce': {
            'count': 5 + 1 + 1,
            'bytes': reduced,
            'sent': pytest.approx(reduced * 12 / 7),
        },
        'all-gather': {
            'count': 2,
            'bytes': gathered + among_two,
            'sent': pytest.approx(gathered * 6 / 7 + among_two / 2),
        },
        'reduce-scatter': {'count': 2, 'bytes': sum(scattered), 'sent': sum(scattered) * 6},
        'all-to-all': {'count': 1, 'bytes': 7 * 3, 'sent': pytest.approx(6 * 3)},
        'collective-permute': {'count': 6, 'bytes': 6 * 2 * 3 * 2, 'sent': 6 * 2 * 3 * 2},
    }


# Branches one of which has another inside.
BRANCHES = """\
%none (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}

%small (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %cp = f32[8]{0} collective-permute(%p), channel_id=1
}

%two (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %cp.1 = f32[8]{0} collective-permute(%p), channel_id=2
  ROOT %cp.2 = f32[8]{0} collective-permute(%cp.1), channel_id=3
}

%large (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %c = f32[8]{0} conditional(%p, %p, %p), true_computation=%none, false_computation=%two
  ROOT %ar = f32[8]{0} all-reduce(%c), channel_id=4, to_apply=%none
}

ENTRY %main (a: f32[8], b: s32[]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %c = f32[8]{0} conditional(%b, %a, %a, %a), branch_computations={%small, %large, %two}
}
"""


def test_of_branches_that_which_sends_most_counts():
    found = hlo.collectives(BRANCHES)
    assert {kind: (x['count'], x['bytes']) for kind, x in found.items()} == {
        'all-reduce': (1, 32),
        'collective-permute': (2, 64),
    }


def test_a_program_without_any():
    text = 'ENTRY %main (a: f32[4]) -> f32[4] {\n  ROOT %a = f32[4]{0} parameter(0)\n}\n'
    assert hlo.collectives(text) == {}


@pytest.mark.parametrize(
    ('shape', 'size'),
    [
        ('f32[]', 4),
        ('pred[3]{0}', 3),
        ('bf16[128,2]{1,0:T(8,128)(2,1)S(1)}', 512),
        ('f8e4m3fn[5]', 5),
        ('s4[6]{0}', 3),
        ('c64[2]', 16),
        ('f32[0,7]', 0),
        ('(f32[2]{0}, /*index=1*/(u8[3]{0}, s32[]))', 15),
        ('token[]', 0),
    ],
)
def test_the_bytes_of_a_shape(shape, size):
    assert hlo.shape_bytes(shape) == size


KNOWN = """
import json
import jax
import jax.numpy as jnp
from functools import partial
from jax.sharding import PartitionSpec as P
from gen_jax.runtime import hlo

mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))

@jax.jit
@partial(jax.shard_map, mesh=mesh, in_specs=P('x'), out_specs=P('x'), check_vma=False)
def f(x):  # [16, 24] on each device
    x = jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(jax.lax.psum(x, 'x')), x)
    gathered = jax.lax.all_gather(x, 'x', tiled=True)  # [128, 24]
    scattered = jax.lax.psum_scatter(jnp.cos(gathered), 'x', tiled=True)  # [16, 24]
    swapped = jax.lax.all_to_all(jnp.tanh(scattered), 'x', 0, 0, tiled=True)  # [16, 24]
    return jax.lax.ppermute(jnp.sin(swapped), 'x', [(i, (i + 1) % 8) for i in range(8)])

lowered = f.lower(jax.ShapeDtypeStruct((128, 24), jnp.float32))
print(json.dumps(hlo.collectives(lowered.compile().as_text())))
"""


def test_collectives_that_are_known_on_eight_devices():
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
    }
    command = [sys.executable, '-c', KNOWN]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    share = 16 * 24 * 4
    found = json.loads(done.stdout)
    known = {
        'all-reduce': (5, 5 * share, 5 * share * 2 * 7 / 8),
        'all-gather': (1, 8 * share, 7 * share),
        'reduce-scatter': (1, share, 7 * share),
        'all-to-all': (1, share, share * 7 / 8),
        'collective-permute': (1, share, share),
    }
    assert {
        kind: (x['count'], x['bytes'], pytest.approx(x['sent'])) for kind, x in found.items()
    } == known
